"""A conversation is known by the chain of its prefixes: equal digest, equal prefix; nothing of its content can be read.

A boundary is a place where a prefix may end that another request can share: after the tools and the system message,
between messages, inside long documents. Digests depend on all that comes before them, on the model family and on a
secret of this gateway; sampling parameters are left out, for no provider's cache looks at them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

BOUNDARIES_MAX: Final = 16
"""Boundaries that are looked up for one request at the most."""


class Boundary(NamedTuple):
    """A place in a conversation: the 64-bit digest of everything before it, and the UTF-8 size of that."""

    digest: int
    size_bytes: int


class Fingerprint(msgspec.Struct, frozen=True, gc=False):
    """The boundaries of one request, shallow to deep; the last is the whole prompt. ``family`` is the digest after
    tools and system message, 0 where there is neither: requests of one application share it."""

    boundaries: tuple[Boundary, ...]
    family: int = 0


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """A fingerprint in tokens, shallow to deep: ``tokens[i]`` up to ``digests[i]``; the last is the whole prompt.

    Up to ``anchored_tokens`` the count is a provider's own, told with an earlier answer; 0 = all of it is estimated.
    """

    digests: tuple[int, ...]
    tokens: tuple[int, ...]
    family: int = 0
    anchored_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        return self.tokens[-1]
