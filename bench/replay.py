"""The replay's engine beside an independent simulator: the same traces, the same providers, and a bound on any routing.

    python -m bench.replay [--trace NAME] [--scenario NAME]... [--seed N] [--json]

Needs ../shared/tools/routing_sim.py and numpy. Every scenario of that simulator is handed to `gateway/replay` as it is;
its list-price policy must spend what ours does within 0.2 % (0.5 % where minutes fill), or the engine is wrong; where
providers fail its figures are only shown, for its circuit breaker is another one. Ratios are to its bound, with holds
of ten seconds allowed where the scenario limits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from bench.study import study
from gateway.core.catalogue import Account, Catalogue, Deployment, Model, Policy, ProviderCard, RoutingTerms
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.replay.engine import Engine
from gateway.replay.results import percentile
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.world import CacheTerms, Latency, ProviderTerms

MODEL: Final = "kimi-k2-thinking"
BEGINS_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
AGREES_WITHIN: Final = 0.002
AGREES_NEARLY_WITHIN: Final = 0.005
"""Where minutes fill, a request more or less at one moment sends others elsewhere."""
ITERATIONS: Final = 24
HOLD_USD_PER_SECOND: Final = 0.0005


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
                    family=path[0] if path else 0,
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
    """One scenario: theirs, ours and the bounds."""
    accounts = whole_limits(sim.scenario(name, trace, seed=seed))
    limited = any(not math.isinf(min(each.rpm, each.tpm)) for each in accounts)
    geo = sim.ExpectedCost("geo", max_wait=10.0 if limited else 0.0, name="studied")
    theirs = {
        ours: sim.Simulator(trace, accounts).run(policy)
        for ours, policy in (
            (Policy.EXPECTED_COST.value, geo),
            (Policy.LIST_PRICE.value, sim.Cheapest()),
            (Policy.ROUND_ROBIN.value, sim.RoundRobin()),
            (Policy.STICKY.value, sim.Sticky()),
        )
    }
    best = min(each["usd"] for each in theirs.values()) * 0.99
    bound, _ = sim.dp_bound(trace, accounts, iters=ITERATIONS, ub=best, wait=10.0 if limited else 0.0)
    hold = RoutingTerms(hold_usd_per_second=HOLD_USD_PER_SECOND if limited else 0.0, hold_seconds_max=10.0)
    world = scenario_of(accounts, seed, hold)
    numbers = [int(session) for session in trace.sess]
    policies = []
    for policy in Policy:
        began = time.process_time()
        tally = Engine(rows=rows, conversations=numbers, scenario=world.under(policy)).run()
        spend, other = float(tally.expected.usd()), theirs[policy.value]
        policies.append(
            {
                "policy": policy.value,
                "usd": spend,
                "ratio": spend / bound,
                "study_usd": other["usd"],
                "study_ratio": other["usd"] / bound,
                "moves": tally.moves,
                "held": tally.held,
                "failures": tally.failures,
                "study_failures": other["errors"],
                "first_token_p95": percentile(sorted(tally.first_token_seconds), 0.95),
                "study_first_token_p95": other["p95_ttft"],
                "unserved": tally.unserved,
                "cpu_seconds": time.process_time() - began,
            }
        )
    listed = next(each for each in policies if each["policy"] == Policy.LIST_PRICE.value)
    apart = abs(listed["usd"] / listed["study_usd"] - 1)
    within = AGREES_NEARLY_WITHIN if limited else AGREES_WITHIN
    return {
        "scenario": name,
        "trace": trace.name,
        "bound_usd": bound,
        "policies": policies,
        "list_price_apart": apart,
        "agrees": apart <= within or any(each.down for each in accounts),
    }


def show(found: dict[str, Any]) -> None:
    """One scenario as a table: ours, theirs, failed tries and p95 of time to first token of both."""
    agrees = "agrees" if found["agrees"] else "DISAGREES"
    print(
        f"{found['trace']} · {found['scenario']}: bound ${found['bound_usd']:.3f}; list price "
        f"{found['list_price_apart']:.3%} apart, {agrees}"
    )
    titles = ("ours $", 10), ("ratio", 8), ("study $", 10), ("ratio", 8), ("moves", 7), ("held", 6), ("failed", 11)
    print(f"  {'':<14}" + "".join(f"{title:>{width}}" for title, width in (*titles, ("p95 s", 12), ("CPU s", 7))))
    for each in found["policies"]:
        failed = f"{each['failures']}/{each['study_failures']}"
        slow = f"{each['first_token_p95']:.1f}/{each['study_first_token_p95']:.1f}"
        print(
            f"  {each['policy']:<14}{each['usd']:>10.3f}{each['ratio']:>8.4f}{each['study_usd']:>10.3f}"
            f"{each['study_ratio']:>8.4f}{each['moves']:>7}{each['held']:>6}{failed:>11}{slow:>12}"
            f"{each['cpu_seconds']:>7.1f}",
            flush=True,
        )


def main() -> None:
    """Exit status 0 when the engine agrees with the simulator in every scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="conversation", choices=["conversation", "synthetic", "agentic", "mixed"])
    parser.add_argument("--scenario", action="append", help="one of the simulator's; all of them without it")
    parser.add_argument("--seed", type=int, default=3, help="of outages")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sim = study()
    trace = sim.load(given.trace)
    rows = rows_of(trace, sim.BLOCK)
    all_found = []
    for name in given.scenario or sim.SCENARIOS:
        found = measure(sim, name, trace, rows, given.seed)
        all_found.append(found)
        if not given.json:
            show(found)
    if given.json:
        print(json.dumps(all_found, indent=2))
    sys.exit(0 if all(each["agrees"] for each in all_found) else 1)


if __name__ == "__main__":
    main()
