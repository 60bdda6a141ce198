"""Evidently on the chunks of a folder; runs in an environment of its own, and prints what it found as JSON.

For each `chunk-*.parquet`, the number of columns that drifted from `reference.parquet`; and processor seconds a chunk.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "1"

import pandas as pd
from evidently import DataDefinition, Dataset, Report  # type: ignore[import-not-found]
from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]


def main(folder: Path) -> None:
    reference = pd.read_parquet(folder / "reference.parquet")
    texts = json.loads((folder / "texts.json").read_text())
    numbers = [name for name in reference if name not in texts]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    known = Dataset.from_pandas(reference, definition)
    report = Report([DataDriftPreset()])
    chunks = [pd.read_parquet(path) for path in sorted(folder.glob("chunk-*.parquet"))]
    counts, seconds = [], []
    # The first run imports what it needs.
    report.run(Dataset.from_pandas(chunks[0], definition), known).dict()
    for chunk in chunks:
        began = time.process_time()
        found = report.run(Dataset.from_pandas(chunk, definition), known).dict()
        seconds.append(time.process_time() - began)
        (value,) = (m["value"] for m in found["metrics"] if "DriftedColumns" in m["metric_name"])
        counts.append(int(value["count"]))
    resource = Path("/proc/self/status").read_text()
    peak = int(resource.split("VmHWM:")[1].split()[0]) * 1024
    mean = sum(seconds) / len(seconds)
    print(json.dumps({"counts": counts, "seconds": mean, "peak_bytes": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
