"""What is believed of caches, loads, conversations and pace is the happenings so far, folded in order; only that.

``apply`` is the only thing that changes beliefs, and reading them changes nothing: whoever has seen the same
happenings in the same order answers alike. Everything is bounded. Times are Unix seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, assert_never

from gateway.core.continuation import Continuation, Outlook
from gateway.core.happenings import Answered, Ended, Happening, Sent
from gateway.core.limits import RateLimits
from gateway.core.load import UNKNOWN_PACE, CacheShare, Load, Pace, moved
from gateway.core.prefix import Prompt, Turn
from gateway.core.survival import UNKNOWN, Survival
from gateway.core.warmth import (
    BOUNDARIES_MAX,
    NOTHING_EXPECTED,
    REMEMBERED_SECONDS,
    AccountKey,
    CacheKey,
    Expected,
    Warmth,
)

ATTEMPTS_MAX: Final = 20_000
"""Attempts under way at most; the oldest is given up for lost."""
LOST_SECONDS: Final = 1_800.0
"""So is one whose end was not heard by then: its replica was killed, or could not tell."""
TOLD_MAX: Final = 100_000
"""Prompts whose tokens a provider told."""
CACHES_MAX: Final = 1_024
CONVERSATIONS_MAX: Final = 100_000
HIT_SHARE: Final = 0.5
"""A boundary was still there if at least this share of it was billed as cached: providers round down to blocks."""
BLOCK_TOKENS: Final = 512
"""The longest of those blocks. What is shorter may never be billed as cached, and that says nothing of its age."""


class _Attempt(NamedTuple):
    """One under way, and when each of its boundaries had been used there before it."""

    sent: Sent
    used_before: tuple[float | None, ...]


class Beliefs:
    """A fold over happenings."""

    __slots__ = (
        "_attempts",
        "_boundaries_max",
        "_cache_shares",
        "_continuation",
        "_loads",
        "_pace",
        "_served_by",
        "_survival",
        "_told",
        "_warm",
    )

    def __init__(self, *, boundaries_max: int = BOUNDARIES_MAX) -> None:
        self._boundaries_max = boundaries_max
        self._warm: OrderedDict[CacheKey, Warmth] = OrderedDict()
        self._survival: dict[tuple[str, str], Survival] = {}
        self._continuation = Continuation()
        self._loads: dict[AccountKey, Load] = {}
        self._pace: dict[AccountKey, Pace] = {}
        self._cache_shares: dict[AccountKey, CacheShare] = {}
        self._attempts: OrderedDict[str, _Attempt] = OrderedDict()
        self._told: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._served_by: OrderedDict[int, AccountKey] = OrderedDict()

    def apply(self, happening: Happening) -> None:
        """One more happening; an answer or end of an attempt that was never heard of is ignored."""
        match happening:
            case Sent():
                self._sent(happening)
            case Answered():
                self._answered(happening)
            case Ended():
                self._ended(happening)
            case _:
                assert_never(happening)

    def anchors(self, digests: Sequence[int], model: str) -> tuple[int, int] | None:
        """The index of the deepest boundary whose tokens a provider told, and that count."""
        for index in range(len(digests) - 1, -1, -1):
            tokens = self._told.get((model, digests[index]))
            if tokens is not None:
                return (index, tokens)
        return None

    def turn(self, prompt: Prompt, *, tenant: str) -> Turn:
        """Which turn of its conversation a prompt is, and what it continues."""
        return self._continuation.turn(prompt, tenant)

    def expected(self, cache: CacheKey, prompt: Prompt, now: float) -> Expected:
        """What to expect of one cache for a prompt, by the survival learned of its provider."""
        warm = self._warm.get(cache)
        if warm is None:
            return NOTHING_EXPECTED
        curve = self._survival.get((cache[0], cache[2]), UNKNOWN).curve(now)
        return warm.expected(prompt.digests, prompt.tokens, now, curve) or NOTHING_EXPECTED

    def survival(self, provider: str, model: str, now: float) -> tuple[float, ...]:
        """The chance that a boundary is still cached, by age (``core.survival.AGES``)."""
        return self._survival.get((provider, model), UNKNOWN).curve(now)

    def outlook(self, turn: Turn, tokens: int, *, tenant: str, family: int) -> Outlook:
        """What is to come of a conversation after this turn."""
        return self._continuation.outlook(turn, tokens, tenant, family)

    def utilisation(self, account: AccountKey, limits: RateLimits, now: float) -> float:
        """The largest share of an account's limits that is used, as far as is known here."""
        load = self._loads.get(account)
        return 0.0 if load is None else load.utilisation(limits, now)

    def room_in(self, account: AccountKey, limits: RateLimits, tokens: int, now: float) -> float:
        """Seconds until an account has room for so many tokens more within its minute; 0 = it has."""
        load = self._loads.get(account)
        return 0.0 if load is None else load.room_in(limits, tokens, now)

    def last_sent_at(self, account: AccountKey) -> float:
        """When an account was last sent anything; 0 = never."""
        load = self._loads.get(account)
        return 0.0 if load is None else load.last_at

    def cached_share(self, account: AccountKey) -> float | None:
        """Of an account's input tokens of late, the share billed as cached; None = nobody has told yet."""
        found = self._cache_shares.get(account)
        return None if found is None else found.share

    @property
    def pace(self) -> Mapping[AccountKey, Pace]:
        return self._pace

    def served_by(self, turn: Turn) -> AccountKey | None:
        """The account that the prompt which this turn continues was last sent to."""
        return self._served_by.get(turn.follows) if turn.follows else None

    def _sent(self, sent: Sent) -> None:
        cache = (sent.provider, sent.account, sent.model)
        warm = self._warm.get(cache)
        if warm is None:
            warm = self._warm[cache] = Warmth(boundaries_max=self._boundaries_max)
            if len(self._warm) > CACHES_MAX:
                self._warm.popitem(last=False)
        self._warm.move_to_end(cache)
        used_before = warm.touch(sent.digests, sent.at)
        warm.forget(sent.at - REMEMBERED_SECONDS)
        self._continuation.apply(sent)
        account = (sent.provider, sent.account)
        load = self._loads.get(account)
        if load is None:
            load = self._loads[account] = Load()
        load.add(sent.at, sent.tokens[-1] + sent.output_tokens)
        self._attempts[sent.attempt_id] = _Attempt(sent, used_before)
        self._give_up_lost(sent.at)
        self._served_by[sent.digests[-1]] = account
        self._served_by.move_to_end(sent.digests[-1])
        if len(self._served_by) > CONVERSATIONS_MAX:
            self._served_by.popitem(last=False)

    def _answered(self, answered: Answered) -> None:
        attempt = self._over(answered.attempt_id)
        if attempt is None:
            return
        sent = attempt.sent
        told = (sent.model, sent.digests[-1])
        self._told[told] = answered.input_tokens
        self._told.move_to_end(told)
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
        if sent.matched_tokens >= BLOCK_TOKENS:
            survival = self._survival.setdefault((sent.provider, sent.model), Survival())
            is_hit = answered.cached_tokens is not None and answered.cached_tokens >= HIT_SHARE * sent.matched_tokens
            survival.learn(sent.matched_age, is_hit=is_hit, at=answered.at)
        account = (sent.provider, sent.account)
        if answered.cached_tokens is not None:
            share = self._cache_shares.setdefault(account, CacheShare())
            share.add(answered.input_tokens, answered.cached_tokens)
        if answered.output_tokens > 0 and answered.seconds > 0:
            self._pace[account] = moved(
                self._pace.get(account, UNKNOWN_PACE),
                first_chunk_seconds=answered.first_chunk_seconds,
                tokens_per_second=answered.output_tokens / answered.seconds,
            )

    def _ended(self, ended: Ended) -> None:
        attempt = self._over(ended.attempt_id)
        if attempt is None:
            return
        sent = attempt.sent
        warm = self._warm.get((sent.provider, sent.account, sent.model))
        if not ended.is_warm and warm is not None:
            warm.restore(sent.digests, sent.at, attempt.used_before)

    def _give_up_lost(self, now: float) -> None:
        attempts = self._attempts
        while attempts:
            attempt_id, oldest = next(iter(attempts.items()))
            if len(attempts) <= ATTEMPTS_MAX and now - oldest.sent.at <= LOST_SECONDS:
                break
            self._over(attempt_id)

    def _over(self, attempt_id: str) -> _Attempt | None:
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is not None:
            self._loads[(attempt.sent.provider, attempt.sent.account)].under_way -= 1
        return attempt
