"""How much of the year, and the pipeline that goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from everloop.addresses import repository_root
from everloop.demo.slices import SLICES, write_pipeline
from everloop_contracts.pipeline import PipelineError

SOURCE = repository_root() / "pipelines"


def test_the_whole_year_runs_the_pipeline_as_it_is(tmp_path: Path, pipeline):
    assert write_pipeline(SOURCE, tmp_path, SLICES["year"]) == pipeline


def test_the_small_slice_changes_sizes_and_nothing_that_defines_the_problem(
    tmp_path: Path, pipeline
):
    small = write_pipeline(SOURCE, tmp_path / "new" / "folder", SLICES["small"])
    assert small.monitoring.chunk_rows < pipeline.monitoring.chunk_rows
    assert small.training.triggers.min_rows < pipeline.training.triggers.min_rows
    assert small.training.triggers.on_drift
    for unchanged in ("schema_", "target", "features", "name"):
        assert getattr(small, unchanged) == getattr(pipeline, unchanged)
    assert small.monitoring.retrain == pipeline.monitoring.retrain


def test_a_broken_pipeline_is_named_by_the_user_s_file(tmp_path: Path):
    source = tmp_path / "mine"
    source.mkdir()
    text = (SOURCE / "flight-delays.yaml").read_text()
    (source / "flight-delays.yaml").write_text(text.replace("trials: 6", "trials: none"))
    with pytest.raises(PipelineError, match=r"mine/flight-delays\.yaml"):
        write_pipeline(source, tmp_path / "copy", SLICES["small"])
