"""A trace's lines become rows in order of time, or an error with its line; conversations are found by prefixes."""

import json

import pytest

from gateway.replay.rows import Row
from gateway.replay.trace import TraceError, conversations, read_trace


def line(timestamp: float, input_length: int, hash_ids: list[int], **others: object) -> bytes:
    fields = {"timestamp": timestamp, "input_length": input_length, "output_length": 10, "hash_ids": hash_ids}
    return json.dumps(fields | others).encode()


def read(*lines: bytes) -> list[Row]:
    return read_trace(lines, model="m")


def test_a_prompt_is_its_full_blocks_and_its_length():
    """1,200 tokens are two full blocks and a rest; the last full block stands for the whole prompt."""
    (row,) = read(line(5_000, 1_200, [0, 7, 9]))
    assert (row.at, row.input_tokens, row.output_tokens, row.model) == (0.0, 1_200, 10, "m")
    assert row.prompt.digests == (1, 8), "ids count from 0, and a digest of 0 means none"
    assert row.prompt.tokens == (512, 1_200)


def test_prompts_shorter_than_a_block_share_nothing():
    """Two prompts of 100 tokens with equal ids are strangers: no cache keeps less than a block."""
    one, two = read(line(0, 100, [3]), line(1_000, 100, [3]))
    assert one.prompt.tokens == two.prompt.tokens == (100,)
    assert one.prompt.digests != two.prompt.digests


def test_arrivals_stamped_in_batches_are_spread_over_the_batch():
    """Three stamps of 0 and three of 3,000 ms: a batch is three seconds long, and each has its third of it."""
    rows = read(*(line(stamp, 600, [0]) for stamp in (0, 3_000, 0, 3_000, 0, 3_000)))
    assert [row.at for row in rows] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_arrivals_with_stamps_of_their_own_stay_as_they_are():
    """Two at the same moment among others are no batch; times count from the first request."""
    rows = read(*(line(stamp, 600, [0]) for stamp in (9_000, 2_000, 2_000, 4_000)))
    assert [row.at for row in rows] == [0.0, 0.0, 2.0, 7.0]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{", "not a request of a trace"),
        (b'{"timestamp": 0, "input_length": 5, "output_length": 1}', "hash_ids"),
        (b'{"timestamp": 0, "input_length": "5", "output_length": 1, "hash_ids": []}', "input_length"),
        (line(0, 0, []), "reads 0 tokens"),
        (line(0, 600, [1, 2, 3]), "600 tokens have 2 blocks of 512"),
        (line(0, 600, [-1]), "negative"),
    ],
)
def test_a_wrong_line_is_told_with_its_number_and_the_mend(bad: bytes, said: str):
    """The second line is wrong: the error names it, says what is wrong and how to mend it."""
    with pytest.raises(TraceError, match="Mend: ") as caught:
        read(line(0, 600, [0]), b"", bad)
    assert caught.value.line == 3
    assert said in str(caught.value)


def test_an_empty_trace_is_an_error():
    """There is nothing to replay."""
    with pytest.raises(TraceError, match="no request"):
        read(b"", b"  ")


def test_a_conversation_continues_the_latest_whole_prompt_it_begins_with():
    """A shared first block alone makes no conversation; extending a whole prompt does."""
    rows = read(
        line(0, 1_024, [0, 1]),
        line(1_000, 1_024, [0, 2]),
        line(2_000, 1_600, [0, 1, 3]),
        line(3_000, 512, [0]),
        line(4_000, 1_600, [0, 2, 4]),
        line(5_000, 1_024, [0, 5]),
    )
    assert conversations(rows) == [0, 1, 0, 2, 1, 3]


def test_a_session_is_the_clients_own_word_for_a_conversation():
    """Prompts that share nothing are one conversation if the client says so."""
    rows = read(line(0, 600, [0], session=7), line(1, 600, [5], session=8), line(2, 600, [9], session=7))
    assert conversations(rows) == [0, 1, 0]
