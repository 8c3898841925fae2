"""Σ bills = Σ ledger = Σ report, to the token and the pico-dollar, for every usage that was told (laws L1, L5, L14)."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, Final

import httpx

from bench.audit import of_bill, of_ledger
from tests.prove.client import Answer
from tests.prove.proof import Ground, Proven, told
from tests.prove.stage import Stage, differences, staged
from tests.prove.traffic import KIMI, TURBO, mixed, paced

ROUND_REQUESTS_MAX: Final = 20_000
"""A round has a gateway and a seed of its own, and fits into memory whole."""
CONCURRENCY: Final = 32
ORDER_SECONDS_MAX: Final = 30.0

REFUSING: Final = {
    "unavailable": 0.01, "server_error": 0.01, "engine_overloaded": 0.005, "rate_limit_rpm": 0.005,
    "bad_gateway_html": 0.005, "error_in_ok": 0.01, "content_filter": 0.01, "invalid_request": 0.005,
    "overloaded_529": 0.005,
}  # fmt: skip
BENDING: Final = {
    "missing_usage": 0.02, "zero_usage": 0.01, "missing_done": 0.02, "crlf": 0.02, "no_space": 0.02,
    "keepalive_comments": 0.02, "no_tool_index": 0.02, "think_in_content": 0.02, "special_tokens": 0.02,
    "no_reasoning": 0.005, "served_model": 0.01, "json_for_stream": 0.01,
}  # fmt: skip
CUTTING: Final = ("close_before_response", "cut_stream", "close_mid_body", "error_event")
"""Only streams are cut: of a whole answer that never came nobody can count the tokens."""
WARMING: Final = 24
"""So many answers of each model come first, without faults: token counts are learned from finished answers."""
PLACEMENTS: Final = ("choice", "chunk", "both", "finish")
SPELLINGS: Final = ("top", "nested", "both")
"""One that tells no cached tokens is not among them: what was never told cannot be booked."""


def faults() -> list[dict[str, Any]]:
    """What every provider is told to do wrong, each to a small share of its requests."""
    simple = [{"kind": kind, "share": share} for kind, share in {**REFUSING, **BENDING}.items()]
    cuts = [{"kind": kind, "share": 0.01, "stream": True, "after_chunks": 20} for kind in CUTTING]
    placed = [{"kind": "usage_placement", "placement": place, "share": 0.1} for place in PLACEMENTS]
    spelled = [{"kind": "cached_spelling", "spelling": spelling, "share": 0.1} for spelling in SPELLINGS]
    split = [{"kind": "split", "mode": mode, "share": 0.005} for mode in ("byte", "utf8", "escape")]
    return [*simple, *cuts, *placed, *spelled, *split]


def prove(size: int, ground: Ground) -> Proven:
    """``size`` mixed requests, in rounds."""
    rounds = -(-size // ROUND_REQUESTS_MAX)
    violations: list[str] = []
    sums = {"attempts": 0, "told": 0, "tokens": 0, "pico": 0, "estimated": 0, "unread": 0}
    for seed in range(1, rounds + 1):
        folder = ground.folder / f"round-{seed}"
        folder.mkdir(mode=0o711)
        with staged(folder, seed=seed, simulator={"tokens_per_chunk": 4}) as stage:
            violations += asyncio.run(_round(stage, seed, -(-size // rounds), ground, sums))
    figure = (
        f"{size:,} requests, {sums['attempts']:,} attempts: difference {sums['tokens']} tokens, {sums['pico']} "
        f"pico-dollars over {sums['told']:,} told usages; {sums['estimated']:,} estimated, all flagged, "
        f"{sums['unread']} of them for a usage that broke off with its connection"
    )
    return Proven(figure=figure, violations=told(violations))


async def _round(stage: Stage, seed: int, requests: int, ground: Ground, sums: dict[str, int]) -> list[str]:
    async with stage.client:
        warming = (paced(number, output_tokens=400, model=(KIMI, TURBO)[number % 2]) for number in range(2 * WARMING))
        answers = await asyncio.gather(*map(stage.client.ask, warming))
        await asyncio.to_thread(_order_faults, stage)
        answers += await _drive(stage, seed, requests, ground)
    books, verdict = await stage.audit(answers)
    rows = {str(row["attempt_id"]): row for row in books.ledger}
    sums["attempts"] += len(rows)
    sums["estimated"] += sum(row["usage_source"] == "estimated" for row in rows.values())
    for line in books.bill:
        row = rows.get(str(line["attempt_id"]))
        if line["told"] != "told" or row is None:
            continue
        if line["ended"] != "complete" and row["usage_source"] == "estimated":
            sums["unread"] += 1  # written to a connection that broke before it could be read
            continue
        billed, booked = of_bill(line), of_ledger(row)
        sums["told"] += 1
        sums["tokens"] += sum(abs(a - b) for a, b in zip(billed.tokens, booked.tokens, strict=True))
        sums["pico"] += abs(billed.cost - booked.cost)
    if sum(answer.complete for answer in answers) < requests * 0.9:
        troubles = sorted({answer.trouble for answer in answers if answer.trouble})
        return [*differences(verdict), f"most requests ought to be answered: {troubles[:3]}"]
    return differences(verdict)


def _order_faults(stage: Stage) -> None:
    for address in stage.simulators.addresses.values():
        url = f"{address}/__sim/faults"
        httpx.post(url, json={"set": faults()}, timeout=ORDER_SECONDS_MAX, trust_env=False).raise_for_status()


async def _drive(stage: Stage, seed: int, requests: int, ground: Ground) -> list[Answer]:
    numbers, answers = count(), []

    async def worker() -> None:
        while (number := next(numbers)) < requests:
            answers.append(await stage.client.ask(mixed(number, seed=seed)))
            ground.tick(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())
    return answers
