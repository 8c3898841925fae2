"""Statements in every form that a provider may print, read to the last digit; what cannot be read is named."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.statement import BadLine, LineReader, StatementError, StatementLine, StatementMapping
from gateway.core.statement_files import Statement

CONSOLE = StatementMapping(
    request_id="Request ID",
    time="Time",
    model="Model",
    input_tokens="Prompt Tokens",
    cached_tokens="Cached Tokens",
    output_tokens="Completion Tokens",
    amount="Amount (USD)",
    decimals=8,
)
NESTED = StatementMapping(
    request_id="request_id",
    time="created_at",
    model="model",
    input_tokens="usage.prompt_tokens",
    cached_tokens="usage.details.cached_tokens",
    output_tokens="usage.completion_tokens",
    amount="credits",
    decimals=6,
)
HEADER = "Request ID,Time,Model,Prompt Tokens,Cached Tokens,Completion Tokens,Amount (USD)\r\n"
AT = datetime(2026, 10, 12, 8, 30, tzinfo=UTC)


def read(mapping: StatementMapping, *pieces: str) -> tuple[Statement, list[StatementLine | BadLine]]:
    statement = Statement(LineReader(mapping), pieces)
    return statement, list(statement)


def test_a_console_s_csv_is_read_to_the_last_digit() -> None:
    """Tokens as told, the moment in UTC, the amount in whole pico-dollars, half of the eighth decimal as quantum."""
    text = HEADER + "r-1,2026-10-12T08:30:00Z,kimi-k2-thinking,1000,200,300,0.00126000\r\n"
    statement, lines = read(CONSOLE, text)
    assert lines == [StatementLine(2, "r-1", AT, "kimi-k2-thinking", 1000, 200, None, 300, 1_260_000_000)]
    assert (statement.kind, statement.not_told) == ("csv", ("cache_write_tokens",))
    assert statement.reader.quantum_pico() == 5_000


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_a_byte_order_mark_and_quotes_are_understood(delimiter: str) -> None:
    """The delimiter is the one with which the header has the columns that are looked for."""
    header = HEADER.replace(",", delimiter)
    row = delimiter.join(['"r;1"', "2026-10-12 08:30:00", '"a\nmodel"', "1", "", "2", "0.5"])
    _, lines = read(CONSOLE, "\ufeff" + header, row + "\n", row + "\n")
    assert [line.number for line in lines] == [3, 5]
    assert lines[0] == StatementLine(3, "r;1", AT, "a\nmodel", 1, None, None, 2, 500_000_000_000)


def test_capitals_and_spaces_in_a_header_do_not_matter() -> None:
    """Somebody has opened and saved the file."""
    _, lines = read(CONSOLE, "amount (usd) , REQUEST ID\n1.5,r-1\n")
    assert lines == [StatementLine(2, "r-1", None, None, None, None, None, None, 1_500_000_000_000)]


def test_quota_is_money_by_its_rate_and_rounded_to_whole_ones() -> None:
    """500,000 of new-api's quota are a dollar; half of one is the quantum."""
    mapping = StatementMapping(
        request_id="request_id", time="created_at", time_format="unix", amount="quota",
        usd_per_unit=Decimal("0.000002"), decimals=0,
    )  # fmt: skip
    statement, lines = read(mapping, "id,created_at,quota,request_id\n1,1791793800,7,r-1\n")
    assert lines == [StatementLine(2, "r-1", AT, None, None, None, None, None, 14_000_000)]
    assert statement.reader.quantum_pico() == 1_000_000
    assert statement.reader.resolution() == timedelta(minutes=1)


@pytest.mark.parametrize(
    "document",
    [
        {"success": True, "message": "", "data": "…"},
        {"meta": {"pages": [1, 2, {"data": []}]}, "data": "…", "after": 1},
        "…",
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_json_document_is_read_in_pieces_of_any_size(document: object, indent: int | None, size: int) -> None:
    """The list is found by its path, by being the document, or by being the first list in it."""
    item = {
        "request_id": "r-1", "created_at": "2026-10-12T10:30:00+02:00", "model": "m", "credits": 0.00126,
        "usage": {"prompt_tokens": 1000, "completion_tokens": 300, "details": {"cached_tokens": 200.0}},
    }  # fmt: skip
    text = json.dumps(document, indent=indent, ensure_ascii=False).replace(
        '"…"', json.dumps([item, item | {"credits": 1e-06}], indent=indent)
    )
    path = "data" if isinstance(document, dict) and "meta" in document else ""
    mapping = (
        NESTED
        if not path
        else StatementMapping(**{f: getattr(NESTED, f) for f in NESTED.__struct_fields__} | {"lines": path})
    )
    statement, lines = read(mapping, *(text[at : at + size] for at in range(0, len(text), size)))
    assert lines == [
        StatementLine(1, "r-1", AT, "m", 1000, 200, None, 300, 1_260_000_000),
        StatementLine(2, "r-1", AT, "m", 1000, 200, None, 300, 1_000_000),
    ]
    assert (statement.kind, statement.reader.quantum_pico()) == ("json", 500_000)


def test_json_lines_are_told_by_their_first_line() -> None:
    """Each line is an object that has an amount; an empty line is none, and a broken one has its number."""
    statement, lines = read(
        NESTED, '{"request_id": "a", "credits": 1}\n\n{"request_id": "b", "cred', 'its": 2}\n{oops\n[]\n'
    )
    assert statement.kind == "jsonl"
    assert [getattr(line, "amount_pico", None) for line in lines] == [10**12, 2 * 10**12, None, None]
    assert lines[2:] == [BadLine(4, "it is not JSON"), BadLine(5, "it is not a JSON object")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("r,2026-10-12,m,1,0,1", "it has 6 columns, and the header 7"),
        ("r,2026-10-12,m,1,0,1,", "it has no amount"),
        ("r,2026-10-12,m,1,0,1,free", "the amount 'free' is not a decimal number"),
        ("r,2026-10-12,m,1,0,1,NaN", "the amount 'NaN' is not an amount of money"),
        ("r,2026-10-12,m,1,0,1,1e60", "the amount '1e60' is not an amount of money"),
        ("r,2026-10-12,m,1,0,1,10000000", "the amount '10000000' is not an amount of money"),
        ("r,12/10/2026,m,1,0,1,1", "the time '12/10/2026' is not like 2026-10-12T08:00:00Z"),
        ("r,2026-10-12,m,one,0,1,1", "input_tokens is 'one', not a whole number"),
        ("r,2026-10-12,m,1,0.5,1,1", "cached_tokens is '0.5', not a whole number"),
        ("r,2026-10-12,m,1,0,-1,1", "output_tokens is '-1', which no call has"),
        (",,m,1,0,1,1", "it has neither a request id nor a time, so nothing says which call it is"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(row: str, reason: str) -> None:
    """It has its number, and the lines around it are read all the same."""
    good = "r,2026-10-12T08:30:00Z,m,1,0,1,1\n"
    _, lines = read(CONSOLE, HEADER + good + row + "\n" + good)
    assert lines[1] == BadLine(3, reason)
    assert isinstance(lines[0], StatementLine) and isinstance(lines[2], StatementLine)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((), "is empty"),
        (("\n \n",), "is empty"),
        (("id,price\n1,2\n",), "no column 'Amount (USD)' for the amount; it has: id, price"),
        (('{"data": {}}',), "has no list"),
        (('[{"a": 1}, {"a"',), "not JSON at item 2"),
        (('[{"a": 1} {"a": 1}]',), "After item 1 the statement is not JSON"),
        (("[1, 2",), "not JSON"),
    ],
)
def test_what_is_no_statement_is_refused_with_the_mend(pieces: tuple[str, ...], words: str) -> None:
    """The message says where, and what is there instead."""
    with pytest.raises(StatementError, match=words.replace("(", r"\(").replace(")", r"\)")):
        read(CONSOLE, *pieces)


def test_a_unit_of_unknown_worth_is_refused() -> None:
    """Credits are no money before somebody says what they cost."""
    with pytest.raises(StatementError, match="what a unit of this statement is worth"):
        LineReader(StatementMapping(amount="credits", usd_per_unit=None))


@pytest.mark.parametrize(
    ("form", "zone", "text"),
    [
        ("rfc3339", "Asia/Shanghai", "2026-10-12 16:30:00"),
        ("%d.%m.%Y %H:%M", "Europe/Berlin", "12.10.2026 10:30"),
        ("unix", "UTC", "1791793800"),
        ("unix_ms", "UTC", "1791793800000"),
    ],
)
def test_a_moment_is_read_in_its_own_form_and_zone(form: str, zone: str, text: str) -> None:
    """Every one of these is the same moment."""
    mapping = StatementMapping(time="t", amount="a", time_format=form, time_zone=zone)
    _, lines = read(mapping, f"t,a\n{text},1\n")
    assert [line.at for line in lines if isinstance(line, StatementLine)] == [AT]


@pytest.mark.parametrize(
    ("texts", "mapping", "quantum"),
    [
        (["0.5", "0.25", "1"], {}, 5 * 10**9),  # the longest has two decimals
        (["0.5"], {"decimals": 6}, 500_000),
        (["0.50"], {"rounding": "any"}, 10**10 - 1),
        (["1"], {"decimals": 0, "usd_per_unit": Decimal("0.0000000000025")}, 1),
        (["0.0000000000001"], {}, 1),
    ],
)
def test_the_quantum_is_what_rounding_may_have_done(texts: list[str], mapping: dict[str, object], quantum: int) -> None:
    """Half of the last decimal, all but one of it where it was cut, one where pico-dollars are coarse."""
    named = StatementMapping(request_id="r", amount="a", **mapping)  # type: ignore[arg-type]
    statement, _ = read(named, "r,a\n", *(f"r,{text}\n" for text in texts))
    assert statement.reader.quantum_pico() == quantum


def test_input_that_leaves_cached_tokens_out_is_made_whole() -> None:
    """A mapping may say that the input column counts only what was not cached."""
    mapping = StatementMapping(
        request_id="r", input_tokens="i", cached_tokens="c", cache_write_tokens="w", amount="a",
        input_includes_cached=False,
    )  # fmt: skip
    _, lines = read(mapping, "r,i,c,w,a\nr,10,3,2,1\n")
    assert lines == [StatementLine(2, "r", None, None, 15, 3, 2, None, 10**12)]


@given(st.lists(st.tuples(st.integers(-(10**17), 10**17), st.text(max_size=8), st.integers(0, 10**9)), max_size=8))
def test_csv_and_json_say_the_same(rows: list[tuple[int, str, int]]) -> None:
    """Whatever was written comes back, in either form."""
    mapping = StatementMapping(request_id="r", model="m", output_tokens="o", amount="a")
    amounts = [str(Decimal(pico).scaleb(-12)) for pico, _, _ in rows]
    objects = [
        {"r": "x", "m": model, "o": tokens, "a": amount}
        for (_, model, tokens), amount in zip(rows, amounts, strict=True)
    ]
    _, lines = read(mapping, json.dumps(objects))
    assert [line.amount_pico for line in lines if isinstance(line, StatementLine)] == [pico for pico, _, _ in rows]
    text = "".join(f"x,{tokens},{amount}\n" for (_, _, tokens), amount in zip(rows, amounts, strict=True))
    _, same = read(mapping, "r,o,a\n" + text)
    assert [(line.output_tokens, line.amount_pico) for line in same if isinstance(line, StatementLine)] == [
        (tokens, pico) for pico, _, tokens in rows
    ]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_memory_stays_flat_however_long_the_file_is(kind: str) -> None:
    """Twenty thousand lines take what one takes."""
    row = "r-{},2026-10-12T08:30:00Z,m,1,0,1,0.1\n" if kind == "csv" else '{{"request_id":"r-{}","credits":1}},'

    def pieces() -> Iterator[str]:
        yield HEADER if kind == "csv" else '{"data":['
        for number in range(0, 20_000, 100):
            yield "".join(row.format(number + each) for each in range(100))
        yield "" if kind == "csv" else '{"request_id":"last","credits":1}]}'

    count = 0
    lines: Iterable[StatementLine | BadLine] = Statement(LineReader(CONSOLE if kind == "csv" else NESTED), pieces())
    tracemalloc.start()
    try:
        for line in lines:
            assert isinstance(line, StatementLine)
            count += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= 20_000 and peak < 1_000_000
