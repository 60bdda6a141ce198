"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from everloop.demo import plots

__all__ = ["render"]

_STYLE = """
:root { --ink:#1f2933; --muted:#616e7c; --line:#e4e7eb; --new:#2a6f97; --alert:#c8553d; --calm:#588157; }
* { box-sizing:border-box }
body { font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif; color:var(--ink); background:#fff; margin:0 }
main { max-width:960px; margin:0 auto; padding:40px 24px 64px }
h1 { font-size:30px; line-height:1.2; margin:0 0 4px; letter-spacing:-.01em }
h2 { font-size:20px; margin:48px 0 6px; padding-top:20px; border-top:1px solid var(--line) }
p { margin:6px 0 14px; max-width:70ch } .muted, small { color:var(--muted) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:12px; margin:26px 0 }
.tile { border:1px solid var(--line); border-radius:10px; padding:14px 16px }
.tile b { display:block; font-size:25px; line-height:1.2; font-variant-numeric:tabular-nums }
.tile span { font-size:13px; color:var(--muted) }
.good b { color:var(--calm) } .bad b { color:var(--alert) }
.verdict { padding:12px 16px; border-radius:10px; background:#f0f5ee; border:1px solid #d5e3cf }
.verdict.bad { background:#fbf0ed; border-color:#f0d3cb }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
th { text-align:left; font-weight:600; color:var(--muted); border-bottom:1px solid var(--line) }
th,td { padding:6px 12px 6px 0; vertical-align:top } td.n,th.n { text-align:right }
tr+tr td { border-top:1px solid #f2f4f6 }
code { font:12.5px/1.4 ui-monospace,Menlo,Consolas,monospace; overflow-wrap:anywhere }
svg { width:100%; height:auto; display:block }
.chain { display:flex; flex-wrap:wrap; align-items:stretch; margin:18px 0 }
.link { flex:1 1 150px; border:1px solid var(--line); border-radius:10px; padding:12px 14px;
  font-size:13px; min-width:0; overflow-wrap:anywhere }
.link b { display:block; font-size:15px } .arrow { align-self:center; padding:0 8px; color:var(--new); font-size:20px }
details { margin-top:12px } summary { cursor:pointer; color:var(--new) }
@media print { body { font-size:11pt } main { padding:0; max-width:none }
  h2 { break-after:avoid } .tile,.link,svg,tr { break-inside:avoid } }
"""
_DOORS = {
    "grpc": "rows over gRPC",
    "http": "rows over HTTP",
    "oip_grpc": "tensors over gRPC (Open Inference Protocol)",
    "oip_http": "tensors over HTTP (Open Inference Protocol)",
}


def render(
    summary: dict[str, Any], seconds: Mapping[str, Sequence[float]], problems: Sequence[str]
) -> str:
    """Returns the page.

    Args:
        summary: What `summary.json` holds.
        seconds: Latency of each request, by door.
        problems: What the run failed to show.
    """
    sections = [
        _head(summary, problems),
        _section(
            "The loop",
            "Diamonds and dots are events on Kafka, as a plain consumer saw them; the shaded bars are trainings;"
            " the bottom lane is the version that answered the clients. Below, the memory of all processes.",
            plots.loop(summary) + _events(summary),
        ),
        _section(
            "Did retraining help?",
            _verdict(summary),
            plots.auc_by_month(summary) + _months(summary),
        ),
        _section(
            "Drift, chunk by chunk",
            "Nothing was faked: this is what the seasons do. Above, how good the predictions were once their labels"
            " had come, against the bound that the reference sample sets; below, how far each input is from what"
            " the model learned from. The dotted line is the change of the model.",
            plots.drift(summary) + _decisions(summary),
        ),
        _section(
            "Every prediction was answered"
            if not summary["predictions"]["failed"]
            else "Predictions",
            "Four doors in turn, to the end of the year, through a training and a promotion on the same machine.",
            plots.latency(seconds) + _doors(summary),
        ),
        _section(
            "Every record is accounted for",
            "What the demo sent against ingest's own books. The broken records were sent on purpose; each lies on the"
            " dead-letter topic with its reason and its original bytes.",
            _books(summary),
        ),
        _section("The versions", "", _versions(summary)),
        _section(
            "From one prediction back to its rows",
            "One prediction of the new version, followed back to the tag in git that holds the rows it learned from.",
            _chain(summary),
        ),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Everloop: the closed loop on real flights</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>"
    )


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{text}</p>{body}</section>"


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a table; a column whose title ends in `#` is aligned to the right. Cells are HTML."""
    titles = list(columns)
    kinds = [' class="n"' if title.endswith("#") else "" for title in titles]
    head = "".join(
        f"<th{kind}>{title.removesuffix('#')}</th>"
        for title, kind in zip(titles, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _head(summary: dict[str, Any], problems: Sequence[str]) -> str:
    asked, records = summary["predictions"], summary["records"]
    recovery = summary["recovery_seconds"]
    training = summary["training_seconds"]
    tiles = (
        (f"{asked['failed']:,}", f"failed of {asked['sent']:,} predictions", not asked["failed"]),
        (f"{recovery:.0f} s", "from the drift request to the first answer of the new model", True),
        (f"{training:.0f} s", "of them were training", True),
        (f"{len(summary['versions'])}", "model versions", len(summary["versions"]) >= 2),
        (
            f"{records['sent']:,}",
            f"records sent, {records['rejected']:,} rejected with a reason",
            True,
        ),
        (f"{summary['duration_seconds'] / 60:.1f} min", "for the whole run", True),
        (
            f"{summary['memory']['peak_bytes'] / 2**30:.1f} GiB",
            "memory at most, all processes",
            True,
        ),
    )
    shown = "".join(
        f'<div class="tile {"good" if good and index == 0 else "" if good else "bad"}">'
        f"<b>{value}</b><span>{text}</span></div>"
        for index, (value, text, good) in enumerate(tiles)
    )
    verdict = (
        '<div class="verdict bad"><b>The run did not show everything:</b><ul>'
        + "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        + "</ul></div>"
        if problems
        else '<div class="verdict">The loop closed: drift was found, a new model was trained on the data so far,'
        " passed its gates and took over under traffic, and no prediction was lost.</div>"
    )
    when = datetime.fromisoformat(summary["started"]).strftime("%d %B %Y, %H:%M UTC")
    return (
        "<h1>The closed loop, on a year of real flights</h1>"
        '<p class="muted">Will a flight from New York arrive more than 15 minutes late? '
        f"{summary['flights']:,} flights of 2013, replayed in order on {when}.</p>"
        f'<div class="tiles">{shown}</div>{verdict}'
    )


def _verdict(summary: dict[str, Any]) -> str:
    both = summary["stale_vs_retrained"]
    old, new = both["stale"]["roc_auc"], both["retrained"]["roc_auc"]
    if old is None or new is None:
        return "There are too few later flights to tell."
    word = "better" if new > old else "not better"
    return (
        f"Both versions on the same {both['stale']['rows']:,} later flights, which neither has learned from: ROC AUC"
        f" <b>{old:.4f}</b> without and <b>{new:.4f}</b> with the retrain: {word} by {abs(new - old):.4f}."
        " The models were loaded by a stock MLflow client."
    )


def _events(summary: dict[str, Any]) -> str:
    rows = (
        (
            event["time"][11:19],
            escape(event["event"]),
            escape(event["text"]),
            f"<code>{event['id'][:8]}</code>",
            f"<code>{escape(event['cause'][:16])}</code>",
        )
        for event in summary["timeline"]
    )
    table = _table(("UTC", "event", "what", "id", "because of"), rows)
    return f"<details><summary>All {len(summary['timeline'])} events</summary>{table}</details>"


def _months(summary: dict[str, Any]) -> str:
    served = {line["month"]: line for line in summary["served_by_month"]}
    return _table(
        ("month", "flights with an outcome#", "v1#", "retrained#", "what clients got#"),
        (
            (
                plots.MONTHS[line["month"]],
                f"{line['stale']['rows']:,}",
                _number(line["stale"]["roc_auc"]),
                _number(line["retrained"]["roc_auc"])
                if line["retrained"]
                else "<small>learned from it</small>",
                _number(served.get(line["month"], {}).get("roc_auc")),
            )
            for line in summary["stale_vs_retrained"]["months"]
        ),
    )


def _decisions(summary: dict[str, Any]) -> str:
    rows = (
        (
            line["time"][11:19],
            f"v{line['model_version']}",
            escape(line["action"]),
            escape(line["reason"]),
        )
        for line in reversed(summary["decisions"])
    )
    table = _table(("UTC", "version", "decision", "reason"), rows)
    return f"<details><summary>What the retrain policy decided</summary>{table}</details>"


def _doors(summary: dict[str, Any]) -> str:
    return _table(
        ("door", "requests#", "rows#", "failed#", "p50 ms#", "p99 ms#", "slowest ms#"),
        (
            (
                _DOORS[name],
                f"{door['requests']:,}",
                f"{door['sent']:,}",
                f"{door['failed']:,}",
                _number(door["p50_ms"], 1),
                _number(door["p99_ms"], 1),
                _number(door["max_ms"], 1),
            )
            for name, door in summary["predictions"]["by_door"].items()
        ),
    )


def _books(summary: dict[str, Any]) -> str:
    records = summary["records"]
    totals = _table(
        ("sent#", "accepted#", "rejected#", "of the accepted, late labels#"),
        [[f"{records[key]:,}" for key in ("sent", "accepted", "rejected", "labels")]],
    )
    reasons = _table(
        ("rejected because of", "records#"),
        ((escape(reason), f"{count:,}") for reason, count in records["rejected_by_reason"].items()),
    )
    return totals + "<br>" + reasons


def _versions(summary: dict[str, Any]) -> str:
    return _table(
        (
            "version",
            "family",
            "made because of",
            "learned from",
            "holdout ROC AUC#",
            "later flights ROC AUC#",
            "gates",
        ),
        (
            (
                f"<b>v{line['version']}</b> {escape(line['stage'])}",
                escape(line["family"]),
                escape(line["cause"]),
                f"<code>{escape(line['dataset_tag'])}</code>",
                _number(line["holdout_metrics"].get("roc_auc")),
                _number((line["metrics"] or {}).get("roc_auc")),
                "<br>".join(
                    f"{'✓' if gate['passed'] else '✗'} {escape(gate['gate'])} <small>{escape(gate['message'])}</small>"
                    for gate in line["gates"]
                ),
            )
            for line in summary["versions"]
        ),
    )


def _chain(summary: dict[str, Any]) -> str:
    found = summary["lineage"]
    late = "late" if found["label"] == "true" else "on time"
    came = {"true": "it was late", "false": "it was on time"}.get(
        found["actual"] or "", "not known"
    )
    links = (
        (
            "prediction",
            f"{found['record_id']}: {late} ({found['score']:.3f}); {came}",
            found["prediction_id"],
        ),
        (
            f"model v{found['model_version']}",
            f"{found['family']}, made because of {found['cause']}",
            found["training_id"],
        ),
        ("MLflow run", "parameters, metrics, plots", found["mlflow_run_id"]),
        (
            f"dataset v{found['dataset_version']}",
            f"{found['dataset_rows']:,} rows",
            found["files"][0]["md5"] if found["files"] else "",
        ),
        ("git tag", found["git_tag"], found["git_commit"]),
    )
    drawn = '<div class="arrow">→</div>'.join(
        f'<div class="link"><b>{escape(title)}</b>{escape(text)}<br><code>{escape(code)}</code></div>'
        for title, text, code in links
    )
    causes = '<div class="arrow">←</div>'.join(
        f'<div class="link"><b>{escape(item["event"])}</b>{escape(item["source"])}, {item["time"][11:19]} UTC'
        f"<br><code>{escape(item['id'])}</code></div>"
        for item in found["causes"]
    )
    why = "And why that model serves at all, each event naming the one that caused it:"
    return f'<div class="chain">{drawn}</div><p>{why}</p><div class="chain">{causes}</div>'
