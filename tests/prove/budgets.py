"""A budget admits exactly what it bears, however many ask at once; whoever leaves, leaves no hold behind (law L6)."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random
from typing import Any, Final

from bench.audit import pico
from gateway.core.money import Money
from tests.prove.client import Answer, Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.stage import Stage, staged

FITS, RACERS = 100, 2_000
FITS_SMALL, RACERS_SMALL = 10, 200
SMALL: Final = 1_000
"""Below so many requests the race is small, too."""
AT_ONCE: Final = 64
ABORTED_SHARE: Final = 0.3
CHUNK_MS: Final = 20.0
TOKENS_PER_CHUNK: Final = 8
RACE_TOKENS: Final = 10_000
"""So long an answer (25 s) that nobody who was admitted ends before the last one has asked."""
RACE_TOKENS_SMALL: Final = 2_000
TOKENS: Final = 48
LIMIT: Final = 16_384
QUIET_SECONDS_MAX: Final = 90.0
AGAIN_SECONDS: Final = 0.1
NEEDS: Final = re.compile(r"this request needs \$([0-9.]+)\.")


@dataclass(slots=True, kw_only=True)
class _Race:
    """What came of those who asked at once."""

    admitted: int
    refused: int
    others: Counter[str]
    overspent: int
    was_a_race: bool


@dataclass(slots=True, kw_only=True)
class _Leaving:
    """What came of those of whom a third left."""

    aborted: int
    complete: int
    refused: int
    others: Counter[str]
    is_free: bool
    is_exact: bool


def prove(size: int, ground: Ground, *, workers: int = 1, redis_url: str = "") -> Proven:
    """Two thousand for a budget of a hundred, then ``size`` requests of which 30 % are left by their clients."""
    simulator = {"chunk_ms": CHUNK_MS, "tokens_per_chunk": TOKENS_PER_CHUNK}
    with staged(ground.folder, seed=8, simulator=simulator, workers=workers, redis_url=redis_url) as stage:
        race = asyncio.run(_race(stage, is_small=size < SMALL))
        leaving = asyncio.run(_leave(stage, size, ground))
    violations = [
        *([f"{race.admitted} admitted by a budget for {_fits(size)}"] if race.admitted != _fits(size) else []),
        *([f"overspent by {Money(race.overspent)} USD"] if race.overspent else []),
        *([] if race.was_a_race else ["somebody was answered before the last one had asked, so nothing was proven"]),
        *(f"the race: {count} × {what}" for what, count in race.others.items()),
        *([f"{leaving.refused} refused by a budget that bears all of them"] if leaving.refused else []),
        *([] if leaving.is_free else ["a hold is left: what is not spent cannot be held"]),
        *([] if leaving.is_exact else ["a budget admits a pico-dollar more than is left of it"]),
        *(f"{count} × {what}" for what, count in leaving.others.items()),
    ]
    figure = (
        f"a budget for {_fits(size)}: {race.admitted:,} of {race.admitted + race.refused:,} admitted at once, "
        f"overspent {Money(race.overspent)} USD; {size:,} requests, {leaving.aborted:,} left by their clients: "
        f"false refusals {leaving.refused}, open holds after their end {0 if leaving.is_free else 'some'}"
    )
    return Proven(figure=figure, violations=told(violations))


def _fits(size: int) -> int:
    return FITS_SMALL if size < SMALL else FITS


def _body(tokens: int, *, stream: bool) -> dict[str, Any]:
    """Always as many bytes, so that every one of them holds the same."""
    content = f"Why? [[out={tokens:06}]]"
    body: dict[str, Any] = {"model": "kimi-k2-thinking", "max_tokens": LIMIT}
    body["messages"] = [{"role": "user", "content": content}]
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


async def _needed(stage: Stage) -> int:
    """What one of them holds, in pico-dollars, as a refusal says."""
    _, secret = await asyncio.to_thread(stage.admin.create_key, "poor", budget="0.000000000001", period="total")
    async with Client(url=stage.ours.url, secret=secret) as client:
        answer = await client.ask(_body(TOKENS, stream=False))
    found = NEEDS.search(answer.trouble)
    assert found is not None, answer.trouble
    return pico(Decimal(found[1]))


# --- the race --------------------------------------------------------------------------------------------------------


async def _race(stage: Stage, *, is_small: bool) -> _Race:
    fits, racers, tokens = (FITS, RACERS, RACE_TOKENS)
    if is_small:
        fits, racers, tokens = (FITS_SMALL, RACERS_SMALL, RACE_TOKENS_SMALL)
    limit = fits * await _needed(stage)
    key_id, secret = await asyncio.to_thread(stage.admin.create_key, "racers", budget=str(Money(limit)), period="month")
    ends: list[tuple[float, Answer]] = []

    async def ask(client: Client) -> None:
        answer = await client.ask(_body(tokens, stream=False))
        while answer.status == 503 and '"overloaded"' in answer.trouble:  # a key with two thousand open is shed first
            await asyncio.sleep(AGAIN_SECONDS)
            answer = await client.ask(_body(tokens, stream=False))
        ends.append((time.monotonic(), answer))

    async with Client(url=stage.ours.url, secret=secret) as client:
        await asyncio.gather(*(ask(client) for _ in range(racers)))
    answered = [at for at, answer in ends if answer.complete]
    refused = [at for at, answer in ends if _is_refused(answer)]
    others = Counter(_kind(answer) for _, answer in ends if not answer.complete and not _is_refused(answer))
    spent = await _spent(stage, key_id, expected=len(answered))
    return _Race(
        admitted=len(answered),
        refused=len(refused),
        others=others,
        overspent=max(0, spent - limit),
        was_a_race=bool(answered and refused) and max(refused) < min(answered),
    )


# --- those who leave -------------------------------------------------------------------------------------------------


async def _leave(stage: Stage, size: int, ground: Ground) -> _Leaving:
    """The budget bears what all of them cost and what those under way hold: a hundred leaked holds would exhaust it."""
    needed = await _needed(stage)
    key_id, secret = await asyncio.to_thread(stage.admin.create_key, "leavers")
    stage_of_key = replace(stage, key_id=key_id)
    limit = 2 * AT_ONCE * needed + size * (needed // LIMIT) * (2 * TOKENS + 200)
    await asyncio.to_thread(stage.admin.set_budget, key_id, str(Money(limit)), period="total")
    answers: list[Answer | None] = []
    numbers = iter(range(size))

    async def client_of(client: Client) -> None:
        for number in numbers:
            answers.append(await _ask_or_leave(client, number))
            ground.tick(1)

    async with Client(url=stage.ours.url, secret=secret) as client:
        await asyncio.gather(*(client_of(client) for _ in range(AT_ONCE)))
        spent = await _spent(stage_of_key, key_id, expected=sum(answer is not None for answer in answers))
        is_free, is_exact = await _ends_even(stage_of_key, client, spent, needed)
    stayed = [answer for answer in answers if answer is not None]
    return _Leaving(
        aborted=len(answers) - len(stayed),
        complete=sum(answer.complete for answer in stayed),
        refused=sum(_is_refused(answer) for answer in stayed),
        others=Counter(_kind(answer) for answer in stayed if not answer.complete and not _is_refused(answer)),
        is_free=is_free,
        is_exact=is_exact,
    )


async def _ask_or_leave(client: Client, number: int) -> Answer | None:
    """None: left in the middle, at any moment from before the head to just before the end."""
    chance = Random(number)
    body = _body(TOKENS, stream=chance.random() < 0.7)
    if chance.random() >= ABORTED_SHARE:
        return await client.ask(body)
    try:
        async with asyncio.timeout(chance.random() * CHUNK_MS / 1000 * TOKENS / TOKENS_PER_CHUNK):
            return await client.ask(body)
    except TimeoutError:
        return None


async def _ends_even(stage: Stage, client: Client, spent: int, needed: int) -> tuple[bool, bool]:
    """Whether exactly what is not spent can be held: one request fits, and a pico-dollar less does not bear it."""
    await asyncio.to_thread(stage.admin.set_budget, stage.key_id, str(Money(spent + needed - 1)), period="total")
    is_exact = _is_refused(await client.ask(_body(TOKENS, stream=False)))
    await asyncio.to_thread(stage.admin.set_budget, stage.key_id, str(Money(spent + needed)), period="total")
    return (await client.ask(_body(TOKENS, stream=False))).complete, is_exact


# --- reading ---------------------------------------------------------------------------------------------------------


async def _spent(stage: Stage, key_id: str, *, expected: int) -> int:
    """What the ledger has of a key, once everybody is done and it has stopped growing."""
    deadline = time.monotonic() + QUIET_SECONDS_MAX
    before: Sequence[Any] | None = None
    while True:
        in_flight = await asyncio.to_thread(stage.simulators.in_flight)
        rows = await asyncio.to_thread(stage.admin.ledger, since=stage.since)
        mine = sorted(row["attempt_id"] for row in rows if row["key_id"] == key_id)
        if not in_flight and mine == before and len(mine) >= expected:
            return sum(pico(Decimal(row["cost"])) for row in rows if row["key_id"] == key_id)
        assert time.monotonic() < deadline, f"{in_flight} in flight, {len(mine)} of {expected} rows"
        before = mine
        await asyncio.sleep(0.5)


def _is_refused(answer: Answer) -> bool:
    return answer.status == 402


def _kind(answer: Answer) -> str:
    return f"{answer.status}: {answer.trouble[:160]}"
