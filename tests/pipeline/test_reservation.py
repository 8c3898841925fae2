"""Before anything is bought it is held: a refusal explains itself and sends nothing, and nothing stays held."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gateway.adapters.allowances import LocalAllowances
from gateway.core.allowance import Balance, Demand, Verdict
from gateway.core.budget import BudgetMode, OnOutage, Period, window_of
from gateway.core.catalogue import Account
from gateway.core.failure import Failure, FailureClass
from gateway.core.limits import RateLimits
from gateway.core.money import Money
from gateway.pipeline.first_word import FIRST_WORD_SECONDS_MAX
from gateway.pipeline.turns import Turns
from tests.pipeline.reservations import (
    COST,
    DEAREST,
    INPUT,
    OUTPUT,
    ask,
    ask_unchecked,
    begin,
    budget,
    limited,
    moments,
    somebody,
    state,
    world_of,
)
from tests.pipeline.virtual_time import START, on_virtual_time
from tests.pipeline.world import (
    ALICE,
    FOREVER,
    World,
    answer,
    broken,
    card,
    catalogue,
    refusal,
    replace,
    stream,
    totals,
    unstreamed,
)
from tests.wire.transcripts import ANSWER

SHUTDOWN = Failure(kind=FailureClass.SHUTDOWN, message="the gateway is shutting down")


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
def test_a_budget_without_room_explains_itself_and_sends_nothing(streamed: bool):
    """402 with whose budget it is, its window, what is available, what is needed, and when it is reset."""

    @on_virtual_time
    async def scenario() -> None:
        world = World().scripted(evolink=answer() if streamed else unstreamed())
        run = await ask(world, limited(budget(DEAREST - 1)), stream=streamed)
        assert run.reply.status == 402
        error = run.reply.error
        assert error["code"] == "budget_exceeded"
        assert (
            'The budget of the key "alice", $0.004440699999 a month, has $0.004440699999 available' in error["message"]
        )
        assert "this request needs $0.0044407." in error["message"]
        assert "It is reset at 2026-04-01T00:00:00Z." in error["message"]
        assert run.exchange.request_id in error["message"]
        assert world.upstreams.calls == []
        assert run.entries == []
        assert world.journal.intents() == []

    scenario()


@on_virtual_time
async def test_a_budget_in_all_has_no_reset():
    """And a window of a zone is reset at that zone's midnight."""
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(budget(5, period=Period.TOTAL)))
    assert "in total" in run.reply.error["message"]
    assert "reset" not in run.reply.error["message"]
    shanghai = replace(limited(budget(5, period=Period.DAY, time_zone="Asia/Shanghai")), time_zone="Asia/Shanghai")
    run = await ask(world, shanghai)
    assert "It is reset at 2026-03-01T16:00:00Z." in run.reply.error["message"]


@on_virtual_time
async def test_what_is_held_is_the_dearest_candidate_and_what_it_costs_is_posted():
    """The rest is free with the answer; the intent and the row say what was held."""
    mine = budget(2 * DEAREST)
    world = World().scripted(evolink=answer())
    run = begin(world, limited(mine))
    await moments()
    assert state(world, mine) == (0, DEAREST)
    await run.ended()
    assert run.reply.status == 200
    assert state(world, mine) == (COST, 0)
    assert run.entry.cost_pico == COST
    assert run.entry.held_pico == world.journal.intents()[0].held_pico == DEAREST
    assert run.entry.flags == []


@on_virtual_time
async def test_exactly_as_many_as_a_budget_bears_are_under_way():
    """Thirty at once for ten: twenty are refused, none of them in vain, and the ten are bought."""
    mine = budget(10 * DEAREST)
    world = World().scripted(evolink=answer())
    runs = [begin(world, limited(mine)) for _ in range(30)]
    await asyncio.gather(*(run.task for run in runs))
    assert sorted(run.reply.status for run in runs if run.reply.status) == [200] * 10 + [402] * 20
    assert len(world.upstreams.calls) == 10
    assert state(world, mine) == (10 * COST, 0)
    world.check()


@on_virtual_time
async def test_every_budget_that_a_request_falls_under_is_held():
    """Key, team and organisation in one step; the one without room is named, and the others hold nothing."""
    mine = budget(10 * DEAREST)
    ours = budget(DEAREST - 1, scope="team:team-a", name='team "team-a"')
    everybody = budget(10 * DEAREST, scope="organisation", name="organisation", period=Period.DAY)
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(mine, ours, everybody))
    assert 'The budget of the team "team-a"' in run.reply.error["message"]
    assert state(world, mine) == state(world, everybody) == (0, 0)
    wide = replace(ours, limit=Money(DEAREST))
    run = begin(world, limited(mine, wide, everybody))
    await moments()
    assert state(world, mine) == state(world, ours) == state(world, everybody) == (0, DEAREST)
    await run.ended()
    assert state(world, mine) == state(world, ours) == state(world, everybody) == (COST, 0)


@on_virtual_time
async def test_a_clamping_budget_shortens_the_answer_and_says_so():
    """The upstream is asked for what is affordable at the dearest candidate, and the header names the budget."""
    mine = budget(INPUT * 1_100_000 + 600 * 4_400_000 + 4_399_999, mode=BudgetMode.CLAMP)
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(mine))
    assert run.reply.status == 200
    (call,) = world.upstreams.calls
    assert b'"max_tokens":600' in call.body.replace(b" ", b"")
    assert 'limited to 600 tokens by the budget of the key "alice"' in run.reply.headers["x-gateway-warnings"]
    assert run.entry.held_pico == mine.limit.pico
    assert world.journal.intents()[0].output_limit == 600


@on_virtual_time
async def test_a_clamping_budget_does_not_shorten_to_nothing():
    """Below 256 tokens it is exceeded, and needs what 256 of them cost."""
    least = INPUT * 1_100_000 + 256 * 4_400_000
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(budget(least - 1, mode=BudgetMode.CLAMP)))
    assert run.reply.status == 402
    assert f"needs ${Money(least)}" in run.reply.error["message"]
    run = await ask(world, limited(budget(least, mode=BudgetMode.CLAMP)))
    assert run.reply.status == 200


@on_virtual_time
async def test_several_answers_share_what_is_affordable():
    """With n answers each one's limit is an n-th of it; what is held is for all of them."""
    mine = budget(INPUT * 1_100_000 + 2 * 300 * 4_400_000, mode=BudgetMode.CLAMP)
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(mine), n=2)
    assert run.reply.status == 200
    assert world.journal.intents()[0].output_limit == 300
    run = await ask(world, limited(budget(10 * DEAREST)), n=2)
    assert run.entry.held_pico == INPUT * 1_100_000 + 2 * OUTPUT * 4_400_000


@on_virtual_time
async def test_a_soft_budget_never_refuses():
    """It is spent far beyond its limit, and nothing is called an overrun."""
    mine = budget(1, mode=BudgetMode.SOFT)
    world = World().scripted(evolink=answer())
    for _ in range(3):
        run = await ask(world, limited(mine))
        assert run.reply.status == 200
        assert run.entry.flags == []
    assert state(world, mine) == (3 * COST, 0)


@on_virtual_time
async def test_what_costs_more_than_was_held_is_named():
    """An answer longer than it was allowed to be: posted whole, and its row is flagged."""
    mine = budget(2 * DEAREST)
    world = World().scripted(evolink=answer(usage=totals(146, 5_000)))
    run = await ask(world, limited(mine))
    assert run.entry.flags == ["budget_overrun"]
    assert run.cost.pico > DEAREST
    assert state(world, mine) == (run.cost.pico, 0)


@on_virtual_time
async def test_a_request_counts_in_the_day_of_its_admission():
    """An answer that ends tomorrow is yesterday's money, in the books and in the window."""
    alice = limited(budget(DEAREST, period=Period.DAY))
    world = World().scripted(evolink=[stream(ANSWER, 15.0, *answer().body), answer()])
    await asyncio.sleep(12 * 3_600 - 10)
    run = begin(world, alice)
    await asyncio.sleep(12)
    assert (await ask_unchecked(world, alice)).reply.status == 200, "a new day, of which nothing is held"
    await run.ended()
    assert run.entry.finished_at.day == 2
    assert {key: state.spent for key, state in world.allowances.book.windows.items()} == {
        "key:key_alice/day/2026-03-01": COST,
        "key:key_alice/day/2026-03-02": COST,
    }


# --- how a hold ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "cut", "hung up", "silent", "defect", "no journal", "shut down"])
def test_however_a_request_ends_nothing_stays_held(how: str):
    """Failed, aborted, broken or never sent: what it cost is spent, and the rest of the hold is free."""

    @on_virtual_time
    async def scenario() -> None:
        mine = budget(DEAREST)
        world = World(names=("evolink",)).scripted(evolink=stream(ANSWER, FOREVER))
        if how == "refused":
            world.scripted(evolink=refusal(400, message="bad"))
        if how == "cut":
            world.scripted(evolink=stream(ANSWER, broken()))
        if how == "defect":
            world.scripted(evolink=stream(ANSWER, RuntimeError("a defect of ours")))
        if how == "no journal":
            world.journal.is_stuck = True
        run = begin(world, limited(mine, concurrency=1))
        await moments()
        await asyncio.sleep(1)
        if how == "hung up":
            run.hang_up()
        if how == "shut down":
            run.watch.interrupt(SHUTDOWN)
        await run.task
        assert world.allowances.book.holds == {}
        spent = sum(entry.cost_pico for entry in world.journal.entries())
        assert state(world, mine) == (spent, 0)
        assert world.allowances.book.running() == {}

    scenario()


@on_virtual_time
async def test_an_intent_that_is_voided_is_a_posting_of_nothing():
    """Balances are compared by their rows: each row of the ledger is one."""
    mine = budget(DEAREST)
    world = World(names=("evolink",)).scripted(evolink=answer())
    world.journal.is_stuck = True
    run = begin(world, limited(mine))
    await run.task
    assert run.reply.status == 503
    (entry,) = run.entries
    window = world.allowances.book.windows[window_of(mine.scope, mine.period, START).key]
    assert window.balances["world"] == Balance(0, 1)
    assert entry.cost_pico == 0


@on_virtual_time
async def test_a_retry_is_held_on_top_of_what_the_failed_attempt_has_cost():
    """Both are one hold; the rows say what was held for the request at that time."""
    cut = stream(ANSWER, broken())
    mine = budget(10 * DEAREST)
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=cut)
    run = await ask(world, limited(mine))
    assert [entry.provider for entry in run.entries] == ["evolink", "moonshot"]
    assert state(world, mine) == (run.cost.pico, 0)
    assert [entry.held_pico for entry in run.entries] == [INPUT * 600_000 + OUTPUT * 2_500_000] * 2


def failing_at_a_price() -> World:
    """The first attempt fails before its first byte, and its provider bills for it all the same."""
    body = unstreamed(
        b'{"id":"1","choices":[],"usage":{"prompt_tokens":500,"completion_tokens":200,"total_tokens":700}}'
    )
    return World(names=("evolink", "moonshot")).scripted(evolink=body, moonshot=unstreamed())


@on_virtual_time
async def test_a_retry_that_a_budget_cannot_bear_is_not_made():
    """What the failed attempt has cost is missing from the hold, and there is no more to be had."""
    enough = INPUT * 600_000 + OUTPUT * 2_500_000
    for limit, attempts in ((enough, 1), (10 * enough, 2)):
        world = failing_at_a_price()
        run = await ask(world, limited(budget(limit)), stream=False)
        assert [entry.cost_pico > 0 for entry in run.entries] == [True] * attempts
        assert run.reply.status == (502 if attempts == 1 else 200)
        assert run.entries[-1].is_final


# --- limits ----------------------------------------------------------------------------------------------------------


@on_virtual_time
async def test_requests_per_minute_are_counted_over_a_sliding_minute():
    """All of them at once; the next one is told to wait until the first is more than a minute old."""
    world = World().scripted(evolink=answer())
    for left in (1, 0):
        run = await ask(world, limited(rpm=2))
        assert run.reply.headers["x-ratelimit-limit-requests"] == "2"
        assert run.reply.headers["x-ratelimit-remaining-requests"] == str(left)
        assert run.reply.headers["x-ratelimit-reset-requests"] == "1m0s"
        assert "x-ratelimit-limit-tokens" not in run.reply.headers
    run = await ask(world, limited(rpm=2))
    assert run.reply.status == 429
    assert run.reply.error["code"] == "rate_limit_exceeded"
    assert 'The key "alice" may make 2 requests per minute and has made them. Wait 60 s.' in run.reply.error["message"]
    assert run.reply.headers["retry-after"] == "60"
    assert run.reply.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(world.upstreams.calls) == 2
    await asyncio.sleep(60)
    assert (await ask(world, limited(rpm=2))).reply.status == 200


@on_virtual_time
async def test_tokens_per_minute_are_held_at_the_limit_and_trued_up():
    """Input estimate and output limit at admission; what was really used at the end."""
    world = World().scripted(evolink=answer())
    run = begin(world, limited(tpm=1_500))
    await moments()
    early = await ask_unchecked(world, limited(tpm=1_500))
    assert early.reply.status == 429
    assert "this request may use 1,009, input and output limit together. Wait" in early.reply.error["message"]
    assert int(early.reply.headers["retry-after"]) == 60
    await run.ended()
    assert run.reply.headers["x-ratelimit-remaining-tokens"] == str(1_500 - 1_009)
    later = await ask(world, limited(tpm=1_500))
    assert later.reply.status == 200
    assert later.reply.headers["x-ratelimit-remaining-tokens"] == str(
        1_500 - (146 + 26) - later.exchange.admitted.input_tokens - OUTPUT
    )


@on_virtual_time
async def test_a_request_that_never_fits_is_told_so():
    """Waiting will not help it."""
    world = World().scripted(evolink=answer())
    run = await ask(world, limited(tpm=500))
    assert run.reply.status == 429
    assert "may use 500 tokens per minute; this request may use 1,009" in run.reply.error["message"]
    assert "will never fit. Lower max_tokens." in run.reply.error["message"]


@on_virtual_time
async def test_concurrency_refuses_at_once_and_is_free_with_the_last_byte():
    """Nobody is queued for a limit of their own."""
    world = World().scripted(evolink=answer())
    first = begin(world, limited(concurrency=1))
    await moments()
    before = world.clock.now()
    second = await ask_unchecked(world, limited(concurrency=1))
    assert world.clock.now() == before
    assert second.reply.status == 429
    assert "has 1 requests under way, as many as it may" in second.reply.error["message"]
    assert second.reply.headers["retry-after"] == "1"
    await first.ended()
    assert (await ask(world, limited(concurrency=1))).reply.status == 200


@on_virtual_time
async def test_a_team_and_its_keys_have_limits_of_their_own():
    """The tightest is what the headers tell; the one without room is named."""
    team = RateLimits(scope="team:team-a", name='team "team-a"', rpm=3)
    alice = replace(limited(rpm=2), limits=(*limited(rpm=2).limits, team))
    bob = replace(somebody("bob"), team="team-a", limits=(team,))
    world = World().scripted(evolink=answer())
    assert (await ask(world, alice)).reply.headers["x-ratelimit-limit-requests"] == "2"
    assert (await ask(world, bob)).reply.headers["x-ratelimit-remaining-requests"] == "1"
    assert (await ask(world, bob)).reply.status == 200
    assert 'The team "team-a" may make 3 requests' in (await ask(world, alice)).reply.error["message"]


# --- nobody knows ----------------------------------------------------------------------------------------------------


@on_virtual_time
async def test_a_budget_of_which_nobody_knows_refuses():
    """The database is away: 503, nothing sent; and back again, what was spent before counts."""
    mine = budget(DEAREST)
    world = World().scripted(evolink=answer())
    world.balances.is_away = True
    run = await ask(world, limited(mine))
    assert run.reply.status == 503
    assert run.reply.error["code"] == "metering_unavailable"
    assert 'What the key "alice" has spent of its budget is not known just now' in run.reply.error["message"]
    assert run.reply.headers["retry-after"] == "2"
    assert world.upstreams.calls == []
    world.balances.is_away = False
    window = window_of(mine.scope, mine.period, START)
    world.balances.tell(window, "earlier", Balance(1, 1))
    await asyncio.sleep(3)
    assert (await ask(world, limited(mine))).reply.status == 402


@on_virtual_time
async def test_a_budget_that_admits_during_an_outage_is_counted_when_it_is_over():
    """So is a soft one; what was bought meanwhile is known as soon as the window is."""
    mine, soft = budget(10 * DEAREST, on_outage=OnOutage.ADMIT), budget(1, scope="organisation", mode=BudgetMode.SOFT)
    world = World().scripted(evolink=answer())
    world.balances.is_away = True
    assert (await ask(world, limited(mine, soft))).reply.status == 200
    world.balances.is_away = False
    await asyncio.sleep(3)
    assert (await ask(world, limited(mine, soft))).reply.status == 200
    assert state(world, mine) == state(world, soft) == (2 * COST, 0)


@on_virtual_time
async def test_what_dead_workers_left_behind_is_waited_for():
    """Until it is in the database, nothing is known; a client that hangs up meanwhile leaves nothing behind."""
    caught_up = asyncio.Event()

    async def wait() -> None:
        await caught_up.wait()

    world = World().scripted(evolink=answer())
    world.allowances = LocalAllowances("world", world.balances, clock=world.clock, caught_up=wait)
    world.conductor.allowances = world.allowances
    patient, hasty = (begin(world, limited(budget(DEAREST))) for _ in range(2))
    await asyncio.sleep(1)
    hasty.hang_up()
    await hasty.task
    assert world.telemetry.statuses == [499]
    caught_up.set()
    await patient.ended()
    assert patient.reply.status == 200


@on_virtual_time
async def test_a_database_that_does_not_answer_is_not_waited_for_by_everybody():
    """The first request waits its time; those after it are told at once, until it is worth asking again."""

    async def never() -> None:
        await asyncio.Event().wait()

    world = World().scripted(evolink=answer())
    world.conductor.allowances = LocalAllowances("world", world.balances, clock=world.clock, caught_up=never)
    started = world.clock.monotonic()
    assert (await ask(world, limited(budget(DEAREST)))).reply.status == 503
    assert world.clock.monotonic() - started == FIRST_WORD_SECONDS_MAX
    assert (await ask(world, limited(budget(DEAREST)))).reply.status == 503
    assert world.clock.monotonic() - started == FIRST_WORD_SECONDS_MAX


# --- provider accounts -----------------------------------------------------------------------------------------------


def account(provider: str = "evolink", name: str = "main", **limits: int) -> Account:
    return Account(provider=provider, name=name, **limits)


@on_virtual_time
async def test_accounts_are_used_up_to_their_limits_before_the_next():
    """No 429 teaches us: what a provider allows is known and kept."""
    world = world_of(account(rpm=2), account(name="spare", rpm=1), account("moonshot", tpm=1_400))
    world.scripted(evolink=answer(), moonshot=answer())
    for _ in range(4):
        assert (await ask(world, ALICE)).reply.status == 200
    used = [(entry.provider, entry.account) for entry in world.journal.entries()]
    assert sorted(used[:3]) == [("evolink", "main"), ("evolink", "main"), ("evolink", "spare")]
    assert used[3] == ("moonshot", "main")


@on_virtual_time
async def test_a_full_account_is_waited_for_and_served_in_turn():
    """When the one under way ends, the next key's request is sent at once."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    runs = [begin(world, who) for who in (somebody("a"), somebody("a"), somebody("a"), somebody("b"))]
    await asyncio.gather(*(run.task for run in runs))
    assert [run.reply.status for run in runs] == [200] * 4
    assert [entry.key_name for entry in world.journal.entries()] == ["a", "a", "b", "a"]
    began = world.upstreams.called_at
    assert all(later - earlier < 1.0 for earlier, later in itertools.pairwise(began))
    world.check()


@on_virtual_time
async def test_a_noisy_key_does_not_starve_a_quiet_one():
    """Two hundred of its requests are there first; the quiet one's is the second to be served."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    noisy = [begin(world, somebody("noisy")) for _ in range(200)]
    await moments()
    quiet = begin(world, somebody("quiet"))
    await quiet.task
    served = [entry.key_name for entry in world.journal.entries()]
    assert served == ["noisy", "noisy", "quiet"][: len(served)]
    await asyncio.gather(*(run.task for run in noisy))
    assert {run.reply.status for run in noisy} == {200, 503}
    world.check()


class DistantAllowances(LocalAllowances):
    """Allowances that are asked over a wire."""

    async def take(self, demand: Demand) -> Verdict:
        await asyncio.sleep(0.01)
        return await super().take(demand)


@on_virtual_time
async def test_a_newcomer_does_not_overtake():
    """Not even one whose question is on its way when the place comes free."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    world.allowances = world.conductor.allowances = DistantAllowances("world", world.balances, clock=world.clock)
    runs = [begin(world, somebody(name)) for name in ("a", "b")]
    await asyncio.sleep(0.505)  # the first ends 5 ms later, and the second has its turn then
    assert not runs[0].task.done()
    runs.append(begin(world, somebody("c")))
    await asyncio.gather(*(run.task for run in runs))
    assert [entry.key_name for entry in world.journal.entries()] == ["a", "b", "c"]
    world.check()


@on_virtual_time
async def test_whoever_waits_for_one_account_keeps_nobody_from_another():
    """A client that insists on a full provider waits; the others are served by the next one meanwhile."""
    world = world_of(account(concurrency=1), account("moonshot")).scripted(
        evolink=stream(ANSWER, 3.0, *answer().body), moonshot=answer()
    )
    first = begin(world, somebody("a"))
    await moments()
    stubborn = begin(world, somebody("b"), provider={"only": ["evolink"]})
    await moments()
    third = await ask_unchecked(world, somebody("c"))
    assert third.reply.status == 200
    assert third.entry.provider == "moonshot"
    assert not first.task.done()
    await asyncio.gather(first.task, stubborn.task)
    assert stubborn.reply.status == 200
    assert [entry.provider for entry in stubborn.entries] == ["evolink"]


@on_virtual_time
async def test_an_account_that_is_too_small_for_a_request_is_not_kept_for_it():
    """Who waits for a larger account keeps nobody from one where it could never be served."""
    world = world_of(account(tpm=2_000), account("moonshot", concurrency=1)).scripted(
        evolink=answer(), moonshot=stream(ANSWER, 3.0, *answer().body)
    )
    large = []
    for name in ("a", "b"):
        large.append(world.begin(principal=somebody(name), max_tokens=5 * OUTPUT))
        await moments()
    small = await ask_unchecked(world, somebody("c"))
    assert [entry.provider for entry in small.entries] == ["evolink"]
    assert not large[0].task.done()
    await asyncio.gather(*(run.task for run in large))
    assert [run.reply.status for run in large] == [200, 200]


@on_virtual_time
async def test_a_request_that_no_account_could_ever_serve_is_told_so_at_once():
    """Nothing is waited for that cannot come."""
    world = world_of(account(tpm=2_000), account("moonshot", tpm=1_000)).scripted(evolink=answer(), moonshot=answer())
    began = world.clock.monotonic()
    run = world.begin(principal=somebody("a"), max_tokens=5 * OUTPUT)
    await run.task
    assert (run.reply.status, run.reply.error["code"]) == (503, "no_provider_available")
    assert "no provider account takes so many in a minute" in run.reply.error["message"]
    assert world.clock.monotonic() == began
    assert run.entries == []


@on_virtual_time
async def test_models_that_share_an_account_share_its_queue():
    """A request for one model does not overtake those that wait for the same account with another one."""
    models = ("kimi-k2-thinking", "kimi-k2.6")
    one = replace(card("evolink", models=models), accounts=(account(concurrency=1),))
    known = tuple(catalogue(one).models.values())
    in_force = catalogue(one, models=(*known, replace(known[0], name="kimi-k2.6", successor=None)))
    world = World(in_force=in_force).scripted(evolink=answer())
    names = [("a", models[0]), ("b", models[1]), ("c", models[0]), ("d", models[1])]
    runs = [begin(world, somebody(name), model=model) for name, model in names]
    await asyncio.gather(*(run.task for run in runs))
    assert [entry.key_name for entry in world.journal.entries()] == ["a", "b", "c", "d"]


@on_virtual_time
async def test_limits_and_budgets_refuse_at_once_while_others_wait():
    """Nobody queues for a refusal."""
    world = world_of(account(concurrency=1)).scripted(evolink=stream(ANSWER, 3.0, *answer().body))
    runs = [begin(world, somebody(name)) for name in ("a", "b")]
    await moments()
    before = world.clock.now()
    assert (await ask_unchecked(world, limited(budget(5)))).reply.status == 402
    assert (await ask_unchecked(world, limited(tpm=5))).reply.status == 429
    assert world.clock.now() == before
    await asyncio.gather(*(run.task for run in runs))
    world.check()


@on_virtual_time
async def test_nobody_waits_for_ever():
    """After eight seconds: 503 overloaded, with what each account has no room for, and when to come again."""
    world = world_of(account(concurrency=1), account("moonshot", rpm=1)).scripted(
        evolink=stream(ANSWER, 19.0, *answer().body), moonshot=answer()
    )
    runs = [begin(world, ALICE) for _ in range(2)]
    await asyncio.sleep(1)
    started = world.clock.monotonic()
    late = await ask_unchecked(world, ALICE)
    assert world.clock.monotonic() - started == 8.0
    assert late.reply.status == 503
    assert late.reply.error["code"] == "overloaded"
    message = late.reply.error["message"]
    assert "No provider account has had room in time." in message
    assert "evolink (main): as many requests are under way as it takes" in message
    assert "moonshot (main): its requests per minute are used up" in message
    assert late.reply.headers["retry-after"] == "1"
    await asyncio.gather(*(run.task for run in runs))
    world.check()


@on_virtual_time
async def test_a_queue_that_is_full_says_so_at_once():
    """Load is shed where waiting would be in vain."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    world.conductor.turns = Turns(waiting_max=2)
    runs = [begin(world, ALICE) for _ in range(4)]
    await runs[3].task
    assert runs[3].reply.status == 503
    assert "Too many requests wait for a provider account already." in runs[3].reply.error["message"]
    assert runs[3].reply.headers["retry-after"] == "1"
    await asyncio.gather(*(run.task for run in runs))
    assert [run.reply.status for run in runs[:3]] == [200] * 3
    world.check()


@on_virtual_time
async def test_who_hangs_up_while_waiting_leaves_no_row_and_no_gap():
    """499 in the log; the one behind moves up."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    runs = [begin(world, somebody(name)) for name in ("a", "b", "c")]
    await moments()
    runs[1].hang_up()
    await asyncio.gather(*(run.task for run in runs))
    assert sorted(world.telemetry.statuses) == [200, 200, 499]
    assert [entry.key_name for entry in world.journal.entries()] == ["a", "c"]
    assert runs[1].reply.status is None
    world.check()


@on_virtual_time
async def test_a_shutdown_ends_the_waiting():
    """503 with a word, and nothing was bought."""
    world = world_of(account(concurrency=1)).scripted(evolink=answer())
    first, waiting = begin(world, ALICE), begin(world, ALICE)
    await moments()
    waiting.watch.interrupt(SHUTDOWN)
    await waiting.task
    assert waiting.reply.status == 503
    assert "shutting down" in waiting.reply.error["message"]
    assert waiting.entries == []
    await first.task
    world.check()


@on_virtual_time
async def test_an_account_that_is_left_by_a_retry_has_room_at_once():
    """Whoever waits for it need not wait for the whole request that has gone elsewhere."""
    world = world_of(account(concurrency=1), account("moonshot", concurrency=1)).scripted(
        evolink=[refusal(500), answer(), answer()], moonshot=stream(ANSWER, 5.0, *answer().body)
    )
    moved = begin(world, somebody("a"))
    insists = begin(world, somebody("b"), provider={"only": ["evolink"]})
    await insists.task
    assert insists.reply.status == 200
    assert not moved.task.done()
    began = world.upstreams.called_at
    assert began[2] - began[1] < 0.1, "woken, and not by the clock"
    await moved.task
    assert [entry.provider for entry in moved.entries] == ["evolink", "moonshot"]
    world.check()


@on_virtual_time
async def test_a_retry_does_not_go_where_there_is_no_room():
    """The account that is full is not called, and the request fails as if there were no other."""
    world = world_of(account(), account("moonshot", concurrency=1)).scripted(
        evolink=refusal(500), moonshot=stream(ANSWER, 5.0, *answer().body)
    )
    busy = begin(world, somebody("a"), provider={"only": ["moonshot"]})
    await moments()
    run = await ask_unchecked(world, somebody("b"))
    assert run.reply.status == 502
    assert [entry.provider for entry in run.entries] == ["evolink"]
    await busy.task
    world.check()
