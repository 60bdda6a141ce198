"""How soon drift is told after it began, and how often while there is none: ours, NannyML in batch, and Evidently.

Synthetic shifts of known onset and size, some seeds of each; and real data, where nobody knows when what began: the
flights of 2013, and what NannyML ships. Each method as it comes, with its own limits; an alert of any feature is an
alarm of the chunk. `make bench-drift` takes half an hour, most of it Evidently's; `ARGS=--quick` is one seed and
few chunks, unpublished.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

from matplotlib.figure import Figure

from bench.drift.environment import evidently
from bench.drift.methods import METHODS, Alarms
from bench.drift.worlds import ONSET, SYNTHETIC, World, real, synthetic
from bench.report import Result, load_before, write

SEEDS = 2
REAL_CHUNKS = 20

NOTE = """\
Synthetic: 7 numbers and 3 texts, 10,000 rows of reference, 30 chunks of 1,000; the shift begins with chunk 15. The
delay counts chunks from the first one that is shifted (0: that very one was told), averaged over the seeds; `never`
where no chunk was told, `n of m` where only some seeds' were. `inputs` is what needs no labels (ours: drift, PCA,
answers, segments), `performance` an estimated or realised ROC AUC. False alarms are counted over all chunks without a
shift. Where only the reason of the target changes (concept), alarms of `inputs` are chance. Ours has its defaults (1 %
for each condition) with any feature as an alarm, NannyML and Evidently have theirs; everybody saw the same rows, and
Evidently's preset sets no limit to performance. Real data: the share of chunks that was told, and the first; March is
the reference of the flights, April to December follow. The machine was shared with other work: times are rough."""


def delay(told: Sequence[bool]) -> float:
    """Chunks from the onset to the first that was told; infinite if none was.

    >>> delay([True] * 15 + [False, True] + [False] * 13)
    1
    """
    after = list(told)[ONSET:]
    return after.index(True) if True in after else math.inf


def shown(delays: Sequence[float]) -> str:
    """Delays of several seeds.

    >>> shown([0, 1]), shown([math.inf] * 2), shown([2, math.inf])
    ('0.5', 'never', '2 (1 of 2)')
    """
    found = [one for one in delays if one < math.inf]
    if not found:
        return "never"
    told = f"{mean(found):.2g}"
    return told if len(found) == len(delays) else f"{told} ({len(found)} of {len(delays)})"


def false_rate(worlds: Sequence[World], told: Sequence[Sequence[bool]]) -> float:
    """Alarms per 100 chunks without a shift."""
    alarms = [
        alarm
        for world, chunks in zip(worlds, told, strict=True)
        for changed, alarm in zip(world.changed or (), chunks, strict=True)
        if not changed
    ]
    return round(100 * mean(alarms), 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-drift", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--beside", type=int, default=2, help="processes of Evidently at a time")
    parser.add_argument("--chunks", type=int, default=REAL_CHUNKS, help="chunks of each real data")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, ten real chunks; unpublished"
    )
    options = parser.parse_args()
    load = load_before()
    # NannyML and what it stands on warn of much that is none of ours.
    warnings.simplefilter("ignore")
    seeds, chunks = (1, 10) if options.quick else (options.seeds, options.chunks)
    worlds = {name: [synthetic(name, seed) for seed in range(seeds)] for name in SYNTHETIC}
    lasting = list(real(chunks))
    every = [world for those in (*worlds.values(), lasting) for world in those]
    evidently()
    # Evidently's processes take longest: they run beside, and each counts its own processor time.
    with ThreadPoolExecutor(options.beside) as pool:
        asked = [pool.submit(METHODS["Evidently"], world) for world in every]
        told: dict[str, list[Alarms]] = {}
        for method, watch in METHODS.items():
            print(method, file=sys.stderr)
            if method != "Evidently":
                told[method] = [watch(world) for world in every]
        told["Evidently"] = [one.result() for one in asked]
    place = {id(world): number for number, world in enumerate(every)}
    alarms = {
        (name, method): [found[place[id(world)]] for world in those]
        for name, those in worlds.items()
        for method, found in told.items()
    }
    watched = [
        (world, {method: found[place[id(world)]] for method, found in told.items()})
        for world in lasting
    ]
    write(_result(worlds, alarms, watched, load), _plot(worlds, alarms), publish=not options.quick)


def _result(
    worlds: dict[str, list[World]],
    alarms: dict[tuple[str, str], list[Alarms]],
    lasting: Sequence[tuple[World, dict[str, Alarms]]],
    load: float,
) -> Result:
    seeds = len(next(iter(worlds.values())))
    delays: list[dict[str, float | str]] = []
    for name in worlds:
        if name == "quiet":
            continue
        row: dict[str, float | str] = {"shift": name}
        for method in METHODS:
            those = alarms[name, method]
            row[f"{method}: inputs"] = shown([delay(one.inputs) for one in those])
            row[f"{method}: performance"] = shown([delay(one.performance) for one in those])
        delays.append(row)
    everywhere = [world for those in worlds.values() for world in those]
    # Where only the target's reason changes, a chunk's inputs are those of the reference: no shift for them.
    false: list[dict[str, float | str]] = []
    for method in METHODS:
        every = [one for name in worlds for one in alarms[name, method]]
        false.append(
            {
                "method": method,
                "inputs": false_rate(everywhere, [one.inputs for one in every]),
                "performance": false_rate(everywhere, [one.performance for one in every]),
                "processor ms per chunk": round(1000 * mean(one.seconds for one in every), 1),
            }
        )
    told: list[dict[str, float | str]] = []
    for world, by_method in lasting:
        for method, found in by_method.items():
            told.append(
                {
                    "data": world.name,
                    "chunks": len(world.chunks),
                    "method": method,
                    "inputs told %": round(100 * mean(found.inputs)),
                    "first": _first(found.inputs),
                    "performance told %": round(100 * mean(found.performance)),
                    "first bad": _first(found.performance),
                }
            )
    ours, others = false[0], {row["method"]: row for row in false[1:]}
    ratios = {
        f"false_alarms.{part}.{method}_less_ours": float(row[part]) - float(ours[part])
        for method, row in others.items()
        for part in ("inputs", "performance")
    }
    return Result(
        "drift",
        "How soon drift is told, and how often wrongly",
        delays,
        ratios,
        f"{NOTE} Seeds: {seeds}.",
        load,
        tables={
            "Chunks from the onset to the first alarm:": delays,
            "False alarms per 100 chunks:": false,
            "Real data:": told,
        },
        more={"false_alarms": false, "real": told},
    )


def _first(told: Sequence[bool]) -> str:
    return str(list(told).index(True)) if any(told) else "never"


def _plot(worlds: dict[str, list[World]], alarms: dict[tuple[str, str], list[Alarms]]) -> Figure:
    figure = Figure(figsize=(9, 1.1 * len(worlds)), layout="constrained")
    axes = figure.subplots(len(worlds), 1, sharex=True)
    for axis, name in zip(axes, worlds, strict=True):
        for place, method in enumerate(METHODS):
            told = [one.inputs for one in alarms[name, method]]
            share = [mean(chunks) for chunks in zip(*told, strict=True)]
            axis.step(range(len(share)), share, where="mid", label=method, lw=2 - 0.4 * place)
        axis.axvline(ONSET - 0.5, color="grey", lw=0.8, ls=":")
        axis.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center")
        axis.set_yticks([0, 1])
    axes[0].legend(loc="upper left", ncols=len(METHODS), fontsize="small")
    axes[-1].set_xlabel(
        "chunk; the shift begins at the dotted line. Share of the seeds told from inputs"
    )
    return figure


if __name__ == "__main__":
    main()
