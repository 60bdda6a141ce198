"""MLflow: a run per training, a child run per trial, and the model with everything that belongs to it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import mlflow
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.entities import Metric, Param, Run, RunInfo, RunTag
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.time import get_current_time_millis
from onnx import TensorProto
from pydantic import TypeAdapter

from everloop_contracts.pipeline import Pipeline
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.mlflow_errors import translated
from everloop_trainer.domain import Trained, Training
from everloop_trainer.families import params_of
from everloop_trainer.ports import FILES, SCORES, Artifacts, Incumbent
from everloop_trainer.recipe import ENVIRONMENT, RECIPE, Recipe, code_digest, code_revision
from everloop_trainer.reproduce import TrialRecord

__all__ = ["MlflowTracking"]

log = logging.getLogger(__name__)

TRAINING_ID: Final = "everloop.training_id"
TRAINED: Final = "everloop.trained"
MODEL: Final = "model"
RECORD: Final = "trained.json"
_RECORD: Final = TypeAdapter(Trained)
_KEY: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
"""What MLflow does not take in the name of a metric."""
_TYPES: Final[dict[int, np.dtype[Any]]] = {
    TensorProto.STRING: np.dtype(object),
    TensorProto.INT64: np.dtype(np.int64),
}


class MlflowTracking:
    """Implements `Tracking` and the loading of earlier models."""

    def __init__(self, uri: str) -> None:
        """Takes the address of the tracking server; a call that gets no answer gives up after half a minute."""
        # MLflow reads these itself, at every call. Its own patience is minutes, in which no other training could run.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # among answers
        mlflow.set_tracking_uri(uri)
        self._client = mlflow.MlflowClient(uri)
        # Inferring requirements loads the model in a process of its own, which takes most of the logging.
        self._requirements = [
            f"{name}=={version(name)}"
            for name in ("mlflow", "onnx", "onnxruntime", "numpy", "pandas")
        ]

    def open_run(self, training: Training) -> str:
        """The run of a training, by its id: the same one after a crash."""
        with translated():
            experiment = self._client.get_experiment_by_name(training.pipeline)
            number = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(training.pipeline)
            )
            run = self._find(number, training) or self._create(number, training)
            return str(run.info.run_id)

    def _find(self, experiment: str, training: Training) -> Run | None:
        found = self._client.search_runs(
            [experiment], f"tags.`{TRAINING_ID}` = '{training.id}'", max_results=1
        )
        return found[0] if found else None

    def _create(self, experiment: str, training: Training) -> Run:
        dataset = training.dataset
        tags = {
            TRAINING_ID: training.id,
            "everloop.dataset_version": str(dataset.version),
            "everloop.dataset_tag": dataset.git_tag,
            "everloop.dataset_commit": dataset.git_commit,
            "everloop.cause": training.cause.value,
            "everloop.cause_id": training.cause_id,
            "everloop.code_version": version("everloop-trainer"),
            "everloop.code_digest": code_digest(),
            "everloop.code_revision": code_revision(),
        }
        name = f"{dataset.git_tag} {training.cause.value}"
        return self._client.create_run(experiment, tags=tags, run_name=name)

    def log_trial(
        self,
        run_id: str,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Writes one ended trial down as a child of the run, in three calls."""
        with translated():
            parent = self._client.get_run(run_id)
            run = self._client.create_run(
                parent.info.experiment_id,
                tags={"mlflow.parentRunId": run_id, "everloop.trial_id": trial_id},
                run_name=f"{family} {trial_id}",
            )
            self._log(run.info.run_id, metrics, {"family": family, **params}, curve)
            self._client.set_terminated(run.info.run_id, "FAILED" if failed else "FINISHED")

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        now = get_current_time_millis()
        final = int(metrics.get("budget", 0))
        # MLflow tells the metric of the largest step, the last of those that share it.
        steps = [(int(point["budget"]), point) for point in curve if point["budget"] < final]
        self._client.log_batch(
            run_id,
            metrics=[
                Metric(name, value, now, step)
                for step, point in [*steps, (final, metrics)]
                for name, value in point.items()
            ],
            params=[Param(name, str(value)) for name, value in params.items()],
        )

    def finished(self, run_id: str) -> Trained | None:
        """What an earlier attempt logged completely, if one did; it may have died before it ended the run."""
        with translated():
            run = self._client.get_run(run_id)
            text = run.data.tags.get(TRAINED)
            if text and run.info.status != "FINISHED":
                self._client.set_terminated(run_id, "FINISHED")
        if not text:
            return None
        if not text.startswith("{"):  # an earlier trainer kept all of it in the tag
            with translated(files=True):
                text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{FILES}/{RECORD}")
        return _RECORD.validate_json(text)

    def winner_before(self, training: Training) -> tuple[str, dict[str, Any]] | None:
        """Family and parameters of the newest model before; None where there is none that this code knows."""
        with translated():
            experiment = self._client.get_experiment_by_name(training.pipeline)
            found = self._client.search_runs(
                [experiment.experiment_id] if experiment else [],
                f"tags.`{TRAINED}` != '' AND tags.`{TRAINING_ID}` != '{training.id}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        if not found:
            return None
        params = dict(found[0].data.params)
        try:
            family = params.pop("family")
            return family, params_of(family, params)
        except (LookupError, ValueError) as error:
            log.warning("run %s cannot be gone on from: %s", found[0].info.run_id, error)
            return None

    def fail(self, training: Training) -> None:
        """Ends the run of a training as failed; nothing happens if it has none."""
        self._end(training, "FAILED")

    def kill(self, training: Training) -> None:
        """Ends the run of a training as killed; nothing happens if it has none."""
        self._end(training, "KILLED")

    def _end(self, training: Training, status: str) -> None:
        with translated():
            experiment = self._client.get_experiment_by_name(training.pipeline)
            run = self._find(experiment.experiment_id, training) if experiment else None
            if run:
                self._client.set_terminated(run.info.run_id, status)

    def log_model(
        self,
        run_id: str,
        pipeline: Pipeline,
        params: Mapping[str, Any],
        artifacts: Artifacts,
        trained: Trained,
    ) -> Trained:
        """Logs the model and its artifacts; the tag that comes last makes them count."""
        trained = dataclasses.replace(trained, model_uri=f"runs:/{run_id}/{MODEL}")
        model = onnx.load_from_string(artifacts.onnx)
        record = _RECORD.dump_json(trained, indent=1)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in {**artifacts.files, RECORD: record}.items():
                (Path(folder) / name).write_bytes(content)
            with translated(files=True):
                self._client.log_artifacts(run_id, folder, FILES)
        with translated(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
            with translated(files=True):
                mlflow.onnx.log_model(
                    model,
                    name=MODEL,
                    signature=_signature(model),
                    input_example=dict(artifacts.example) if artifacts.example else None,
                    pip_requirements=self._requirements,
                    onnx_execution_providers=["CPUExecutionProvider"],
                    # One file with everything in it: its SHA-256 is what the registry and inference verify.
                    save_as_external_data=False,
                )
            metrics = trained.metrics | {
                f"baseline_{name}": value for name, value in trained.baseline_metrics.items()
            }
            for name, (low, high) in trained.intervals.items():
                metrics |= {f"{name}_low": low, f"{name}_high": high}
            for part in trained.slices:
                where = _KEY.sub("_", f"slice/{part.field}/{part.value or 'null'}")
                metrics |= {f"{where}/{name}": value for name, value in part.metrics.items()}
            metrics |= {
                "model_bytes": trained.model_bytes,
                "p99_seconds": trained.p99_seconds,
                "cpu_seconds": trained.cpu_seconds,
                "threshold": trained.threshold,
                "export_difference": trained.export_difference,
                "training_rows": trained.training_rows,
                "holdout_rows": trained.holdout_rows,
                "training_seconds": trained.seconds,
            }
            self._log(run_id, metrics, {"family": trained.family, **params})
            self._client.log_batch(run_id, tags=[RunTag(TRAINED, trained.onnx_sha256)])
        return trained

    def recipe(self, run_id: str) -> tuple[Recipe, tuple[str, ...]]:
        """What a run's model was made of, and its environment."""
        with translated(files=True):
            folder = f"{self._client.get_run(run_id).info.artifact_uri}/{FILES}"
            content = mlflow.artifacts.load_text(f"{folder}/{RECIPE}")
            packages = mlflow.artifacts.load_text(f"{folder}/{ENVIRONMENT}")
        return Recipe.from_json(content.encode()), tuple(packages.splitlines())

    def trials(self, run_id: str) -> list[TrialRecord]:
        """Trials of a run that came to an end, oldest first."""
        with translated():
            experiment = self._client.get_run(run_id).info.experiment_id
            found: list[Run] = []
            token: str | None = ""
            while token is not None:
                page = self._client.search_runs(
                    [experiment],
                    f"tags.`mlflow.parentRunId` = '{run_id}' AND attributes.status = 'FINISHED'",
                    order_by=["attributes.start_time ASC"],
                    page_token=token or None,
                )
                found += page
                token = page.token or None
        records = []
        for run in found:
            params = dict(run.data.params)
            records.append(TrialRecord(params.pop("family"), params, run.data.metrics))
        return records

    def load(self, run_id: str, version: int) -> Incumbent:
        """The model of a run, as the version of it that serves."""
        with translated():
            info = self._client.get_run(run_id).info
            logged = self._client.search_logged_models(
                [info.experiment_id],
                filter_string=f"name = '{MODEL}' AND source_run_id = '{run_id}'",
                order_by=[{"field_name": "creation_timestamp", "ascending": False}],
                max_results=1,
            )
        if not logged:
            raise EverloopError(Kind.NOT_FOUND, "NOT_IN_MLFLOW", f"run {run_id} has no model")
        # Not by `runs:/`: there MLflow calls every failure, an outage too, a file that does not exist.
        with translated(files=True):
            model = mlflow.onnx.load_model(logged[0].model_uri)
            manifest = mlflow.artifacts.load_dict(f"{info.artifact_uri}/{FILES}/manifest.json")
        return Incumbent(version, model.SerializeToString(), manifest, self._scores(run_id, info))

    def _scores(self, run_id: str, info: RunInfo) -> pa.Table | None:
        with translated(files=True):
            listed = self._client.list_artifacts(run_id, FILES)
            if f"{FILES}/{SCORES}" not in [item.path for item in listed]:
                return None
            with tempfile.TemporaryDirectory() as folder:
                uri = f"{info.artifact_uri}/{FILES}/{SCORES}"
                path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
                return pq.read_table(path, columns=["record_id", "candidate"])


def _signature(model: onnx.ModelProto) -> ModelSignature:
    """Tensors and not columns: with those MLflow turns a DataFrame into what the model takes, `[rows, 1]` each."""

    def tensors(values: Sequence[Any]) -> Schema:
        return Schema(
            [TensorSpec(*_tensor(value.type.tensor_type), value.name) for value in values]
        )

    return ModelSignature(tensors(model.graph.input), tensors(model.graph.output))


def _tensor(kind: Any) -> tuple[np.dtype[Any], tuple[int, int]]:
    """Type and shape; any number of rows."""
    return _TYPES.get(kind.elem_type, np.dtype(np.float32)), (-1, kind.shape.dim[1].dim_value)
