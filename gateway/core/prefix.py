"""A conversation is known by the chain of its prefixes: equal digest, equal prefix; nothing of its content can be read.

A boundary is a place where a prefix may end that another request can share: after the tools and the system message,
between messages, inside long documents. Digests depend on all that comes before them, on the model and on a secret of
this gateway; sampling parameters are left out, for no provider's cache looks at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import xxhash

BOUNDARIES_MAX: Final = 16
"""Boundaries that are looked up for one request at the most."""
HIDDEN_TOKENS_MAX: Final = 16_384
"""What a template, or a provider's own words before the prompt, may add to what was sent."""


class Boundary(NamedTuple):
    """A place in a conversation: the 64-bit digest of everything before it, and the UTF-8 size of that.

    ``is_passing``: it is looked up, since an earlier request may have ended here, but not remembered: it is only one of
    the last messages, and the next turn of this conversation looks further down.
    """

    digest: int
    size_bytes: int
    is_passing: bool = False


class Fingerprint(msgspec.Struct, frozen=True, gc=False):
    """The boundaries of one request, shallow to deep; the last is the whole prompt. ``family`` is the digest after
    tools and system message, 0 where there is neither: requests of one application share it."""

    boundaries: tuple[Boundary, ...]
    family: int = 0

    @property
    def digests(self) -> tuple[int, ...]:
        return tuple([boundary.digest for boundary in self.boundaries])

    @property
    def size_bytes(self) -> int:
        return self.boundaries[-1].size_bytes

    def of_model(self, model: str) -> Fingerprint:
        """The same conversation as one with ``model``: models do not share caches, nor count tokens alike."""
        salt = xxhash.xxh3_64_intdigest(model)
        return Fingerprint(
            boundaries=tuple(
                [Boundary(digest ^ salt, size, is_passing) for digest, size, is_passing in self.boundaries]
            ),
            family=self.family and self.family ^ salt,
        )


NO_FINGERPRINT: Final = Fingerprint(boundaries=(Boundary(0, 0),))
"""Of a request that no surface has read."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """A fingerprint in tokens, shallow to deep: ``tokens[i]`` up to ``digests[i]``; the last is the whole prompt.

    Up to ``anchored_tokens`` the count is a provider's own, told with an earlier answer; 0 = all of it is estimated.
    The places in ``passing`` are looked up and not remembered.
    """

    digests: tuple[int, ...]
    tokens: tuple[int, ...]
    family: int = 0
    anchored_tokens: int = 0
    passing: tuple[int, ...] = ()

    @property
    def input_tokens(self) -> int:
        return self.tokens[-1]

    def remembered(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Digests and tokens of the boundaries that another request may share; the whole prompt is always one."""
        if not self.passing:
            return self.digests, self.tokens
        kept = [place for place in range(len(self.digests)) if place not in self.passing]
        return tuple([self.digests[place] for place in kept]), tuple([self.tokens[place] for place in kept])


class Turn(NamedTuple):
    """The 0-based turn of its conversation, and the digest of the prompt it continues, 0 where it begins one."""

    number: int
    follows: int


FIRST_TURN: Final = Turn(0, 0)


def prompt_of(
    fingerprint: Fingerprint, *, anchor: tuple[int, int] | None, tokens_of_bytes: Callable[[int], int]
) -> Prompt:
    """A fingerprint in tokens. ``anchor`` is the deepest boundary whose count a provider told, and that count.

    That count stands as it is; only what comes after it is estimated from its bytes, and what comes before has its
    share of it. Without an anchor everything is estimated; so it is where a provider has told what cannot be, far
    more tokens than there are bytes: what one provider says decides what a request may be sent to any other.
    """
    boundaries = fingerprint.boundaries
    if anchor is None or anchor[1] > boundaries[anchor[0]].size_bytes + HIDDEN_TOKENS_MAX:
        tokens = [tokens_of_bytes(boundary.size_bytes) for boundary in boundaries]
        counted = 0
    else:
        place, counted = anchor
        known_bytes = max(1, boundaries[place].size_bytes)
        tokens = [counted * boundary.size_bytes // known_bytes for boundary in boundaries[:place]]
        tokens.append(counted)
        tokens += [counted + tokens_of_bytes(boundary.size_bytes - known_bytes) for boundary in boundaries[place + 1 :]]
    return Prompt(
        digests=fingerprint.digests,
        tokens=tuple(tokens),
        family=fingerprint.family,
        anchored_tokens=counted,
        passing=tuple([place for place, boundary in enumerate(boundaries) if boundary.is_passing]),
    )
