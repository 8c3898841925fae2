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

from gateway.core.budget import Budget, BudgetMode, BudgetWindow
from gateway.core.limits import NO_RATES, LimitKind, RateLimits, RateState, RateStates, SlidingMinute
from gateway.core.money import ZERO, Money

LEASE_MS: Final = 60_000
"""A hold that nobody renews for so long belongs to a worker that is no more."""
FULL_RETRY_MS: Final = 1_000
"""When to ask again for one of several requests at once: nobody knows when the others end."""


class BudgetClaim(NamedTuple):
    """One budget that a request falls under, in its window of that moment."""

    budget: Budget
    window: BudgetWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
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
    ``clamped_by`` the identity of the budget that shortened it."""

    __slots__ = ("account", "amount", "clamped_by", "expires_ms", "limits", "second", "tokens", "windows")

    def __init__(
        self,
        *,
        amount: int,
        tokens: int,
        second: int,
        expires_ms: int,
        limits: tuple[RateLimits, ...],
        windows: tuple[str, ...],
        account: RateLimits | None,
        clamped_by: str | None,
    ) -> None:
        self.amount = amount
        self.tokens = tokens
        self.second = second
        self.expires_ms = expires_ms
        self.limits = limits
        self.windows = windows
        self.account = account
        self.clamped_by = clamped_by


class AllowanceBook:
    """All windows, minutes and holds, as a state machine: the same calls at the same moments, the same answers.

    It is the state of one worker without Redis, and the oracle that the scripts in Redis are tested against (law L12).
    Every window that a demand claims must have been opened before. Moments are milliseconds since the epoch, and never
    run backwards in here: an earlier one counts as the latest one seen.
    """

    __slots__ = ("_latest_ms", "_minutes", "_running", "holds", "windows")

    def __init__(self) -> None:
        self.windows: dict[str, WindowState] = {}
        self.holds: dict[str, Hold] = {}
        self._minutes: dict[tuple[str, LimitKind], SlidingMinute] = {}
        self._running: dict[str, int] = {}
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
        posted = min(max(cost, 0), hold.amount)
        hold.amount -= posted
        for key in hold.windows:
            self._unhold(key, posted)

    # --- holds -----------------------------------------------------------------------------------------------------

    def take(self, demand: Demand, now_ms: int) -> Verdict:
        """Everything, as a hold with the request's identity; or nothing, with the first reason. Who asks again for a
        hold that is open is answered the same again."""
        now_ms = self._now(now_ms)
        known = self.holds.get(demand.hold_id)
        if known is not None:
            return self._granted(known, demand, now_ms)
        limited = self._limited(demand, now_ms)
        if limited is not None:
            return limited
        amount, clamped_by = self._affordable(demand)
        if isinstance(amount, Exceeded):
            return amount
        account = self._first_with_room(demand.accounts, demand.tokens, now_ms)
        if isinstance(account, AccountsFull):
            return account
        for limits in demand.limits:
            self._count(limits, demand.tokens, now_ms)
        if account is not None:
            self._count(demand.accounts[account], demand.tokens, now_ms)
        windows = tuple(claim.window.key for claim in demand.budgets)
        for key in windows:
            self.windows[key].held += amount
        hold = self.holds[demand.hold_id] = Hold(
            amount=amount,
            tokens=demand.tokens,
            second=now_ms // 1000,
            expires_ms=now_ms + LEASE_MS,
            limits=demand.limits,
            windows=windows,
            account=None if account is None else demand.accounts[account],
            clamped_by=None if clamped_by is None else clamped_by.budget_id,
        )
        return self._granted(hold, demand, now_ms)

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
            if claim.window.key not in hold.windows or claim.budget.mode is BudgetMode.SOFT:
                continue
            available = self._available(claim)
            if more > available:
                return Exceeded(claim=claim, needed=Money(more), available=Money(max(0, available)))
        account = self._first_with_room(demand.accounts, demand.tokens, now_ms)
        if isinstance(account, AccountsFull):
            return account
        if hold.account is not None:
            self._end(hold.account)
        hold.account = None if account is None else demand.accounts[account]
        if hold.account is not None:
            self._count(hold.account, demand.tokens, now_ms)
        hold.amount += more
        for key in hold.windows:
            self.windows[key].held += more
        return Granted(amount=Money(hold.amount), account=account)

    def release(self, hold_id: str, tokens: int) -> None:
        """The request is over, and so many tokens were used in all: what is still held is free again. An account's
        tokens stay as they were taken: that is how providers count (providers §1.8)."""
        hold = self.holds.pop(hold_id, None)
        if hold is None:
            return
        for limits in hold.limits:
            self._end(limits)
            minute = self._minutes.get((limits.scope, LimitKind.TOKENS))
            if minute is not None and limits.tpm is not None:  # a limit set since then has counted nothing of it
                minute.correct(hold.second, tokens - hold.tokens)
        if hold.account is not None:
            self._end(hold.account)
        for key in hold.windows:
            self._unhold(key, hold.amount)

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
        for of, minute in list(self._minutes.items()):
            minute.advance(now_ms)
            if minute.is_empty:
                del self._minutes[of]
        return expired

    def forget(self, windows: Iterable[str]) -> list[str]:
        """These windows are no longer known, but for those that an open hold counts in; returns which."""
        kept = {key for hold in self.holds.values() for key in hold.windows}
        forgotten = [key for key in dict.fromkeys(windows) if key in self.windows and key not in kept]
        for key in forgotten:
            assert not self.windows[key].held, "what is held is the sum of the holds"
            del self.windows[key]
        return forgotten

    def _now(self, now_ms: int) -> int:
        self._latest_ms = max(self._latest_ms, now_ms)
        return self._latest_ms

    def _granted(self, hold: Hold, demand: Demand, now_ms: int) -> Granted:
        """What the owner of a hold is told."""
        shortened = [claim.budget for claim in demand.budgets if claim.budget.budget_id == hold.clamped_by]
        return Granted(
            amount=Money(hold.amount),
            account=_place(hold.account, demand.accounts),
            rates=self._rates(demand.limits, now_ms),
            clamped_by=shortened[0] if shortened else None,
        )

    # --- limits ----------------------------------------------------------------------------------------------------

    def _limited(self, demand: Demand, now_ms: int) -> Limited | None:
        for limits in demand.limits:
            found = self._no_room(limits, demand.tokens, now_ms)
            if found is not None:
                kind, limit, needed, wait = found
                rates = self._rates(demand.limits, now_ms)
                return Limited(limits=limits, kind=kind, limit=limit, needed=needed, retry_after_ms=wait, rates=rates)
        return None

    def _no_room(self, limits: RateLimits, tokens: int, now_ms: int) -> tuple[LimitKind, int, int, int] | None:
        """What of these limits has no room, its limit, what is needed of it, and for how long it has none."""
        if limits.rpm is not None:
            minute = self._minute(limits.scope, LimitKind.REQUESTS, now_ms)
            if minute.taken + 1 > limits.rpm:
                return (LimitKind.REQUESTS, limits.rpm, 1, minute.wait_ms(1, limits.rpm, now_ms))
        if limits.tpm is not None:
            minute = self._minute(limits.scope, LimitKind.TOKENS, now_ms)
            if minute.taken + tokens > limits.tpm:
                return (LimitKind.TOKENS, limits.tpm, tokens, minute.wait_ms(tokens, limits.tpm, now_ms))
        if limits.concurrency is not None and self._running.get(limits.scope, 0) >= limits.concurrency:
            return (LimitKind.CONCURRENCY, limits.concurrency, 1, FULL_RETRY_MS)
        return None

    def _first_with_room(self, accounts: Sequence[RateLimits], tokens: int, now_ms: int) -> int | AccountsFull | None:
        kinds, waits = [], []
        for place, limits in enumerate(accounts):
            found = self._no_room(limits, tokens, now_ms)
            if found is None:
                return place
            kinds.append(found[0])
            waits.append(found[3])
        return AccountsFull(kinds=tuple(kinds), retry_after_ms=min(waits)) if kinds else None

    def _count(self, limits: RateLimits, tokens: int, now_ms: int) -> None:
        if limits.rpm is not None:
            minute = self._minute(limits.scope, LimitKind.REQUESTS, now_ms)
            minute.take(1, now_ms // 1000)
        if limits.tpm is not None:
            minute = self._minute(limits.scope, LimitKind.TOKENS, now_ms)
            minute.take(tokens, now_ms // 1000)
        if limits.concurrency is not None:
            self._running[limits.scope] = self._running.get(limits.scope, 0) + 1

    def _end(self, limits: RateLimits) -> None:
        if limits.concurrency is None:
            return
        running = self._running.get(limits.scope, 0) - 1
        if running > 0:
            self._running[limits.scope] = running
        else:
            self._running.pop(limits.scope, None)

    def _minute(self, scope: str, kind: LimitKind, now_ms: int) -> SlidingMinute:
        minute = self._minutes.get((scope, kind))
        if minute is None:
            minute = self._minutes[(scope, kind)] = SlidingMinute()
        minute.advance(now_ms)
        return minute

    def _rates(self, scopes: Sequence[RateLimits], now_ms: int) -> RateStates:
        """The tightest of each kind, with what was taken just now."""
        requests = tokens = None
        for limits in scopes:
            if limits.rpm is not None:
                requests = self._tighter(requests, limits.scope, LimitKind.REQUESTS, limits.rpm, now_ms)
            if limits.tpm is not None:
                tokens = self._tighter(tokens, limits.scope, LimitKind.TOKENS, limits.tpm, now_ms)
        return NO_RATES if requests is None and tokens is None else RateStates(requests=requests, tokens=tokens)

    def _tighter(self, other: RateState | None, scope: str, kind: LimitKind, limit: int, now_ms: int) -> RateState:
        minute = self._minute(scope, kind, now_ms)
        remaining = max(0, limit - minute.taken)
        if other is not None and other.remaining <= remaining:
            return other
        return RateState(limit=limit, remaining=remaining, reset_ms=minute.reset_ms(now_ms))

    # --- budgets ---------------------------------------------------------------------------------------------------

    def _affordable(self, demand: Demand) -> tuple[int | Exceeded, Budget | None]:
        """What every budget can bear: all of the demand, what clamping budgets have left of it, or too little."""
        amount, clamped_by = demand.amount.pico, None
        for claim in demand.budgets:
            if claim.budget.mode is BudgetMode.CLAMP:
                available = self._available(claim)
                if available < amount:
                    if available < demand.amount_min.pico:
                        return _exceeded(claim, demand.amount_min.pico, available), None
                    amount, clamped_by = available, claim.budget
        for claim in demand.budgets:
            if claim.budget.mode is BudgetMode.STRICT:
                available = self._available(claim)
                if available < amount:
                    return _exceeded(claim, amount, available), None
        return amount, clamped_by

    def _available(self, claim: BudgetClaim) -> int:
        state = self.windows[claim.window.key]
        return claim.budget.limit.pico - state.spent - state.held

    def _unhold(self, key: str, amount: int) -> None:
        state = self.windows.get(key)
        if state is not None:
            state.held -= amount
            assert state.held >= 0, "what is held is the sum of the holds"


def _exceeded(claim: BudgetClaim, needed: int, available: int) -> Exceeded:
    return Exceeded(claim=claim, needed=Money(needed), available=max(ZERO, Money(available)))


def _place(account: RateLimits | None, accounts: Sequence[RateLimits]) -> int | None:
    if account is None:
        return None
    return next((place for place, each in enumerate(accounts) if each.scope == account.scope), None)
