"""Principals with budgets and limits in the world of the pipeline tests, and what a question costs there."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.core.budget import Budget, Period, window_of
from gateway.core.catalogue import Account
from gateway.core.exchange import Principal
from gateway.core.limits import RateLimits
from gateway.core.money import Money
from tests.pipeline.virtual_time import START
from tests.pipeline.world import ALICE, Run, World, card, catalogue, replace

INPUT = 37
"""The bytes of the question that ``World`` asks; each may be a token."""
OUTPUT = 1_000
DEAREST = INPUT * 1_100_000 + OUTPUT * 4_400_000
"""What it may cost at CometAPI's prices, in pico-dollars: $0.0044407."""
COST = (146 - 128) * 556_000 + 128 * 139_000 + 26 * 2_222_000
"""What EvoLink's answer comes to."""


def budget(limit: int, *, scope: str = "key:key_alice", name: str = 'key "alice"', **more: Any) -> Budget:
    fields = {"budget_id": f"budget of {scope}", "period": Period.MONTH, **more}
    return Budget(scope=scope, name=name, limit=Money(limit), **fields)


def limited(*budgets: Budget, who: Principal = ALICE, **rates: int) -> Principal:
    """Alice with budgets, and limits of her key."""
    limits = (RateLimits(scope=f"key:{who.key_id}", name=f'key "{who.key_name}"', **rates),) if rates else ()
    return replace(who, budgets=budgets, limits=limits)


def somebody(name: str) -> Principal:
    return Principal(key_id=f"key_{name}", key_name=name)


def world_of(*accounts: Account, **more: Any) -> World:
    """A world whose providers have these accounts."""
    names = dict.fromkeys(account.provider for account in accounts)
    cards = [replace(card(name), accounts=tuple(a for a in accounts if a.provider == name)) for name in names]
    return World(in_force=catalogue(*cards), **more)


def state(world: World, of: Budget) -> tuple[int, int]:
    """What is spent and what is held of a budget."""
    window = world.allowances.book.windows[window_of(of.scope, of.period, START, of.time_zone).key]
    return window.spent, window.held


async def ask(world: World, principal: Principal, **asked: Any) -> Run:
    return await world.ask(principal=principal, max_tokens=OUTPUT, **asked)


def begin(world: World, principal: Principal, **asked: Any) -> Run:
    return world.begin(principal=principal, max_tokens=OUTPUT, **asked)


async def moments(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ask_unchecked(world: World, principal: Principal, **asked: Any) -> Run:
    """To its end, while others are still under way."""
    run = begin(world, principal, **asked)
    await run.task
    return run
