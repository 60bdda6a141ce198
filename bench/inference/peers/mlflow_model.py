"""MLflow: writes the graph as a model that `mlflow models serve` takes; one thread, as everywhere.

Usage: python mlflow_model.py <folder>
"""

from __future__ import annotations

import os
import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    mlflow.onnx.save_model(
        onnx.load(f"{os.environ['BENCH_MODEL']}/model.onnx"),
        sys.argv[1],
        pip_requirements=["onnxruntime"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
