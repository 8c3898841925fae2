"""An allowance, worked by hand: everything or nothing is taken, and what is spent is told and never added up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.allowance import (
    LEASE_MS,
    NOTHING_POSTED,
    AccountsFull,
    AllowanceBook,
    Balance,
    BudgetClaim,
    Demand,
    Exceeded,
    Granted,
    Limited,
    WindowState,
)
from gateway.core.budget import Budget, BudgetMode, Period, window_of
from gateway.core.limits import FULL_RETRY_MS, LimitKind, RateLimits, RateState
from gateway.core.money import ZERO, Money

NOW = 1_764_000_000_000
MOMENT = datetime.fromtimestamp(NOW / 1000, UTC)
KEY = RateLimits(scope="key:a", name='key "a"', rpm=3, tpm=1_000, concurrency=2)
TEAM = RateLimits(scope="team:t", name='team "t"', rpm=100, tpm=500, concurrency=100)
MAIN = RateLimits(scope="account:e/main", name="e/main", rpm=2, tpm=900, concurrency=1)
SPARE = RateLimits(scope="account:e/spare", name="e/spare", concurrency=1)


def budget(scope: str = "key:a", limit: int = 100, mode: BudgetMode = BudgetMode.STRICT) -> Budget:
    return Budget(
        budget_id=f"budget-{scope}", scope=scope, name=scope, period=Period.MONTH, limit=Money(limit), mode=mode
    )


def claim(*args, **kwargs) -> BudgetClaim:
    claimed = budget(*args, **kwargs)
    return BudgetClaim(claimed, window_of(claimed.scope, claimed.period, MOMENT))


def ask(
    hold_id: str = "r1",
    *budgets: BudgetClaim,
    amount: int = 10,
    amount_min: int = 1,
    tokens: int = 100,
    limits: tuple[RateLimits, ...] = (),
    accounts: tuple[RateLimits, ...] = (),
) -> Demand:
    return Demand(
        hold_id=hold_id,
        tokens=tokens,
        amount=Money(amount),
        amount_min=Money(amount_min),
        limits=limits,
        budgets=budgets,
        accounts=accounts,
    )


def opened(*claims: BudgetClaim) -> AllowanceBook:
    book = AllowanceBook()
    for each in claims:
        book.open(each.window, {})
    return book


def state(book: AllowanceBook, of: BudgetClaim) -> tuple[int, int]:
    """What is spent and what is held."""
    window = book.windows[of.window.key]
    return window.spent, window.held


def taken(book: AllowanceBook, *names: str) -> dict[str, int]:
    return {name: book._scopes[name].tokens.taken for name in names}


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_one_take_counts_everywhere():
    """Both limits, all budgets and the first account with room, under the request's identity."""
    mine, ours = claim("key:a"), claim("organisation", 1_000)
    book = opened(mine, ours)
    granted = book.take(ask("r1", mine, ours, limits=(KEY, TEAM), accounts=(MAIN, SPARE)), NOW)
    assert isinstance(granted, Granted)
    assert (granted.amount, granted.account, granted.clamped_by) == (Money(10), 0, None)
    assert granted.rates.requests == RateState(limit=3, remaining=2, reset_ms=60_000)
    assert granted.rates.tokens == RateState(limit=500, remaining=400, reset_ms=60_000), "the team's, being tighter"
    assert state(book, mine) == state(book, ours) == (0, 10)
    assert taken(book, "key:a", "team:t", "account:e/main") == {"key:a": 100, "team:t": 100, "account:e/main": 100}


@pytest.mark.parametrize(
    ("demand", "kind"),
    [
        ({"limits": (KEY, replace(TEAM, tpm=99))}, Limited),
        ({"limits": (KEY, replace(TEAM, concurrency=0))}, Limited),
        ({"amount": 101, "limits": (KEY,)}, Exceeded),
        ({"limits": (KEY,), "accounts": (replace(MAIN, concurrency=0), replace(SPARE, rpm=0))}, AccountsFull),
    ],
)
def test_a_refusal_takes_nothing(demand, kind):
    """The last thing asked for has no room, and of the first nothing is gone."""
    mine = claim()
    book = opened(mine)
    assert isinstance(book.take(ask("r1", mine, **demand), NOW), kind)
    assert book.holds == {}
    assert state(book, mine) == (0, 0)
    assert book.running() == {}
    assert all(state.requests.taken == state.tokens.taken == 0 for state in book._scopes.values())


def test_a_hold_that_is_asked_for_again_is_the_same_hold():
    """A take that was sent twice takes once, and says the same: amount, account, who shortened it, and the limits."""
    clamping = claim(limit=7, mode=BudgetMode.CLAMP)
    book = opened(clamping)
    demand = ask("r1", clamping, limits=(KEY,), accounts=(MAIN, SPARE))
    first = book.take(demand, NOW)
    assert isinstance(first, Granted)
    assert (first.amount, first.clamped_by) == (Money(7), clamping.budget)
    assert book.take(demand, NOW) == first
    assert state(book, clamping) == (0, 7)
    assert taken(book, "key:a") == {"key:a": 100}


# --- limits ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_limit_says_what_it_is():
    """Which limit, of whom, what was needed, and how long to wait; concurrency waits for somebody's end."""
    book = AllowanceBook()
    assert isinstance(book.take(ask("r1", limits=(KEY,)), NOW), Granted)
    tokens = book.take(ask("r2", limits=(KEY,), tokens=901), NOW + 2_000)
    assert isinstance(tokens, Limited)
    assert (tokens.kind, tokens.limits, tokens.limit, tokens.needed) == (LimitKind.TOKENS, KEY, 1_000, 901)
    assert tokens.retry_after_ms == 58_000
    assert tokens.rates.tokens == RateState(limit=1_000, remaining=900, reset_ms=58_000)
    book.take(ask("r2", limits=(KEY,)), NOW + 2_000)
    running = book.take(ask("r3", limits=(KEY,)), NOW + 3_000)
    assert isinstance(running, Limited)
    assert (running.kind, running.limit, running.retry_after_ms) == (LimitKind.CONCURRENCY, 2, FULL_RETRY_MS)
    book.release("r1", 100)
    assert isinstance(book.take(ask("r3", limits=(KEY,)), NOW + 3_000), Granted)
    requests = book.take(ask("r4", limits=(KEY,)), NOW + 4_000)
    assert isinstance(requests, Limited)
    assert (requests.kind, requests.limit, requests.needed) == (LimitKind.REQUESTS, 3, 1)
    assert requests.retry_after_ms == 56_000
    book.release("r2", 0)
    assert isinstance(book.take(ask("r4", limits=(KEY,)), NOW + 60_000), Granted)


def test_tokens_are_trued_up_when_the_request_is_over():
    """What was not used is free at once for the key and its team; the account's stays, as its provider counts."""
    book = AllowanceBook()
    book.take(ask("r1", limits=(KEY, TEAM), accounts=(MAIN,), tokens=400), NOW)
    book.release("r1", 30)
    assert taken(book, "key:a", "team:t", "account:e/main") == {"key:a": 30, "team:t": 30, "account:e/main": 400}
    book.take(ask("r2", limits=(KEY, TEAM), tokens=100), NOW)
    book.release("r2", 600)
    assert taken(book, "key:a", "team:t") == {"key:a": 630, "team:t": 630}
    assert isinstance(book.take(ask("r3", limits=(TEAM,), tokens=1), NOW), Limited), "more was used than was asked for"


def test_a_limit_that_was_set_meanwhile_has_counted_nothing_of_a_request():
    """Its end gives nothing back there, neither tokens that others have taken nor a place that others have."""
    book = AllowanceBook()
    book.take(ask("r1", limits=(RateLimits(scope="key:a", name="a", rpm=10),), tokens=900), NOW)
    book.take(ask("r2", limits=(KEY,), tokens=500), NOW)
    book.release("r1", 0)
    assert taken(book, "key:a") == {"key:a": 500}
    assert book.running() == {"key:a": 1}


def test_a_clock_that_is_set_back_gives_nothing_back():
    """Later takes count in the latest second that was seen, and are given back with it."""
    book = AllowanceBook()
    book.take(ask("r1", limits=(KEY,)), NOW + 30_000)
    book.take(ask("r2", limits=(KEY,), tokens=200), NOW)
    book.release("r2", 150)
    assert taken(book, "key:a") == {"key:a": 250}
    book.sweep(NOW + 89_999)
    assert taken(book, "key:a") == {"key:a": 250}


def test_minutes_that_are_over_are_forgotten():
    """A gateway that has seen a million keys keeps those of the last minute."""
    book = AllowanceBook()
    book.take(ask("r1", limits=(KEY,), accounts=(MAIN,)), NOW)
    book.release("r1", 0)
    book.sweep(NOW + 60_000)
    assert book._scopes == {}


# --- accounts --------------------------------------------------------------------------------------------------------


def test_the_first_account_with_room_is_taken():
    """Best first; the refusal says of each what it has no room for, and when to ask again."""
    book = AllowanceBook()
    places = [book.take(ask(f"r{n}", accounts=(MAIN, SPARE)), NOW) for n in range(3)]
    assert [place.account for place in places[:2] if isinstance(place, Granted)] == [0, 1]
    full = places[2]
    assert isinstance(full, AccountsFull)
    assert full.kinds == (LimitKind.CONCURRENCY, LimitKind.CONCURRENCY)
    book.release("r0", 0)
    assert isinstance(book.take(ask("r3", accounts=(MAIN, SPARE)), NOW), Granted)
    book.release("r3", 0)
    full = book.take(ask("r4", accounts=(MAIN, SPARE)), NOW + 500)
    assert isinstance(full, AccountsFull)
    assert full.kinds == (LimitKind.REQUESTS, LimitKind.CONCURRENCY)
    assert full.retry_after_ms == FULL_RETRY_MS
    alone = book.take(ask("r4", accounts=(MAIN,)), NOW + 500)
    assert isinstance(alone, AccountsFull)
    assert alone.retry_after_ms == 59_500


def test_an_account_without_limits_always_has_room():
    """It stands in its place among the others."""
    free = RateLimits(scope="account:m/main", name="m/main")
    book = AllowanceBook()
    for number in range(5):
        granted = book.take(ask(f"r{number}", accounts=(SPARE, free)), NOW)
        assert isinstance(granted, Granted)
        assert granted.account == (0 if number == 0 else 1)


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_exactly_what_a_budget_bears_is_admitted():
    """Ten of ten fit into a hundred; the eleventh is told what it needs and what there is."""
    mine = claim()
    book = opened(mine)
    verdicts = [book.take(ask(f"r{n}", mine), NOW) for n in range(11)]
    assert [type(verdict) for verdict in verdicts] == [Granted] * 10 + [Exceeded]
    assert verdicts[10] == Exceeded(claim=mine, needed=Money(10), available=ZERO)


def test_what_is_posted_is_spent_and_what_is_left_of_the_hold_is_free():
    """Held, then spent and partly held, then spent: at no time neither, at no time both."""
    mine = claim()
    book = opened(mine)
    book.take(ask("r1", mine), NOW)
    book.tell(mine.window.key, "j1", Balance(4, 1))
    book.spend("r1", 4)
    assert state(book, mine) == (4, 6)
    book.release("r1", 100)
    assert state(book, mine) == (4, 0)
    book.release("r1", 100)
    assert state(book, mine) == (4, 0)


def test_what_costs_more_than_was_held_is_spent_all_the_same():
    """The next one finds less than nothing, and is told nothing is available."""
    mine = claim(limit=12)
    book = opened(mine)
    book.take(ask("r1", mine), NOW)
    book.tell(mine.window.key, "j1", Balance(25, 1))
    book.spend("r1", 25)
    assert state(book, mine) == (25, 0)
    book.release("r1", 1)
    assert book.take(ask("r2", mine), NOW) == Exceeded(claim=mine, needed=Money(10), available=ZERO)


def test_the_tightest_clamping_budget_shortens_and_is_named():
    """And strict ones are asked for what is left after that."""
    wide, tight = claim("key:a", 9, BudgetMode.CLAMP), claim("team:t", 6, BudgetMode.CLAMP)
    strict = claim("organisation", 7)
    book = opened(wide, tight, strict)
    granted = book.take(ask("r1", strict, wide, tight), NOW)
    assert isinstance(granted, Granted)
    assert (granted.amount, granted.clamped_by) == (Money(6), tight.budget)
    assert [state(book, each) for each in (wide, tight, strict)] == [(0, 6)] * 3
    narrow = book.take(ask("r2", wide, strict, amount_min=2), NOW)
    assert narrow == Exceeded(claim=strict, needed=Money(3), available=Money(1))


def test_a_clamping_budget_that_cannot_bear_the_least_is_exceeded():
    """An answer is not shortened to nothing; the refusal names the least that would do."""
    clamping = claim(limit=4, mode=BudgetMode.CLAMP)
    book = opened(clamping)
    assert book.take(ask("r1", clamping, amount_min=5), NOW) == Exceeded(
        claim=clamping, needed=Money(5), available=Money(4)
    )
    assert isinstance(book.take(ask("r1", clamping, amount_min=4), NOW), Granted)


def test_a_soft_budget_counts_and_never_refuses():
    """What it holds is known, for it may be made strict at any time."""
    soft = claim(limit=5, mode=BudgetMode.SOFT)
    book = opened(soft)
    for number in range(3):
        assert isinstance(book.take(ask(f"r{number}", soft), NOW), Granted)
    assert state(book, soft) == (0, 30)
    strict = BudgetClaim(budget(limit=35), soft.window)
    assert book.take(ask("r9", strict), NOW) == Exceeded(claim=strict, needed=Money(10), available=Money(5))


def test_a_limit_may_change_at_any_time():
    """The window's key does not name it: raised, there is more at once; lowered below what is held, nobody new."""
    mine = claim(limit=10)
    book = opened(mine)
    book.take(ask("r1", mine), NOW)
    raised = BudgetClaim(budget(limit=20), mine.window)
    assert isinstance(book.take(ask("r2", raised), NOW), Granted)
    lowered = BudgetClaim(budget(limit=1), mine.window)
    assert book.take(ask("r3", lowered), NOW) == Exceeded(claim=lowered, needed=Money(10), available=ZERO)


# --- retries ---------------------------------------------------------------------------------------------------------


def test_a_retry_holds_again_what_the_failed_attempt_has_cost():
    """On top of what is spent already, or not at all."""
    mine = claim(limit=14)
    book = opened(mine)
    book.take(ask("r1", mine, accounts=(MAIN, SPARE)), NOW)
    book.tell(mine.window.key, "j1", Balance(4, 1))
    book.spend("r1", 4)
    granted = book.retry(ask("r1", mine, accounts=(SPARE,)), NOW)
    assert granted == Granted(amount=Money(10), account=0)
    assert state(book, mine) == (4, 10)
    book.tell(mine.window.key, "j1", Balance(5, 2))
    book.spend("r1", 1)
    assert book.retry(ask("r1", mine), NOW) == Exceeded(claim=mine, needed=Money(1), available=ZERO)
    assert state(book, mine) == (5, 9)
    book.release("r1", 0)
    assert state(book, mine) == (5, 0)
    assert book.running() == {}


def test_a_retry_that_needs_nothing_more_needs_nobodys_leave():
    """A budget that was lowered, or overrun by another, refuses newcomers and not what it has admitted."""
    mine = claim(limit=10)
    book = opened(mine)
    book.take(ask("r1", mine), NOW)
    lowered = BudgetClaim(budget(limit=3), mine.window)
    assert isinstance(book.retry(ask("r1", lowered), NOW), Granted)
    assert isinstance(book.retry(ask("r1", lowered, amount=11), NOW), Exceeded)


def test_a_retry_leaves_the_account_it_had():
    """Its place is free at once, its minute keeps the request; nothing changes where there is no room."""
    book = AllowanceBook()
    book.take(ask("r1", accounts=(MAIN,)), NOW)
    book.take(ask("r2", accounts=(SPARE,)), NOW)
    assert isinstance(book.retry(ask("r1", accounts=(SPARE,)), NOW), AccountsFull)
    assert book.running() == {"account:e/main": 1, "account:e/spare": 1}
    book.release("r2", 0)
    assert isinstance(book.retry(ask("r1", accounts=(SPARE,)), NOW), Granted)
    assert book.running() == {"account:e/spare": 1}
    assert book._scopes[MAIN.scope].requests.taken == 1


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_hold_that_nobody_renews_ends_once():
    """Its owner is gone: money, places and nothing else are given back, and what comes late changes nothing."""
    mine = claim()
    book = opened(mine)
    book.take(ask("r1", mine, limits=(KEY,), accounts=(MAIN,)), NOW)
    book.take(ask("r2", mine, limits=(KEY,)), NOW)
    book.renew(["r2", "unknown"], NOW + 1_000)
    assert book.sweep(NOW + LEASE_MS - 1) == []
    assert book.sweep(NOW + LEASE_MS) == ["r1"]
    assert state(book, mine) == (0, 10)
    assert book.running() == {"key:a": 1}
    assert taken(book, "key:a") == {"key:a": 0}, "its minute is as long as its lease"
    book.spend("r1", 5)
    book.release("r1", 0)
    assert state(book, mine) == (0, 10)


def test_a_window_is_kept_as_long_as_a_hold_counts_in_it():
    """Also where nothing is held in it any more: its retry may hold again."""
    mine, other = claim("key:a"), claim("key:b")
    book = opened(mine, other)
    book.take(ask("r1", mine), NOW)
    book.spend("r1", 10)
    assert book.forget([mine.window.key, other.window.key, "unknown"]) == [other.window.key]
    assert isinstance(book.retry(ask("r1", mine), NOW), Granted)
    book.release("r1", 0)
    assert book.forget([mine.window.key]) == [mine.window.key]
    book.tell(mine.window.key, "j1", Balance(1, 1))
    assert book.windows == {}


# --- telling ---------------------------------------------------------------------------------------------------------


def test_balances_may_be_told_twice_late_and_out_of_order():
    """Of two figures of one journal the one with more rows knows more, of two with as many the later one."""
    window = WindowState(claim().window)
    for journal_id, balance, spent in (
        ("j1", Balance(50, 5), 50),
        ("j1", Balance(50, 5), 50),
        ("j2", Balance(7, 1), 57),
        ("j1", Balance(20, 2), 57),
        ("j1", NOTHING_POSTED, 57),
        ("j1", Balance(30, 6), 37),
        ("j2", Balance(9, 2), 39),
        ("j2", Balance(8, 2), 38),
    ):
        window.tell(journal_id, balance)
        assert window.spent == spent


def test_what_is_told_of_a_window_that_nobody_knows_is_dropped():
    """It is asked for when it is opened; opening again tells again."""
    mine = claim()
    book = AllowanceBook()
    book.tell(mine.window.key, "j1", Balance(5, 1))
    assert book.windows == {}
    book.open(mine.window, {"j1": Balance(5, 1)})
    book.take(ask("r1", mine), NOW)
    book.open(mine.window, {"j1": Balance(5, 1), "j2": Balance(2, 1)})
    assert state(book, mine) == (7, 10)
