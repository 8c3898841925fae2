"""What limits and budgets cost a request: CPU of asking, posting and releasing, beside the limit that was promised.

`python -m bench.allowances`: a key with limits and a budget, in a team with limits and a budget, under the
organisation's budget, at one of three candidates with limits of their own. The database is not asked: windows are
open.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

import click
import msgspec
from rich.console import Console

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock
from gateway.adapters.memory import MemoryBalances
from gateway.core.allowance import Granted, Posting
from gateway.core.budget import Budget, Period, day_of
from gateway.core.catalogue import Account, Deployment, Model
from gateway.core.exchange import Admitted, Candidate, InferenceRequest, Principal, Surface
from gateway.core.limits import RateLimits, limits_of_account
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price
from gateway.pipeline.ports import Allowances
from gateway.pipeline.reserve import demand_for

IN_PROCESS_MICROSECONDS_MAX: Final = 15.0
REQUESTS: Final = 20_000
ROUNDS: Final = 7
UNDER_WAY: Final = 100
"""Requests that are open at any time."""
MODEL: Final = "kimi-k2-thinking"
PROVIDERS: Final = ("evolink", "moonshot", "cometapi")
PLENTY: Final = 10**9


def principal() -> Principal:
    """Everything that can limit a key does."""
    scopes = {"key:bench": 'key "bench"', "team:bench": 'team "bench"', "organisation": "organisation"}
    budgets = [
        Budget(budget_id=scope, scope=scope, name=name, period=Period.MONTH, limit=Money(10**18))
        for scope, name in scopes.items()
    ]
    limits = [
        RateLimits(scope=scope, name=scopes[scope], rpm=PLENTY, tpm=PLENTY, concurrency=PLENTY)
        for scope in ("key:bench", "team:bench")
    ]
    return Principal(key_id="bench", key_name="bench", team="bench", limits=tuple(limits), budgets=tuple(budgets))


def candidate(provider: str) -> Candidate:
    """One account with limits, at a price."""
    price = Price(
        provider=provider,
        model=MODEL,
        effective_from=datetime(2025, 11, 6, tzinfo=UTC),
        input=UnitPrice.from_usd_per_million("0.60"),
        cached_input=UnitPrice.from_usd_per_million("0.15"),
        output=UnitPrice.from_usd_per_million("2.50"),
    )
    account = Account(provider=provider, name="main", rpm=PLENTY, tpm=PLENTY, concurrency=PLENTY)
    deployment = Deployment(provider=provider, model=MODEL, upstream=MODEL, context=262_144, max_output=262_144)
    return Candidate(
        provider=provider,
        account="main",
        deployment=deployment,
        price=price,
        expected_cost=None,
        output_limit=4_096,
        limits=limits_of_account(account),
    )


async def use(allowances: Allowances, requests: int) -> float:
    """So many requests, each as the conductor makes them; returns CPU seconds for all of them."""
    who, candidates = principal(), [candidate(provider) for provider in PROVIDERS]
    request = InferenceRequest(
        surface=Surface.CHAT_COMPLETIONS, model=MODEL, model_asked=MODEL, fields={"n": msgspec.Raw(b"1")},
        input_bytes=4_000,
    )  # fmt: skip
    admitted = Admitted(request=request, model=Model(name=MODEL), input_tokens=1_000)
    clock, cost = SystemClock(), Money(1_234_567)
    began, now = time.process_time(), clock.now()
    for number in range(requests + UNDER_WAY):
        if number < requests:
            now = clock.now()
            demand = demand_for(f"req_{number}", who, admitted, candidates, now)
            verdict = await allowances.take(demand)
            assert isinstance(verdict, Granted)
        if number >= UNDER_WAY:
            ended = f"req_{number - UNDER_WAY}"
            allowances.post(Posting(ended, who.scopes, day_of(now, who.time_zone), cost))
            allowances.release(ended, 1_500)
    return time.process_time() - began


async def in_process() -> float:
    """CPU microseconds of a request."""
    allowances = LocalAllowances("bench", MemoryBalances(), clock=SystemClock())
    await use(allowances, REQUESTS // 10)
    return await use(allowances, REQUESTS) / REQUESTS * 1e6


def measure(title: str, what: Callable[[], Coroutine[Any, Any, float]], limit: float, console: Console) -> bool:
    """The median of some rounds beside its limit; whether it is within."""
    found = [asyncio.run(what()) for _ in range(ROUNDS)]
    is_within = median(found) <= limit
    console.print(
        f"[{'green' if is_within else 'red'}]{title}: {median(found):.1f} µs CPU per request, at most {limit:g}[/] "
        f"(from {min(found):.1f} to {max(found):.1f} in {ROUNDS} rounds)"
    )
    return is_within


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure what limits and budgets cost a request."""
    console = Console(highlight=False)
    if not measure("limits and budgets in process", in_process, IN_PROCESS_MICROSECONDS_MAX, console):
        sys.exit(1)


if __name__ == "__main__":
    main()
