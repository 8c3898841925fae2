"""``plan`` is a function: same inputs, same plan; every rejection has a reason; ties break by name (law L10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Account, Catalogue, Model
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import (
    CandidateState,
    InferenceRequest,
    Plan,
    Principal,
    ProviderPreferences,
    Sort,
    Surface,
)
from gateway.core.failure import Failure, FailureClass
from gateway.core.health import (
    OUT_FOR,
    WELL,
    Health,
    Subject,
    after_failure,
    after_first_byte,
    after_free_probe,
    after_news,
    after_success,
    claim_probe,
    failure_probability,
    subject_of,
)
from gateway.core.load import Pace
from gateway.core.prefix import FIRST_TURN, Prompt
from gateway.core.pricing import PriceTable
from gateway.core.routing import Circumstances, plan, retry_after_seconds
from tests.paces import paced
from tests.pipeline.virtual_time import START
from tests.pipeline.world import ALICE, MODEL, card, catalogue, deployment, price

PROVIDERS = ("alpha", "beta", "gamma", "delta")
ACCOUNTS = ("one", "two", "three")
CAPABILITIES = ("tools", "json_schema")
AMOUNTS = ("0.5", "1", "2")
"""Few, so that there are ties."""


@dataclass(frozen=True)
class Situation:
    """All that a plan depends on."""

    in_force: Catalogue
    usable: frozenset[tuple[str, str]]
    health: Mapping[Subject, Health]
    pace: Mapping[tuple[str, str], Pace]
    request: InferenceRequest
    principal: Principal
    input_tokens: int
    seconds: int

    def plan(self) -> Plan:
        circumstances = Circumstances(
            catalogue=self.in_force,
            health_of=lambda subject: self.health.get(subject, WELL),
            usable_accounts=self.usable,
            answer_length=AnswerLength(),
            beliefs=paced(self.pace),
            now=START + timedelta(seconds=self.seconds),
        )
        return plan(
            self.request,
            self.principal,
            circumstances,
            model=Model(name=MODEL),
            prompt=Prompt(digests=(1,), tokens=(self.input_tokens,)),
            turn=FIRST_TURN,
            output_limit_of=lambda each: min(each.max_output, 32_768),
        )


names_of = st.lists(st.sampled_from(PROVIDERS), max_size=4, unique=True)


@st.composite
def preferences(draw: st.DrawFn) -> ProviderPreferences:
    only = draw(st.none() | names_of)
    return ProviderPreferences(
        order=tuple(draw(names_of)),
        only=None if only is None else frozenset(only),
        ignore=frozenset(draw(names_of)) if draw(st.booleans()) else frozenset(),
        allow_fallbacks=draw(st.booleans()),
        sort=draw(st.none() | st.sampled_from(Sort)),
        max_prompt=draw(st.none() | st.sampled_from(AMOUNTS).map(lambda usd: price("x", usd=(usd, None, usd)).input)),
    )


@st.composite
def cards(draw: st.DrawFn):
    day = START.date()
    lifecycle = st.sampled_from(
        (
            {},
            {},
            {},
            {"available_until": day},
            {"available_from": day + timedelta(days=1)},
            {"retirement_reported": day},
        )
    )
    return tuple(
        card(
            name,
            accounts=tuple(draw(st.lists(st.sampled_from(ACCOUNTS), min_size=1, max_size=3, unique=True))),
            deployments={
                MODEL: deployment(
                    name,
                    capabilities=frozenset(draw(st.sets(st.sampled_from(CAPABILITIES)))) | {"tools"},
                    max_output=draw(st.sampled_from((1_000, 100_000))),
                    context=draw(st.sampled_from((8_000, 262_144))),
                    **draw(lifecycle),
                )
            },
        )
        for name in draw(st.lists(st.sampled_from(PROVIDERS), min_size=1, max_size=4, unique=True))
    )


@st.composite
def ailments(draw: st.DrawFn) -> Mapping[Subject, Health]:
    found: dict[Subject, Health] = {}
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(OUT_FOR)))
        about = subject_of(
            Failure(kind=kind, message=""),
            provider=draw(st.sampled_from(PROVIDERS)),
            account=draw(st.sampled_from(ACCOUNTS)),
            model=MODEL,
        )
        assert about is not None
        health = WELL
        for _ in range(draw(st.integers(1, 6))):
            health = after_failure(health, Failure(kind=kind, message=""), START, began=START, jitter=0)
        probed_at = draw(st.none() | st.integers(0, 1_000))
        found[about] = health if probed_at is None else claim_probe(health, START + timedelta(seconds=probed_at))
    return found


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    chosen = draw(cards())
    amount = st.sampled_from(AMOUNTS)
    prices = tuple(
        price(each.name, usd=(draw(amount), None, draw(amount))) for each in chosen if draw(st.integers(0, 9))
    )
    accounts = [(each.name, account.name) for each in chosen for account in each.accounts]
    speed = st.builds(
        Pace, first_chunk_seconds=st.sampled_from((0.5, 1.0)), tokens_per_second=st.sampled_from((20.0, 50.0))
    )
    return Situation(
        in_force=catalogue(*chosen, prices=prices),
        usable=frozenset(each for each in accounts if draw(st.integers(0, 9))),
        health=draw(ailments()),
        pace={each: draw(speed) for each in accounts if draw(st.booleans())},
        request=InferenceRequest(
            surface=Surface.CHAT_COMPLETIONS,
            model=MODEL,
            model_asked=MODEL,
            fields={},
            n=draw(st.integers(1, 3)),
            output_limit=draw(st.none() | st.sampled_from((100, 50_000))),
            needs=frozenset(draw(st.sets(st.sampled_from(CAPABILITIES), max_size=1))),
            preferences=draw(preferences()),
        ),
        principal=replace(ALICE, providers=draw(st.none() | names_of.map(frozenset))),
        input_tokens=draw(st.integers(0, 12_000)),
        seconds=draw(st.sampled_from((0, 10, 100, 700, 100_000))),
    )


@given(situations())
def test_the_same_inputs_make_the_same_plan(situation: Situation) -> None:
    """To the last field."""
    assert situation.plan() == situation.plan()


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(situation: Situation, chance: object) -> None:
    """Providers, accounts, prices and ailments in any order: one plan."""
    shuffled = situation.in_force
    items = list(shuffled.providers.items())
    rows = list(shuffled.prices.rows())
    chance.shuffle(items)  # type: ignore[attr-defined]
    chance.shuffle(rows)  # type: ignore[attr-defined]
    mixed = {}
    for name, each in items:
        accounts: list[Account] = list(each.accounts)
        chance.shuffle(accounts)  # type: ignore[attr-defined]
        mixed[name] = replace(each, accounts=tuple(accounts))
    other = replace(
        situation,
        in_force=replace(shuffled, providers=mixed, prices=PriceTable(rows)),
        health=dict(reversed(list(situation.health.items()))),
        pace=dict(reversed(list(situation.pace.items()))),
    )
    assert other.plan() == situation.plan()


@given(situations())
def test_everybody_is_in_it_once_and_whoever_is_out_knows_why(situation: Situation) -> None:
    """Every account of every provider of the model, with a price and a cost if it may be tried, else with a reason."""
    made = situation.plan()
    accounts = [
        (each.name, account.name) for each in situation.in_force.providers.values() for account in each.accounts
    ]
    assert sorted((each.provider, each.account) for each in made.candidates) == sorted(accounts)
    assert made.candidates[: len(made.routable)] == made.routable
    for each in made.candidates:
        assert (each.excluded is None) == (each.exclusion is None)
        if each.excluded is None:
            assert each.price is not None
            assert each.expected_cost is not None
            assert each.output_limit > 0
            assert (each.provider, each.account) in situation.usable
            assert each.state is not CandidateState.UNROUTABLE
        else:
            assert each.excluded.strip()
    excluded = [(each.provider, each.account) for each in made.candidates if each.excluded is not None]
    assert excluded == sorted(excluded)


@given(situations())
def test_ties_break_by_name(situation: Situation) -> None:
    """Without preferences the routable ones are in order of score, then room, then provider, then account."""
    plain = replace(situation, request=replace(situation.request, preferences=ProviderPreferences()))
    keys = [
        (each.score.total_usd, each.score.utilisation, each.provider, each.account)
        for each in plain.plan().routable
        if each.score is not None
    ]
    assert keys == sorted(keys)


@given(situations())
def test_a_circuit_alone_never_leaves_nobody(situation: Situation) -> None:
    """If a plan is empty, it would be empty with every circuit closed too: the last one is never ejected."""
    if situation.plan().routable:
        return
    closed = {subject: health for subject, health in situation.health.items() if None in subject}
    assert replace(situation, health=closed).plan().routable == ()


@given(situations())
def test_there_is_always_a_time_to_come_back(situation: Situation) -> None:
    """Between a second and the longest time out with its jitter."""
    assert 1 <= retry_after_seconds(situation.plan()) <= 6 * 3600 * 1.1


class Event(NamedTuple):
    """What happens to a subject: a failure of a kind, or what its name says; ``passed`` seconds after the last one."""

    what: FailureClass | str
    passed: float
    age: float
    jitter: float
    told: float | None


events = st.lists(
    st.builds(
        Event,
        st.sampled_from([*sorted(OUT_FOR), "success", "first byte", "claim", "free", "not free"]),
        st.floats(0, 400),
        st.floats(0, 200),
        st.floats(0, 1, exclude_max=True),
        st.none() | st.floats(0, 86_400),
    ),
    max_size=60,
)


def happened(health: Health, event: Event, now: datetime) -> Health:
    began = now - timedelta(seconds=event.age)
    match event.what:
        case FailureClass() as kind:
            failure = Failure(kind=kind, message="", retry_after=event.told)
            return after_failure(health, failure, now, began=began, jitter=event.jitter)
        case "success":
            return after_success(health, now, began=began)
        case "first byte":
            return after_first_byte(health, now, began=began)
        case "claim":
            return claim_probe(health, now) if health.awaits_probe(now) else health
    return after_free_probe(health, now, ok=event.what == "free")


@given(events)
def test_health_is_always_bounded(history: list[Event]) -> None:
    """Whatever happens: one that is out knows what for, is back in time if it is listed and has money, and an answer
    that is asked for then makes it well."""
    health, now = WELL, START
    for event in history:
        now += timedelta(seconds=event.passed)
        health = happened(health, event, now)
        assert (health.out_until is None) == (health.kind is None) == (health.out_since is None)
        if health.out_until is not None:
            assert (health.out_until - now).total_seconds() <= max(86_400.0, 6 * 3600) * 1.1
        assert 0 <= health.failures <= health.attempts
        assert 0 <= failure_probability(health, now) < 1
        assert not (health.is_out(now) and health.awaits_probe(now))
    later = after_free_probe(health, now + timedelta(days=2), ok=True)
    assert not later.is_out(now + timedelta(days=2))
    well = after_success(later, now + timedelta(days=3), began=now + timedelta(days=2))
    assert (well.out_until, well.times_out, well.consecutive_failures) == (None, 0, 0)


@given(events, st.permutations(range(5)))
def test_news_end_alike_in_any_order(history: list[Event], order: list[int]) -> None:
    """Replicas that heard the same news, however mixed, agree on who is out and until when."""
    told, health, now = [WELL], WELL, START
    for event in history:
        now += timedelta(seconds=event.passed)
        health = happened(health, event, now)
        told.append(health)
    last = told[-5:]
    mixed = [last[place % len(last)] for place in order]
    heard = WELL
    for news in [*mixed, health, *mixed]:
        heard = after_news(heard, news)
    assert (heard.out_until, heard.kind, heard.probe_until, heard.free_probe) == (
        health.out_until, health.kind, health.probe_until, health.free_probe
    )  # fmt: skip
