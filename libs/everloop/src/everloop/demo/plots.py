"""The plots of the report, each as one inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

__all__ = ["auc_by_month", "drift", "latency", "loop"]

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
OLD, NEW, ALERT, CALM = "#9aa5b1", "#2a6f97", "#c8553d", "#588157"
MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "everloop",
}


def _figure(
    height: float, rows: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(
        rows,
        1,
        figsize=(9.6, height),
        sharex=rows > 1,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": ratios} if ratios else None,
    )
    return figure, [axis for line in axes for axis in line]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def loop(summary: dict[str, Any]) -> str:
    """The run on the clock: what happened when, and how much memory it took."""
    events = summary["timeline"]
    began = datetime.fromisoformat(summary["started"])
    lanes = {
        "DatasetVersionCreated": "data",
        "ModelTrained": "training",
        "TrainingFailed": "training",
        "ModelRegistered": "registry",
        "ModelPromoted": "registry",
        "RolloutStarted": "registry",
        "RolloutEnded": "registry",
        "DriftDetected": "monitor",
        "RetrainRequested": "monitor",
    }
    order = ["data", "training", "registry", "monitor", "serving"]

    def at(text: str) -> float:
        return (datetime.fromisoformat(text) - began).total_seconds()

    with plt.rc_context(STYLE):
        figure, (axis, memory) = _figure(4.6, 2, (3, 1.2))
        for spell in summary["trainings"]:
            axis.barh(
                order.index("training"),
                spell["seconds"],
                left=at(spell["start"]),
                height=0.5,
                color=NEW,
                alpha=0.25,
            )
        for first, last, version in summary["serving"]:
            lane = order.index("serving")
            axis.barh(
                lane,
                last - first,
                left=first,
                height=0.5,
                color=OLD if version == 1 else NEW,
                alpha=0.8,
            )
            axis.text(
                (first + last) / 2,
                lane,
                f"v{version}",
                ha="center",
                va="center",
                color="white",
                weight="bold",
            )
        for event in events:
            lane = order.index(lanes[event["event"]])
            urgent = event["event"] in ("RetrainRequested", "TrainingFailed")
            axis.plot(
                at(event["time"]),
                lane,
                "D" if urgent else "o",
                color=ALERT if lane == 3 else CALM,
                markersize=9 if urgent else 5,
            )
            if event["event"] in ("RetrainRequested", "ModelPromoted", "DatasetVersionCreated"):
                late = at(event["time"]) > 0.8 * summary["duration_seconds"]
                axis.annotate(
                    event["event"],
                    (at(event["time"]), lane),
                    xytext=(-4 if late else 4, 8),
                    textcoords="offset points",
                    ha="right" if late else "left",
                    fontsize=8,
                    color=MUTED,
                )
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(-0.6, len(order) - 0.2)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        seconds, used = zip(*(summary["memory"]["samples"] or [(0.0, 0)]), strict=True)
        memory.fill_between(seconds, np.array(used) / 2**30, color=MUTED, alpha=0.25, linewidth=0)
        memory.set_ylabel("GiB")
        memory.set_ylim(0)
        memory.set_xlabel("seconds since the start")
        memory.set_xlim(0, summary["duration_seconds"])
        return _svg(figure)


def auc_by_month(summary: dict[str, Any]) -> str:
    """Old against new on the same months, and what the clients got."""
    months = summary["stale_vs_retrained"]["months"]
    numbers = [line["month"] for line in months]
    with plt.rc_context(STYLE):
        figure, (axis,) = _figure(3.4)
        stale = [line["stale"]["roc_auc"] or np.nan for line in months]
        fresh = [(line["retrained"] or {}).get("roc_auc") or np.nan for line in months]
        axis.vlines(numbers, stale, fresh, color=GRID, linewidth=6, zorder=1)
        axis.plot(numbers, stale, "o", color=OLD, markersize=9, label="v1, never retrained")
        axis.plot(
            numbers, fresh, "o", color=NEW, markersize=9, label="retrained, months it has not seen"
        )
        served = [
            (line["month"], line["roc_auc"])
            for line in summary["served_by_month"]
            if line["roc_auc"]
        ]
        axis.plot(
            *zip(*served, strict=True),
            "o-",
            color=INK,
            markersize=4,
            linewidth=1,
            label="what clients got",
        )
        known = [
            value for value in (*stale, *fresh, *(auc for _, auc in served)) if not np.isnan(value)
        ]
        axis.set_ylim(max(0.0, min(known) - 0.05), max(known) + 0.03)
        axis.set_xticks(numbers, [MONTHS[number] for number in numbers])
        axis.set_ylabel("ROC AUC")
        axis.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        return _svg(figure)


def drift(summary: dict[str, Any]) -> str:
    """Realised and estimated performance, and each feature's distance, chunk by chunk."""
    chunks = sorted(summary["drift"], key=lambda chunk: (chunk["model_version"], chunk["index"]))
    if not chunks:
        return ""
    names: list[str] = []
    for chunk in chunks:
        names += [item["feature"] for item in chunk["features"] if item["feature"] not in names]
    grid = np.full((len(names), len(chunks)), np.nan)
    for column, chunk in enumerate(chunks):
        for item in chunk["features"]:
            grid[names.index(item["feature"]), column] = item["measurement"]["value"]
    strongest = np.argsort(-np.nanmax(grid, axis=1))
    x = np.arange(len(chunks))
    with plt.rc_context(STYLE):
        figure, (top, bottom) = _figure(3.0 + 0.2 * len(names), 2, (1.4, 0.13 * len(names)))
        _band(top, x, chunks)
        image = bottom.imshow(
            grid[strongest], aspect="auto", cmap="YlOrBr", vmin=0, interpolation="nearest"
        )
        bottom.set_yticks(range(len(names)), [names[index] for index in strongest], fontsize=8)
        bottom.grid(visible=False)
        step = max(1, len(chunks) // 12)
        bottom.set_xticks(x[::step], [chunk["first_event_time"][5:10] for chunk in chunks][::step])
        bottom.set_xlabel("chunk, by the first departure in it (month-day)")
        figure.colorbar(image, ax=bottom, label="distance", pad=0.01)
        for axis in (top, bottom):
            for column in x[1:]:
                if chunks[column]["model_version"] != chunks[column - 1]["model_version"]:
                    axis.axvline(column - 0.5, color=INK, linewidth=1, linestyle=":")
        return _svg(figure)


def _band(axis: Axes, x: Any, chunks: Sequence[dict[str, Any]]) -> None:
    for key, colour, label in (
        ("realised_performance", INK, "realised, with labels"),
        ("estimated_performance", OLD, "estimated, without labels"),
    ):
        values = np.array(
            [(chunk[key] or {}).get("value", np.nan) for chunk in chunks], dtype=float
        )
        axis.plot(x, values, "o-", color=colour, markersize=3, linewidth=1.2, label=label)
        alerts = np.array([bool((chunk[key] or {}).get("alert")) for chunk in chunks])
        if key == "realised_performance" and alerts.any():
            axis.plot(
                x[alerts], values[alerts], "o", color=ALERT, markersize=7, label="out of bounds"
            )
    floor = np.array([_floor(chunks, chunk["model_version"]) for chunk in chunks], dtype=float)
    axis.step(x, floor, where="mid", color=ALERT, linewidth=1, linestyle="--", label="lower bound")
    axis.set_ylabel("ROC AUC")
    axis.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _floor(chunks: Sequence[dict[str, Any]], version: int) -> float:
    """The lower bound of a version, which is the same for all its chunks."""
    bounds = [
        (chunk["realised_performance"] or {}).get("lower")
        for chunk in chunks
        if chunk["model_version"] == version
    ]
    return next((bound for bound in bounds if bound is not None), np.nan)


def latency(seconds: Mapping[str, Sequence[float]]) -> str:
    """How long requests took: share of requests answered within so many milliseconds, per door."""
    names = {
        "grpc": "rows, gRPC",
        "http": "rows, HTTP",
        "oip_grpc": "tensors, gRPC",
        "oip_http": "tensors, HTTP",
    }
    colours = dict(zip(names, (NEW, ALERT, CALM, MUTED), strict=True))
    with plt.rc_context(STYLE):
        figure, (axis,) = _figure(2.8)
        for door, values in seconds.items():
            if values:
                ordered = np.sort(np.asarray(values)) * 1000
                axis.plot(
                    ordered,
                    np.linspace(0, 100, len(ordered)),
                    color=colours[door],
                    label=names[door],
                    linewidth=1.6,
                )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_xlabel("milliseconds, logarithmic")
        axis.set_ylabel("% answered")
        axis.set_ylim(0, 101)
        axis.legend(fontsize=9)
        return _svg(figure)
