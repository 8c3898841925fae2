"""One suite for the port Allowances: in process and in Redis, what may be used is decided alike (law L12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.memory import MemoryBalances, MemorySharedState
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.core.allowance import AccountsFull, Balance, Exceeded, Granted, Limited, Unknowable
from gateway.core.budget import BudgetMode, OnOutage, Period
from gateway.core.limits import LimitKind, RateState
from gateway.core.money import ZERO
from gateway.pipeline.ports import Allowances
from tests.contract.allowances import (
    KEY,
    PROVIDER,
    TEAM,
    SteppedClock,
    budget,
    claim,
    demand,
    limits,
    month,
    posting,
    usd,
    whole_usd,
)

pytestmark = pytest.mark.anyio


class Shop:
    """Allowances of one worker with everything around them."""

    def __init__(self, allowances: Allowances, balances: MemoryBalances, clock: SteppedClock) -> None:
        self.allowances = allowances
        self.balances = balances
        self.clock = clock

    async def held(self, scope: str = KEY) -> int:
        """What is held in the scope's month."""
        if isinstance(self.allowances, LocalAllowances):
            return self.allowances.book.windows[month(scope).key].held
        assert isinstance(self.allowances, RedisAllowances)
        return (await self.allowances.figures([month(scope)]))[month(scope).key].held

    async def spent(self, scope: str = KEY) -> int:
        """What is spent in the scope's month."""
        if isinstance(self.allowances, LocalAllowances):
            return self.allowances.book.windows[month(scope).key].spent
        assert isinstance(self.allowances, RedisAllowances)
        return (await self.allowances.figures([month(scope)]))[month(scope).key].spent

    async def refresh(self) -> None:
        assert isinstance(self.allowances, LocalAllowances | RedisAllowances)
        await self.allowances.refresh()


@pytest.fixture(params=["in process", "redis"])
async def shop(request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    clock, balances = SteppedClock(), MemoryBalances()
    if request.param == "in process":
        yield Shop(LocalAllowances("journal-1", balances, clock=clock), balances, clock)
        return
    url = request.getfixturevalue("redis_url")
    allowances = RedisAllowances(
        url, "journal-1", balances, MemorySharedState(), clock=clock, now_ms=clock.now_ms, prefix="test"
    )
    stop = asyncio.Event()
    running = asyncio.create_task(allowances.run(stop))
    try:
        yield Shop(allowances, balances, clock)
    finally:
        stop.set()
        await running


async def test_a_budget_is_held_posted_and_free_again(shop: Shop) -> None:
    """What is granted is held, what is posted is spent, and the rest is free at the release."""
    claims = [claim(budget(whole_usd(10)))]
    asked = demand(whole_usd(4), budgets=claims)
    assert await shop.allowances.take(asked) == Granted(amount=whole_usd(4))
    assert await shop.held() == whole_usd(4).pico
    shop.allowances.post(posting(asked.hold_id, usd("1.5")))
    assert (await shop.spent(), await shop.held()) == (usd("1.5").pico, usd("2.5").pico)
    shop.allowances.release(asked.hold_id, 50)
    assert (await shop.spent(), await shop.held()) == (usd("1.5").pico, 0)
    refused = await shop.allowances.take(demand(usd("8.500000000001"), budgets=claims))
    assert refused == Exceeded(claim=claims[0], needed=usd("8.500000000001"), available=usd("8.5"))
    assert isinstance(await shop.allowances.take(demand(usd("8.5"), budgets=claims)), Granted)


async def test_amounts_beyond_what_a_double_holds_are_exact(shop: Shop) -> None:
    """Above ten million dollars the last pico-dollar still decides."""
    limit = whole_usd(25_000_000) + usd("0.000000000007")
    claims = [claim(budget(limit))]
    first = demand(usd("12345678.999999999999"), budgets=claims)
    assert isinstance(await shop.allowances.take(first), Granted)
    shop.allowances.post(posting(first.hold_id, usd("12345678.999999999998")))
    shop.allowances.release(first.hold_id, 0)
    left = limit - usd("12345678.999999999998")
    refused = await shop.allowances.take(demand(left + usd("0.000000000001"), budgets=claims))
    assert refused == Exceeded(claim=claims[0], needed=left + usd("0.000000000001"), available=left)
    assert await shop.allowances.take(demand(left, budgets=claims)) == Granted(amount=left)
    assert await shop.held() == left.pico
    assert await shop.spent() == usd("12345678.999999999998").pico


async def test_every_scope_holds_or_none(shop: Shop) -> None:
    """A second budget without room leaves nothing held in the first, nor in a minute."""
    claims = [claim(budget(whole_usd(10))), claim(budget(whole_usd(3), scope=TEAM))]
    asked = demand(whole_usd(4), budgets=claims, limits=[limits(rpm=2)])
    assert await shop.allowances.take(asked) == Exceeded(claim=claims[1], needed=whole_usd(4), available=whole_usd(3))
    assert (await shop.held(), await shop.held(TEAM)) == (0, 0)
    granted = await shop.allowances.take(demand(whole_usd(3), budgets=claims, limits=[limits(rpm=2)]))
    assert isinstance(granted, Granted)
    assert granted.rates.requests == RateState(limit=2, remaining=1, reset_ms=60_000)


async def test_a_budget_may_shorten_or_only_tell(shop: Shop) -> None:
    """A clamping budget grants what it has left, down to the least that is worth having; a soft one grants all."""
    clamping = claim(budget(whole_usd(10), mode=BudgetMode.CLAMP))
    first = await shop.allowances.take(demand(whole_usd(7), budgets=[clamping]))
    assert first == Granted(amount=whole_usd(7))
    second = await shop.allowances.take(demand(whole_usd(7), amount_min=whole_usd(3), budgets=[clamping]))
    assert second == Granted(amount=whole_usd(3), clamped_by=clamping.budget)
    third = await shop.allowances.take(demand(whole_usd(7), amount_min=usd("0.5"), budgets=[clamping]))
    assert third == Exceeded(claim=clamping, needed=usd("0.5"), available=ZERO)
    soft = claim(budget(whole_usd(1), mode=BudgetMode.SOFT))
    assert await shop.allowances.take(demand(whole_usd(7), budgets=[soft])) == Granted(amount=whole_usd(7))
    assert await shop.held() == whole_usd(17).pico


async def test_requests_and_tokens_of_a_minute(shop: Shop) -> None:
    """A minute has so many requests and tokens; what was not used of the tokens comes back at the release."""
    of_key = limits(rpm=3, tpm=250)
    first, second = demand(limits=[of_key]), demand(limits=[of_key])
    assert isinstance(await shop.allowances.take(first), Granted)
    shop.clock.move(seconds=2)
    assert isinstance(await shop.allowances.take(second), Granted)
    full = await shop.allowances.take(demand(limits=[of_key]))
    assert isinstance(full, Limited)
    assert (full.kind, full.limit, full.needed, full.retry_after_ms) == (LimitKind.TOKENS, 250, 100, 58_000)
    assert full.rates.tokens == RateState(limit=250, remaining=50, reset_ms=60_000)
    shop.allowances.release(first.hold_id, 20)
    assert isinstance(await shop.allowances.take(demand(limits=[of_key])), Granted)
    again = await shop.allowances.take(demand(limits=[of_key]))
    assert isinstance(again, Limited)
    assert (again.kind, again.retry_after_ms) == (LimitKind.REQUESTS, 58_000)
    shop.clock.move(milliseconds=57_999)
    assert isinstance(await shop.allowances.take(demand(tokens=50, limits=[of_key])), Limited)
    shop.clock.move(milliseconds=1)
    assert isinstance(await shop.allowances.take(demand(tokens=50, limits=[of_key])), Granted)


async def test_requests_at_once_end_with_their_release(shop: Shop) -> None:
    """A release is known to whoever asks next."""
    alone = [limits(concurrency=1)]
    for _ in range(3):
        asked = demand(limits=alone)
        assert isinstance(await shop.allowances.take(asked), Granted)
        refused = await shop.allowances.take(demand(limits=alone))
        assert isinstance(refused, Limited)
        assert (refused.kind, refused.limit) == (LimitKind.CONCURRENCY, 1)
        shop.allowances.release(asked.hold_id, 10)


async def test_the_first_account_with_room(shop: Shop) -> None:
    """Accounts are filled in their order; when all are full, each says of what."""
    first, second = limits("account:p/a", concurrency=1), limits("account:p/b", rpm=1)
    places = [await shop.allowances.take(demand(accounts=[first, second])) for _ in range(2)]
    assert [granted.account for granted in places if isinstance(granted, Granted)] == [0, 1]
    full = await shop.allowances.take(demand(accounts=[first, second]))
    assert full == AccountsFull(kinds=(LimitKind.CONCURRENCY, LimitKind.REQUESTS), retry_after_ms=1_000)


async def test_a_retry_keeps_the_hold(shop: Shop) -> None:
    """The same amount again on top of what was posted, at another account, or nothing."""
    claims = [claim(budget(whole_usd(10)))]
    first, second = limits("account:p/a", concurrency=1), limits("account:p/b", concurrency=1)
    asked = demand(whole_usd(4), budgets=claims, accounts=[first, second])
    assert await shop.allowances.take(asked) == Granted(amount=whole_usd(4), account=0)
    shop.allowances.post(posting(asked.hold_id, whole_usd(3)))
    again = demand(whole_usd(4), hold_id=asked.hold_id, budgets=claims, accounts=[second])
    assert await shop.allowances.retry(again) == Granted(amount=whole_usd(4), account=0)
    assert (await shop.spent(), await shop.held()) == (whole_usd(3).pico, whole_usd(4).pico)
    assert isinstance(await shop.allowances.take(demand(ZERO, accounts=[first])), Granted)
    shop.allowances.post(posting(asked.hold_id, whole_usd(4)))
    refused = await shop.allowances.retry(again)
    assert refused == Exceeded(claim=claims[0], needed=whole_usd(4), available=whole_usd(3))
    shop.allowances.release(asked.hold_id, 0)
    assert (await shop.spent(), await shop.held()) == (whole_usd(7).pico, 0)


async def test_asking_twice_is_asking_once(shop: Shop) -> None:
    """A hold has the identity of its request."""
    claims = [claim(budget(whole_usd(10)))]
    asked = demand(whole_usd(6), hold_id="req_twice", budgets=claims, accounts=[PROVIDER])
    for _ in range(2):
        granted = await shop.allowances.take(asked)
        assert isinstance(granted, Granted)
        assert (granted.amount, granted.account) == (whole_usd(6), 0)
    assert await shop.held() == whole_usd(6).pico
    for _ in range(2):
        shop.allowances.release("req_twice", 0)
    assert await shop.held() == 0


async def test_a_refund_counts(shop: Shop) -> None:
    """A batch of corrections is a journal that may have posted less than nothing, to the pico-dollar; also while it
    grows."""
    claims = [claim(budget(whole_usd(10)))]
    shop.balances.tell(month(), "journal-2", Balance(whole_usd(9).pico + 1, 3))
    assert isinstance(await shop.allowances.take(demand(whole_usd(4), budgets=claims)), Exceeded)
    for pico, rows in ((-whole_usd(3).pico + 999_999_999_999, 1), (-whole_usd(3).pico, 2)):
        shop.balances.tell(month(), "cor_1", Balance(pico, rows))
        await shop.refresh()
        assert await shop.spent() == whole_usd(9).pico + 1 + pico
    refused = await shop.allowances.take(demand(whole_usd(4), budgets=claims))
    assert isinstance(refused, Exceeded)
    assert refused.available.pico == whole_usd(4).pico - 1
    shop.balances.tell(month(), "cor_1", Balance(-whole_usd(3).pico - 1, 3))
    await shop.refresh()
    assert isinstance(await shop.allowances.take(demand(whole_usd(4), budgets=claims)), Granted)


async def test_what_others_have_posted_counts(shop: Shop) -> None:
    """The database is asked when a window is opened, and again when something has moved."""
    claims = [claim(budget(whole_usd(10)))]
    shop.balances.tell(month(), "journal-2", Balance(whole_usd(7).pico, 3))
    refused = await shop.allowances.take(demand(whole_usd(4), budgets=claims))
    assert refused == Exceeded(claim=claims[0], needed=whole_usd(4), available=whole_usd(3))
    shop.balances.tell(month(), "journal-2", Balance(whole_usd(9).pico, 4))
    await shop.refresh()
    refused = await shop.allowances.take(demand(whole_usd(4), budgets=claims))
    assert refused == Exceeded(claim=claims[0], needed=whole_usd(4), available=whole_usd(1))
    shop.balances.tell(month(), "journal-2", Balance(whole_usd(1).pico, 2))
    await shop.refresh()
    assert await shop.spent() == whole_usd(9).pico


async def test_a_window_of_ten_thousand_journals(shop: Shop) -> None:
    """Every start of a worker is a journal; a window that has lived for years is opened like any other."""
    shop.balances.posted[month().key] = {f"journal-old-{n}": Balance(whole_usd(1).pico, 1) for n in range(10_000)}
    claims = [claim(budget(whole_usd(10_001)))]
    assert isinstance(await shop.allowances.take(demand(budgets=claims)), Granted)
    assert isinstance(await shop.allowances.take(demand(budgets=claims)), Exceeded)
    assert await shop.spent() == whole_usd(10_000).pico


async def test_own_postings_count_before_a_budget_is_set(shop: Shop) -> None:
    """What was spent without a budget is known to the one that is set later."""
    shop.allowances.post(posting("req_before", whole_usd(7)))
    claims = [claim(budget(whole_usd(10)))]
    refused = await shop.allowances.take(demand(whole_usd(4), budgets=claims))
    assert refused == Exceeded(claim=claims[0], needed=whole_usd(4), available=whole_usd(3))


async def test_a_limit_that_is_changed_keeps_what_was_spent(shop: Shop) -> None:
    """A raised budget has room again, a lowered one has less than none; what is under way goes on."""
    asked = demand(whole_usd(8), budgets=[claim(budget(whole_usd(10)))])
    assert isinstance(await shop.allowances.take(asked), Granted)
    lowered = claim(budget(whole_usd(5)))
    refused = await shop.allowances.take(demand(whole_usd(1), budgets=[lowered]))
    assert refused == Exceeded(claim=lowered, needed=whole_usd(1), available=ZERO)
    raised = claim(budget(whole_usd(20)))
    assert isinstance(await shop.allowances.take(demand(whole_usd(12), budgets=[raised])), Granted)


async def test_a_new_window_begins_empty_and_needs_no_database(shop: Shop) -> None:
    """At midnight a day's budget is whole again, also while the database is away; a hold stays in its own window."""
    of_today = claim(budget(whole_usd(1), period=Period.DAY))
    late = demand(whole_usd(1), budgets=[of_today])
    assert isinstance(await shop.allowances.take(late), Granted)
    shop.clock.move(hours=13)
    shop.balances.is_away = True
    of_tomorrow = claim(budget(whole_usd(1), period=Period.DAY), shop.clock.now())
    assert of_tomorrow.window != of_today.window
    shop.allowances.post(posting(late.hold_id, whole_usd(1)))
    assert isinstance(await shop.allowances.take(demand(whole_usd(1), budgets=[of_tomorrow])), Granted)
    assert isinstance(await shop.allowances.take(demand(whole_usd(1), budgets=[of_today])), Exceeded)


async def test_a_window_of_which_nothing_is_known_refuses(shop: Shop) -> None:
    """While the database cannot say what is spent a strict budget refuses; one that does not mind is left out."""
    shop.balances.is_away = True
    strict = budget(whole_usd(10))
    assert await shop.allowances.take(demand(budgets=[claim(strict)])) == Unknowable(budget=strict)
    lenient = budget(whole_usd(10), scope=TEAM, on_outage=OnOutage.ADMIT)
    assert isinstance(await shop.allowances.take(demand(whole_usd(99), budgets=[claim(lenient)])), Granted)
    shop.balances.is_away = False
    shop.clock.move(seconds=3)
    assert isinstance(await shop.allowances.take(demand(whole_usd(99), budgets=[claim(lenient)])), Exceeded)
    assert isinstance(await shop.allowances.take(demand(budgets=[claim(strict)])), Granted)


async def test_a_race_for_one_budget_has_exactly_as_many_winners_as_fit(shop: Shop) -> None:
    """Of two hundred at once for ten, ten get it."""
    claims = [claim(budget(whole_usd(10)))]
    verdicts = await asyncio.gather(*(shop.allowances.take(demand(budgets=claims)) for _ in range(200)))
    assert sum(isinstance(verdict, Granted) for verdict in verdicts) == 10
    assert sum(isinstance(verdict, Exceeded) for verdict in verdicts) == 190
