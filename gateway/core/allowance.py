"""An allowance is what a key, its team and the organisation may still use: taken before a request, settled after it.

A request asks once for everything (``Demand``): it gets all of it as a hold, or nothing. A hold is a row with an
identity (the request's) and a lease; it ends once: released when its costs have been posted, or expired.

What is spent in a window is the sum of what every journal has posted in it. Each journal's part is told as it stands,
with the number of its rows, never as a difference: whoever tells it, worker or database, however often and in any
order, tells the same, and the greater number of rows knows more (laws L4, L6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, NamedTuple

import msgspec

from gateway.core.budget import Budget, BudgetMode, BudgetWindow
from gateway.core.limits import NO_RATES, LimitKind, RateLimits, RateState, RateStates, ScopeState, SlidingMinute
from gateway.core.money import ZERO, Money

LEASE_MS: Final = 60_000
"""A hold that nobody renews for so long belongs to a worker that is no more."""


class BudgetClaim(NamedTuple):
    """One budget that a request falls under, in its window of that moment."""

    budget: Budget
    window: BudgetWindow


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for. ``tokens`` is its input estimate plus its output limit; ``amount`` what it may cost at
    the most; ``amount_min`` the least that is still worth having, where a budget may shorten the answer;
    ``accounts`` the provider accounts that may serve it, best first, of which the first with room is taken."""

    hold_id: str
    tokens: int
    amount: Money
    amount_min: Money
    limits: tuple[RateLimits, ...] = ()
    budgets: tuple[BudgetClaim, ...] = ()
    accounts: tuple[RateLimits, ...] = ()


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """The hold. ``amount`` is less than was asked for where ``clamped_by`` names the budget that shortened it;
    ``account`` is the place of the account in the demand, None where it named none."""

    amount: Money
    account: int | None = None
    rates: RateStates = NO_RATES
    clamped_by: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A limit per minute, or of requests at once, has no room. Nothing was taken."""

    limits: RateLimits
    kind: LimitKind
    limit: int
    needed: int
    retry_after_ms: int
    rates: RateStates = NO_RATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """A budget has no room. Nothing was taken."""

    claim: BudgetClaim
    needed: Money
    available: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsFull:
    """No provider account has room. Nothing was taken; ``kinds`` says of each what it has no room for."""

    kinds: tuple[LimitKind, ...]
    retry_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknowable:
    """Nobody knows just now what is spent, and ``budget`` refuses then. Nothing was taken."""

    budget: Budget


Verdict = Granted | Limited | Exceeded | AccountsFull | Unknowable


class Balance(NamedTuple):
    """What one journal has posted in a window, in pico-dollars, and in how many rows."""

    posted: int
    rows: int


NOTHING_POSTED: Final = Balance(0, 0)


class Posting(NamedTuple):
    """One attempt's cost: it counts in its scopes, in the windows that hold ``day``. ``hold_id`` is its request's."""

    hold_id: str
    scopes: tuple[str, ...]
    day: date
    cost: Money


class WindowState:
    """One window: what every journal has posted, what is spent in all, and what is held. In pico-dollars."""

    __slots__ = ("balances", "held", "spent", "window")

    def __init__(self, window: BudgetWindow) -> None:
        self.window = window
        self.balances: dict[str, Balance] = {}
        self.spent = 0
        self.held = 0

    def tell(self, journal_id: str, balance: Balance) -> None:
        """What a journal has posted, by somebody who knows; one who knows of fewer rows is not listened to."""
        before = self.balances.get(journal_id, NOTHING_POSTED)
        if balance.rows >= before.rows:
            self.balances[journal_id] = balance
            self.spent += balance.posted - before.posted


class Hold:
    """One open hold: what it took, and of whom. ``amount`` is what of it is not posted yet, in pico-dollars;
    ``clamped_by`` the identity of the budget that shortened it; ``callers`` the states of its ``limits``."""

    __slots__ = ("account", "amount", "callers", "clamped_by", "expires_ms", "limits", "second", "tokens", "windows")

    def __init__(self, demand: Demand, callers: list[ScopeState], windows: list[WindowState], now_ms: int) -> None:
        self.amount = 0
        self.tokens = demand.tokens
        self.limits = demand.limits
        self.callers = callers
        self.windows = windows
        self.account: RateLimits | None = None
        self.clamped_by: str | None = None
        self.second = now_ms // 1000
        self.expires_ms = now_ms + LEASE_MS


class AllowanceBook:
    """All windows, minutes and holds, as a state machine: the same calls at the same moments, the same answers.

    It is the state of one worker without Redis, and the oracle that the scripts in Redis are tested against (law L12).
    Every window that a demand claims must have been opened before. Moments are milliseconds since the epoch, and never
    run backwards in here: an earlier one counts as the latest one seen.
    """

    __slots__ = ("_latest_ms", "_scopes", "holds", "windows")

    def __init__(self) -> None:
        self.windows: dict[str, WindowState] = {}
        self.holds: dict[str, Hold] = {}
        self._scopes: dict[str, ScopeState] = {}
        self._latest_ms = 0

    # --- what is spent ---------------------------------------------------------------------------------------------

    def open(self, window: BudgetWindow, balances: Mapping[str, Balance]) -> None:
        """A window is known from now on; for one that is, the balances are told."""
        state = self.windows.get(window.key)
        if state is None:
            state = self.windows[window.key] = WindowState(window)
        for journal_id, balance in balances.items():
            state.tell(journal_id, balance)

    def tell(self, window_key: str, journal_id: str, balance: Balance) -> None:
        """What a journal has posted in a window; nothing happens where the window is not known."""
        state = self.windows.get(window_key)
        if state is not None:
            state.tell(journal_id, balance)

    def spend(self, hold_id: str, cost: int) -> None:
        """So much of what is held is posted now."""
        hold = self.holds.get(hold_id)
        if hold is None:
            return
        _hold(hold, -min(max(cost, 0), hold.amount))

    # --- holds -----------------------------------------------------------------------------------------------------

    def take(self, demand: Demand, now_ms: int) -> Verdict:
        """Everything, as a hold with the request's identity; or nothing, with the first reason. Who asks again for a
        hold that is open is answered the same again."""
        now_ms = self._now(now_ms)
        known = self.holds.get(demand.hold_id)
        if known is not None:
            return _granted(known, demand, _place(known.account, demand.accounts), now_ms)
        callers = [self._scope(limits.scope) for limits in demand.limits]
        for limits, caller in zip(demand.limits, callers, strict=True):
            kind = caller.lacks(limits, demand.tokens, now_ms)
            if kind is not None:
                return _limited(demand, limits, kind, callers, now_ms)
        windows = [self.windows[claim.window.key] for claim in demand.budgets]
        amount, clamped_by = _affordable(demand, windows)
        if isinstance(amount, Exceeded):
            return amount
        account = self._first_with_room(demand, now_ms)
        if isinstance(account, AccountsFull):
            return account
        for limits, caller in zip(demand.limits, callers, strict=True):
            caller.take(limits, demand.tokens, now_ms)
        hold = self.holds[demand.hold_id] = Hold(demand, callers, windows, now_ms)
        hold.clamped_by = clamped_by
        _hold(hold, amount)
        self._use(hold, demand, account, now_ms)
        return _granted(hold, demand, account, now_ms)

    def retry(self, demand: Demand, now_ms: int) -> Verdict:
        """The same hold for one more attempt: ``amount`` again, on top of what the last attempts have cost, at the
        first of ``accounts`` with room. The account that was left has a request less at once; its minute keeps it.
        What is still held needs nobody's leave, even where a budget has been lowered or overrun meanwhile."""
        now_ms = self._now(now_ms)
        hold = self.holds.get(demand.hold_id)
        if hold is None:
            return self.take(demand, now_ms)
        more = max(0, demand.amount.pico - hold.amount)
        for claim in demand.budgets if more else ():
            state = self.windows.get(claim.window.key)
            if state is None or state not in hold.windows or claim.budget.mode is BudgetMode.SOFT:
                continue
            available = _available(claim, state)
            if more > available:
                return _exceeded(claim, more, available)
        account = self._first_with_room(demand, now_ms)
        if isinstance(account, AccountsFull):
            return account
        if hold.account is not None:
            self._scope(hold.account.scope).end(hold.account)
        _hold(hold, more)
        self._use(hold, demand, account, now_ms)
        return Granted(amount=Money(hold.amount), account=account)

    def release(self, hold_id: str, tokens: int) -> None:
        """The request is over, and so many tokens were used in all: what is still held is free again. An account's
        tokens stay as they were taken: that is how providers count (providers §1.8)."""
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return
        for limits, caller in zip(hold.limits, hold.callers, strict=True):
            caller.end(limits)
            if limits.tpm is not None:  # a limit that was set since then has counted nothing of it
                caller.tokens.correct(hold.second, tokens - hold.tokens)
        if hold.account is not None:
            self._scope(hold.account.scope).end(hold.account)
        _hold(hold, -hold.amount)

    def renew(self, hold_ids: Iterable[str], now_ms: int) -> None:
        """These are still under way."""
        now_ms = self._now(now_ms)
        for hold_id in hold_ids:
            hold = self.holds.get(hold_id)
            if hold is not None:
                hold.expires_ms = now_ms + LEASE_MS

    def sweep(self, now_ms: int) -> list[str]:
        """Releases the holds whose lease is over; returns their identities. Forgets minutes that are over."""
        now_ms = self._now(now_ms)
        expired = [hold_id for hold_id, hold in self.holds.items() if hold.expires_ms <= now_ms]
        for hold_id in expired:
            self.release(hold_id, self.holds[hold_id].tokens)
        for scope, state in list(self._scopes.items()):
            if state.is_idle(now_ms):
                del self._scopes[scope]
        return expired

    def forget(self, windows: Iterable[str]) -> list[str]:
        """These windows are no longer known, but for those that an open hold counts in; returns which."""
        kept = {state.window.key for hold in self.holds.values() for state in hold.windows}
        forgotten = [key for key in dict.fromkeys(windows) if key in self.windows and key not in kept]
        for key in forgotten:
            assert not self.windows[key].held, "what is held is the sum of the holds"
            del self.windows[key]
        return forgotten

    def running(self) -> dict[str, int]:
        """How many requests are under way in each scope that has a limit of them, and any."""
        return {scope: state.running for scope, state in self._scopes.items() if state.running}

    def _now(self, now_ms: int) -> int:
        self._latest_ms = max(self._latest_ms, now_ms)
        return self._latest_ms

    def _scope(self, scope: str) -> ScopeState:
        state = self._scopes.get(scope)
        if state is None:
            state = self._scopes[scope] = ScopeState()
        return state

    def _first_with_room(self, demand: Demand, now_ms: int) -> int | AccountsFull | None:
        """The place of an account, or None where there is none to be asked."""
        kinds, waits = [], []
        for place, limits in enumerate(demand.accounts):
            state = self._scope(limits.scope)
            kind = state.lacks(limits, demand.tokens, now_ms)
            if kind is None:
                return place
            kinds.append(kind)
            waits.append(state.wait_ms(limits, kind, demand.tokens, now_ms))
        return AccountsFull(kinds=tuple(kinds), retry_after_ms=min(waits)) if kinds else None

    def _use(self, hold: Hold, demand: Demand, account: int | None, now_ms: int) -> None:
        hold.account = None if account is None else demand.accounts[account]
        if hold.account is not None:
            self._scope(hold.account.scope).take(hold.account, demand.tokens, now_ms)


def _granted(hold: Hold, demand: Demand, account: int | None, now_ms: int) -> Granted:
    """What the owner of a hold is told."""
    clamped_by = None
    if hold.clamped_by is not None:
        named = [claim.budget for claim in demand.budgets if claim.budget.budget_id == hold.clamped_by]
        clamped_by = named[0] if named else None
    rates = _rates(demand.limits, hold.callers, now_ms)
    return Granted(amount=Money(hold.amount), account=account, rates=rates, clamped_by=clamped_by)


def _hold(hold: Hold, more: int) -> None:
    """So much more is held, in each of its windows; or less."""
    hold.amount += more
    for state in hold.windows:
        state.held += more
        assert state.held >= 0, "what is held is the sum of the holds"


# --- limits ----------------------------------------------------------------------------------------------------------


def _limited(
    demand: Demand, limits: RateLimits, kind: LimitKind, callers: Sequence[ScopeState], now_ms: int
) -> Limited:
    state = callers[demand.limits.index(limits)]
    limit = {LimitKind.REQUESTS: limits.rpm, LimitKind.TOKENS: limits.tpm, LimitKind.CONCURRENCY: limits.concurrency}
    found = limit[kind]
    assert found is not None
    return Limited(
        limits=limits,
        kind=kind,
        limit=found,
        needed=demand.tokens if kind is LimitKind.TOKENS else 1,
        retry_after_ms=state.wait_ms(limits, kind, demand.tokens, now_ms),
        rates=_rates(demand.limits, callers, now_ms),
    )


def _rates(scopes: Sequence[RateLimits], states: Sequence[ScopeState], now_ms: int) -> RateStates:
    """The tightest of each kind as they stand, with what was taken just now."""
    requests = tokens = None
    for limits, state in zip(scopes, states, strict=True):
        if limits.rpm is not None:
            requests = _tighter(requests, limits.rpm, state.requests, now_ms)
        if limits.tpm is not None:
            tokens = _tighter(tokens, limits.tpm, state.tokens, now_ms)
    return NO_RATES if requests is None and tokens is None else RateStates(requests=requests, tokens=tokens)


def _tighter(other: RateState | None, limit: int, minute: SlidingMinute, now_ms: int) -> RateState:
    minute.advance(now_ms)
    remaining = limit - minute.taken if limit > minute.taken else 0
    if other is not None and other.remaining <= remaining:
        return other
    return RateState(limit=limit, remaining=remaining, reset_ms=minute.reset_ms(now_ms))


# --- budgets ---------------------------------------------------------------------------------------------------------


def _affordable(demand: Demand, windows: Sequence[WindowState]) -> tuple[int | Exceeded, str | None]:
    """What every budget can bear: all of the demand, what clamping budgets have left of it, or too little; and the
    identity of the budget that shortened it."""
    amount, clamped_by = demand.amount.pico, None
    short: list[tuple[BudgetClaim, int]] = []
    for claim, state in zip(demand.budgets, windows, strict=True):
        available = _available(claim, state)
        if available >= amount:
            continue
        if claim.budget.mode is BudgetMode.STRICT:
            short.append((claim, available))
        elif claim.budget.mode is BudgetMode.CLAMP:
            if available < demand.amount_min.pico:
                return _exceeded(claim, demand.amount_min.pico, available), None
            amount, clamped_by = available, claim.budget.budget_id
    for claim, available in short:  # what clamping budgets have left may be little enough for them
        if available < amount:
            return _exceeded(claim, amount, available), None
    return amount, clamped_by


def _available(claim: BudgetClaim, state: WindowState) -> int:
    return claim.budget.limit.pico - state.spent - state.held


def _exceeded(claim: BudgetClaim, needed: int, available: int) -> Exceeded:
    return Exceeded(claim=claim, needed=Money(needed), available=max(ZERO, Money(available)))


def _place(account: RateLimits | None, accounts: Sequence[RateLimits]) -> int | None:
    if account is None:
        return None
    return next((place for place, each in enumerate(accounts) if each.scope == account.scope), None)
