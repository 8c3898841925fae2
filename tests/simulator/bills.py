"""Bills of lines made by hand, and what a simulator's statement makes of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from gateway.simulator import PRICES, BillLine, Order, Simulator
from gateway.simulator.bill import Ended

ARRIVED_AT = 1_790_000_000.0
MODEL = "kimi-k2-thinking"


def bill_line(
    simulator: Simulator,
    *,
    fresh: int = 500,
    cached: int = 0,
    output: int = 100,
    early_output: int | None = None,
    credential: str = "main",
    model: str = MODEL,
    arrived_at: float | None = None,
    ended: Ended = "complete",
) -> BillLine:
    """One more line on the bill, charged as by the settlement of a request; a second after the one before."""
    number = simulator.bill.next_line()
    price = PRICES[simulator.provider][model]
    input_pico, output_pico = fresh * price.input, output * price.output
    cached_pico = cached * (price.input if price.cached is None else price.cached)
    line = BillLine(
        line=number, provider=simulator.provider, credential=credential, model=model, request_id=f"{number:024x}",
        completion_id=f"chatcmpl-{number:024x}", attempt_id=None,
        arrived_at=ARRIVED_AT + number if arrived_at is None else arrived_at, stream=False, ended=ended,
        aborted=ended == "aborted", told="told", prompt_tokens=fresh + cached, completion_tokens=output,
        input_tokens=fresh, cached_tokens=cached, cache_write_tokens=0, output_tokens=output,
        early_output_tokens=output if early_output is None else early_output, reasoning_tokens=0,
        input_pico=input_pico, cached_pico=cached_pico, cache_write_pico=0, output_pico=output_pico,
        cost_pico=input_pico + cached_pico + output_pico,
    )  # fmt: skip
    simulator.bill.add(line)
    simulator.drifts.charge(line)
    return line


def bill_lines(simulator: Simulator, count: int) -> list[BillLine]:
    """That many lines of different sizes."""
    return [
        bill_line(simulator, fresh=1 + 7 * n % 900, cached=n * 11 % 400, output=1 + n * 13 % 300) for n in range(count)
    ]


def statement(simulator: Simulator, **query: str) -> bytes:
    """The statement, without a connection; ``from`` is spelled ``from_``."""
    _, parts = simulator.statements().written(_order(query))
    return b"".join(parts)


def rows(simulator: Simulator, **query: str) -> list[dict[str, str]]:
    """The statement's CSV lines by column name."""
    return list(csv.DictReader(io.StringIO(statement(simulator, format="csv", **query).decode())))


def planted(simulator: Simulator, **query: str) -> list[dict[str, Any]]:
    """What the statement has otherwise than the bill."""
    return list(_json_lines(b"".join(simulator.statements().planted(_order(query)))))


def _order(query: dict[str, str]) -> Order:
    return Order.of({name.removesuffix("_"): value for name, value in query.items()})


def _json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in data.splitlines())
