"""What every benchmark leaves: figures as JSON, a plot, and its section in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psutil
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".everloop" / "bench"
DOCS = ROOT / "docs" / "benchmarks.md"

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
        tables: what the docs show in place of all figures and ratios, by caption.
        more: further entries of the JSON.
    """

    name: str
    title: str
    figures: Rows
    ratios: Mapping[str, float]
    note: str = ""
    tables: Mapping[str, Rows] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)


def medians(samples: Sequence[float]) -> float:
    """The median of repeated measurements, to four digits."""
    return float(f"{median(samples):.4g}")


def machine() -> dict[str, str | int]:
    """The machine that measured."""
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
    """The commit that was measured, with `+` where the tree had changes."""
    describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=9"]
    return subprocess.run(
        describe, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def write(result: Result, figure: Figure, *, publish: bool = True) -> None:
    """Writes `.everloop/bench/<name>.json` and its plot beside it; published, also into docs/."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {
        "name": result.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "figures": [dict(row) for row in result.figures],
        "ratios": dict(result.ratios),
        **result.more,
    }
    (OUT / f"{result.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    folders = [OUT]
    if publish:
        images = DOCS.parent / "images"
        images.mkdir(exist_ok=True)
        folders.append(images)
        _document(result, document)
    for folder in folders:
        figure.savefig(
            folder / f"bench-{result.name}.svg", bbox_inches="tight", metadata={"Date": None}
        )
    print(_section(result, document))


def _document(result: Result, document: Mapping[str, object]) -> None:
    begin, end = f"<!-- bench:{result.name} -->", f"<!-- /bench:{result.name} -->"
    section = f"{begin}\n{_section(result, document)}\n{end}"
    text = DOCS.read_text() if DOCS.exists() else "# Benchmarks\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    # A function: a replacement string would read backslashes.
    text = (
        pattern.sub(lambda _: section, text) if begin in text else f"{text.rstrip()}\n\n{section}\n"
    )
    DOCS.write_text(text)


def _section(result: Result, document: Mapping[str, object]) -> str:
    ratios = [{"ratio": f"`{name}`", "value": f"{v:.2f}"} for name, v in result.ratios.items()]
    tables = result.tables or {"": result.figures, "Ratios": ratios}
    lines = [
        f"## {result.title}",
        "",
        f"`make bench-{result.name}`, {str(document['time'])[:10]}, commit {document['commit']}, {_machine_line()}.",
        "",
        f"![{result.title}](images/bench-{result.name}.svg)",
    ]
    for caption, rows in tables.items():
        if rows:
            lines += ["", *([caption, ""] if caption else []), *_table(rows)]
    if result.note:
        lines += ["", result.note]
    return "\n".join(lines)


def _table(rows: Rows) -> list[str]:
    columns = list(rows[0])
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows),
    ]


def _machine_line() -> str:
    facts = machine()
    return f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, Python {facts['python']}"


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
