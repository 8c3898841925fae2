"""What happened to a request, as every replica tells it to the others; beliefs are these events, folded in order.

Small, without content, and complete: whoever has seen the same events believes the same. Times are Unix seconds.
"""

from __future__ import annotations

import msgspec

from gateway.core.quality import Fault


class Sent(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="s"):
    """An attempt was dispatched: its prefixes will be in this account's cache, its tokens count at this account.

    ``digests`` and ``tokens`` are those that are worth remembering, shallow to deep, the last one the whole prompt.
    ``turn`` counts from 0 within its conversation; ``follows`` is the digest of the prompt that it continues, 0 where
    it begins one. ``matched_tokens`` were believed to be cached there, last used ``matched_age`` seconds before.
    """

    attempt_id: str
    provider: str
    account: str
    model: str
    tenant: str
    at: float
    digests: tuple[int, ...]
    tokens: tuple[int, ...]
    family: int
    turn: int
    follows: int
    output_tokens: int
    matched_tokens: int = 0
    matched_age: float = 0.0


class Answered(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="a"):
    """An attempt was answered, and the provider told its tokens. ``cached_tokens`` is what it billed as cached,
    None where it did not say, and then all of it was billed in full; ``first_chunk_seconds`` is None for a whole
    body."""

    attempt_id: str
    at: float
    input_tokens: int
    cached_tokens: int | None
    output_tokens: int
    seconds: float
    first_chunk_seconds: float | None = None


class Ended(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="e"):
    """An attempt ended without figures. ``is_warm`` says whether its prompt was read all the same: a client that hung
    up leaves a warm cache behind, a refused connection does not."""

    attempt_id: str
    at: float
    is_warm: bool


class Checked(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="c"):
    """A tool-call answer was checked: ``fault`` is the gravest thing wrong with it, None where it was right."""

    provider: str
    model: str
    tenant: str
    at: float
    fault: Fault | None = None


Happening = Sent | Answered | Ended
