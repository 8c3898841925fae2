"""The catalogue is the immutable configuration in force: who sells which model, where, for how much, until when.

Plain values; ``gateway.catalog`` reads them from ``config/*.toml``. Secrets are not in here: an account is a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Final

from gateway.core.limits import RateLimits
from gateway.core.pricing import PriceTable

DIALECTS: Final = frozenset({"moonshot", "cometapi", "evolink", "openai"})
"""How a provider's wire may differ; each has a module of its own in ``gateway/providers``."""

CAPABILITIES: Final = frozenset(
    {
        "tools",
        "json_object",
        "json_schema",
        "partial",
        "web_search",
        "images",
        "logprobs",
        "tool_choice_required",
        "thinking",
        "reasoning_effort",
        "prompt_cache_options",
    }
)


class OnClientAbort(StrEnum):
    """What to do with an upstream whose client hung up: close it, or read on to the usage it will bill anyway."""

    CANCEL = "cancel"
    DRAIN = "drain"


class OnModelMismatch(StrEnum):
    """What to do with an answer that names another model than was asked for."""

    FLAG = "flag"
    REJECT = "reject"


class OnRetired(StrEnum):
    """What a retired public model means to a caller: an error, or its successor with a warning."""

    ERROR = "error"
    SUCCESSOR = "successor"


class Policy(StrEnum):
    """How candidates are ordered; ``gateway replay`` compares them. Only the first knows what a cache is worth."""

    EXPECTED_COST = "expected_cost"
    LIST_PRICE = "list_price"
    ROUND_ROBIN = "round_robin"
    STICKY = "sticky"


class Stage(StrEnum):
    """Where in its life a model is at one provider. Only the report of its retirement is not certain."""

    UPCOMING = "upcoming"
    AVAILABLE = "available"
    RETIRING = "retiring"
    REPORTED_RETIRED = "reported_retired"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTerms:
    """What an operator decides about routing. Dollars here only weigh decisions; none of them is ever charged.

    A second of holding a request is worth ``hold_usd_per_second`` (0 = nothing is held), for ``hold_seconds_max`` at
    the most; the time that a failed attempt loses is worth ``failure_usd``. Where fewer of a deployment's tool-call
    answers than the share ``min_tool_call_validity`` are right, requests with tools pass it by (0 = they never do).
    """

    policy: Policy = Policy.EXPECTED_COST
    hold_usd_per_second: float = 0.0
    hold_seconds_max: float = 10.0
    failure_usd: float = 0.001
    min_tool_call_validity: float = 0.0


USUAL_ROUTING: Final = RoutingTerms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines of one upstream call, in seconds. ``idle`` is the longest silence between two chunks."""

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One upstream credential at a provider, with its own limits, cache and balance. None = no limit configured."""

    provider: str
    name: str
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    limits: RateLimits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"{self.provider}/{self.name}"
        limits = RateLimits(
            scope=f"account:{where}", name=where, rpm=self.rpm, tpm=self.tpm, concurrency=self.concurrency
        )
        object.__setattr__(self, "limits", limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model as one provider serves it. ``model`` is the public name, ``upstream`` the provider's own."""

    provider: str
    model: str
    upstream: str
    context: int
    max_output: int
    capabilities: frozenset[str] = frozenset()
    available_from: date | None = None
    available_until: date | None = None
    retirement_reported: date | None = None
    sampling_fixed: bool = False

    def is_available(self, on: date) -> bool:
        """Whether certain lifecycle dates (UTC) allow routing here on that day; reports are not certain."""
        if self.available_from is not None and on < self.available_from:
            return False
        return self.available_until is None or on < self.available_until

    def stage(self, on: date) -> Stage:
        """Where in its life it is on that day (UTC)."""
        if self.available_until is not None and on >= self.available_until:
            return Stage.RETIRED
        if self.available_from is not None and on < self.available_from:
            return Stage.UPCOMING
        if self.retirement_reported is not None and on >= self.retirement_reported:
            return Stage.REPORTED_RETIRED
        return Stage.AVAILABLE if self.available_until is None else Stage.RETIRING


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCard:
    """A provider as data: its dialect, address, deadlines, policies, accounts and deployments.

    ``statement`` are the fields of its StatementMapping that differ from the dialect's.
    """

    name: str
    dialect: str
    base_url: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    balance_url: str | None = None
    on_client_abort: OnClientAbort = OnClientAbort.CANCEL
    on_model_mismatch: OnModelMismatch = OnModelMismatch.FLAG
    accounts: tuple[Account, ...] = ()
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    statement: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A public model name. ``default_max_output`` is sent and held for when the client names no limit."""

    name: str
    aliases: tuple[str, ...] = ()
    successor: str | None = None
    on_retired: OnRetired = OnRetired.ERROR
    default_max_output: int = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Everything in force, with the digest of the files it came from."""

    providers: Mapping[str, ProviderCard]
    models: Mapping[str, Model]
    prices: PriceTable
    digest: str
    loaded_at: datetime
    aliases: Mapping[str, str] = field(default_factory=dict)
    routing: RoutingTerms = USUAL_ROUTING
    _sold: Mapping[str, tuple[tuple[ProviderCard, Deployment], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Every request asks who serves its model."""
        sold: dict[str, list[tuple[ProviderCard, Deployment]]] = {}
        for _, card in sorted(self.providers.items()):
            for model, deployment in card.deployments.items():
                sold.setdefault(model, []).append((card, deployment))
        object.__setattr__(self, "_sold", {model: tuple(found) for model, found in sold.items()})

    def resolve(self, name: str) -> Model | None:
        """The public model that a name or alias means."""
        return self.models.get(self.aliases.get(name, name))

    def deployments(self, model: str) -> tuple[tuple[ProviderCard, Deployment], ...]:
        """Every provider that serves a public model, by provider name."""
        return self._sold.get(model, ())


def last_end(deployments: Iterable[Deployment], on: date) -> date | None:
    """The first day on which none of these is available any more; None where that is not certain, or has passed."""
    last: date | None = None
    for each in deployments:
        end = each.available_until
        if end is None:
            return None
        if end > on and (last is None or end > last):
            last = end
    return last
