"""What only some can have is had by exactly so many, however many ask; whoever leaves, leaves no hold (law L6).

Budgets, requests per minute and requests at once; of one worker by itself, and of several that share a Redis.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Final

from gateway.core.money import Money
from tests.prove import races
from tests.prove.client import Answer, Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.races import CHUNK_MS, LIMIT, PACE, TOKENS, TOKENS_PER_CHUNK, Race, Raced, is_refused, kind
from tests.prove.stage import Stage, staged
from tests.prove.valkey import valkey

SMALL: Final = 1_000
"""Below so many requests the races are small, too."""
LARGE: Final = 10_000
WORKERS, WORKERS_SMALL = 4, 2
AT_ONCE: Final = 64
ABORTED_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The races, at one size."""

    budget: Race
    requests: Race
    concurrency: Race
    workers: int


SIZE_SMALL: Final = _Sizes(
    budget=Race(fits=10, racers=200, tokens=2_000),
    requests=Race(fits=15, racers=100, tokens=TOKENS),
    concurrency=Race(fits=7, racers=100, tokens=2_000),
    workers=WORKERS_SMALL,
)
SIZE_USUAL: Final = _Sizes(
    budget=Race(fits=100, racers=2_000, tokens=10_000),  # an answer takes 25 s
    requests=Race(fits=70, racers=500, tokens=TOKENS),
    concurrency=Race(fits=20, racers=500, tokens=4_000),
    workers=WORKERS,
)
SIZE_LARGE: Final = _Sizes(
    budget=Race(fits=100, racers=2_000, tokens=10_000),
    requests=Race(fits=100, racers=2_000, tokens=TOKENS),
    concurrency=Race(fits=100, racers=2_000, tokens=10_000),
    workers=WORKERS,
)


@dataclass(slots=True, kw_only=True)
class _Leaving:
    """What came of those of whom a third left."""

    aborted: int
    refused: int
    others: Counter[str]
    is_free: bool
    is_exact: bool

    @property
    def violations(self) -> list[str]:
        return [
            *([f"{self.refused} refused by a budget that bears all of them"] if self.refused else []),
            *([] if self.is_free else ["a hold is left: what is not spent cannot be held"]),
            *([] if self.is_exact else ["a budget admits a pico-dollar more than is left of it"]),
            *(f"{count} × {what}" for what, count in self.others.items()),
        ]


def prove(size: int, ground: Ground) -> Proven:
    """The races in process and over a Redis, and in process ``size`` requests of which 30 % are left by clients."""
    sizes = SIZE_SMALL if size < SMALL else SIZE_USUAL if size < LARGE else SIZE_LARGE
    with staged(ground.folder / "alone", seed=8, simulator=PACE) as stage:
        alone = asyncio.run(_race(stage, sizes))
        leaving = asyncio.run(_leave(stage, size, ground))
    with (
        valkey(ground.folder / "redis") as server,
        staged(
            ground.folder / "together", seed=8, simulator=PACE, workers=sizes.workers, redis_url=server.url
        ) as stage,
    ):
        together = asyncio.run(_race(stage, sizes))
    figure = (
        f"{_words('1 worker in process', alone)}; "
        f"{size:,} requests, {leaving.aborted:,} left by their clients: false refusals {leaving.refused}, "
        f"open holds after their end {0 if leaving.is_free else 'some'}\n"
        f"       {_words(f'{sizes.workers} workers over Redis', together)}"
    )
    violations = [found for raced in (*alone, *together) for found in raced.violations] + leaving.violations
    return Proven(figure=figure, violations=told(violations))


def _words(who: str, raced: list[Raced]) -> str:
    budget, requests, concurrency = raced
    return (
        f"{who}: a budget for {budget.race.fits}: {budget.admitted:,} of {budget.race.racers:,} admitted at once, "
        f"{budget.refused:,} refused, overspent {Money(budget.overspent)} USD; "
        f"{requests.race.fits} a minute: {requests.admitted:,} of {requests.race.racers:,}; "
        f"{concurrency.race.fits} at once: {concurrency.admitted:,} of {concurrency.race.racers:,}"
    )


async def _race(stage: Stage, sizes: _Sizes) -> list[Raced]:
    return [
        await races.for_budget(stage, sizes.budget),
        await races.for_requests(stage, sizes.requests),
        await races.for_concurrency(stage, sizes.concurrency),
    ]


# --- those who leave -------------------------------------------------------------------------------------------------


async def _leave(stage: Stage, size: int, ground: Ground) -> _Leaving:
    """The budget bears what all of them cost and what those under way hold: a hundred leaked holds would exhaust it."""
    needed = await races.needed(stage)
    key_id, secret = await asyncio.to_thread(stage.admin.create_key, "leavers")
    limit = 2 * AT_ONCE * needed + size * (needed // LIMIT) * (2 * TOKENS + 200)
    await asyncio.to_thread(stage.admin.set_budget, key_id, str(Money(limit)), period="total")
    answers: list[Answer | None] = []
    numbers = iter(range(size))

    async def client_of(client: Client) -> None:
        for number in numbers:
            answers.append(await ask_or_leave(client, number))
            ground.tick(1)

    async with Client(url=stage.ours.url, secret=secret) as client:
        await asyncio.gather(*(client_of(client) for _ in range(AT_ONCE)))
        spent = await races.spent(stage, key_id, expected=sum(answer is not None for answer in answers))
        is_free, is_exact = await races.ends_even(stage, key_id, client, spent, needed)
    stayed = [answer for answer in answers if answer is not None]
    return _Leaving(
        aborted=len(answers) - len(stayed),
        refused=sum(is_refused(answer) for answer in stayed),
        others=Counter(kind(answer) for answer in stayed if not answer.complete and not is_refused(answer)),
        is_free=is_free,
        is_exact=is_exact,
    )


async def ask_or_leave(client: Client, number: int) -> Answer | None:
    """None: left in the middle, at any moment from before the head to just before the end."""
    chance = Random(number)
    asked = races.body(TOKENS, stream=chance.random() < 0.7)
    if chance.random() >= ABORTED_SHARE:
        return await client.ask(asked)
    try:
        async with asyncio.timeout(chance.random() * CHUNK_MS / 1000 * TOKENS / TOKENS_PER_CHUNK):
            return await client.ask(asked)
    except TimeoutError:
        return None
