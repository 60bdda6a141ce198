"""From samples to figures, ratios, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.figure import Figure

from bench.inference.measure import CONCURRENCY, SIZES, Case, Sample
from bench.inference.servers import SERVERS, Server
from bench.report import Result, Rows, medians

__all__ = ["Round", "plot", "result"]

NOTE = """\
Ratios are ours to theirs, each the median over the rounds of the ratio within a round. The best peer of a case \
is the one with the highest throughput over that protocol (for `http_oip` among those that speak the Open \
Inference Protocol); its p99 is what ours is compared with. Neither servers nor clients are pinned: both share \
all cores. Load is a closed loop: wrk with one connection per caller (its correction for coordinated omission \
taken out again: the others have none), h2load with at most 8 connections that share the callers. The same \
request is sent over and over; `http` is rows as JSON, each server's own way (MLServer: the Open Inference \
Protocol), `grpc` is `ModelInfer` with raw contents. Every server runs the same ONNX graph in onnxruntime with \
one thread and was asked once for every case before it was measured: probabilities equal within 1e-5. CPU is \
that of the server's whole process tree (ours: Ray's head and service process included; the broker's is not), \
memory its proportional set size."""


@dataclass(frozen=True)
class Round:
    """What one start of a server gave: samples by case, and its memory in bytes."""

    samples: Mapping[Case, Sample]
    memory: int


Rounds = Mapping[str, Sequence[Round]]


def result(rounds: Rounds, missing: Mapping[str, str], seconds: int) -> Result:
    """Everything that is reported.

    Args:
        rounds: per server that was measured, in the order of measuring.
        missing: why others were not.
        seconds: length of one sample.
    """
    figures = _figures(rounds)
    ratios = _ratios(rounds)
    note = NOTE
    if missing:
        note += "\n\nNot measured: " + "; ".join(f"{k}: {v}" for k, v in missing.items()) + "."
    return Result(
        "inference",
        "Serving one model: Everloop beside what people use today",
        figures,
        ratios,
        note,
        tables=_tables(rounds, ratios),
        more={"missing": dict(missing), "rounds": _count(rounds), "seconds": seconds},
    )


def _count(rounds: Rounds) -> int:
    return max(map(len, rounds.values()), default=0)


def _cases(rounds: Rounds) -> list[Case]:
    return list(dict.fromkeys(case for some in rounds.values() for case in some[0].samples))


def _middle(some: Sequence[Round], case: Case, value: Callable[[Sample], float]) -> float:
    return medians([value(one.samples[case]) for one in some])


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
        bare = [one.samples.get(case) for one in rounds.get("bare", ())]
        against = [
            one.samples[case].throughput / other.throughput
            for one, other in zip(rounds["everloop"], bare, strict=False)
            if other
        ]
        if against:
            ratios[f"{case}.vs_bare"] = median(against)
    return {name: float(f"{value:.4g}") for name, value in ratios.items()}


def _best_peer(rounds: Rounds, case: Case, index: int) -> tuple[str, Sample] | None:
    """The peer with the highest throughput in a round."""
    doors = ("http", "http_oip") if case.door == "http" else (case.door,)
    found = [
        (server.name, sample)
        for server in SERVERS
        if server.kind == "peer" and index < len(rounds.get(server.name, ()))
        for door in doors
        if (sample := rounds[server.name][index].samples.get(Case(door, case.size, case.callers)))
    ]
    return max(found, key=lambda item: item[1].throughput, default=None)


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
    for door, size in dict.fromkeys((case.door, case.size) for case in _cases(rounds)):
        rows = [
            {"server": name, **{f"{n} callers": _cell(some, door, size, n) for n in CONCURRENCY}}
            for name, some in rounds.items()
            if Case(door, size, CONCURRENCY[0]) in some[0].samples
        ]
        tables[f"`{door}`, {SIZES[size]} row(s): requests/s, p50 / p99 in ms, CPU µs"] = rows
    return tables


def _cell(some: Sequence[Round], door: str, size: str, callers: int) -> str:
    case = Case(door, size, callers)
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
                "throughput, to bare": f"{ratios[f'{case}.vs_bare']:.2f} (≥ 0.7)"
                if f"{case}.vs_bare" in ratios
                else "",
            }
        )
    return rows


def _measured(rounds: Rounds) -> list[Server]:
    return [server for server in SERVERS if server.name in rounds]


def plot(rounds: Rounds) -> Figure:
    """Draws throughput and latency against callers, and processor time and memory as bars."""
    groups = list(dict.fromkeys((case.door, case.size) for case in _cases(rounds)))
    figure = Figure(figsize=(15, 3.2 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 4, squeeze=False)
    colors = {server.name: f"C{index}" for index, server in enumerate(SERVERS)}
    lines: list[tuple[str, Callable[[Sample], float]]] = [
        ("requests/s", lambda sample: sample.throughput),
        ("p50 ms", lambda sample: sample.p50),
        ("p99 ms", lambda sample: sample.p99),
    ]
    for (door, size), axes in zip(groups, grid, strict=True):
        shown = {
            name: some
            for name, some in rounds.items()
            if Case(door, size, CONCURRENCY[0]) in some[0].samples
        }
        for axis, (label, value) in zip(axes, lines, strict=False):
            for name, some in shown.items():
                values = [_middle(some, Case(door, size, n), value) for n in CONCURRENCY]
                width = 2.5 if name == "everloop" else 1.2
                axis.plot(CONCURRENCY, values, "o-", color=colors[name], label=name, lw=width)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(CONCURRENCY, [str(n) for n in CONCURRENCY])
            axis.set_title(f"{door}, {SIZES[size]} row(s): {label}", fontsize=9)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7)
        cpu = [
            _middle(some, Case(door, size, 8), lambda sample: sample.cpu) for some in shown.values()
        ]
        memory = [median(one.memory for one in some) / 2**20 for some in shown.values()]
        labels = [f"{name} ({size:,.0f} MiB)" for name, size in zip(shown, memory, strict=True)]
        axes[3].barh(labels[::-1], cpu[::-1], color=[colors[name] for name in shown][::-1])
        axes[3].set_xscale("log")
        axes[3].set_title("CPU µs a request at 8 callers (memory)", fontsize=9)
        axes[3].tick_params(labelsize=7)
    return figure
