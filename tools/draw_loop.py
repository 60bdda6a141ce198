"""Draws the loop with the figures of a run of the demo: `tools/draw_loop.py summary.json loop.svg`."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 960, 470
BOX_WIDTH, BOX_HEIGHT = 190, 64
INK, SOFT, LINE, FILL = "#1f2933", "#5b6875", "#8a97a3", "#eef3f7"

# Room: left and top edge, title, what it does.
ROOMS = {
    "producers": (20, 60, "producers", "any Kafka client, gRPC"),
    "ingest": (270, 60, "ingest", "shards, versions, dead letters"),
    "trainer": (520, 60, "trainer", "Ray Tune, MLflow"),
    "registry": (750, 200, "registry gateway", "gates, promotion"),
    "inference": (520, 340, "inference", "Ray Serve, HTTP and gRPC"),
    "applications": (20, 340, "applications", "HTTP, gRPC"),
    "monitor": (270, 200, "monitor", "NannyML, retrain policy"),
}


def arrows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Path, place of the text (anchor, x, y) and text of every arrow: what went that way, and how often."""
    events, records, asked = summary["events"], summary["records"], summary["predictions"]
    served = f"{asked['sent']:,} predictions, {asked['failed']:,} failed"

    def count(name: str) -> str:
        return f"{events.get(name, 0):,} {name}"

    return [
        ("M 210 92 H 264", "middle:237:48", f"{records['sent']:,} records"),
        ("M 460 92 H 514", "middle:487:48", count("DatasetVersionCreated")),
        ("M 710 92 H 845 V 194", "start:730:82", count("ModelTrained")),
        ("M 845 264 V 372 H 716", "start:730:398", count("ModelPromoted")),
        ("M 514 372 H 365 V 270", "start:376:330", count("PredictionsLogged")),
        ("M 365 124 V 194", "start:376:164", count("ActualsRecorded")),
        ("M 460 232 H 615 V 130", "start:476:222", count("RetrainRequested")),
        ("M 210 372 H 300 V 440 H 615 V 410", "start:310:432", served),
    ]


def draw(summary: dict[str, Any]) -> str:
    """The picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">',
        "<title>The loop, with the figures of one run of the demo</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>',
    ]
    for path, place, text in arrows(summary):
        anchor, x, y = place.split(":")
        parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
        parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{SOFT}" font-size="11.5" '
            f'stroke="white" stroke-width="4" paint-order="stroke">{escape(text)}</text>'
        )
    for left, top, title, what in ROOMS.values():
        middle = left + BOX_WIDTH / 2
        parts += [
            f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" '
            f'fill="{FILL}" stroke="{LINE}"/>',
            f'<text x="{middle}" y="{top + 28}" text-anchor="middle" fill="{INK}" font-weight="600">{title}</text>',
            f'<text x="{middle}" y="{top + 47}" text-anchor="middle" fill="{SOFT}" font-size="11.5">{what}</text>',
        ]
    recovery = f"{summary['recovery_seconds']:.0f} s until the new model answered"
    parts.append(f'<text x="476" y="248" fill="{SOFT}" font-size="11.5">{recovery}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(draw(json.loads(Path(source).read_text())))
