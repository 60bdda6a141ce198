"""Declared feature engineering: one code path for training, serving and export.

`everloop_features.graph` holds the export; it is not imported here, since serving does not need `onnx`.
"""

from everloop_features.features import Encoding, FittedFeatures, fit
from everloop_features.inputs import (
    NULL_TIME,
    Block,
    Feeds,
    InputError,
    InputSpec,
    Layout,
    feeds_from_rows,
    feeds_from_table,
    inputs_of,
)

__all__ = [
    "NULL_TIME",
    "Block",
    "Encoding",
    "Feeds",
    "FittedFeatures",
    "InputError",
    "InputSpec",
    "Layout",
    "feeds_from_rows",
    "feeds_from_table",
    "fit",
    "inputs_of",
]
