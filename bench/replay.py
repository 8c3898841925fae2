"""The replay's engine beside an independent simulator: the same traces, the same providers, and a bound on any routing.

    python -m bench.replay [--trace NAME] [--scenario NAME]... [--seed N] [--json]

Needs ../shared/tools/routing_sim.py and numpy. Every scenario of that simulator is handed to `gateway/replay` as it is;
its list-price policy must spend what ours does within 0.2 % wherever nothing fails (its circuit breaker is another
one), or the engine is wrong. Ratios are to its bound, with holds of ten seconds allowed where the scenario limits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from gateway.core.catalogue import Account, Catalogue, Deployment, Model, ProviderCard, RoutingTerms
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.replay.engine import Engine
from gateway.replay.results import Tally
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.world import CacheTerms, Latency, ProviderTerms

STUDY: Final = Path(__file__).parents[2] / "shared" / "tools" / "routing_sim.py"
MODEL: Final = "kimi-k2-thinking"
BEGINS_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
AGREES_WITHIN: Final = 0.002
ITERATIONS: Final = 24


def study() -> ModuleType:
    """The independent simulator; exits with the reason where it is not there."""
    if not STUDY.exists():
        sys.exit("bench.replay: ../shared/tools/routing_sim.py is not there; nothing to compare with.")
    spec = importlib.util.spec_from_file_location("routing_sim", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["routing_sim"] = module
    spec.loader.exec_module(module)
    return module


def rows_of(trace: Any, block: int) -> list[Row]:
    """Its trace as our rows."""
    rows = []
    for place in range(len(trace)):
        path, size = [int(node) + 1 for node in trace.path[place]], int(trace.inp[place])
        rows.append(
            Row(
                at=float(trace.t[place]),
                input_tokens=size,
                output_tokens=int(trace.out[place]),
                prompt=Prompt(
                    digests=tuple(path) or ((1 << 63) | place,),
                    tokens=(*range(block, block * len(path), block), size),
                ),
                tenant="",
                model=MODEL,
            )
        )
    return rows


def whole_limits(accounts: list[Any]) -> list[Any]:
    """The same with limits that are whole numbers, as a configuration's are."""
    return [replace(each, rpm=_floor(each.rpm), tpm=_floor(each.tpm)) for each in accounts]


def _floor(limit: float) -> float:
    return limit if math.isinf(limit) else float(math.floor(limit))


def scenario_of(accounts: list[Any], seed: int, routing: RoutingTerms) -> Scenario:
    """Its accounts as our providers: those of one price and one name but for its last part belong to one."""
    cards: dict[str, ProviderCard] = {}
    terms: dict[str, ProviderTerms] = {}
    prices: dict[str, Price] = {}
    for each in accounts:
        base, _, last = each.name.rpartition("-")
        provider = base if base and (last.isdigit() or len(last) <= 2) else each.name
        account = Account(provider=provider, name=each.name, rpm=_whole(each.rpm), tpm=_whole(each.tpm))
        before = cards.get(provider)
        cards[provider] = ProviderCard(
            name=provider,
            dialect="openai",
            base_url="",
            accounts=(*(before.accounts if before else ()), account),
            deployments={
                MODEL: Deployment(provider=provider, model=MODEL, upstream=MODEL, context=2**31, max_output=2**17)
            },
        )
        hit = None if each.price.hit is None else UnitPrice.from_usd_per_million(str(each.price.hit))
        prices[provider] = Price(
            provider=provider,
            model=MODEL,
            effective_from=BEGINS_AT,
            input=UnitPrice.from_usd_per_million(str(each.price.inp)),
            output=UnitPrice.from_usd_per_million(str(each.price.out)),
            cached_input=hit,
        )
        outages = dict(terms[provider].outages) if provider in terms else {}
        outages[each.name] = tuple((float(start), float(end)) for start, end in each.down)
        terms[provider] = ProviderTerms(
            cache=CacheTerms(
                ttl_seconds=each.ttl,
                capacity_tokens=None if each.capacity is None else each.capacity * 512,
                ignored_ppm=round(each.q * 1e6),
            ),
            latency=Latency(
                first_token_seconds=0.5 * each.speed,
                prefill_tokens_per_second=12_000 / each.speed,
                output_tokens_per_second=45 / each.speed,
            ),
            outages=outages,
        )
    model = Model(name=MODEL)
    catalogue = Catalogue(
        providers=cards,
        models={MODEL: model},
        prices=PriceTable(prices.values()),
        digest="",
        loaded_at=BEGINS_AT,
        routing=routing,
    )
    return Scenario(catalogue=catalogue, model=model, begins_at=BEGINS_AT, terms=terms, seed=seed)


def _whole(limit: float) -> int | None:
    return None if math.isinf(limit) else math.floor(limit)


def measure(sim: Any, name: str, trace: Any, rows: list[Row], seed: int) -> dict[str, Any]:
    """One scenario: theirs, ours and the bound."""
    accounts = whole_limits(sim.scenario(name, trace, seed=seed))
    numbers = [int(session) for session in trace.sess]
    theirs = {policy.name: sim.Simulator(trace, accounts).run(policy) for policy in (sim.Cheapest(), sim.RoundRobin())}
    ours: dict[str, tuple[Tally, float]] = {}
    began = time.process_time()
    tally = Engine(rows=rows, conversations=numbers, scenario=scenario_of(accounts, seed, RoutingTerms())).run()
    ours["list_price"] = (tally, time.process_time() - began)
    return {
        "theirs": {policy: each["usd"] for policy, each in theirs.items()},
        "errors": {policy: each["errors"] for policy, each in theirs.items()},
        "ours": {policy: float(each.expected.usd()) for policy, (each, _) in ours.items()},
        "seconds": ours["list_price"][1],
        "p95": [theirs["cheapest-list"]["p95_ttft"], sorted(tally.first_token_seconds)[int(len(rows) * 0.95)]],
        "hit": [theirs["cheapest-list"]["hit"], tally.cached_share],
        "fail": tally.failures,
        "refused": tally.refusals,
        "unserved": tally.unserved,
        "moves": tally.moves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="conversation")
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    sim = study()
    trace = sim.load(given.trace)
    rows = rows_of(trace, sim.BLOCK)
    for name in given.scenario or sim.SCENARIOS:
        print(name, json.dumps(measure(sim, name, trace, rows, given.seed)), flush=True)


if __name__ == "__main__":
    main()
