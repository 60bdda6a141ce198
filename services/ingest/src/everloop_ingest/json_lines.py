"""Many JSON records at once, by Arrow's reader: columns, without a Python object for each value."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.json

from everloop_contracts.pipeline import FieldSpec, FieldType
from everloop_ingest.columns import ARROW

__all__ = ["JsonLines"]

_MOST_BYTES = 2**31 - 2
"""What the reader takes as one block, and a text column holds."""


class JsonLines:
    """Reads flat objects of one schema.

    Whatever it reads at all it reads as a strict parser does, but for NaN, infinities and a byte order mark; the first
    two are in no column's bounds, and the last is not read here.
    """

    def __init__(self, fields: dict[str, FieldSpec]) -> None:
        """Takes what the schema's fields are, by name."""
        texts = {FieldType.TIMESTAMP: pa.string()}
        self._schema = pa.schema(
            [(name, texts.get(spec.type, ARROW[spec.type])) for name, spec in fields.items()]
        )
        self._parse = pyarrow.json.ParseOptions(
            explicit_schema=self._schema, unexpected_field_behavior="error"
        )

    def read(self, messages: Sequence[bytes | None]) -> list[pa.Array] | None:
        """The columns, null where a field is absent; timestamps as texts.

        Returns:
            None where a message is not one object of the schema's fields, each once and of its type.
        """
        # One that begins so is at least one object; as many rows as messages are one each.
        if {message[:1] for message in messages if message is not None} != {b"{"}:
            return None
        try:
            lines = b"\n".join(messages)  # type: ignore[arg-type]
            if len(lines) > _MOST_BYTES:
                return None
            lines.decode()  # the reader looks for escapes only
            table = pyarrow.json.read_json(
                pa.BufferReader(lines),
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                self._parse,
            )
        except (TypeError, UnicodeDecodeError, pa.ArrowInvalid):
            return None
        if table.num_rows != len(messages):
            return None
        (rows,) = table.combine_chunks().to_batches()
        return [rows.column(name) for name in self._schema.names]
