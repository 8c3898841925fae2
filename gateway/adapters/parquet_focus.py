"""A FOCUS file in Parquet holds what the CSV says, typed: exact decimals, moments in UTC, and no float.

Only finance commands load this module, and the library with it: no request of `gateway serve` does. Nothing of the day
it was written is in the file, so one version of the library writes the same charges as the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.core.focus_columns import PRECISION, Column

COMPRESSION: Final = "zstd"
ROW_GROUP_ROWS: Final = 20_000


class ParquetFocus:
    """Rows go to disk as they come, in row groups of the same size, however many are given at once."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._schema = pa.schema([(column.name, _type(column)) for column in columns])
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._writer = pq.ParquetWriter(path, self._schema, compression=COMPRESSION, store_schema=False)

    def write(self, batch: Sequence[Sequence[str | None]]) -> None:
        """A batch of rows as CSV has their cells. Raises pyarrow.ArrowInvalid for what a column cannot hold exactly."""
        arrays = [
            pa.array(cells, pa.string()).cast(kind)
            for cells, kind in zip(zip(*batch, strict=True), self._schema.types, strict=True)
        ]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._waiting_rows += len(batch)
        while self._waiting_rows >= ROW_GROUP_ROWS:
            self._flush(ROW_GROUP_ROWS)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows)
        rest = table.slice(rows)
        self._waiting, self._waiting_rows = ([rest] if rest.num_rows else []), rest.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._waiting_rows:
            self._flush(self._waiting_rows)
        self._writer.close()


def _type(column: Column) -> Any:
    match column.kind:
        case "STRING" | "JSON":
            return pa.string()
        case "DATETIME":
            return pa.timestamp("ms", tz="UTC")
        case "INTEGER":
            return pa.int64()
        case "DECIMAL":
            assert column.scale is not None
            return pa.decimal128(PRECISION, column.scale)
