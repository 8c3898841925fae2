"""A prefix is cached in blocks of 256 tokens; a hit is whole blocks from the start; an exact resend hits all.

Each account has one cache and none sees another's. An entry can be read from the moment its prompt was prefilled, lives
``ttl_seconds`` from its last use, and every hit renews it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.simulator.tokens import BYTES_PER_TOKEN

BLOCK_TOKENS: Final = 256
ENTRIES_MAX: Final = 2_000_000

_BLOCK_BYTES: Final = BLOCK_TOKENS * BYTES_PER_TOKEN


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """A serialized prompt as the cache knows it: a key per whole block, each depending on all before it."""

    tokens: int
    blocks: list[int]
    whole: int

    @classmethod
    def of(cls, serialized: bytes, *, model: str) -> Prompt:
        key = hash(model)
        blocks: list[int] = []
        full = len(serialized) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in range(0, full, _BLOCK_BYTES):
            key = hash((key, serialized[start : start + _BLOCK_BYTES]))
            blocks.append(key)
        whole = hash((key, serialized[full:], "whole"))
        return cls(tokens=len(serialized) // BYTES_PER_TOKEN, blocks=blocks, whole=whole)


class PrefixCache:
    """One account's cache. ``_used_at`` maps a key to its last use, or to the future moment it becomes readable."""

    __slots__ = ("_entries_max", "_used_at", "ttl_seconds")

    def __init__(self, *, ttl_seconds: float, entries_max: int = ENTRIES_MAX) -> None:
        self.ttl_seconds = ttl_seconds
        self._entries_max = entries_max
        self._used_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._used_at)

    def read(self, prompt: Prompt, *, now: float) -> int:
        """Tokens of ``prompt`` that are read from the cache at ``now``; what is read is renewed."""
        used_at, oldest = self._used_at, now - self.ttl_seconds
        hit = 0
        for key in prompt.blocks:
            if not oldest <= used_at.get(key, -1e300) <= now:
                break
            used_at[key] = now
            hit += BLOCK_TOKENS
        if prompt.tokens > BLOCK_TOKENS and oldest <= used_at.get(prompt.whole, -1e300) <= now:
            used_at[prompt.whole] = now
            return prompt.tokens
        return hit

    def write(self, prompt: Prompt, *, now: float, ready_at: float) -> None:
        """Stores what is not there yet, readable from ``ready_at`` on."""
        used_at, oldest = self._used_at, now - self.ttl_seconds
        for key in (*prompt.blocks, prompt.whole):
            if used_at.get(key, -1e300) < oldest:
                used_at[key] = ready_at
        if len(used_at) > self._entries_max:
            self._shrink(oldest)

    def _shrink(self, oldest: float) -> None:
        """Forgets the expired, and then the least recently used until a quarter is free."""
        kept = [(at, key) for key, at in self._used_at.items() if at >= oldest]
        kept.sort(reverse=True)
        self._used_at = {key: at for at, key in kept[: self._entries_max * 3 // 4]}
