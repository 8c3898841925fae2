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


class ParquetFocus:
    """Rows go to disk as they come, one row group for each batch."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._schema = pa.schema([(column.name, _type(column)) for column in columns])
        self._writer = pq.ParquetWriter(path, self._schema, compression=COMPRESSION, store_schema=False)

    def write(self, batch: Sequence[Sequence[str | None]]) -> None:
        """A batch of rows as CSV has their cells. Raises pyarrow.ArrowInvalid for what a column cannot hold exactly."""
        arrays = [
            pa.array(cells, pa.string()).cast(kind)
            for cells, kind in zip(zip(*batch, strict=True), self._schema.types, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(batch))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
