"""Whether a conversation goes on, after how long, and how much it grows: learned by turn and size, per application.

Everybody -> tenant -> tenant's application (its tools and system message): whoever has few observations of its own
is believed to be like its parent. A turn counts as the last one, provisionally, when five minutes passed without
another; a later one is still credited.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.core.happenings import Sent
from gateway.core.prefix import FIRST_TURN, Prompt, Turn
from gateway.core.survival import AGES_COUNT, age_index

TURNS: Final = 8
"""Turns that are told apart; all later ones are alike."""
SIZES: Final = (4_096, 16_384, 65_536)
"""Prompt sizes, in tokens, that are told apart."""
SIZES_COUNT: Final = len(SIZES) + 1
PATIENCE_SECONDS: Final = 300.0
"""As long as any cache is sure to live: who waits longer for the next turn has lost it anyhow."""
UNDECIDED: Final = 0.5
"""What a turn that may still be followed counts for: to leave it out would believe the quick ones, that went on."""
WEIGHT: Final = 4.0
"""Observations that a parent counts for."""
WEIGHT_MAX: Final = 2_000.0
CHANCE_MAX: Final = 0.99
GROWTH_PRIOR: Final = 800.0
"""Tokens that a turn adds: an answer without its thoughts, and a question or a tool's result."""
GROUPS_MAX: Final = 4_096
PROMPTS_MAX: Final = 100_000


CELLS: Final = tuple(
    tuple(range(turn * SIZES_COUNT + size, TURNS * SIZES_COUNT, SIZES_COUNT) for size in range(SIZES_COUNT))
    for turn in range(TURNS)
)
"""By turn and size: the cells from this turn on."""


class Outlook(NamedTuple):
    """What is to come after this turn: the chance of another by turn from this one on, by age the share of gaps to
    the next one, and the tokens that each adds."""

    chances: tuple[float, ...]
    gaps: Sequence[float]
    growth_tokens: float


class _Group:
    """Counts of one group, shrunk towards its parent's; without a parent, towards the prior."""

    __slots__ = ("gap_count", "gaps", "grown", "parent", "reuses", "trials")

    def __init__(self, parent: _Group | None) -> None:
        self.parent = parent
        self.trials = [0.0] * (TURNS * SIZES_COUNT)
        self.reuses = [0.0] * (TURNS * SIZES_COUNT)
        self.gaps = [0.0] * AGES_COUNT
        self.gap_count = 0.0
        self.grown = 0.0

    def observed(self, cell: int, share: float) -> None:
        """A turn has been watched for that share of what there is to see of it."""
        if self.trials[cell] >= WEIGHT_MAX:
            self.trials[cell] *= 0.5
            self.reuses[cell] *= 0.5
        self.trials[cell] += share

    def continued(self, cell: int, gap: float, growth: int) -> None:
        self.reuses[cell] += 1.0
        if self.gap_count >= WEIGHT_MAX:
            self.gaps = [each * 0.5 for each in self.gaps]
            self.gap_count *= 0.5
            self.grown *= 0.5
        self.gaps[age_index(gap)] += 1.0
        self.gap_count += 1.0
        self.grown += growth

    def chances(self, cells: Sequence[int]) -> Sequence[float]:
        parents = [PRIOR[cell] for cell in cells] if self.parent is None else self.parent.chances(cells)
        trials, reuses = self.trials, self.reuses
        return [
            (reuses[cell] + WEIGHT * parent) / (trials[cell] + WEIGHT)
            for cell, parent in zip(cells, parents, strict=True)
        ]

    def gap_shares(self) -> Sequence[float]:
        parents = GAPS_PRIOR if self.parent is None else self.parent.gap_shares()
        if not self.gap_count:
            return parents
        whole = 1.0 / (self.gap_count + WEIGHT)
        return [(own + WEIGHT * theirs) * whole for own, theirs in zip(self.gaps, parents, strict=True)]

    def growth(self) -> float:
        parent = GROWTH_PRIOR if self.parent is None else self.parent.growth()
        return (self.grown + WEIGHT * parent) / (self.gap_count + WEIGHT)


PRIOR: Final = tuple((turn + 1.0) / (turn + 2.0) for turn in range(TURNS) for _ in range(SIZES_COUNT))
"""The rule of succession: who has gone on k times goes on with chance (k + 1) / (k + 2)."""
GAPS_PRIOR: Final = tuple(1.0 / 8 if index < 8 else 0.0 for index in range(AGES_COUNT))
"""Within five minutes, any age is as likely as any other."""


@dataclass(slots=True, kw_only=True)
class _Sent:
    """A prompt that may be continued."""

    turn: int
    cell: int
    at: float
    tokens: int
    tenant: str
    groups: tuple[_Group, ...]
    is_continued: bool = False
    is_counted: bool = False


def _cell(turn: int, tokens: int) -> int:
    return min(turn, TURNS - 1) * SIZES_COUNT + bisect_right(SIZES, tokens)


class Continuation:
    """Prompts that may be continued, and what was learned from those that were."""

    __slots__ = ("_everybody", "_groups", "_prompts", "_waiting")

    def __init__(self) -> None:
        self._everybody = _Group(None)
        self._groups: OrderedDict[tuple[str, int | None], _Group] = OrderedDict()
        self._prompts: OrderedDict[int, _Sent] = OrderedDict()
        self._waiting: deque[tuple[float, int]] = deque()

    def turn(self, prompt: Prompt, tenant: str) -> Turn:
        """The turn of a prompt: one more than that of the longest earlier prompt that it extends, the same as that of
        one it repeats. What is nothing but an application's tools and system message is no conversation."""
        prompts = self._prompts
        for digest in reversed(prompt.digests):
            earlier = prompts.get(digest)
            if earlier is not None and earlier.tenant == tenant:
                return Turn(earlier.turn + (digest != prompt.digests[-1]), digest)
        return FIRST_TURN

    def apply(self, sent: Sent) -> None:
        """A prompt was sent: it continues another, perhaps, and may be continued."""
        self._lose_patience(sent.at)
        earlier = self._prompts.get(sent.follows) if sent.follows else None
        tokens = sent.tokens[-1]
        if earlier is not None and not earlier.is_continued:
            earlier.is_continued = True
            for group in earlier.groups:
                if not earlier.is_counted:
                    group.observed(earlier.cell, 1.0 - UNDECIDED)
                group.continued(earlier.cell, max(0.0, sent.at - earlier.at), max(0, tokens - earlier.tokens))
            earlier.is_counted = True
        digest = sent.digests[-1]
        if digest == sent.family:
            return
        groups, cell = self._groups_of(sent.tenant, sent.family), _cell(sent.turn, tokens)
        for group in groups:
            group.observed(cell, UNDECIDED)
        self._prompts[digest] = _Sent(
            turn=sent.turn,
            cell=cell,
            at=sent.at,
            tokens=tokens,
            tenant=sent.tenant,
            groups=groups,
        )
        self._prompts.move_to_end(digest)
        self._waiting.append((sent.at, digest))
        while len(self._prompts) > PROMPTS_MAX:
            self._prompts.popitem(last=False)

    def outlook(self, turn: Turn, tokens: int, tenant: str, family: int) -> Outlook:
        """What is to come, as far as this application, else its tenant, else everybody has taught."""
        group = self._groups.get((tenant, family)) or self._groups.get((tenant, None)) or self._everybody
        size = bisect_right(SIZES, tokens)
        cells = CELLS[min(turn.number, TURNS - 1)][size]
        return Outlook(
            tuple([min(CHANCE_MAX, each) for each in group.chances(cells)]), group.gap_shares(), group.growth()
        )

    def _lose_patience(self, now: float) -> None:
        waiting = self._waiting
        while waiting and (now - waiting[0][0] > PATIENCE_SECONDS or len(waiting) > PROMPTS_MAX):
            at, digest = waiting.popleft()
            sent = self._prompts.get(digest)
            if sent is not None and sent.at == at and not sent.is_counted:
                sent.is_counted = True
                for group in sent.groups:
                    group.observed(sent.cell, 1.0 - UNDECIDED)

    def _groups_of(self, tenant: str, family: int) -> tuple[_Group, ...]:
        of_tenant = self._group((tenant, None), self._everybody)
        return (self._everybody, of_tenant, self._group((tenant, family), of_tenant))

    def _group(self, key: tuple[str, int | None], parent: _Group) -> _Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(parent)
            if len(self._groups) > GROUPS_MAX:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(key)
        return group
