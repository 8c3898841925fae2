"""Two prompts share their text exactly as far as their rows share blocks; nothing here knows a clock or a socket.

A full block of 512 tokens is one message whose text follows from the block's id alone; its role follows from its place.
What is left of the input is the last user message, which no other row has, with the marker for the answer's length. So
a prompt has the row's input tokens by the simulators' rule: four bytes a token, four tokens a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from random import Random
from typing import Final

from gateway.simulator import BYTES_PER_TOKEN, MESSAGE_TOKENS, filler

BLOCK_TOKENS: Final = 512
BLOCK_TOKENS_MIN: Final = 16
BATCH_MS: Final = 3_000
"""Arrivals are stamped once in so many milliseconds; those of one stamp are spread evenly up to the next."""
OUTPUT_LIMIT_STEP: Final = 256
KIMI: Final = "kimi-k2-thinking"
TURBO: Final = "kimi-k2-thinking-turbo"

_TAIL_SEED: Final = 1 << 47  # above every block id, so that no tail begins like a block
_CACHED_BLOCKS: Final = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request of a trace. ``at_ms`` is spread within its batch; ``blocks`` are full ones, from the start."""

    number: int
    at_ms: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to be sent. ``output_tokens`` is what the simulators answer, ``input_tokens`` what they count."""

    row: Row
    key: int
    model: str
    stream: bool
    include_usage: bool
    input_tokens: int
    output_tokens: int
    body: bytes


def read_rows(path: Path, *, offset: int, rows: int) -> list[Row]:
    """``rows`` rows of a Mooncake-format trace after the first ``offset``, in order of arrival from zero on."""
    with path.open("rb") as lines:
        documents = [json.loads(line) for line in islice(lines, offset, offset + rows)]
    return spread(documents, first=offset)


def spread(documents: Sequence[dict[str, object]], *, first: int = 0) -> list[Row]:
    """Rows with each batch spread evenly; a stamp that only one row has is left as it is."""
    rows: list[Row] = []
    start = min((_whole(document, "timestamp") for document in documents), default=0)
    for stamp, members in groupby(documents, key=lambda document: _whole(document, "timestamp")):
        batch = list(members)
        for place, document in enumerate(batch):
            length = _whole(document, "input_length")
            ids = document["hash_ids"]
            assert isinstance(ids, list)
            rows.append(
                Row(
                    number=first + len(rows),
                    at_ms=stamp - start + BATCH_MS * place / len(batch),
                    input_tokens=length,
                    output_tokens=_whole(document, "output_length"),
                    blocks=tuple(ids[: length // BLOCK_TOKENS]),
                )
            )
    return rows


def _whole(document: dict[str, object], name: str) -> int:
    value = document[name]
    assert isinstance(value, int)
    return value


def requests_of(
    rows: Iterable[Row], *, seed: int, scale: int, keys: int, turbo_share: float, stream_share: float
) -> Iterable[Request]:
    """The rows as requests, made when they are asked for. The same seed makes the same requests, row by row."""
    return (
        request_of(row, seed=seed, scale=scale, keys=keys, turbo_share=turbo_share, stream_share=stream_share)
        for row in rows
    )


def request_of(row: Row, *, seed: int, scale: int, keys: int, turbo_share: float, stream_share: float) -> Request:
    """One row as a request: model, key and form are drawn by seed and row number; a slice draws as the whole."""
    chance = Random(f"{seed}/{row.number}")
    key = chance.randrange(keys)
    model = TURBO if chance.random() < turbo_share else KIMI
    stream = chance.random() < stream_share
    include_usage = stream and chance.random() < 0.5
    output = max(1, row.output_tokens)
    messages, tokens = messages_of(row, scale=scale)
    fields = [f'"model":"{model}"', f'"max_tokens":{-(-output // OUTPUT_LIMIT_STEP) * OUTPUT_LIMIT_STEP}']
    if stream:
        fields.append('"stream":true')
    if include_usage:
        fields.append('"stream_options":{"include_usage":true}')
    body = b'{%b,"messages":[%b]}' % (",".join(fields).encode(), b",".join(messages))
    return Request(
        row=row, key=key, model=model, stream=stream, include_usage=include_usage,
        input_tokens=tokens, output_tokens=output, body=body,
    )  # fmt: skip


def messages_of(row: Row, *, scale: int = 1) -> tuple[list[bytes], int]:
    """The messages of a row as JSON, and their tokens: the row's input divided by ``scale``, or a few more."""
    block = block_tokens(scale)
    messages = [_block_message(block_id, place, block) for place, block_id in enumerate(row.blocks)]
    rest = (row.input_tokens - len(row.blocks) * BLOCK_TOKENS) // scale
    tail, tail_tokens = tail_message(row, tokens=rest)
    return [*messages, tail], len(row.blocks) * block + tail_tokens


def block_tokens(scale: int) -> int:
    """How long a block is when inputs are shrunk."""
    assert scale >= 1
    return max(BLOCK_TOKENS_MIN, BLOCK_TOKENS // scale)


@lru_cache(maxsize=_CACHED_BLOCKS)
def _block_message(block_id: int, place: int, tokens: int) -> bytes:
    """System first, then user and assistant in turns: a function of the place, as a prefix has to be."""
    role = "system" if place == 0 else ("assistant", "user")[place % 2]
    return _message(role, filler(tokens - MESSAGE_TOKENS, seed=block_id))


def tail_message(row: Row, *, tokens: int) -> tuple[bytes, int]:
    """The row's own last message, as near to ``tokens`` as its marker allows."""
    marker = f"[[out={max(1, row.output_tokens)}]]"
    marker = marker.ljust(-(-len(marker) // BYTES_PER_TOKEN) * BYTES_PER_TOKEN)
    marked = len(marker) // BYTES_PER_TOKEN
    own = max(3, tokens - MESSAGE_TOKENS - marked)  # three tokens name the row
    text = filler(own, seed=_TAIL_SEED + row.number)
    return _message("user", text + marker), MESSAGE_TOKENS + own + marked


def _message(role: str, text: str) -> bytes:
    return json.dumps({"role": role, "content": text}, ensure_ascii=False, separators=(",", ":")).encode()
