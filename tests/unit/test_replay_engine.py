"""A replay worked by hand: two accounts, a cache, an outage, a limit; each figure is what pencil and paper give."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.catalogue import Account, Catalogue, Deployment, Model, Policy, ProviderCard, RoutingTerms
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.replay.comparison import compare
from gateway.replay.engine import Engine
from gateway.replay.results import Tally
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.trace import conversations
from gateway.replay.world import CacheTerms, ProviderTerms

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
SURE = CacheTerms(ignored_ppm=0)
CHEAP, DEAR = ("cheap", "main"), ("dear", "main")
COLD_CHEAP = 1_024 * 1_000_000 + 100 * 2_000_000
"""1,024 tokens at 1 USD and 100 at 2 USD a million, in pico-dollars."""
WARM_CHEAP = 1_024 * 100_000 + 100 * 2_000_000
COLD_DEAR = 1_024 * 2_000_000 + 100 * 4_000_000


def provider(name: str, **limits: int) -> ProviderCard:
    served = Deployment(provider=name, model="m", upstream="m", context=100_000, max_output=10_000)
    account = Account(provider=name, name="main", **limits)
    return ProviderCard(name=name, dialect="openai", base_url="", accounts=(account,), deployments={"m": served})


def price(name: str, miss: str, hit: str | None, output: str) -> Price:
    return Price(
        provider=name,
        model="m",
        effective_from=BEGINS,
        input=UnitPrice.from_usd_per_million(miss),
        cached_input=None if hit is None else UnitPrice.from_usd_per_million(hit),
        output=UnitPrice.from_usd_per_million(output),
    )


def scenario(*, cheap: ProviderTerms | None = None, dear: bool = True, **limits: int) -> Scenario:
    """A cheap provider with a cache, its account under these limits; and a dear one without limits."""
    cards = {"cheap": provider("cheap", **limits)} | ({"dear": provider("dear")} if dear else {})
    catalogue = Catalogue(
        providers=cards,
        models={"m": Model(name="m")},
        prices=PriceTable([price("cheap", "1.00", "0.10", "2.00"), price("dear", "2.00", None, "4.00")]),
        digest="",
        loaded_at=BEGINS,
        routing=RoutingTerms(policy=Policy.LIST_PRICE),
    )
    usual = ProviderTerms(cache=SURE, outages={})
    terms = {"cheap": cheap or usual, "dear": usual}
    return Scenario(catalogue=catalogue, model=Model(name="m"), begins_at=BEGINS, terms=terms)


def row(at: float, *digests: int, size: int = 1_024) -> Row:
    tokens = (*range(512, 512 * len(digests), 512), size)
    prompt = Prompt(digests=digests, tokens=tokens)
    return Row(at=at, input_tokens=size, output_tokens=100, prompt=prompt, tenant="t", model="m")


def replayed(rows: list[Row], world: Scenario) -> Tally:
    return Engine(rows=rows, conversations=conversations(rows), scenario=world).run()


def test_a_second_prompt_is_read_from_the_cache():
    """The first costs 1,224 micro-dollars; the second, all of it cached, 302.4."""
    tally = replayed([row(0, 1, 2), row(10, 1, 2)], scenario())
    assert tally.expected.pico == tally.billed.pico == COLD_CHEAP + WARM_CHEAP == 1_526_400_000
    assert tally.cached_share == 0.5
    assert list(tally.accounts) == [CHEAP]


def test_a_prompt_is_in_the_cache_when_it_was_read():
    """Half a second and 1,024 tokens at 12,000 a second: a prompt at 0.58 s finds nothing, one at 0.59 s does."""
    early = replayed([row(0, 1, 2), row(0.58, 1, 2)], scenario())
    late = replayed([row(0, 1, 2), row(0.59, 1, 2)], scenario())
    assert early.expected.pico == 2 * COLD_CHEAP
    assert late.expected.pico == COLD_CHEAP + WARM_CHEAP


def test_an_ignored_cache_weighs_by_its_chance_in_what_is_expected():
    """One request in four is billed cold: three quarters of the warm bill and one of the cold, whatever was drawn."""
    unsure = ProviderTerms(cache=CacheTerms(ignored_ppm=250_000), outages={})
    tally = replayed([row(0, 1, 2), row(10, 1, 2)], scenario(cheap=unsure))
    assert tally.expected.pico == COLD_CHEAP + (3 * WARM_CHEAP + COLD_CHEAP) // 4
    assert tally.billed.pico in (2 * COLD_CHEAP, COLD_CHEAP + WARM_CHEAP)


def test_who_is_out_is_left_after_a_second_and_nothing_is_billed_there():
    """The cheap one is out: a second lost, then the dear one answers; first token after 1 + 0.5 + 1,024/12,000 s."""
    out = ProviderTerms(cache=SURE, outages={None: ((0.0, 5.0),)})
    tally = replayed([row(0, 1, 2), row(10, 3, 4)], scenario(cheap=out))
    assert tally.expected.pico == COLD_DEAR + COLD_CHEAP
    assert (tally.failures, tally.refusals) == (1, 0)
    assert (tally.accounts[CHEAP].failures, tally.accounts[CHEAP].requests) == (1, 1)
    assert tally.waited_seconds == [1.0, 0.0]
    assert tally.first_token_seconds == pytest.approx([1.5 + 1_024 / 12_000, 0.5 + 1_024 / 12_000])


def test_a_circuit_opens_while_somebody_is_out_and_closes_afterwards():
    """Out for a minute under a request a second: few tries are lost, and the last requests are cheap again."""
    out = ProviderTerms(cache=SURE, outages={"main": ((10.0, 70.0),)})
    rows = [row(float(second), 2 * second + 1, 2 * second + 2) for second in range(300)]
    tally = replayed(rows, scenario(cheap=out))
    assert 0 < tally.failures <= 15
    assert 60 - tally.failures <= tally.accounts[DEAR].requests <= 130
    assert tally.requests == 300


def test_a_client_that_is_refused_asks_again_until_it_is_served():
    """There is only one provider and it is out for eight seconds: tries at 0, 2, 5 and 10 s, the last one served."""
    out = ProviderTerms(cache=SURE, outages={None: ((0.0, 8.0),)})
    tally = replayed([row(0, 1, 2)], scenario(cheap=out, dear=False))
    assert (tally.requests, tally.failures, tally.refusals) == (1, 3, 3)
    assert tally.waited_seconds == [10.0]


def test_an_account_that_is_full_is_passed_by():
    """One request a minute: the second within it goes to the dear one, the third after it does not."""
    tally = replayed([row(0, 1, 2), row(10, 3, 4), row(61, 5, 6)], scenario(rpm=1))
    assert tally.expected.pico == 2 * COLD_CHEAP + COLD_DEAR
    assert tally.waited_seconds == [0.0, 0.0, 0.0]


def test_where_nobody_has_room_requests_wait_in_turn():
    """1,124 tokens of 1,200 a minute are used: the others go when a minute is over, one each, and nobody overtakes."""
    rows = [row(0, 1, 2), row(10, 3, 4), row(20, 5, 6)]
    tally = replayed(rows, scenario(tpm=1_200, dear=False))
    assert tally.expected.pico == 3 * COLD_CHEAP
    assert tally.waited_seconds == pytest.approx([0.0, 50.0, 100.0])


def test_who_would_fit_does_not_overtake_who_waits():
    """150 tokens would fit beside the first 1,124 of 1,300; they wait behind the second 1,124 all the same."""
    rows = [row(0, 1, 2), row(10, 3, 4), row(20, 5, size=50)]
    tally = replayed(rows, scenario(tpm=1_300, dear=False))
    assert tally.waited_seconds == pytest.approx([0.0, 50.0, 40.0])


def test_one_request_at_a_time_is_let_in_when_the_one_before_has_ended():
    """An answer takes 0.5 + 1,024/12,000 + 100/45 s; then the next one goes at once."""
    whole = 0.5 + 1_024 / 12_000 + 100 / 45
    tally = replayed([row(0, 1, 2), row(1, 3, 4)], scenario(concurrency=1, dear=False))
    assert tally.waited_seconds == pytest.approx([0.0, whole - 1])


def test_a_request_that_no_account_could_ever_take_is_not_served():
    """More tokens than a minute has, or than the context holds: given up at once, and said so."""
    tally = replayed([row(0, 1, 2), row(1, 3, 4, size=99_950)], scenario(tpm=5_000, dear=False))
    assert (tally.requests, tally.unserved) == (1, 1)
    tally = replayed([row(0, 1, 2, size=200_000)], scenario())
    assert (tally.requests, tally.unserved) == (0, 1)


def test_a_move_is_a_conversation_that_leaves_an_account_that_would_have_taken_it():
    """Prices cross at noon and the conversation follows them: one move. Leaving one that is full is none."""
    rows = [row(0, 1, 2), row(10, 1, 2, 3, size=1_536)]
    assert replayed(rows, scenario(rpm=1)).moves == 0
    world = scenario()
    table = PriceTable([*world.catalogue.prices.rows(), later(price("cheap", "9.00", "8.00", "9.00"), second=5)])
    assert replayed(rows, replace(world, catalogue=replace(world.catalogue, prices=table))).moves == 1


def later(row_of: Price, *, second: int) -> Price:
    return replace(row_of, effective_from=BEGINS.replace(second=second))


def test_each_provider_alone_serves_everything_and_the_cheapest_is_the_one_to_beat():
    """All to the cheap one: a cold and a warm prompt. All to the dear one: both at the full price."""
    rows = [row(0, 1, 2), row(10, 1, 2)]
    found = compare(rows, scenario(), [Policy.LIST_PRICE])
    assert {run.provider: run.tally.expected.pico for run in found.alone} == {
        "cheap": COLD_CHEAP + WARM_CHEAP,
        "dear": 2 * COLD_DEAR,
    }
    assert found.best_alone is not None
    assert found.best_alone.provider == "cheap"
    assert [found.ratio(run) for run in found.policies] == [1.0]
    assert found.conversations == 1


def test_the_same_rows_give_the_same_figures():
    """Nothing of one run is left to the next."""
    unsure = ProviderTerms(cache=CacheTerms(ignored_ppm=300_000), outages={None: ((5.0, 20.0),)})
    rows = [row(float(second), 1, 2 + second % 3) for second in range(60)]
    assert replayed(rows, scenario(cheap=unsure)) == replayed(rows, scenario(cheap=unsure))
