"""A scenario file lays a providers' world over a configuration, or is all there is; every finding at once.

    standalone = true              # the providers below are all there are; else they are laid over those of --config
    seed = 3                       # of all chance: the same file and trace give the same figures

    [routing]                      # as in models.toml; what is not said here is as there
    hold_usd_per_second = "0.0005"

    [providers.moonshot]
    price = { input = "0.60", cached_input = "0.15", output = "2.50" }   # USD per 1,000,000 tokens
    cache = { ttl_seconds = 600, ignored = 0.05, capacity_tokens = 50_000_000, block_tokens = 512 }
    latency = { first_token_seconds = 0.5, prefill_tokens_per_second = 12_000, output_tokens_per_second = 45 }
    outages = [[600, 660], [1200, 1260]]     # seconds since the first request; or
    # outages = { share = 0.1, mean_seconds = 60, seed = 1 }

    [[providers.moonshot.accounts]]          # in the place of the configured ones; one without limits if there is none
    name = "main"
    rpm = 500
    outages = [[30, 45]]                     # of this account alone

``ignored`` is the share of requests that the provider bills as if nothing were cached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.catalog.findings import CatalogError, Finding, did_you_mean, ordered, quoted
from gateway.catalog.models import read_routing
from gateway.catalog.prices import check_amounts, read_cache_write
from gateway.catalog.tables import NAME, Document, Table
from gateway.core.catalogue import USUAL_ROUTING, Account, Catalogue, Deployment, Model, ProviderCard
from gateway.core.pricing import Price, PriceTable
from gateway.replay.scenario import Scenario
from gateway.replay.world import PARTS_PER_MILLION, Bursts, CacheTerms, Latency, ProviderTerms

UNNAMED_MODEL: Final = "model"
"""What the one model of a standalone scenario is called where nobody named it."""
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CONTEXT_MAX: Final = 2**31 - 1
_NOTHING: Final = Catalogue(
    providers={}, models={}, prices=PriceTable(()), digest="", loaded_at=datetime.min.replace(tzinfo=UTC)
)
_PRICE_LIKE: Final = '{ input = "0.60", cached_input = "0.15", output = "2.50" }'
_OUTAGES_LIKE: Final = "[[600, 660]]"

Outages = Bursts | tuple[tuple[float, float], ...]


def read_scenario(
    path: Path, *, configured: Callable[[], Catalogue], model: str | None, begins_at: datetime
) -> Scenario:
    """The scenario of a file; ``configured`` is asked for the configuration unless the file stands alone. Raises
    CatalogError."""
    document = _parse(path)
    root = document.root()
    standalone = root.flag("standalone")
    base = _NOTHING if standalone else configured()
    found = _Overlay(root, base, _model_of(base, model, standalone=standalone, file=str(path)))
    scenario = found.read(begins_at)
    errors = ordered(document.findings)
    if errors:
        raise CatalogError(errors)
    return scenario


def configured_scenario(catalogue: Catalogue, *, model: str | None, begins_at: datetime, where: str) -> Scenario:
    """What is configured, with a world that is usual. Raises CatalogError for an unknown model."""
    return Scenario(
        catalogue=catalogue,
        model=_model_of(catalogue, model, standalone=False, file=where),
        begins_at=begins_at,
    )


def _parse(path: Path) -> Document:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CatalogError(
            [_error(str(path), f"The file cannot be read: {reason}.", "Name a readable file.")]
        ) from None
    document = Document.parse(content, file=str(path))
    if isinstance(document, Finding):
        raise CatalogError([document])
    return document


def _model_of(base: Catalogue, name: str | None, *, standalone: bool, file: str) -> Model:
    """The one model that is asked for: the named one, or the first that somebody serves."""
    if standalone:
        return Model(name=name or UNNAMED_MODEL)
    if name is None:
        served = [each for each in base.models.values() if base.deployments(each.name)]
        if served:
            return served[0]
        raise CatalogError([_error(file, "No model is served by any provider.", "Add one to providers.toml.")])
    model = base.resolve(name)
    if model is None:
        mend = did_you_mean(name, [*base.models, *base.aliases], otherwise="Name one of models.toml with --model.")
        raise CatalogError([_error(file, f"{quoted(name)} is no model of this configuration.", mend)])
    return model


class _Overlay:
    """Reads one scenario over what is configured."""

    def __init__(self, root: Table, base: Catalogue, model: Model) -> None:
        self._root = root
        self._base = base
        self._model = model
        self._cards: dict[str, ProviderCard] = dict(base.providers)
        self._prices: dict[str, Price] = {}
        self._terms: dict[str, ProviderTerms] = {}

    def read(self, begins_at: datetime) -> Scenario:
        seed = self._root.count("seed", like="3") or 0
        routing = read_routing(self._root, self._base.routing if self._base.models else USUAL_ROUTING)
        for name, table in self._root.tables("providers"):
            self._provider(name, table)
        self._root.close()
        if not self._cards:
            mend = f"Add [providers.NAME] with price = {_PRICE_LIKE}."
            self._root.error(None, "No provider is described here.", mend)
        kept = [row for row in self._base.prices.rows() if not self._is_replaced(row)]
        catalogue = replace(
            self._base,
            providers=self._cards,
            models={**self._base.models, self._model.name: self._model},
            prices=PriceTable([*kept, *self._prices.values()]),
            routing=routing,
        )
        return Scenario(
            catalogue=catalogue,
            model=self._model,
            begins_at=begins_at,
            terms=self._terms,
            seed=seed,
            stands_alone=self._base is _NOTHING,
        )

    def _is_replaced(self, row: Price) -> bool:
        return row.model == self._model.name and row.provider in self._prices

    def _provider(self, name: str, table: Table) -> None:
        if not NAME.fullmatch(name):
            mend = "Use up to 64 letters, digits, dots, hyphens and underscores, a letter or digit first."
            table.error(None, f"The name {quoted(name)} cannot stand in a report.", mend)
        price = self._price(name, table)
        if price is not None:
            self._prices[name] = price
        card = self._cards.get(name)
        if card is None:
            card = self._new(name, table)
        if self._model.name not in card.deployments:
            served = Deployment(
                provider=name,
                model=self._model.name,
                upstream=self._model.name,
                context=_CONTEXT_MAX,
                max_output=_CONTEXT_MAX,
            )
            card = replace(card, deployments={**card.deployments, self._model.name: served})
        outages: dict[str | None, Outages] = {None: _outages(table)}
        accounts = _accounts(name, table, outages)
        self._cards[name] = replace(card, accounts=accounts) if accounts else card
        self._terms[name] = ProviderTerms(cache=_cache(table), latency=_latency(table), outages=outages)
        table.close()

    def _new(self, name: str, table: Table) -> ProviderCard:
        """A provider that nobody has configured: it needs a price, and gets an account."""
        if not table.has("price"):
            mend = f"Add price = {_PRICE_LIKE}"
            known = did_you_mean(name, self._base.providers, otherwise="")
            table.error(None, f"[{table.name}] is not configured and has no price.", f"{mend}. {known}".strip())
        account = Account(provider=name, name="main")
        return ProviderCard(name=name, dialect="openai", base_url="", accounts=(account,))

    def _price(self, name: str, table: Table) -> Price | None:
        inner = table.table("price", like=_PRICE_LIKE)
        if inner is None:
            return None
        miss, hit, output = (
            inner.amount("input", required=True),
            inner.amount("cached_input"),
            inner.amount("output", required=True),
        )
        write = read_cache_write(inner)
        are_likely = check_amounts(inner, miss, hit, output, confirmed=inner.flag("confirmed"))
        inner.close()
        if miss is None or output is None or not are_likely:
            return None
        return Price(
            provider=name,
            model=self._model.name,
            effective_from=_ALWAYS,
            input=miss,
            cached_input=hit,
            output=output,
            cache_write=write,
        )


def _accounts(provider: str, table: Table, outages: dict[str | None, Outages]) -> tuple[Account, ...]:
    found: dict[str, Account] = {}
    for item in table.items("accounts"):
        name = item.text("name", like="main", required=True) or ""
        if name in found:
            item.error("name", f"{provider} has two accounts named {quoted(name)}.", "Give each its own name.")
        found[name] = Account(
            provider=provider,
            name=name,
            rpm=item.count("rpm", like="500"),
            tpm=item.count("tpm", like="3_000_000"),
            concurrency=item.count("concurrency", like="100"),
        )
        outages[name] = _outages(item)
        item.close()
    return tuple(found.values())


def _outages(table: Table) -> Outages:
    if not table.holds_table("outages"):
        return table.intervals("outages", like=_OUTAGES_LIKE)
    inner = table.table("outages", like="{ share = 0.1, mean_seconds = 60, seed = 1 }")
    assert inner is not None
    bursts = Bursts(
        share=inner.share("share", default=0.0, like="0.1"),
        mean_seconds=inner.seconds("mean_seconds", default=60.0),
        seed=inner.count("seed", like="1") or 0,
    )
    inner.close()
    return bursts if bursts.share else ()


def _cache(table: Table) -> CacheTerms:
    inner = table.table("cache", like="{ ttl_seconds = 600, ignored = 0.05 }")
    usual = CacheTerms()
    if inner is None:
        return usual
    ignored = inner.share("ignored", default=usual.ignored_ppm / PARTS_PER_MILLION, like="0.05")
    terms = CacheTerms(
        ttl_seconds=inner.seconds("ttl_seconds", default=usual.ttl_seconds),
        capacity_tokens=inner.count("capacity_tokens", like="50_000_000"),
        ignored_ppm=round(ignored * PARTS_PER_MILLION),
        block_tokens=inner.count("block_tokens", like="512") or usual.block_tokens,
    )
    inner.close()
    return terms


def _latency(table: Table) -> Latency:
    inner = table.table("latency", like="{ first_token_seconds = 0.5 }")
    usual = Latency()
    if inner is None:
        return usual
    terms = Latency(
        first_token_seconds=inner.seconds("first_token_seconds", default=usual.first_token_seconds),
        prefill_tokens_per_second=inner.count("prefill_tokens_per_second", like="12_000")
        or usual.prefill_tokens_per_second,
        output_tokens_per_second=inner.count("output_tokens_per_second", like="45") or usual.output_tokens_per_second,
    )
    inner.close()
    return terms


def _error(file: str, message: str, mend: str) -> Finding:
    return Finding(level="error", file=file, line=1, message=message, mend=mend)
