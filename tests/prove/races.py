"""Many at once for what only some can have: a budget, requests per minute, or requests at once; and what was spent."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from bench.audit import pico
from gateway.core.money import Money
from tests.prove.client import Answer, Client
from tests.prove.stage import Stage

CHUNK_MS: Final = 20.0
TOKENS_PER_CHUNK: Final = 8
PACE: Final = {"chunk_ms": CHUNK_MS, "tokens_per_chunk": TOKENS_PER_CHUNK}
TOKENS: Final = 48
LIMIT: Final = 16_384
QUIET_SECONDS_MAX: Final = 90.0
MINUTE_SECONDS: Final = 60.0
HEARD_SECONDS: Final = 2.0
"""Every worker has heard of a change within a second, and on a busy machine in two."""
NEEDS: Final = re.compile(r"this request needs \$([0-9.]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """``racers`` at once for what ``fits`` of them can have; an answer of ``tokens`` lasts until the last has asked."""

    fits: int
    racers: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class Raced:
    """What came of those who asked at once."""

    what: str
    race: Race
    admitted: int
    refused: int
    others: Counter[str]
    was_a_race: bool
    overspent: int = 0

    @property
    def violations(self) -> list[str]:
        return [
            *([f"{self.admitted} admitted by {self.what} for {self.race.fits}"] if not self.is_exact else []),
            *([f"overspent by {Money(self.overspent)} USD"] if self.overspent else []),
            *([] if self.was_a_race else [f"{self.what}: not all had asked in time, so nothing was proven"]),
            *(f"{self.what}: {count} × {which}" for which, count in self.others.items()),
        ]

    @property
    def is_exact(self) -> bool:
        return self.admitted == self.race.fits


def body(tokens: int, *, stream: bool, limit: int = LIMIT, **more: Any) -> dict[str, Any]:
    """Always as many bytes, so that every one of them holds the same."""
    content = f"Why? [[out={tokens:06}]]"
    asked: dict[str, Any] = {"model": "kimi-k2-thinking", "max_tokens": limit, **more}
    asked["messages"] = [{"role": "user", "content": content}]
    return {**asked, "stream": True, "stream_options": {"include_usage": True}} if stream else asked


async def needed(stage: Stage, *, limit: int = LIMIT, **more: Any) -> int:
    """What one of them holds, in pico-dollars, as a refusal says."""
    _, secret = await asyncio.to_thread(stage.admin.create_key, "poor", budget="0.000000000001", period="total")
    async with Client(url=stage.ours.url, secret=secret) as client:
        answer = await client.ask(body(TOKENS, stream=False, limit=limit, **more))
    found = NEEDS.search(answer.trouble)
    assert found is not None, answer.trouble
    return pico(Decimal(found[1]))


# --- races -----------------------------------------------------------------------------------------------------------


async def for_budget(stage: Stage, race: Race) -> Raced:
    """A budget for so many that are all held open at once, and not a pico-dollar more."""
    limit = race.fits * await needed(stage)
    key_id, secret = await asyncio.to_thread(stage.admin.create_key, "racers", budget=str(Money(limit)), period="month")
    raced = await _run(stage, race, secret, what="a budget", status=402, code="budget_exceeded")
    raced.overspent = max(0, await spent(stage, key_id, expected=raced.admitted) - limit)
    return raced


async def for_requests(stage: Stage, race: Race) -> Raced:
    """So many requests per minute, within a minute."""
    _, secret = await asyncio.to_thread(stage.admin.create_key, "in-a-minute", rpm=race.fits)
    began = time.monotonic()
    raced = await _run(stage, race, secret, what="a minute", status=429, code="rate_limit_exceeded")
    raced.was_a_race = time.monotonic() - began < MINUTE_SECONDS
    return raced


async def for_concurrency(stage: Stage, race: Race) -> Raced:
    """So many at once, none of which ends before the last one has asked."""
    _, secret = await asyncio.to_thread(stage.admin.create_key, "at-once", concurrency=race.fits)
    return await _run(stage, race, secret, what="a limit at once", status=429, code="rate_limit_exceeded")


async def _run(stage: Stage, race: Race, secret: str, *, what: str, status: int, code: str) -> Raced:
    ends: list[tuple[float, Answer]] = []

    async def ask(client: Client) -> None:
        answer = await client.ask(body(race.tokens, stream=False))
        ends.append((time.monotonic(), answer))

    async with Client(url=stage.ours.url, secret=secret) as client:
        await asyncio.gather(*(ask(client) for _ in range(race.racers)))
    answered = [at for at, answer in ends if answer.complete]
    refused = [at for at, answer in ends if _says(answer, status, code)]
    others = Counter(
        kind(answer) for _, answer in ends if not answer.complete and not _says(answer, status, code)
    )  # fmt: skip
    return Raced(
        what=what,
        race=race,
        admitted=len(answered),
        refused=len(refused),
        others=others,
        was_a_race=bool(answered and refused) and max(refused) < min(answered),
    )


# --- reading ---------------------------------------------------------------------------------------------------------


async def spent(stage: Stage, key_id: str, *, expected: int) -> int:
    """What the ledger has of a key, once everybody is done and it has stopped growing."""
    rows = await settled(stage, key_ids={key_id}, expected=expected)
    return sum(pico(Decimal(row["cost"])) for row in rows)


async def settled(stage: Stage, *, key_ids: set[str], expected: int) -> list[dict[str, Any]]:
    """The rows of these keys, once everybody is done and they have stopped growing."""
    deadline = time.monotonic() + QUIET_SECONDS_MAX
    before: Sequence[Any] | None = None
    while True:
        in_flight = await asyncio.to_thread(stage.simulators.in_flight)
        rows = await asyncio.to_thread(stage.admin.ledger, since=stage.since)
        mine = [row for row in rows if row["key_id"] in key_ids]
        found = sorted(row["attempt_id"] for row in mine)
        if not in_flight and found == before and len(mine) >= expected:
            return mine
        assert time.monotonic() < deadline, f"{in_flight} in flight, {len(mine)} of {expected} rows"
        before = found
        await asyncio.sleep(0.5)


async def ends_even(
    stage: Stage, key_id: str, client: Client, spent_pico: int, needed_pico: int, **terms: object
) -> tuple[bool, bool]:
    """Whether exactly what is not spent can be held: one request fits, and a pico-dollar less does not bear it."""

    async def with_left(left: int) -> Answer:
        limit = str(Money(spent_pico + left))
        await asyncio.to_thread(stage.admin.set_budget, key_id, limit, period="total", **terms)
        if stage.ours.workers > 1:
            await asyncio.sleep(HEARD_SECONDS)  # the one who was asked knows it at once
        return await client.ask(body(TOKENS, stream=False))

    is_exact = is_refused(await with_left(needed_pico - 1))
    return (await with_left(needed_pico)).complete, is_exact


def is_refused(answer: Answer) -> bool:
    return answer.status == 402


def kind(answer: Answer) -> str:
    return f"{answer.status}: {answer.trouble[:160]}"


def _says(answer: Answer, status: int, code: str) -> bool:
    return answer.status == status and f'"{code}"' in answer.trouble
