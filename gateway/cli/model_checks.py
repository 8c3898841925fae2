"""What `gateway doctor` says of models: which are going, who still calls them, and whose tool calls are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from gateway.adapters.postgres.sql import statement
from gateway.catalog.review import Comparison
from gateway.cli.examination import Examination
from gateway.core.catalogue import Catalogue, Deployment, Stage
from gateway.core.money import PICO_PER_USD, ZERO, Money
from gateway.core.pricing import Price
from gateway.core.quality import CHECKED_FLAG, Fault, gravest
from gateway.core.usage import Meter
from gateway.core.validity import CHECKS_MIN, Standing

TRAFFIC_DAYS: Final = 30
RETIRING_DAYS: Final = 90
"""A certain end further away than this is not worth a warning yet."""
NAMED_MAX: Final = 5
TOOL_CALLS_PERIOD: Final = timedelta(days=1)
VALIDITY_USUAL: Final = 0.95
"""What is warned below where no min_tool_call_validity is set."""

Row = dict[str, Any]


def check_models(found: Examination, catalogue: Catalogue, *, now: datetime) -> None:
    """Models that are gone, or said to be, or will be soon, and what their successors cost."""
    leaving = list(_leaving(catalogue, now=now))
    for deployment in leaving:
        pair = f"{deployment.provider} {deployment.model}"
        heir = _heir(catalogue, deployment)
        to = heir or "another model"
        match deployment.stage(_today(now)):
            case Stage.RETIRED:
                what = f"{pair} is not routed since {deployment.available_until}"
                mend = f"Move callers to {to}, then take the model out of providers.toml."
            case Stage.REPORTED_RETIRED:
                what = (
                    f"{pair} is reported retired since {deployment.retirement_reported}, and tried until its first 404"
                )
                mend = f"Move callers to {to}; write available_until when it is certain."
            case _:
                what = f"{pair} will not be routed from {deployment.available_until} on"
                mend = f"Move callers to {to} before that day."
        price = "" if heir is None else _difference(catalogue, deployment, heir, now=now)
        found.warn("models", f"{what}.{price}", mend)
    if not leaving:
        found.ok("models", "No model that is served is retired, reported to be, or about to be.")


def check_traffic(found: Examination, db: psycopg.Connection[Any], catalogue: Catalogue, *, now: datetime) -> None:
    """Who has called such a model in the last 30 days, and what the same tokens cost at its successor."""
    leaving = {(each.provider, each.model): each for each in _leaving(catalogue, now=now)}
    asked = {
        "since": now - timedelta(days=TRAFFIC_DAYS),
        "providers": [provider for provider, _ in leaving],
        "models": [model for _, model in leaving],
    }
    with db.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(statement("retiring_traffic"), asked).fetchall() if leaving else []
    calls: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        calls.setdefault((row["provider"], row["model"]), []).append(row)
    for pair, callers in calls.items():
        _tell_traffic(found, catalogue, leaving[pair], callers, now=now)
    if not calls:
        found.ok("traffic", f"Nobody called a retired or retiring model in the last {TRAFFIC_DAYS} days.")


def _tell_traffic(
    found: Examination, catalogue: Catalogue, deployment: Deployment, callers: list[Row], *, now: datetime
) -> None:
    spent = Money(sum(int(row["cost_pico"]) for row in callers))
    requests = sum(row["requests"] for row in callers)
    named = [f"{_caller(row)}: {_counted(row['requests'])}, {_usd(_cost(row))}" for row in callers[:NAMED_MAX]]
    more = f"; and {len(callers) - NAMED_MAX} more keys" if len(callers) > NAMED_MAX else ""
    heir = _heir(catalogue, deployment)
    price = None if heir is None else _cheapest(catalogue, heir, deployment.provider, now=now)
    same = "" if price is None else f" {_at_successor(price, callers, spent)}"
    found.warn(
        "traffic",
        f"{deployment.provider} {deployment.model}, {_state(deployment, now)}: {_counted(requests)}, {_usd(spent)} in "
        f"the last {TRAFFIC_DAYS} days ({'; '.join(named)}{more}).{same}",
        f"Tell these callers to use {heir or 'another model'}.",
    )


def _at_successor(price: Price, callers: list[Row], spent: Money) -> str:
    """The same tokens, cached ones included, at another price."""
    there = sum((_rated(row, price) for row in callers), ZERO)
    change = there - spent
    percent = _percent(change, spent)
    how = f"{_usd(Money(abs(change.pico)))} {'less' if change.pico < 0 else 'more'}"
    return f"The same tokens cost {_usd(there)} at its successor {price.model} at {price.provider}: {how}{percent}."


def _rated(row: Row, price: Price) -> Money:
    tokens = {
        Meter.INPUT: row["input_tokens"] - row["cached_tokens"] - row["cache_write_tokens"],
        Meter.CACHE_READ: row["cached_tokens"],
        Meter.CACHE_WRITE: row["cache_write_tokens"],
        Meter.OUTPUT: row["output_tokens"],
    }
    return Money.total(price.unit(meter).times(count) for meter, count in tokens.items())


def _percent(change: Money, of: Money) -> str:
    if of.pico <= 0:
        return ""
    share = (Decimal(change.pico) * 100 / of.pico).quantize(Decimal("0.1"), rounding=ROUND_HALF_EVEN)
    return f" ({share:+} %)"


def _caller(row: Row) -> str:
    return f"{row['key_name']} of {row['team']}" if row["team"] else str(row["key_name"])


def _counted(requests: int) -> str:
    return f"{requests:,} request{'' if requests == 1 else 's'}"


def _cost(row: Row) -> Money:
    return Money(int(row["cost_pico"]))


def _usd(amount: Money) -> str:
    """Dollars to the cent, and small amounts to what they are worth telling."""
    decimals = "0.01" if abs(amount.pico) >= PICO_PER_USD else "0.000001"
    return f"${amount.usd().quantize(Decimal(decimals), rounding=ROUND_HALF_EVEN):,}"


def _state(deployment: Deployment, now: datetime) -> str:
    match deployment.stage(_today(now)):
        case Stage.RETIRED:
            return f"retired on {deployment.available_until}"
        case Stage.REPORTED_RETIRED:
            return f"reported retired since {deployment.retirement_reported}"
        case _:
            return f"retired from {deployment.available_until} on"


def check_tool_calls(found: Examination, db: psycopg.Connection[Any], catalogue: Catalogue, *, now: datetime) -> None:
    """Of each provider's models, how many tool-call answers of the last day were right."""
    asked = {"since": now - TOOL_CALLS_PERIOD, "checked": CHECKED_FLAG}
    try:
        with db.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(statement("tool_calls"), asked).fetchall()
    except psycopg.errors.QueryCanceled:
        mend = "See gateway_tool_call_answers_checked_total and …_invalid_total in /metrics."
        found.warn("tool_calls", "The ledger is too large to count the last day's tool calls in time.", mend)
        return
    share_min = catalogue.routing.min_tool_call_validity or VALIDITY_USUAL
    standings: dict[tuple[str, str], Standing] = {}
    for row in rows:
        pair = (row["provider"], row["model"])
        before = standings.get(pair, Standing(0.0, {}))
        fault = gravest(row["flags"])
        faults = before.faults if fault is None else _with(before.faults, fault, row["answers"])
        standings[pair] = Standing(before.checked + row["answers"], faults)
    right = [_share(pair, each) for pair, each in standings.items() if not _is_poor(each, share_min)]
    for pair, standing in standings.items():
        if _is_poor(standing, share_min):
            listed = ", ".join(f"{fault.value} {count:,.0f}" for fault, count in sorted(standing.faults.items()))
            mend = "Set min_tool_call_validity in [routing] of models.toml to pass it by, or ask the provider."
            found.warn("tool_calls", f"{_share(pair, standing)} in the last day ({listed}).", mend)
    if right or not standings:
        found.ok("tool_calls", f"{'; '.join(right) or 'No tool-call answer was checked'} in the last day.")


def _is_poor(standing: Standing, share_min: float) -> bool:
    return standing.checked >= CHECKS_MIN and standing.valid_share_max < share_min


def _with(faults: dict[Fault, float], fault: Fault, answers: int) -> dict[Fault, float]:
    return faults | {fault: faults.get(fault, 0.0) + answers}


def _share(pair: tuple[str, str], standing: Standing) -> str:
    return f"{' '.join(pair)}: {standing.valid_share or 0:.1%} of {standing.checked:,.0f} tool-call answers were right"


def _today(now: datetime) -> date:
    return now.astimezone(UTC).date()


def retired(catalogue: Catalogue, *, now: datetime) -> Iterator[Deployment]:
    """What is past one of its dates, be it certain or reported."""
    for _, card in sorted(catalogue.providers.items()):
        for _, deployment in sorted(card.deployments.items()):
            if deployment.stage(_today(now)) in (Stage.RETIRED, Stage.REPORTED_RETIRED):
                yield deployment


def _leaving(catalogue: Catalogue, *, now: datetime) -> Iterator[Deployment]:
    """The same, and what certainly ends within the next 90 days."""
    today = _today(now)
    for _, card in sorted(catalogue.providers.items()):
        for _, deployment in sorted(card.deployments.items()):
            stage, end = deployment.stage(today), deployment.available_until
            is_near = stage is Stage.RETIRING and end is not None and (end - today).days <= RETIRING_DAYS
            if is_near or stage in (Stage.RETIRED, Stage.REPORTED_RETIRED):
                yield deployment


def _heir(catalogue: Catalogue, deployment: Deployment) -> str | None:
    model = catalogue.models.get(deployment.model)
    return model.successor if model is not None and model.successor else None


def _difference(catalogue: Catalogue, deployment: Deployment, heir: str, *, now: datetime) -> str:
    """What the successor costs beside it, at the same provider or else at the cheapest."""
    before = catalogue.prices.in_force(deployment.provider, deployment.model, now)
    after = _cheapest(catalogue, heir, deployment.provider, now=now)
    if after is None:
        return f" Its successor {heir} has no price here."
    if before is None:
        return ""
    parts = ", ".join(_compared(before, after))
    return f" Its successor {after.model} at {after.provider} costs, per 1M tokens, {parts}."


def _cheapest(catalogue: Catalogue, name: str, provider: str, *, now: datetime) -> Price | None:
    model = catalogue.resolve(name)
    if model is None:
        return None
    prices = [catalogue.prices.in_force(card.name, model.name, now) for card, _ in catalogue.deployments(model.name)]
    known = [price for price in prices if price is not None]
    return min(known, key=lambda price: (price.provider != provider, price.output, price.input), default=None)


def _compared(before: Price, after: Price) -> Iterable[str]:
    for component, was, now_is in (
        ("input", before.input, after.input),
        ("cached input", before.cached_input or before.input, after.cached_input or after.input),
        ("output", before.output, after.output),
    ):
        percent = Comparison(
            model=after.model,
            provider=after.provider,
            reference=before.provider,
            component=component,
            reference_usd=was,
            usd=now_is,
        ).percent
        change = "" if percent is None else f" ({percent:+} %)"
        yield f"{component} ${now_is} instead of ${was}{change}"
