"""Rules that need more than one file: what is sold must be named, priced and plausible beside its neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final

from gateway.catalog.findings import closest, did_you_mean, quoted
from gateway.catalog.models import Models
from gateway.catalog.prices import PriceRow
from gateway.catalog.providers import Providers
from gateway.core.catalogue import Deployment
from gateway.core.pricing import Price

_MARK_UP_MAX: Final = 3, 2
"""An aggregator dearer than the model's maker by more than this ratio is worth a second look (providers §7 #1)."""

_MARK_DOWN_MAX: Final = 3
"""Cheaper than the maker by more than this factor is more likely an amount per 1,000 tokens, or converted twice."""

_HIT_SHARE_MAX: Final = 9, 10
_HIT_SHARE_MIN: Final = 1, 50
"""Hits of Kimi models have cost from a twentieth to two fifths of a miss; outside of these a column was misread."""

_OUTPUT_PER_INPUT_MAX: Final = 12
"""No Kimi row has cost more than 7.3 inputs for an output; a hit price in the place of the miss gives 16."""


def lint(providers: Providers, models: Models, rows: tuple[PriceRow, ...], *, now: datetime) -> None:
    """Notes every finding at the table it is about; each rule sees what was written, also where that has errors."""
    _check_deployments(providers, models, on=now.astimezone(UTC).date())
    _check_models(providers, models)
    _check_price_names(providers, models, rows)
    _check_priced(providers, rows, now=now)
    _check_plausible(providers, [row for row in rows if row.price is not None and not row.confirmed])


def _check_deployments(providers: Providers, models: Models, *, on: date) -> None:
    for (provider, name), table in providers.deployment_tables.items():
        if name in models.aliases:
            mend = f"Write [providers.{provider}.models.{quoted(models.aliases[name])}]."
            table.error(None, f"{quoted(name)} is an alias of {quoted(models.aliases[name])}.", mend)
        elif name not in models.models:
            message = f"{provider} serves {quoted(name)}, which models.toml does not name: nobody can ask for it."
            table.warn(None, message, did_you_mean(name, models.models, otherwise=f"Add [models.{quoted(name)}]."))
        model = models.models.get(name)
        _check_lifecycle(providers.cards[provider].deployments[name], model.successor if model else None, providers, on)


def _check_lifecycle(deployment: Deployment, successor: str | None, providers: Providers, on: date) -> None:
    table = providers.deployment_tables[(deployment.provider, deployment.model)]
    pair = f"{deployment.provider} {deployment.model}"
    heir = f"{successor}" if successor else "another model"
    if deployment.available_until is not None and deployment.available_until <= on:
        message = f"{pair} is not routed since {deployment.available_until}."
        table.warn("available_until", message, f"Move callers to {heir}, then remove this table.")
    elif deployment.retirement_reported is not None and deployment.retirement_reported <= on:
        message = f"{pair} is reported retired since {deployment.retirement_reported}; it is tried until its first 404."
        mend = f"Move callers to {heir}; once it is certain, write available_until."
        table.warn("retirement_reported", message, mend)


def _check_models(providers: Providers, models: Models) -> None:
    served = {name for _, name in providers.deployment_tables}
    if not providers.cards:
        return
    for name, table in models.tables.items():
        if name not in served:
            mend = f"Add [providers.NAME.models.{quoted(name)}] to providers.toml, or remove the model."
            table.warn(None, f"No provider serves {quoted(name)}.", mend)


def _check_price_names(providers: Providers, models: Models, rows: Iterable[PriceRow]) -> None:
    for row in rows:
        if not row.provider or not row.model:
            continue
        if row.provider not in providers.cards:
            _check_unknown_provider(row, providers)
        elif row.model in models.aliases:
            name = quoted(models.aliases[row.model])
            row.table.error("model", f"{quoted(row.model)} is an alias of {name}.", f"Write model = {name}.")
        elif (row.provider, row.model) not in providers.deployment_tables:
            listed = providers.cards[row.provider].deployments
            otherwise = f"Add [providers.{row.provider}.models.{quoted(row.model)}], or remove the row."
            message = f"{row.provider} has a price for {quoted(row.model)}, which it does not serve."
            row.table.warn("model", message, did_you_mean(row.model, listed, otherwise=otherwise))


def _check_unknown_provider(row: PriceRow, providers: Providers) -> None:
    """A slip of the pen is an error; the rows of a provider that was taken out may stay, for the ledger names them."""
    message = f"{quoted(row.provider)} is not a provider of providers.toml."
    close = closest(row.provider, providers.cards)
    if close is not None:
        row.table.error("provider", message, f"Did you mean {close}?")
    else:
        row.table.warn("provider", message, f"Add [providers.{quoted(row.provider)}] there, or remove the row.")


def _check_priced(providers: Providers, rows: Iterable[PriceRow], *, now: datetime) -> None:
    """Rows with errors of their own count as prices here: one mistake, one finding."""
    starts: dict[tuple[str, str], list[datetime]] = {}
    for row in rows:
        start = row.price.effective_from if row.price is not None else now
        starts.setdefault((row.provider, row.model), []).append(start)
    for (provider, name), table in providers.deployment_tables.items():
        first = min(starts.get((provider, name), []), default=None)
        if first is None:
            mend = "Add a [[prices]] row with its source, or remove the model here."
            table.warn(None, f"{provider} {name} has no price: it loads, and is not routable.", mend)
        elif first > now:
            message = f"{provider} {name} has no price before {first:%Y-%m-%dT%H:%M:%SZ}: not routable until then."
            table.warn(None, message, "Add the row that holds today.")


def _check_plausible(providers: Providers, rows: list[PriceRow]) -> None:
    """The mistakes of price pages that the numbers of one row, or its neighbours, give away."""
    by_model: dict[str, list[Price]] = {}
    for row in rows:
        if row.price is not None:
            by_model.setdefault(row.model, []).append(row.price)
    for row in rows:
        if row.price is not None:
            others = [price for price in by_model[row.model] if price.provider != row.provider]
            makers = [price for price in others if _is_makers(providers, price)]
            if not _is_swapped(row, row.price, others):
                _check_hit(row, row.price)
                _check_far_off(row, row.price, makers, providers)


def _is_swapped(row: PriceRow, price: Price, others: list[Price]) -> bool:
    """Notes a row whose miss looks like a hit; its other oddities follow from that."""
    mend = "Write the price of a cache miss as input and of a hit as cached_input, or add confirmed = true."
    twin = next((other for other in others if other.cached_input == price.input), None)
    if twin is not None:
        message = f"input {price.input} is what {twin.provider} asks for a cache hit; the columns may be swapped."
        row.table.warn("input", message, mend)
        return True
    if price.output.pico_per_token > _OUTPUT_PER_INPUT_MAX * price.input.pico_per_token > 0:
        message = f"output {price.output} is more than {_OUTPUT_PER_INPUT_MAX} times input {price.input}."
        row.table.warn("input", message, mend)
        return True
    return False


def _check_hit(row: PriceRow, price: Price) -> None:
    """A hit that saves next to nothing, or costs next to nothing."""
    if price.cached_input is None or not price.input.pico_per_token:
        return
    hit, miss = price.cached_input.pico_per_token, price.input.pico_per_token
    (most, of_most), (least, of_least) = _HIT_SHARE_MAX, _HIT_SHARE_MIN
    if hit * of_most > miss * most or hit * of_least < miss * least:
        message = f"cached_input {price.cached_input} is {hit / miss:.1%} of input {price.input}, which is odd."
        mend = "Compare with the source: a hit usually costs a tenth to a quarter. confirmed = true says it is right."
        row.table.warn("cached_input", message, mend)


def _check_far_off(row: PriceRow, price: Price, makers: list[Price], providers: Providers) -> None:
    """Against the maker's row in force when this one begins, or the maker's first."""
    if not makers or _is_makers(providers, price):
        return
    earlier = [maker for maker in makers if maker.effective_from <= price.effective_from]
    maker = max(earlier, key=_start) if earlier else min(makers, key=_start)
    more, than = _MARK_UP_MAX
    pairs = (("input", price.input, maker.input), ("output", price.output, maker.output))
    dearer = [
        f"{key} {ours} ({maker.provider}: {theirs})"
        for key, ours, theirs in pairs
        if ours.pico_per_token * than > theirs.pico_per_token * more
    ]
    cheaper = [
        f"{key} {ours} ({maker.provider}: {theirs})"
        for key, ours, theirs in pairs
        if ours.pico_per_token * _MARK_DOWN_MAX < theirs.pico_per_token
    ]
    for side, where, mend in (
        (dearer, "above", "Compare the page with an invoice; confirmed = true says that the amounts are right."),
        (cheaper, "below", "Amounts are USD per 1,000,000 tokens; confirmed = true says that they are right."),
    ):
        if side:
            row.table.warn(None, f"Far {where} what the maker of the model asks: {', '.join(side)}.", mend)


def _start(price: Price) -> datetime:
    return price.effective_from


def _is_makers(providers: Providers, price: Price) -> bool:
    card = providers.cards.get(price.provider)
    return card is not None and card.dialect == "moonshot"
