"""A trace is a JSON object a line; what is wrong with one is said with its line; arrivals come out in order of time.

Format of Mooncake's traces: ``timestamp`` in ms, ``input_length`` and ``output_length`` in tokens, ``hash_ids`` with
one id for every 512 tokens of the prompt, equal where everything up to there is equal; ``session`` where the client
named its conversation. The id of a last block that is not full says nothing: a cache keeps full blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from gateway.core.prefix import Prompt
from gateway.replay.rows import Row

BLOCK_TOKENS: Final = 512
_UNSHARED: Final = 1 << 63
"""Prompts of less than a block share nothing: each has a digest of its own above this."""


class TraceError(Exception):
    """A line that is no request of a trace: which, what is wrong with it, and the mend."""

    def __init__(self, line: int, message: str, mend: str) -> None:
        self.line = line
        super().__init__(f"{message} Mend: {mend}")


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    session: int | str | None = None


_SHAPE: Final = '{"timestamp": 0, "input_length": 1024, "output_length": 200, "hash_ids": [0, 1]}'


def read_trace(lines: Iterable[bytes], *, model: str, tenant: str = "") -> list[Row]:
    """The rows of a trace, by arrival in seconds since its first. Raises TraceError."""
    decoder = msgspec.json.Decoder(_Line)
    read: list[_Line] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise TraceError(
                number, f"This is not a request of a trace: {error}.", f"Write it like {_SHAPE}."
            ) from None
        read.append(one)
        _check(one, number)
    if not read:
        raise TraceError(1, "There is no request in it.", f"Write one a line, like {_SHAPE}.")
    read.sort(key=lambda each: each.timestamp)
    arrivals = _spread([each.timestamp / 1000 for each in read])
    return [
        _row(one, at - arrivals[0], place, model, tenant)
        for place, (one, at) in enumerate(zip(read, arrivals, strict=True))
    ]


def _check(one: _Line, number: int) -> None:
    if one.input_length < 1 or one.output_length < 0:
        mend = "Count input_length from 1 and output_length from 0."
        raise TraceError(number, f"It reads {one.input_length} tokens and writes {one.output_length}.", mend)
    blocks = -(-one.input_length // BLOCK_TOKENS)
    if len(one.hash_ids) > blocks:
        message = f"hash_ids has {len(one.hash_ids)} ids; {one.input_length} tokens have {blocks} blocks of 512."
        raise TraceError(number, message, "Hash the prompt in blocks of 512 tokens.")
    if any(each < 0 for each in one.hash_ids):
        raise TraceError(number, "hash_ids has a negative id.", "Number the blocks from 0.")


def _spread(stamps: Sequence[float]) -> list[float]:
    """Arrivals that were stamped in batches, spread evenly over the batch; others as they are."""
    batches = Counter(stamps)
    if len(batches) < 2 or len(batches) >= len(stamps) / 2:
        return list(stamps)
    moments = sorted(batches)
    seconds = min(after - before for before, after in pairwise(moments))
    return [moment + place * seconds / batches[moment] for moment in moments for place in range(batches[moment])]


def _row(one: _Line, at: float, place: int, model: str, tenant: str) -> Row:
    full = one.input_length // BLOCK_TOKENS
    digests = tuple(each + 1 for each in one.hash_ids[:full])  # 0 means none
    tokens = tuple(range(BLOCK_TOKENS, BLOCK_TOKENS * len(digests), BLOCK_TOKENS))
    return Row(
        at=at,
        input_tokens=one.input_length,
        output_tokens=one.output_length,
        # the last full block stands for the whole prompt, so that the conversation's next one finds it
        prompt=Prompt(
            digests=digests or (_UNSHARED | place,),
            tokens=(*tokens, one.input_length),
            family=digests[0] if digests else 0,  # the first block is most of the tools and the system message
        ),
        tenant=tenant,
        model=model,
        conversation=None if one.session is None else str(one.session),
    )


def conversations(rows: Sequence[Row]) -> list[int]:
    """The number of each row's conversation: the client's word, or else the latest one whose whole prompt, of more
    than one boundary, this prompt begins with."""
    named: dict[str, int] = {}
    ends: dict[int, int] = {}
    numbers: list[int] = []
    fresh = 0
    for row in rows:
        number = named.get(row.conversation) if row.conversation is not None else _continued(row, ends)
        if number is None:
            number, fresh = fresh, fresh + 1
        if row.conversation is not None:
            named[row.conversation] = number
        if len(row.prompt.digests) > 1:
            ends[row.prompt.digests[-1]] = number
        numbers.append(number)
    return numbers


def _continued(row: Row, ends: dict[int, int]) -> int | None:
    return next((ends[digest] for digest in reversed(row.prompt.digests) if digest in ends), None)
