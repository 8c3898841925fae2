"""The savings report as it goes out: every figure under one name, amounts as exact decimal strings, errors in percent.

Reading a long past is work of minutes; it is done in small pieces between those who are being served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from gateway.core.catalogue import Catalogue
from gateway.core.money import Money
from gateway.core.savings import Accuracy, Baseline, ModelSavings, Savings, savings
from gateway.core.shadow import PastRequest, Shadow

PIECE: Final = 50
"""So many requests are added up, a few milliseconds, before others have their turn."""
REQUESTS_MAX: Final = 50_000
"""What a worker that serves traffic adds up for one question; a command of its own has no such limit."""


class TooManyRequestsError(Exception):
    """The period holds more requests than were to be read."""


async def counted(
    past: AsyncGenerator[PastRequest, None],
    catalogue: Catalogue,
    *,
    requests_max: int | None = None,
    told: Callable[[PastRequest], None] = lambda _: None,
) -> Savings:
    """The report of a past, which is read to its end; ``told`` hears of every request. Raises TooManyRequestsError,
    and StoreUnavailableError as the past does."""
    shadow = Shadow(catalogue)
    async with aclosing(past) as requests:
        async for request in requests:
            shadow.add(request)
            told(request)
            if requests_max is not None and shadow.requests > requests_max:
                raise TooManyRequestsError
            if shadow.requests % PIECE == 0:
                await asyncio.sleep(0)
    return savings(shadow)


def rendered(found: Savings, start: datetime, end: datetime) -> dict[str, Any]:
    """The report as JSON: INTERFACE's manner of writing money and moments."""
    return {
        "from": _moment(start),
        "to": _moment(end),
        "requests": found.requests,
        "requests_left_out": found.requests_left_out,
        "cost_left_out": str(found.cost_left_out),
        "models": [_model(model) for model in found.models],
    }


def _model(model: ModelSavings) -> dict[str, Any]:
    return {
        "model": model.model,
        "requests": model.requests,
        "actual": str(model.actual),
        "failed": str(model.failed),
        "saved_by_provider_caches": str(model.saved_by_caches),
        "baselines": [_baseline(baseline) for baseline in model.baselines],
    }


def _baseline(baseline: Baseline) -> dict[str, Any]:
    return {
        "baseline": baseline.name,
        "requests": baseline.requests,
        "actual": str(baseline.actual),
        "cost": str(baseline.cost),
        "cost_low": str(baseline.cost_low),
        "cost_high": str(baseline.cost_high),
        "saved": str(baseline.saved),
        "saved_low": str(baseline.saved_low),
        "saved_high": str(baseline.saved_high),
        "saved_percent": _percent(baseline.saved, baseline.cost),
        "measured": baseline.is_measured,
        "accuracy": None if baseline.accuracy is None else _accuracy(baseline.accuracy),
    }


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "requests": accuracy.requests,
        "billed": str(accuracy.billed),
        "predicted": str(accuracy.predicted),
        "error_percent": _rounded(accuracy.error_percent),
        "error_percent_low": _rounded(accuracy.error_percent_low),
        "error_percent_high": _rounded(accuracy.error_percent_high),
        "cached_tokens_billed": accuracy.cached_tokens,
        "cached_tokens_predicted": accuracy.cached_tokens_predicted,
    }


def _percent(part: Money, whole: Money) -> float | None:
    return round(100 * part.pico / whole.pico, 2) if whole.pico else None


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 2)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
