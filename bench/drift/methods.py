"""Who watches: the monitor's detectors with its defaults, NannyML and Evidently with theirs."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from bench.drift.environment import evidently as evidently_python
from bench.drift.worlds import World, declare
from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.detect import judge, judge_realised
from everloop_monitor.domain import Rows
from everloop_monitor.fakes import FakeReferences

__all__ = ["METHODS", "Alarms", "reference_file", "rows_of"]

NOW = datetime(2013, 1, 1, tzinfo=UTC)
PEER = Path(__file__).with_name("evidently_peer.py")


@dataclass(frozen=True)
class Alarms:
    """What was told of a world.

    Attributes:
        inputs: per chunk, whether drift was told from inputs and answers, without labels.
        performance: per chunk, whether a bad performance was told, estimated or with all labels.
        seconds: processor seconds per chunk, without what was learned before.
    """

    inputs: list[bool]
    performance: list[bool]
    seconds: float


def reference_file(world: World) -> bytes:
    """The reference sample as the trainer logs it."""
    frame = world.reference.rename(columns={"score": "everloop_score"})
    frame["everloop_label"] = np.where(frame.pop("label"), "true", "false")
    frame["target"] = frame.target == 1
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


def rows_of(world: World, chunk: pd.DataFrame) -> Rows:
    """A chunk as the monitor reads it from its database."""
    return Rows(
        numbers={n: chunk[n].to_numpy(float) for n in world.inputs if n not in world.texts},
        texts={n: chunk[n].to_numpy(object) for n in world.texts},
        scores=chunk.score.to_numpy(float),
        labels=np.where(chunk.label, "true", "false").astype(object),
        record_ids=[""] * len(chunk),
        first_event=NOW,
        last_event=NOW,
    )


def _ours(world: World) -> Alarms:
    pipeline = declare(world, len(world.chunks[0]))
    rule = pipeline.monitoring
    references = FakeReferences({"run": reference_file(world)})
    detector = NannymlDetectors(references, keep=1).fitted(pipeline, 1, "run")
    inputs, performance = [], []
    began = time.thread_time()
    for chunk in world.chunks:
        rows = rows_of(world, chunk)
        actuals = ["true" if target else "false" for target in chunk.target]
        report = judge(rule, detector.read(rows))
        report = judge_realised(rule, detector.realised(rows, actuals), report)
        verdicts = report.verdicts
        inputs.append(
            report.drift_alert
            or any(alert for name, alert in verdicts.items() if name.endswith("drift"))
        )
        measured = (report.estimated, report.realised)
        performance.append(
            any(m.alert for m in measured if m) or verdicts.get("segment_performance", False)
        )
    return Alarms(inputs, performance, (time.thread_time() - began) / len(world.chunks))


def _nannyml(world: World) -> Alarms:
    """All chunks in one batch: any feature, or the PCA error of the numbers; CBPE, or the realised ROC AUC."""
    import nannyml as nml

    rows = len(world.chunks[0])
    numbers = [name for name in world.inputs if name not in world.texts]
    outputs = {"y_true": "target", "y_pred": "label", "y_pred_proba": "score"}
    options = {**outputs, "metrics": ["roc_auc"], "problem_type": "classification_binary"}
    learned = world.reference.assign(label=world.reference.label.astype(int))
    calculators = [
        nml.UnivariateDriftCalculator(column_names=world.inputs, chunk_size=rows),
        nml.DataReconstructionDriftCalculator(column_names=numbers, chunk_size=rows),
        nml.CBPE(**options, chunk_size=rows),
        nml.PerformanceCalculator(**options, chunk_size=rows),
    ]
    for calculator in calculators:
        calculator.fit(learned)
    later = pd.concat(world.chunks, ignore_index=True)
    later["label"] = later.label.astype(int)
    began = time.thread_time()
    alerts = []
    for calculator in calculators:
        ask = calculator.estimate if isinstance(calculator, nml.CBPE) else calculator.calculate
        data = ask(later).filter(period="analysis").data
        alerts.append(
            data.xs("alert", axis=1, level=data.columns.nlevels - 1).astype(bool).any(axis=1)
        )
    seconds = (time.thread_time() - began) / len(world.chunks)
    univariate, reconstruction, estimated, realised = alerts
    return Alarms(
        list(univariate | reconstruction),
        list(estimated | realised),
        seconds,
    )


def _evidently(world: World) -> Alarms:
    """Its preset for data drift: any drifted column. It sets no limit to a performance by itself."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        columns = [*world.inputs, "score"]
        world.reference[columns].to_parquet(here / "reference.parquet")
        for number, chunk in enumerate(world.chunks):
            chunk[columns].to_parquet(here / f"chunk-{number:04d}.parquet")
        (here / "texts.json").write_text(json.dumps(world.texts))
        done = subprocess.run(
            [str(evidently_python()), str(PEER), folder], check=True, capture_output=True, text=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    drifted = [count > 0 for count in found["counts"]]
    return Alarms(drifted, [False] * len(drifted), found["seconds"])


METHODS: dict[str, Callable[[World], Alarms]] = {
    "everloop": _ours,
    "NannyML": _nannyml,
    "Evidently": _evidently,
}
