"""From samples to figures, ratios, tables and plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.inference.measure import CONCURRENCY, SIZES, Case, Sample
from bench.inference.servers import SERVERS, Server
from bench.report import Result, Rows, medians

__all__ = ["Round", "plot", "result"]

NOTE = """\
Ratios are ours to theirs, each the median over the rounds of the ratio within a round. The best peer of a case \
is the one with the highest throughput over that protocol (for `http_oip` among those that speak the Open \
Inference Protocol); its p99 is what ours is compared with. `bare` is the graph behind the listeners that we use, \
`vs_uvicorn` compares with the graph on uvicorn. Neither servers nor clients are pinned: both share \
all cores. Load is a closed loop: wrk with one connection per caller (its correction for coordinated omission \
taken out again: the others have none), h2load with at most 8 connections that share the callers. The same \
request is sent over and over; `http` is rows as JSON, each server's own way (MLServer: the Open Inference \
Protocol), `grpc` is `ModelInfer` with raw contents, `stream` one call with 64 requests of one row that are sent at \
once (ours: `PredictStream` with rows; the others: `ModelStreamInfer`): requests are counted, and the times are those \
of the call. Every server runs the same ONNX graph in onnxruntime with \
one thread and was asked once for every case before it was measured: probabilities equal within 1e-5. CPU is \
that of the server's whole process tree (ours: Ray's head and service process included; the broker's is not), \
memory its proportional set size."""


PEERS = frozenset(server.name for server in SERVERS if server.kind == "peer")
COLORS = {server.name: f"C{index}" for index, server in enumerate(SERVERS)}
LINES: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("requests/s", lambda sample: sample.throughput),
    ("p50 ms", lambda sample: sample.p50),
    ("p99 ms", lambda sample: sample.p99),
)


@dataclass(frozen=True)
class Round:
    """What one start of a server gave: samples by case, and its memory in bytes."""

    samples: Mapping[Case, Sample]
    memory: int


Rounds = Mapping[str, Sequence[Round]]


def result(
    rounds: Rounds,
    missing: Mapping[str, str],
    seconds: int,
    load: float | None = None,
    remark: str = "",
) -> Result:
    """Everything that is reported.

    Args:
        rounds: per server that was measured, in the order of measuring.
        missing: why others were not.
        seconds: length of one sample.
        load: of the machine before the first one.
        remark: what else a reader must know.
    """
    figures = _figures(rounds)
    ratios = _ratios(rounds)
    note = NOTE + remark
    if missing:
        note += "\n\nNot measured: " + "; ".join(f"{k}: {v}" for k, v in missing.items()) + "."
    return Result(
        "inference",
        "Serving one model: Everloop beside what people use today",
        figures,
        ratios,
        note,
        load,
        tables=_tables(rounds, ratios),
        more={"missing": dict(missing), "rounds": _count(rounds), "seconds": seconds},
    )


def _count(rounds: Rounds) -> int:
    return max(map(len, rounds.values()), default=0)


def _cases(rounds: Rounds) -> list[Case]:
    return list(dict.fromkeys(case for some in rounds.values() for case in some[0].samples))


def _middle(some: Sequence[Round], case: Case, value: Callable[[Sample], float]) -> float:
    same = _counterpart(some[0], case)
    return medians([value(one.samples[same]) for one in some]) if same else math.nan


def _figures(rounds: Rounds) -> list[dict[str, float | str]]:
    return [
        {
            "server": name,
            "door": case.door,
            "rows": SIZES[case.size],
            "callers": case.callers,
            "requests/s": _middle(some, case, lambda sample: sample.throughput),
            "p50 ms": _middle(some, case, lambda sample: sample.p50),
            "p99 ms": _middle(some, case, lambda sample: sample.p99),
            "CPU µs": _middle(some, case, lambda sample: sample.cpu),
            "beside µs": _middle(some, case, lambda sample: sample.beside),
            "errors": sum(one.samples[case].errors for one in some),
            "memory MiB": medians([one.memory / 2**20 for one in some]),
        }
        for name, some in rounds.items()
        for case in some[0].samples
    ]


def _ratios(rounds: Rounds) -> dict[str, float]:
    """Of ours to the best peer and to the bare listeners, for every case that both have."""
    ratios: dict[str, float] = {}
    if "everloop" not in rounds:
        return ratios
    for case in rounds["everloop"][0].samples:
        pairs = [
            (one.samples[case], best[1])
            for index, one in enumerate(rounds["everloop"])
            if (best := _best_peer(rounds, case, index))
        ]
        if pairs:
            ratios[f"{case}.vs_best_peer"] = median(a.throughput / b.throughput for a, b in pairs)
            ratios[f"{case}.p99_vs_best_peer"] = median(a.p99 / b.p99 for a, b in pairs)
            ratios[f"{case}.cpu_vs_best_peer"] = median(a.cpu / b.cpu for a, b in pairs)
        for name, key in (("bare", "vs_bare"), ("bare-uvicorn", "vs_uvicorn")):
            against = [
                one.samples[case].throughput / other.throughput
                for one, two in zip(rounds["everloop"], rounds.get(name, ()), strict=False)
                if (other := two.samples.get(case))
            ]
            if against:
                ratios[f"{case}.{key}"] = median(against)
    return {name: float(f"{value:.4g}") for name, value in ratios.items()}


def _best_peer(rounds: Rounds, case: Case, index: int) -> tuple[str, Sample] | None:
    """The peer with the highest throughput in a round."""
    found = [
        (name, one.samples[same])
        for name, some in rounds.items()
        if name in PEERS and index < len(some)
        for one in [some[index]]
        if (same := _counterpart(one, case))
    ]
    return max(found, key=lambda item: item[1].throughput, default=None)


def _counterpart(one: Round, case: Case) -> Case | None:
    """What a server has for a case: over HTTP it may speak only the Open Inference Protocol."""
    doors = ("http", "http_oip") if case.door == "http" else (case.door,)
    return next((same for door in doors if (same := replace(case, door=door)) in one.samples), None)


def _tables(rounds: Rounds, ratios: Mapping[str, float]) -> dict[str, Rows]:
    tables: dict[str, Rows] = {
        "What ran, and its memory in MiB": [
            {
                "server": server.name,
                "runs": server.runs,
                "memory": f"{median(one.memory for one in rounds[server.name]) / 2**20:,.0f}",
            }
            for server in _measured(rounds)
        ],
        "Ours to theirs": _ratio_table(rounds, ratios),
    }
    for door, size in _groups(rounds):
        cases = [Case(door, size, callers) for callers in CONCURRENCY]
        tables[f"`{door}`, {SIZES[size]} row(s): requests/s, p50 / p99 in ms, CPU µs"] = [
            {"server": name, **{f"{case.callers} callers": _cell(some, case) for case in cases}}
            for name, some in rounds.items()
            if any(_counterpart(some[0], case) for case in cases)
        ]
    return tables


def _groups(rounds: Rounds) -> list[tuple[str, str]]:
    return list(dict.fromkeys((case.door, case.size) for case in _cases(rounds)))


def _cell(some: Sequence[Round], case: Case) -> str:
    if not _counterpart(some[0], case):
        return ""
    return (
        f"{_middle(some, case, lambda sample: sample.throughput):,.0f}, "
        f"{_middle(some, case, lambda sample: sample.p50):.3g} / "
        f"{_middle(some, case, lambda sample: sample.p99):.3g}, "
        f"{_middle(some, case, lambda sample: sample.cpu):,.0f}"
    )


def _ratio_table(rounds: Rounds, ratios: Mapping[str, float]) -> Rows:
    rows: list[dict[str, float | str]] = []
    for case in _cases(rounds):
        if f"{case}.vs_best_peer" not in ratios:
            continue
        names = [
            best[0]
            for index in range(len(rounds["everloop"]))
            if (best := _best_peer(rounds, case, index))
        ]
        goal = 3 if case.size == "single" and case.callers > 1 else 2
        rows.append(
            {
                "case": f"`{case}`",
                "best peer": max(names, key=names.count),
                "throughput": f"{ratios[f'{case}.vs_best_peer']:.2f} (≥ {goal})",
                "p99": f"{ratios[f'{case}.p99_vs_best_peer']:.2f} (≤ 0.5)",
                "CPU": f"{ratios[f'{case}.cpu_vs_best_peer']:.2f}",
                **{
                    f"throughput, to {name}": f"{ratios[f'{case}.{key}']:.2f} (≥ 0.7)"
                    if f"{case}.{key}" in ratios
                    else ""
                    for name, key in (("bare", "vs_bare"), ("bare uvicorn", "vs_uvicorn"))
                },
            }
        )
    return rows


def _measured(rounds: Rounds) -> list[Server]:
    return [server for server in SERVERS if server.name in rounds]


def plot(rounds: Rounds) -> Figure:
    """Draws throughput and latency against callers, and processor time and memory as bars."""
    groups = _groups(rounds)
    measured = _cases(rounds)
    figure = Figure(figsize=(15, 3 * len(groups) + 0.6), layout="constrained")
    grid = figure.subplots(len(groups), len(LINES) + 1, squeeze=False)
    for (door, size), axes in zip(groups, grid, strict=True):
        cases = [Case(door, size, callers) for callers in CONCURRENCY]
        # What is compared by bars: 8 callers, or the fewest that were measured.
        by = next(case for case in (cases[1], *cases) if case in measured)
        shown = {name: some for name, some in rounds.items() if _counterpart(some[0], by)}
        for axis, (label, value) in zip(axes, LINES, strict=False):
            for name, some in shown.items():
                # Nothing that was answered has no place on a logarithmic axis.
                values = [_middle(some, case, value) or math.nan for case in cases]
                width = 2.5 if name == "everloop" else 1.2
                axis.plot(CONCURRENCY, values, "o-", color=COLORS[name], lw=width, ms=4)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(CONCURRENCY, [str(callers) for callers in CONCURRENCY])
            axis.set_title(f"{door}, {SIZES[size]} row(s): {label}", fontsize=9)
            axis.grid(alpha=0.3)
        _bars(axes[-1], shown, by)
    handles = [Line2D([], [], color=COLORS[name], marker="o", label=name) for name in rounds]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _bars(axis: Any, shown: Rounds, case: Case) -> None:
    names = list(shown)[::-1]
    cpu = [_middle(shown[name], case, lambda sample: sample.cpu) for name in names]
    memory = [median(one.memory for one in shown[name]) / 2**20 for name in names]
    labels = [f"{name} ({size:,.0f} MiB)" for name, size in zip(names, memory, strict=True)]
    bars = axis.barh(labels, cpu, color=[COLORS[name] for name in names])
    axis.bar_label(bars, [f"{value:,.0f}" for value in cpu], fontsize=7, padding=2)
    axis.set_xlim(0, 1.15 * max(cpu))
    axis.set_title(f"CPU µs a request at {case.callers} callers (memory)", fontsize=9)
    axis.tick_params(labelsize=7)
