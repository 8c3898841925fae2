"""The turns that are driven through the live gateway extend each other, and orders of policies are compared fairly."""

import json

from bench.policies import disagreements, requests_of, turns_of
from bench.prompts import BLOCK_TOKENS, Row
from gateway.simulator import count_tokens


def a_row(number: int, *blocks: int, rest: int = 100) -> Row:
    length = len(blocks) * BLOCK_TOKENS + rest
    return Row(number=number, at_ms=number * 1_000.0, input_tokens=length, output_tokens=9, blocks=blocks)


ROWS = [a_row(0, 1, 2), a_row(1, 1, 7), a_row(2, 1, 2, 3), a_row(3, 1, 2, 3, 4, 5), a_row(4, 8)]


def test_a_turn_says_all_that_was_said_before() -> None:
    """The third and fourth row go on where the first ended; what only shares a first block begins a conversation."""
    first, other, second, third, short = turns_of(ROWS, scale=1)
    assert second.messages[: len(first.messages)] == first.messages
    assert third.messages[: len(second.messages)] == second.messages
    assert second.digests[: len(first.digests)] == first.digests
    assert other.messages[0] != first.messages[0]
    assert len(short.messages) == 2


def test_sizes_are_what_the_simulators_count() -> None:
    """The last prefix of a turn has the tokens of its whole prompt."""
    turns = turns_of(ROWS, scale=4)
    for turn, request in zip(turns, requests_of(turns), strict=True):
        assert count_tokens(json.loads(request.body)) == turn.tokens[-1] == request.input_tokens
        assert list(turn.tokens) == sorted(set(turn.tokens))


def test_orders_differ_only_where_both_are_sure() -> None:
    """Half a percent is no difference; an order that is turned round is one."""
    assert disagreements({"a": 1.0, "b": 1.2}, {"a": 1.0, "b": 1.001}) == []
    assert disagreements({"a": 1.0, "b": 1.2}, {"a": 1.0, "b": 1.1}) == []
    assert disagreements({"a": 1.0, "b": 1.2}, {"a": 1.0, "b": 0.9}) == ["a against b: live -16.7%, replayed +11.1%"]
