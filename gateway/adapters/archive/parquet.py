"""Rows of PostgreSQL become Parquet and rows again, the same in every column, in pieces of bounded size both ways.

In between they are CSV as COPY writes and reads it: nothing is null, everything else is quoted. On the way here a
moment is whole microseconds since 1970 and an array is JSON; on the way back both are as PostgreSQL spells them.
Loading this module loads pyarrow, which costs a second and 100 MB: only what needs an archived month does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

UNREADABLE: Final = (pa.ArrowException, OSError)
"""What reading a file that is not there, or is not what was written, may raise."""

MOMENT: Final = "timestamp with time zone"
TEXTS: Final = "text[]"
BYTES: Final = "bytea"
_STORED: Final[Mapping[str, pa.DataType]] = {
    "text": pa.string(),
    "bigint": pa.int64(),
    "boolean": pa.bool_(),
    "jsonb": pa.string(),
    MOMENT: pa.timestamp("us", tz="UTC"),
    TEXTS: pa.list_(pa.string()),
    BYTES: pa.binary(),
}
_READ: Final[Mapping[str, pa.DataType]] = {MOMENT: pa.int64(), TEXTS: pa.string(), BYTES: pa.string()}
_FROM_CSV: Final[Mapping[str, Any]] = {
    "null_values": [""],
    "true_values": ["t"],
    "false_values": ["f"],
    "strings_can_be_null": True,
    "quoted_strings_can_be_null": False,
}


class Group(NamedTuple):
    """A piece of a file that is read at once: its number, and its first and last moment."""

    number: int
    first: datetime
    last: datetime


class ParquetWriter:
    """Writes one file, each text a piece of its own; the rows come in order of time."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """``columns`` are names and PostgreSQL's types. Raises KeyError for a type that no column has had yet."""
        self._columns = columns
        self._schema = pa.schema([pa.field(name, _STORED[kind]) for name, kind in columns.items()])
        self._convert = pa_csv.ConvertOptions(
            column_types={name: _READ.get(kind, _STORED[kind]) for name, kind in columns.items()}, **_FROM_CSV
        )
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", write_page_checksum=True)
        self.rows = 0

    def write(self, text: bytes) -> None:
        """Whole rows of CSV."""
        table = pa_csv.read_csv(
            io.BytesIO(text),
            read_options=pa_csv.ReadOptions(
                column_names=list(self._columns), use_threads=False, block_size=len(text) + 1
            ),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=self._convert,
        )
        arrays = [_stored(table.column(name), kind) for name, kind in self._columns.items()]
        made = pa.Table.from_arrays(arrays, schema=self._schema)
        self._file.write_table(made, row_group_size=made.num_rows)
        self.rows += made.num_rows

    def close(self) -> None:
        self._file.close()


class ParquetRows:
    """Reads one file, a piece at a time."""

    def __init__(self, path: Path, *, time: str) -> None:
        """``time`` is the column by which the rows are in order. Raises one of UNREADABLE."""
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self._time = time
        self.columns: list[str] = self._file.schema_arrow.names

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def groups(self, begins: datetime, ends: datetime) -> list[Group]:
        """The pieces that may hold rows from ``begins`` to before ``ends``, in order of time."""
        found = [Group(number, *self._range(number, self._time)) for number in range(self._file.num_row_groups)]
        return [group for group in found if group.first < ends and group.last >= begins]

    def between(self, begins: datetime, ends: datetime) -> Iterator[bytes]:
        """The rows of a period as CSV, piece by piece."""
        for group in self.groups(begins, ends):
            table = self._file.read_row_group(group.number, use_threads=False)
            if group.first < begins or group.last >= ends:
                at = table.column(self._time)
                bounds = [pa.scalar(bound, at.type) for bound in (begins, ends)]
                table = table.filter(pc.and_(pc.greater_equal(at, bounds[0]), pc.less(at, bounds[1])))
            yield _csv(table)

    def having(self, column: str, value: str) -> Iterator[bytes]:
        """The rows whose text is this, as CSV. Where values came in order of time, as ids do, few pieces are read."""
        for number in range(self._file.num_row_groups):
            first, last = self._range(number, column)
            if first is not None and not first <= value <= last:
                continue
            column_alone = self._file.read_row_group(number, columns=[column], use_threads=False).column(0)
            is_it = pc.equal(column_alone, value)
            if pc.any(is_it).as_py():
                yield _csv(self._file.read_row_group(number, use_threads=False).filter(is_it))

    def _range(self, number: int, column: str) -> tuple[Any, Any]:
        """The least and the greatest value of a piece, where the file says."""
        statistics = self._file.metadata.row_group(number).column(self.columns.index(column)).statistics
        if statistics is None or not statistics.has_min_max:
            return None, None
        first, last = statistics.min, statistics.max
        if isinstance(first, datetime):
            return first.replace(tzinfo=UTC), last.replace(tzinfo=UTC)
        return first, last


def _stored(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray | pa.Array:
    """A column of CSV as it is kept."""
    if kind == MOMENT:
        return column.cast(pa.timestamp("us")).cast(_STORED[MOMENT])
    if kind == TEXTS:
        known: dict[str | None, list[str] | None] = {None: None}
        return pa.array([_decoded(text, known) for text in column.to_pylist()], _STORED[TEXTS])
    if kind == BYTES:
        values = [None if text is None else bytes.fromhex(text.removeprefix("\\x")) for text in column.to_pylist()]
        return pa.array(values, _STORED[BYTES])
    return column


def _decoded(text: str | None, known: dict[str | None, list[str] | None]) -> list[str] | None:
    """An array of texts from JSON; few of them differ."""
    if text not in known:
        known[text] = msgspec.json.decode(text or "", type=list[str])
    return known[text]


def _csv(table: pa.Table) -> bytes:
    """Rows as COPY reads them."""
    columns = {name: _spelled(table.column(name)) for name in table.column_names}
    sink = io.BytesIO()
    options = pa_csv.WriteOptions(include_header=False, quoting_style="all_valid", batch_size=4096)
    pa_csv.write_csv(pa.table(columns), sink, write_options=options)
    return sink.getvalue()


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_list(column.type):
        return pa.array([None if texts is None else _array_text(texts) for texts in column.to_pylist()], pa.string())
    if pa.types.is_binary(column.type):
        return pa.array([None if each is None else f"\\x{each.hex()}" for each in column.to_pylist()], pa.string())
    return column


def _array_text(texts: list[str]) -> str:
    r"""PostgreSQL's text of an array: ``{"a","b \" c"}``."""
    quoted = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"
