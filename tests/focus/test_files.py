"""FOCUS files are whole, typed, the same whenever they are written again, and vouched for by their checksums."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.adapters.parquet_focus import ROW_GROUP_ROWS, ParquetFocus
from gateway.cli.focus_files import ROWS_AT_ONCE, Written, write_focus
from gateway.core.focus import ChargeFact, FocusRows
from gateway.core.focus_columns import FOCUS_VERSIONS, columns_of
from gateway.core.money import Money
from gateway.http.focus import focus_csv
from tests.focus.checker import check_file
from tests.focus.samples import ACCOUNT, FACTS, each, fact, fee

CREATED = datetime(2026, 11, 3, tzinfo=UTC)


def write(
    folder: Path, facts: Iterable[ChargeFact] = FACTS, *, version: str = "1.2", stem: str = "focus", forms: str = "both"
) -> Written:
    return asyncio.run(
        write_focus(
            each(facts),
            ACCOUNT,
            version=version,
            folder=folder,
            stem=stem,
            forms=("csv", "parquet") if forms == "both" else (forms,),
            created_at=CREATED,
        )
    )


def sums(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.mark.parametrize("version", FOCUS_VERSIONS)
def test_the_files_of_an_export(tmp_path: Path, version: str):
    """CSV, Parquet and metadata under one name, with checksums that hold, and nothing else."""
    written = write(tmp_path, version=version)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("SHA256SUMS", "focus.csv", "focus.metadata.json", "focus.parquet")
    ]
    assert written.rows == len(FACTS)
    assert written.billed == Money(sum(one.cost_pico for one in FACTS))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("focus.*")}
    assert sums(tmp_path) == digests
    assert {file.path.name: file.sha256 for file in written.files} == digests
    found = check_file(tmp_path / "focus.csv", version=version)
    assert (found.problems, found.rows, found.billed) == ([], len(FACTS), written.billed.usd())
    metadata = json.loads((tmp_path / "focus.metadata.json").read_text())
    assert metadata["FocusVersion"] == version
    assert {each["Name"]: (each["Sha256"], each["Rows"]) for each in metadata["x_Artifacts"]} == {
        name: (digests[name], len(FACTS)) for name in ("focus.csv", "focus.parquet")
    }


def test_parquet_holds_what_the_csv_says(tmp_path: Path):
    """Cell by cell: decimals to the last digit, moments in UTC, null where a cell is empty; no column is a float."""
    write(tmp_path, version="1.5")
    table = pq.read_table(tmp_path / "focus.parquet")
    assert not any(pa.types.is_floating(kind) for kind in table.schema.types)
    with (tmp_path / "focus.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert table.num_rows == len(lines)
    kinds = {column.name: column.kind for column in columns_of("1.5")}
    assert table.column_names == list(kinds)
    for row, line in zip(table.to_pylist(), lines, strict=True):
        for name, value in row.items():
            text = line[name] or None
            match kinds[name]:
                case _ if text is None:
                    assert value is None, name
                case "DECIMAL":
                    assert value == Decimal(text), name
                case "INTEGER":
                    assert value == int(text), name
                case "DATETIME":
                    assert value == datetime.fromisoformat(text), name
                case _:
                    assert value == text, name


def test_many_rows_are_groups_of_one_size(tmp_path: Path):
    """Every row once and in order, also where a group ends within what was given at once."""
    count = 2 * ROW_GROUP_ROWS + 500
    columns = columns_of("1.2")
    rows = FocusRows(ACCOUNT)
    batch = [rows.row(fact(tokens=number)) for number in range(1, count + 1)]
    with ParquetFocus(tmp_path / "a.parquet", columns) as file:
        for start in range(0, count, 7_000):
            file.write(batch[start : start + 7_000])
    written = pq.ParquetFile(tmp_path / "a.parquet")
    sizes = [written.metadata.row_group(number).num_rows for number in range(written.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 500]
    assert written.read(["ConsumedQuantity"])[0].to_pylist() == [Decimal(number) for number in range(1, count + 1)]


def test_parquet_refuses_what_it_would_round(tmp_path: Path):
    """An amount of more digits than a column has is an error, and leaves no file behind."""
    with pytest.raises(pa.ArrowInvalid):
        write(tmp_path, [fee(10**38)], forms="parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_same_charges_are_the_same_bytes(tmp_path: Path):
    """Whenever, wherever and beside whatever they are written."""
    many = [fact(tokens=number + 1) for number in range(ROWS_AT_ONCE + 3)]
    first, again = write(tmp_path / "a", many), write(tmp_path / "b", many)
    assert [file.sha256 for file in first.files] == [file.sha256 for file in again.files]
    alone = write(tmp_path / "c", many, forms="csv")
    assert alone.files[0].sha256 == first.files[0].sha256


def test_what_is_streamed_is_what_is_written(tmp_path: Path):
    """The answer to a request has the bytes of the file."""
    many = [fact(tokens=number + 1) for number in range(1_003)]
    write(tmp_path, many, forms="csv")

    async def streamed() -> bytes:
        return b"".join([piece async for piece in focus_csv(each(many), FocusRows(ACCOUNT))])

    assert asyncio.run(streamed()) == (tmp_path / "focus.csv").read_bytes()


def test_checksums_of_other_files_stay(tmp_path: Path):
    """A folder of many months has one list of them; a file that is written again has its new one."""
    write(tmp_path, stem="focus-1.2-2026-09", forms="csv")
    before = sums(tmp_path)
    write(tmp_path, FACTS[:3], stem="focus-1.2-2026-10", forms="csv")
    assert sums(tmp_path).items() >= before.items()
    assert len(sums(tmp_path)) == 4
    write(tmp_path, FACTS[:3], stem="focus-1.2-2026-09", forms="csv")
    assert sums(tmp_path)["focus-1.2-2026-09.csv"] == sums(tmp_path)["focus-1.2-2026-10.csv"]


def test_an_export_that_breaks_off_leaves_what_was_there(tmp_path: Path):
    """Files are replaced when all of them are whole, or not at all."""
    write(tmp_path, forms="csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    async def broken() -> AsyncIterator[ChargeFact]:
        yield FACTS[0]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(
            write_focus(
                broken(), ACCOUNT, version="1.2", folder=tmp_path, stem="focus", forms=("csv",), created_at=CREATED
            )
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_charges_are_a_header(tmp_path: Path):
    """A month in which nothing was spent has files as well, of no rows."""
    written = write(tmp_path, [])
    assert (written.rows, written.billed) == (0, Money(0))
    assert check_file(tmp_path / "focus.csv", version="1.2").problems == []
    assert pq.read_table(tmp_path / "focus.parquet").num_rows == 0
