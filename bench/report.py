"""What every benchmark leaves: figures as JSON, a plot, and its section in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".everloop" / "bench"
DOCS = ROOT / "docs" / "benchmarks.md"
MEASURED = ("bench", "libs", "pipelines", "services", "requirements.lock")
"""What of the repository figures depend on."""

Rows = Sequence[Mapping[str, float | str]]


@dataclass(frozen=True)
class Result:
    """Outcome of one benchmark.

    Attributes:
        name: `<name>` of `make bench-<name>`.
        title: what was measured, in one line.
        figures: one row per case, all with the same columns.
        ratios: what the benchmark is about: ours to a peer's or a limit's, from the same run.
        note: what a reader must know to judge the figures.
        load: what `load_before` said at the start; None if it was not asked.
        tables: what the docs show in place of all figures and ratios, by caption.
        more: further entries of the JSON.
        command: what makes it anew; `make bench-<name>` where empty.
    """

    name: str
    title: str
    figures: Rows
    ratios: Mapping[str, float]
    note: str = ""
    load: float | None = None
    tables: Mapping[str, Rows] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)
    command: str = ""


def load_before() -> float:
    """Load of the machine in the last minute; to be asked before the first figure. Warns where others are at work."""
    load = round(os.getloadavg()[0], 2)
    if load >= 1:
        print(f"the machine is not quiet (load {load}): judge the figures by that", file=sys.stderr)
    return load


def medians(samples: Sequence[float]) -> float:
    """The median of repeated measurements, to four digits."""
    return float(f"{median(samples):.4g}")


def write(result: Result, figure: Figure, *, publish: bool = True) -> None:
    """Writes `.everloop/bench/<name>.json` and its plot beside it; published, also into docs/."""
    document = {
        "name": result.name,
        "title": result.title,
        "command": result.command or f"make bench-{result.name}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "load": result.load,
        "figures": [dict(row) for row in result.figures],
        "ratios": dict(result.ratios),
        "note": result.note,
        "plot": f"{result.name}.svg",
        **result.more,
    }
    section = _section(document, result.tables)
    plots = [OUT / f"{result.name}.svg"]
    if publish:
        plots.append(DOCS.parent / "images" / f"bench-{result.name}.svg")
    for plot in plots:
        plot.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(plot, bbox_inches="tight", metadata={"Date": None})
    if publish:
        _put_into_docs(result.name, section)
    (OUT / f"{result.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    print(section)


def machine() -> dict[str, str | int]:
    """The machine that measures."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def commit() -> str:
    """The commit that is measured, with `+` where what figures depend on has changed since; `unknown` without git."""
    try:
        head = _git("rev-parse", "--short=9", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--", *MEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _put_into_docs(name: str, section: str) -> None:
    """Replaces the section between the benchmark's markers, or adds it at the end."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    marked = f"{begin}\n{section}\n{end}"
    text = DOCS.read_text() if DOCS.exists() else "# Benchmarks\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    # A function: a replacement string would read backslashes.
    text, found = pattern.subn(lambda _: marked, text)
    DOCS.write_text(text if found else f"{text.rstrip()}\n\n{marked}\n")


def _section(document: Mapping[str, Any], tables: Mapping[str, Rows]) -> str:
    facts = document["machine"]
    where = f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, Python {facts['python']}"
    if document["load"] is not None:
        where += f"; load before the run {document['load']:.2f}"
    lines = [
        f"## {document['title']}",
        "",
        f"`{document['command']}`, {document['time'][:10]}, commit {document['commit']}, {where}.",
        "",
        f"![{document['title']}](images/bench-{document['name']}.svg)",
    ]
    if tables:
        for caption, rows in tables.items():
            lines += ["", caption, "", *_table(rows)]
    else:
        ratios = document["ratios"].items()
        lines += ["", *_table(document["figures"]), ""]
        lines += _table([{"ratio": f"`{name}`", "value": f"{value:.2f}"} for name, value in ratios])
    if document["note"]:
        lines += ["", document["note"]]
    return "\n".join(lines)


def _table(rows: Rows) -> list[str]:
    columns = list(rows[0]) if rows else []
    return [
        _row(columns),
        "|" + "---|" * len(columns),
        *(_row([_cell(row[column]) for column in columns]) for row in rows),
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
