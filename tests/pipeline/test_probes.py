"""Who is out is asked what costs nothing, by one replica; what is answered again after it was not brings him back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.adapters.gossip import NoGossip
from gateway.adapters.health import MemoryHealthBook
from gateway.core.catalogue import Account
from gateway.core.failure import Failure, FailureClass
from gateway.core.happenings import Ended
from gateway.core.health import HealthChanged, Subject
from gateway.pipeline.ports import BalanceTold, FreeAnswer, Message, UpstreamFailedError
from gateway.pipeline.probe import BALANCE_SECONDS, Probes
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import (
    MODEL,
    Run,
    Script,
    World,
    answer,
    card,
    catalogue,
    refusal,
)

CIRCUIT = Subject("evolink", "main", MODEL)
ACCOUNT = Subject("evolink", "main", None)
MODEL_THERE = Subject("evolink", None, MODEL)
UNREACHABLE = UpstreamFailedError(Failure(kind=FailureClass.UNREACHABLE, message="words"))


def models(*names: str) -> FreeAnswer:
    return FreeAnswer(200, json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


def credit(left: float) -> FreeAnswer:
    """EvoLink's balance."""
    purse = {"remaining_credits": left, "used_credits": 1}
    return FreeAnswer(200, json.dumps({"success": True, "data": {"user": purse, "token": purse}}).encode())


class Free:
    """The port ``Inquiries``: one answer to each question, until it is set anew."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, FreeAnswer | UpstreamFailedError] = {}

    async def ask(self, provider: str, account: str, url: str, *, key_member: str | None = None) -> FreeAnswer:
        self.asked.append(url.rpartition("/v1/")[2] + (f"?{key_member}" if key_member else ""))
        await asyncio.sleep(0.01)
        what = url.rpartition("/")[2]
        given = self.answers.get(f"{provider} {account} {what}") or self.answers.get(f"{provider} {what}")
        given = given or FreeAnswer(404, b"")
        if isinstance(given, UpstreamFailedError):
            raise given
        return given


class SharedClaims:
    """The port ``Claims`` of several replicas, without a clock: a claim is over when it is given back, or cleared."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    async def claim(self, what: str, seconds: float) -> bool:
        assert seconds > 0
        await asyncio.sleep(0)
        if what in self.held:
            return False
        self.held.add(what)
        return True

    def give_back(self, what: str) -> None:
        self.held.discard(what)


class Replica:
    """One worker: its gateway, its probes, and whom it tells."""

    def __init__(self, world: World, claims: SharedClaims | None = None) -> None:
        self.world = world
        self.free = Free()
        self.others: list[Replica] = []
        self.told: list[Message] = []
        world.health = MemoryHealthBook(world.clock, lambda: 0.0, tell=self.tell, claims=claims)
        world.conductor.health = world.health
        alone = NoGossip()
        self.probes = Probes(
            configuration=lambda: world.conductor.configuration,
            health=world.health,
            inquiries=self.free,
            gossip=self,
            claims=claims or alone,
            clock=world.clock,
            chance=lambda: 0.5,
        )

    def tell(self, message: Message) -> None:
        self.told.append(message)
        for other in self.others:
            if isinstance(message, HealthChanged):
                other.world.health.hear(message)
            else:
                other.probes.hear(message)

    def on_heard(self, callback: Callable[[Message], None]) -> None:
        raise NotImplementedError

    async def run(self, stop: asyncio.Event) -> None:
        raise NotImplementedError

    @property
    def clock_seconds(self) -> float:
        return self.world.clock.monotonic()

    async def ask(self) -> list[str]:
        """Which providers one request tries, EvoLink first where health lets it."""
        return providers(await self.world.ask(provider={"order": ["evolink"]}))

    async def fail(self, script: Script, times: int = 2) -> None:
        self.world.scripted(evolink=script)
        for _ in range(times):
            assert await self.ask() == ["evolink", "moonshot"]
        self.world.scripted(evolink=answer())


def providers(run: Run) -> list[str]:
    return [entry.provider for entry in run.entries]


def world() -> World:
    return World(names=("evolink", "moonshot")).scripted(evolink=answer(), moonshot=answer())


@asynccontextmanager
async def probing(*replicas: Replica) -> AsyncIterator[None]:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.probes.run(stop)) for each in replicas]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def pair() -> tuple[Replica, Replica]:
    """Two workers that tell each other and share claims."""
    claims = SharedClaims()
    one, two = Replica(world(), claims), Replica(world(), claims)
    one.others, two.others = [two], [one]
    return one, two


@pytest.mark.parametrize("trouble", [UNREACHABLE, FreeAnswer(503, b"<html>")], ids=["unreachable", "503"])
@on_virtual_time
async def test_an_outage_is_over_two_seconds_after_its_end(trouble: FreeAnswer | UpstreamFailedError) -> None:
    """However long its time out has become; then one request proves it, and all go there."""
    one = Replica(world())
    async with probing(one):
        one.free.answers["evolink models"] = trouble
        await one.fail(refusal(503))
        one.world.scripted(evolink=refusal(503))
        for _ in range(40):
            await asyncio.sleep(3)
            await one.ask()
        until = one.world.health.of(CIRCUIT).out_until
        assert until is not None
        assert (until - one.world.clock.now()) > timedelta(seconds=10)
        one.world.scripted(evolink=answer())
        one.free.answers["evolink models"] = models()
        began = one.clock_seconds
        for _ in range(100):
            if await one.ask() == ["evolink"]:
                break
            await asyncio.sleep(0.1)
        assert one.clock_seconds - began <= 2 + 6, "two seconds, and a twentieth of two minutes"
        assert one.world.health.of(CIRCUIT).out_until is None
    asked = len(one.free.asked)
    await asyncio.sleep(60)
    assert len(one.free.asked) == asked, "nobody is asked about one that is well"


@on_virtual_time
async def test_an_outage_that_is_over_is_not_held_against_anybody() -> None:
    """Where the plan is free to choose, the cheapest one is back within seconds, however often it failed."""
    one = Replica(world())
    one.free.answers["evolink models"] = UNREACHABLE
    one.world.scripted(evolink=refusal(503))
    async with probing(one):
        for number in range(100):
            await one.world.ask(
                messages=[{"role": "user", "content": f"{number}. Why?"}], provider={"order": ["evolink"]}
            )
            await asyncio.sleep(0.5)
        one.world.scripted(evolink=answer())
        one.free.answers["evolink models"] = models()
        await asyncio.sleep(4)
        runs = [await one.world.ask(messages=[{"role": "user", "content": f"Now {number}?"}]) for number in range(4)]
        assert [providers(run) for run in runs] == [["evolink"]] * 4


@on_virtual_time
async def test_lists_that_are_served_all_along_change_nothing() -> None:
    """Completions fail, the list of models does not: the time out stands."""
    one = Replica(world())
    one.free.answers["evolink models"] = models(MODEL)
    async with probing(one):
        await one.fail(refusal(500))
        until = one.world.health.of(CIRCUIT).out_until
        assert until is not None
        while one.world.clock.now() < until - timedelta(seconds=0.5):
            await asyncio.sleep(0.5)
            assert one.world.health.of(CIRCUIT).out_until == until
        assert one.free.asked[:2] == ["models", "models"]
        await asyncio.sleep(1)
        assert await one.ask() == ["evolink"]


@on_virtual_time
async def test_a_missing_model_comes_back_when_it_is_listed() -> None:
    """Not before, whatever time passes, and never by a request that goes to see."""
    one = Replica(world())
    one.free.answers["evolink models"] = models("another")
    async with probing(one):
        await one.fail(refusal(404), times=1)
        await asyncio.sleep(3_600)
        assert await one.ask() == ["moonshot"]
        assert one.world.health.of(MODEL_THERE).is_out(one.world.clock.now())
        one.free.answers["evolink models"] = models("another", MODEL)
        await asyncio.sleep(5 * 60)
        assert await one.ask() == ["evolink"]


@on_virtual_time
async def test_the_list_is_asked_of_an_account_that_is_well() -> None:
    """The provider's first account has a key that it does not take: the other one sees that the model is back."""
    there = replace(card("evolink"), accounts=tuple(Account(provider="evolink", name=name) for name in ("a", "b")))
    replica = Replica(World(in_force=catalogue(there, card("moonshot"))).scripted(evolink=answer(), moonshot=answer()))
    replica.free.answers = {"evolink a models": FreeAnswer(401, b""), "evolink b models": models("something-else")}
    await replica.fail(refusal(404, code="model_not_found"), times=1)
    refused, now = Failure(kind=FailureClass.CREDENTIAL, message="words"), replica.world.clock.now()
    replica.world.health.failed(Subject("evolink", "a", None), refused, began=now, billed=False)
    async with probing(replica):
        await asyncio.sleep(40)
        replica.free.answers["evolink b models"] = models(MODEL)
        await asyncio.sleep(60)
        assert await replica.ask() == ["evolink"]


@on_virtual_time
async def test_a_list_that_is_none_says_nothing() -> None:
    """An error page is not the news that a model is gone, or back."""
    one = Replica(world())
    async with probing(one):
        await one.fail(refusal(404), times=1)
        for given in (FreeAnswer(404, b""), FreeAnswer(200, b"<html>"), FreeAnswer(200, b'{"data":[7]}'), UNREACHABLE):
            one.free.answers["evolink models"] = given
            await asyncio.sleep(700)
            assert one.world.health.of(MODEL_THERE).free_probe is None
            assert await one.ask() == ["moonshot"]


@on_virtual_time
async def test_an_account_without_money_is_back_when_it_has_some() -> None:
    """Its balance says so; until then no request is sent there."""
    one = Replica(world())
    one.free.answers["evolink credits"] = credit(0)
    async with probing(one):
        await one.fail(refusal(402), times=1)
        await asyncio.sleep(1_800)
        assert await one.ask() == ["moonshot"]
        one.free.answers["evolink credits"] = credit(10.5)
        await asyncio.sleep(400)
        assert await one.ask() == ["evolink"]
    balance = one.probes.balances["evolink", "main"]
    assert (str(balance.available), balance.unit) == ("10.5", "credits")
    assert set(one.free.asked) == {"credits", "users/me/balance"}


@on_virtual_time
async def test_a_refused_credential_is_back_when_it_is_taken() -> None:
    """The list of models is served to it again."""
    one = Replica(world())
    one.free.answers["evolink models"] = FreeAnswer(401, b"")
    async with probing(one):
        await one.fail(refusal(401), times=1)
        await asyncio.sleep(90)
        one.free.answers["evolink models"] = models()
        await asyncio.sleep(90)
        assert await one.ask() == ["evolink"]


@on_virtual_time
async def test_a_rate_limit_is_not_asked_about() -> None:
    """Its time was told."""
    one = Replica(world())
    async with probing(one):
        limited = refusal(429, kind="rate_limit_reached_error", message="please try again after 50 seconds")
        await one.fail(limited, times=1)
        await asyncio.sleep(10)
        assert one.free.asked == []


@on_virtual_time
async def test_balances_are_read_now_and_then() -> None:
    """Where a provider tells them; with the key in the query where it wants that; what cannot be read is left alone."""
    told = card("cometapi", balance_url="https://query.test/v1/quota")
    one = Replica(World(in_force=catalogue(card("evolink"), card("moonshot"), told, card("plain"))))
    one.free.answers |= {"evolink credits": credit(3), "moonshot balance": FreeAnswer(200, b"{}")}
    one.free.answers["cometapi quota"] = FreeAnswer(200, b'{"total_quota": 12.5}')
    async with probing(one):
        await asyncio.sleep(30)
        assert sorted(one.free.asked) == ["credits", "quota?key", "users/me/balance"]
        assert {place: str(each.available) for place, each in one.probes.balances.items()} == {
            ("evolink", "main"): "3", ("cometapi", "main"): "12.5",
        }  # fmt: skip
        await asyncio.sleep(BALANCE_SECONDS)
        assert len(one.free.asked) == 6


# --- replicas --------------------------------------------------------------------------------------------------------


@on_virtual_time
async def test_what_one_replica_sees_all_know() -> None:
    """Another one sends nothing there, and follows when it is back; its balance too."""
    one, two = pair()
    await one.fail(refusal(500))
    assert await two.ask() == ["moonshot"]
    await asyncio.sleep(3)
    assert await one.ask() == ["evolink"]
    assert await two.ask() == ["evolink"]
    two.probes.hear(BalanceTold("evolink", "main", json.loads("7"), "credits", 5.0))
    two.probes.hear(BalanceTold("evolink", "main", json.loads("8"), "credits", 4.0))
    two.probes.hear(BalanceTold("unknown", "main", json.loads("8"), "credits", 4.0))
    assert [each.available for each in two.probes.balances.values()] == [7]
    assert not [each for each in one.told if isinstance(each, Ended)]


@on_virtual_time
async def test_one_request_of_all_replicas_probes() -> None:
    """Two of one moment at two workers: the second goes elsewhere, though it has not heard of the first."""
    one, two = pair()
    await one.fail(refusal(500))
    one.others, two.others = [], []
    await asyncio.sleep(20)
    wanted: dict[str, Any] = {"order": ["evolink"]}
    runs = [each.world.begin(provider=wanted) for each in (one, two)]
    for run in runs:
        await run.task
    assert sorted(providers(run) for run in runs) == [["evolink"], ["moonshot"]]
    for each in (one, two):
        assert each.world.allowances.book.holds == {}


@on_virtual_time
async def test_the_last_one_is_tried_though_another_replica_probes() -> None:
    """Nobody else has it: two tries are better than a refusal."""
    claims = SharedClaims()
    one = Replica(World(names=("evolink",)).scripted(evolink=[refusal(500)] * 2 + [answer()]), claims)
    for _ in range(2):
        await one.world.ask()
    await asyncio.sleep(20)
    claims.held.add(f"probe:evolink/main/{MODEL}")
    run = await one.world.ask()
    assert run.reply.status == 200


@on_virtual_time
async def test_a_free_question_is_asked_by_one_replica() -> None:
    """The other one hears what it showed."""
    one, two = pair()
    for each in (one, two):
        each.free.answers["evolink models"] = UNREACHABLE
    async with probing(one, two):
        await one.fail(refusal(500))
        await asyncio.sleep(2.5)
        assert len(one.free.asked) + len(two.free.asked) == 1
        assert one.world.health.of(CIRCUIT).free_probe is False
        assert two.world.health.of(CIRCUIT).free_probe is False
