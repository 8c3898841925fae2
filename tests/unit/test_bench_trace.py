"""The trace driver's prompts share what their rows share, and its audit finds whatever is planted in a book."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.audit import Acknowledged, Books, audit, of_bill, of_ledger, pico
from bench.drive import Outcome, judge
from bench.prompts import BLOCK_TOKENS, Row, block_tokens, messages_of, request_of, spread
from gateway.simulator import count_tokens
from gateway.simulator.tokens import serialize


def a_row(number: int, blocks: tuple[int, ...], *, rest: int = 100, output: int = 343) -> Row:
    length = len(blocks) * BLOCK_TOKENS + rest
    return Row(number=number, at_ms=0.0, input_tokens=length, output_tokens=output, blocks=blocks)


def prompt_of(row: Row, *, scale: int = 1) -> dict[str, Any]:
    messages, _ = messages_of(row, scale=scale)
    return {"messages": [json.loads(message) for message in messages]}


def shared_tokens(one: Row, other: Row, *, scale: int = 1) -> int:
    """The common prefix of two prompts as a provider's cache sees it, in tokens."""
    pair = zip(serialize(prompt_of(one, scale=scale)), serialize(prompt_of(other, scale=scale)), strict=False)
    same = next((place for place, (a, b) in enumerate(pair) if a != b), None)
    assert same is not None, "two rows have one prompt"
    return same // 4


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(
    ("one", "other", "blocks"),
    [
        ((0, 1, 2), (0, 1, 2), 3),
        ((0, 1, 2), (0, 1, 7), 2),
        ((0, 1, 2), (0, 1, 2, 3, 4), 3),
        ((0,), (9,), 0),
        ((), (), 0),
        ((0, 182_789), (0, 182_788), 1),
    ],
)
def test_prompts_share_exactly_the_blocks_that_their_rows_share(one, other, blocks, scale):
    shared = shared_tokens(a_row(1, one), a_row(2, other), scale=scale)
    assert shared // block_tokens(scale) == blocks
    assert shared - blocks * block_tokens(scale) < 8, "a header, and the first digits of a name"


@pytest.mark.parametrize("rest", [0, 1, 20, 511])
def test_a_prompt_has_the_tokens_of_its_row(rest):
    row = a_row(3, (0, 1, 2), rest=rest)
    _, tokens = messages_of(row)
    assert tokens == count_tokens(prompt_of(row))
    assert tokens == max(row.input_tokens, 3 * BLOCK_TOKENS + 10), "no shorter than a name and the marker"


def test_a_scaled_prompt_is_shorter_by_the_scale():
    row = a_row(3, tuple(range(20)), rest=400)
    _, tokens = messages_of(row, scale=8)
    assert tokens == count_tokens(prompt_of(row, scale=8)) == 20 * 64 + 50


def test_a_request_is_drawn_by_seed_and_row_alone():
    draw: dict[str, Any] = {"scale": 1, "keys": 5, "turbo_share": 0.5, "stream_share": 0.5}
    rows = [a_row(number, (0, number)) for number in range(200)]
    first = [request_of(row, seed=1, **draw) for row in rows]
    assert first == [request_of(row, seed=1, **draw) for row in rows]
    assert [request.key for request in first] != [request_of(row, seed=2, **draw).key for row in rows]
    assert 60 < sum(request.stream for request in first) < 140
    body = json.loads(first[0].body)
    assert body["messages"][-1]["content"].rstrip().endswith("[[out=343]]")
    assert body["max_tokens"] == 512


def test_a_batch_is_spread_and_a_partial_block_is_no_block():
    documents = [
        {"timestamp": stamp, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, number]}
        for number, stamp in enumerate((3000, 3000, 3000, 6000), start=2)
    ]
    rows = spread(documents, first=10)
    assert [row.at_ms for row in rows] == [0, 1000, 2000, 3000]
    assert [row.blocks for row in rows] == [(0, 1)] * 4
    assert [row.number for row in rows] == [10, 11, 12, 13]


# -- the audit ----------------------------------------------------------------------------------------------

CALL: dict[str, Any] = {
    "provider": "evolink", "request_id": "r1", "attempt_id": "a1", "refused": None, "status": 200, "model": "kimi",
}  # fmt: skip
LINE: dict[str, Any] = {
    "provider": "evolink", "model": "kimi", "request_id": "r1", "attempt_id": "a1", "told": "told", "ended": "complete",
    "input_tokens": 70, "cached_tokens": 30, "cache_write_tokens": 0, "output_tokens": 10,
    "input_pico": 70 * 556_000, "cached_pico": 30 * 139_000, "cache_write_pico": 0, "output_pico": 10 * 2_222_000,
    "cost_pico": 65_310_000,
}  # fmt: skip
ROW: dict[str, Any] = {
    "attempt_id": "a1", "request_id": "q1", "attempt": 2, "key_id": "k1", "key_name": "bench",
    "provider": "evolink", "model": "kimi",
    "upstream_model": "kimi", "status": "succeeded", "error_type": None, "usage_source": "provider",
    "input_tokens": 100, "cached_tokens": 30, "cache_write_tokens": 0, "output_tokens": 10, "reasoning_tokens": 4,
    "input_cost": "0.00003892", "cached_cost": "0.00000417", "cache_write_cost": "0", "output_cost": "0.00002222",
    "fee_cost": "0", "cost": "0.00006531", "corrects": None,
}  # fmt: skip
REFUSED_CALL: dict[str, Any] = {**CALL, "request_id": "r0", "attempt_id": "a0", "refused": "unavailable", "status": 503}
REFUSED_ROW: dict[str, Any] = {
    **ROW, "attempt_id": "a0", "attempt": 1, "status": "failed", "error_type": "transient", "usage_source": "none",
    "input_tokens": 0, "cached_tokens": None, "output_tokens": 0, "reasoning_tokens": None,
    "input_cost": "0", "cached_cost": "0", "output_cost": "0", "cost": "0",
}  # fmt: skip
REPORT: dict[str, Any] = {
    "key": "bench", "provider": "evolink", "model": "kimi", "requests": 1, "attempts": 2, "input_tokens": 100,
    "cached_tokens": 30, "cache_write_tokens": 0, "output_tokens": 10, "reasoning_tokens": 4, "cost": "0.00006531",
    "estimated_cost": "0",
}  # fmt: skip
GOT = Acknowledged(request_id="q1", input_tokens=100, output_tokens=10, cost=65_310_000)
AGREEING = Books(
    bill=[LINE], calls=[REFUSED_CALL, CALL], ledger=[REFUSED_ROW, ROW], report=[REPORT], acknowledged=[GOT]
)


def test_agreeing_books_have_no_difference():
    verdict = audit(AGREEING)
    assert verdict.agrees, verdict.differences
    assert verdict.sums["ledger_pico"] == verdict.sums["report_pico"] == 65_310_000


Plant = Callable[[Books], Books]
PLANTED: dict[str, tuple[str, Plant]] = {
    "one pico-dollar": (
        "Σ bill and Σ ledger",
        lambda books: replace(books, bill=[{**LINE, "cost_pico": LINE["cost_pico"] + 1}]),
    ),
    "one cached token": (
        "bill and ledger, one attempt",
        lambda books: replace(books, ledger=[REFUSED_ROW, {**ROW, "cached_tokens": 31}]),
    ),
    "a lost row": (
        "upstream call without a ledger row",
        lambda books: replace(books, ledger=[ROW]),
    ),
    "a row too many": (
        "ledger row without an upstream call",
        lambda books: replace(books, ledger=[*books.ledger, {**REFUSED_ROW, "attempt_id": "a9"}]),
    ),
    "a row twice": (
        "ledger rows of an attempt",
        lambda books: replace(books, ledger=[*books.ledger, ROW]),
    ),
    "a report that rounds": (
        "Σ ledger and report",
        lambda books: replace(books, report=[{**REPORT, "cost": "0.000065"}]),
    ),
    "a report without a key": (
        "Σ ledger and report",
        lambda books: replace(books, report=[]),
    ),
    "an acknowledged answer that failed": (
        "acknowledged answer in the ledger",
        lambda books: replace(books, ledger=[REFUSED_ROW, {**ROW, "status": "aborted"}]),
    ),
    "another cost for the client": (
        "client and ledger",
        lambda books: replace(books, acknowledged=[replace(GOT, cost=65_310_001)]),
    ),
    "an estimate where usage was told": (
        "estimated although usage was told",
        lambda books: replace(books, ledger=[REFUSED_ROW, {**ROW, "usage_source": "estimated"}]),
    ),
    "parts that do not add up": (
        "cost is not the sum of its parts",
        lambda books: replace(books, ledger=[REFUSED_ROW, {**ROW, "fee_cost": "0.000000000001"}]),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found(name):
    kind, plant = PLANTED[name]
    assert kind in {difference.kind for difference in audit(plant(AGREEING)).differences}


def test_a_row_that_a_kill_left_open_may_be_an_estimate_and_even_uncalled():
    opened = {**ROW, "status": "abandoned", "usage_source": "estimated"}
    uncalled = {**opened, "attempt_id": "a9", "request_id": "q9"}
    rows = [REFUSED_ROW, opened, uncalled]
    twice = {**REPORT, "requests": 2, "attempts": 3, "estimated_cost": "0.00013062", "cost": "0.00013062"}
    twice |= {"input_tokens": 200, "cached_tokens": 60, "output_tokens": 20, "reasoning_tokens": 8}
    books = replace(AGREEING, ledger=rows, report=[twice], acknowledged=[])
    assert audit(books, killed=True).agrees, audit(books, killed=True).differences
    assert not audit(books).agrees


def test_bill_and_ledger_read_as_the_same_amount():
    assert of_bill(LINE) == of_ledger(ROW)


@pytest.mark.parametrize(("usd", "expected"), [("0.000000000001", 1), ("1", 10**12), (None, 0), (0, 0)])
def test_dollars_become_whole_pico_dollars(usd, expected):
    assert pico(usd) == expected


def test_a_fraction_of_a_pico_dollar_is_refused():
    with pytest.raises(ValueError, match="whole number"):
        pico("0.0000000000001")


# -- judging answers ----------------------------------------------------------------------------------------------

USAGE = b'{"prompt_tokens":100,"completion_tokens":343,"total_tokens":443,"cost":0.0001}'
CLOSING = b'data: {"choices":[],"usage":' + USAGE + b"}\n\n"
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"\\"error\\""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("include_usage", "body", "failed"),
    [
        (True, DELTA + CLOSING + DONE, None),
        (False, DELTA + DONE, None),
        (True, DELTA + DONE, "wrong answer"),
        (False, DELTA + CLOSING + DONE, "wrong answer"),
        (True, DELTA + CLOSING, "answer cut"),
        (True, DELTA + b'data: {"error":{"message":"gone","code":"upstream_error"}}\n\n', "in the stream"),
    ],
)
def test_a_stream_is_judged_by_its_end_and_its_usage(include_usage, body, failed):
    request = request_of(a_row(1, ()), seed=1, scale=1, keys=1, turbo_share=0, stream_share=1)
    request = replace(request, include_usage=include_usage)
    outcome = Outcome(request=request, late_seconds=0, status=200, request_id="q1")
    judge(request, outcome, body, content_type="text/event-stream")
    assert outcome.failed == failed, outcome.detail
