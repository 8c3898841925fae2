"""Redis dies under load: nobody's request fails, and what providers' caches are worth is hardly lost.

The same conversations are held twice over several workers, each turn over a connection of its own, so that any worker
may get it: once undisturbed, once with Redis killed in the middle. Accounts of one price, each with a cache of its own
and too little room for all, make the spend depend on who knows where a conversation is warm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from bench.policies import SCENES, config_of
from gateway.simulator import filler
from tests.prove.client import Answer, Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.stage import Stage, staged
from tests.prove.traffic import KIMI
from tests.prove.valkey import Valkey, valkey

WORKERS: Final = 2
CLIENTS: Final = 16
TURN_SECONDS: Final = 0.5
TURNS_MAX: Final = 8
APPLICATIONS: Final = 4
SYSTEM_TOKENS: Final = 1_024
TURN_TOKENS: Final = 640
TOKENS_PER_MINUTE: Final = CLIENTS / TURN_SECONDS * 60 * (SYSTEM_TOKENS + TURN_TOKENS * TURNS_MAX / 2)
SPEND_PERCENT_MAX: Final = 2.0
SIMULATOR: Final[Mapping[str, Any]] = {"tokens_per_chunk": 64}


@dataclass(slots=True)
class _Heard:
    """What came of every turn of one run."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [answer.trouble for answer in self.answers if not answer.complete]

    @property
    def spent(self) -> int:
        return sum(answer.cost_pico or 0 for answer in self.answers)


def prove(size: int, ground: Ground) -> Proven:
    """Redis is dead for ``size`` seconds of a run that lasts three times as long."""
    spent: list[int] = []
    violations: list[str] = []
    count = 0
    for name in ("undisturbed", "alone"):
        heard = _run(ground.folder / name, size, ground, is_killed=name == "alone")
        violations += [f"{name}: {trouble}" for trouble in heard.failed]
        spent.append(heard.spent)
        count += len(heard.answers)
    more = (spent[1] / spent[0] - 1) * 100
    figure = f"{count:,} turns, failed {len(violations)}; {size} s without Redis cost {more:+.2f} % more"
    missed = None if more <= SPEND_PERCENT_MAX else f"at most {SPEND_PERCENT_MAX:g} % more"
    return Proven(figure=figure, violations=told(violations), missed=missed)


def _run(folder: Path, size: int, ground: Ground, *, is_killed: bool) -> _Heard:
    folder.mkdir(mode=0o711)

    def config(addresses: Mapping[str, str]) -> dict[str, str]:
        return config_of(SCENES["accounts"], addresses, policy="expected_cost", tokens_per_minute=TOKENS_PER_MINUTE)

    with (
        valkey(folder / "redis") as server,
        staged(
            folder / "gateway", seed=11, simulator=SIMULATOR, config=config, workers=WORKERS, redis_url=server.url
        ) as stage,
    ):
        return asyncio.run(_converse(stage, server, size, ground, is_killed=is_killed))


async def _converse(stage: Stage, server: Valkey, size: int, ground: Ground, *, is_killed: bool) -> _Heard:
    heard, turns = _Heard(), max(TURNS_MAX, int(3 * size / TURN_SECONDS))
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(_client(stage, number, turns, began, heard))
        for second in range(3 * size):
            await _until(began + second)
            if is_killed and second == size:
                await asyncio.to_thread(server.kill)
            if is_killed and second == 2 * size:
                await asyncio.to_thread(server.start)
            if second % 3 == 0:
                ground.tick(1)
    return heard


async def _client(stage: Stage, number: int, turns: int, began: float, heard: _Heard) -> None:
    """One conversation after another, each turn at its moment."""
    chance = Random(number)
    messages: list[dict[str, str]] = []
    secret = stage.client.headers["authorization"].removeprefix("Bearer ")
    async with Client(url=stage.ours.url, secret=secret, is_fresh=True) as client:
        for turn in range(turns):
            if not messages or len(messages) > 2 * chance.randrange(2, TURNS_MAX):
                system = filler(SYSTEM_TOKENS, seed=chance.randrange(APPLICATIONS))
                messages = [{"role": "system", "content": system}]
            text = filler(TURN_TOKENS, seed=1_000_000 * (number + 1) + turn)
            messages.append({"role": "user", "content": f"{text} [[out=16]]"})
            await _until(began + (turn + number / CLIENTS) * TURN_SECONDS)
            heard.answers.append(await client.ask({"model": KIMI, "max_tokens": 64, "messages": messages}))
            messages.append({"role": "assistant", "content": filler(16, seed=turn)})


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - asyncio.get_running_loop().time()))
