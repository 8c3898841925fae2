"""An exchange is one client request with its answer, as a chain of immutable values; each stage adds one.

``Principal -> InferenceRequest -> Plan -> Attempt x n -> LedgerEntry``, or a ``Refusal`` before the first attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.core.budget import ORGANISATION, Budget, scope_of_key, scope_of_team
from gateway.core.catalogue import Deployment, Model, Policy
from gateway.core.limits import NO_LIMITS, NO_RATES, RateLimits, RateStates
from gateway.core.money import Money, UnitPrice
from gateway.core.prefix import FIRST_TURN, NO_FINGERPRINT, Fingerprint, Prompt, Turn
from gateway.core.pricing import DEFAULT_CACHE_TTL, Price

NO_TAGS: Final[Mapping[str, str]] = MappingProxyType({})


def no_tags() -> Mapping[str, str]:
    """The tags of whoever has none."""
    return NO_TAGS


ATTEMPTS_MAX: Final = 4
"""Upstream attempts per request at the most; at most one of them per account (INTERFACE §3)."""


class Surface(StrEnum):
    """The client-facing API a request came in by."""

    CHAT_COMPLETIONS = "chat_completions"
    MESSAGES = "messages"
    RESPONSES = "responses"


class Role(StrEnum):
    """What an API key may do: call models, read money, or administer."""

    INFERENCE = "inference"
    FINANCE = "finance"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking, as authenticated. ``models`` and ``providers`` None = all that are configured; ``limits`` and
    ``budgets`` are those of the key, of its team and of the organisation, in this order; days begin at midnight in
    ``time_zone``, the organisation's."""

    key_id: str
    key_name: str
    team: str | None = None
    role: Role = Role.INFERENCE
    models: frozenset[str] | None = None
    providers: frozenset[str] | None = None
    tags: Mapping[str, str] = field(default_factory=no_tags)
    expires_at: datetime | None = None
    limits: tuple[RateLimits, ...] = ()
    budgets: tuple[Budget, ...] = ()
    time_zone: str = "UTC"
    scopes: tuple[str, ...] = field(init=False, compare=False)
    """Whose money this caller spends."""

    def __post_init__(self) -> None:
        own = (scope_of_key(self.key_id),)
        scopes = (*own, ORGANISATION) if self.team is None else (*own, scope_of_team(self.team), ORGANISATION)
        object.__setattr__(self, "scopes", scopes)

    @property
    def tenant(self) -> str:
        """Whose conversations are taken to be alike: the team's, else the key's."""
        return self.team if self.team is not None else self.key_id


class Sort(StrEnum):
    """What ``provider.sort`` may order candidates by."""

    PRICE = "price"
    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPreferences:
    """The request's ``provider`` extension. ``max_*`` are USD per 1,000,000 tokens."""

    order: tuple[str, ...] = ()
    only: frozenset[str] | None = None
    ignore: frozenset[str] = frozenset()
    allow_fallbacks: bool = True
    sort: Sort | None = None
    max_prompt: UnitPrice | None = None
    max_completion: UnitPrice | None = None


NO_PREFERENCES: Final = ProviderPreferences()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A parsed, validated request, free of any dialect.

    ``fields`` are the body's top-level members as raw JSON, gateway extensions removed, aliases already converted.
    ``output_limit`` is the client's own limit, None if it named none; ``needs`` the capabilities it uses;
    ``input_bytes`` the UTF-8 size of what the model will read, and of its ``fingerprint``, which is of no model yet.
    """

    surface: Surface
    model: str
    model_asked: str
    fields: Mapping[str, msgspec.Raw]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    output_limit: int | None = None
    needs: frozenset[str] = frozenset()
    input_bytes: int = 0
    fingerprint: Fingerprint = NO_FINGERPRINT
    preferences: ProviderPreferences = NO_PREFERENCES
    tags: Mapping[str, str] = field(default_factory=no_tags)
    conversation: str | None = None
    cache_ttl: str = DEFAULT_CACHE_TTL
    asks_plan: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that may be planned for, with its model, and its prefixes in tokens."""

    request: InferenceRequest
    model: Model
    prompt: Prompt

    @property
    def input_tokens(self) -> int:
        """The estimate of its input."""
        return self.prompt.tokens[-1]


class CandidateState(StrEnum):
    """A candidate's health as the plan saw it."""

    HEALTHY = "healthy"
    PROBING = "probing"
    EJECTED = "ejected"
    COOLING = "cooling"
    UNROUTABLE = "unroutable"


class Exclusion(StrEnum):
    """What kind of thing speaks against a candidate; the candidate's ``excluded`` says it in words."""

    RIGHTS = "rights"
    PREFERENCE = "preference"
    RETIRED = "retired"
    UNPRICED = "unpriced"
    NO_CREDENTIAL = "no_credential"
    CAPABILITY = "capability"
    CONTEXT = "context"
    GONE = "gone"
    COOLING = "cooling"
    EJECTED = "ejected"
    INVALID_TOOL_CALLS = "invalid_tool_calls"


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Every number that went into a choice, in USD as a float: it orders candidates and is never charged.

    ``matched_tokens`` of the prompt were last used at this account ``matched_age_seconds`` ago and are still cached
    there with ``hit_probability``; with what lies before them that makes ``expected_cached_tokens``. ``request_usd``
    is this request's expected cost with them; ``failure_usd`` what a failure, of ``failure_probability``, would add;
    ``future_usd`` what the conversation's further turns cost if this account holds the cache, another one following
    with ``next_turn_probability``; ``quota_usd`` what the quota it takes is worth to others, at ``utilisation``.
    ``total_usd`` is the sum of the four.
    """

    matched_tokens: int = 0
    matched_age_seconds: float = 0.0
    hit_probability: float = 0.0
    expected_cached_tokens: int = 0
    request_usd: float = 0.0
    failure_probability: float = 0.0
    failure_usd: float = 0.0
    next_turn_probability: float = 0.0
    future_usd: float = 0.0
    utilisation: float = 0.0
    quota_usd: float = 0.0
    total_usd: float = 0.0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One account that could serve a request, what that would cost, and why it is out, if it is.

    ``excluded`` is None for a routable candidate, else the reason in an operator's words; ``limits`` are its account's.
    ``expected_cost`` counts the cache; both it and ``score`` are None where no price is in force.
    """

    provider: str
    account: str
    deployment: Deployment
    price: Price | None
    expected_cost: Money | None
    expected_cached_tokens: int = 0
    state: CandidateState = CandidateState.HEALTHY
    excluded: str | None = None
    exclusion: Exclusion | None = None
    retry_at: datetime | None = None
    output_limit: int = 0
    limits: RateLimits = NO_LIMITS
    score: Score | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Candidates in the order they would be tried, then the excluded ones, by name."""

    model: str
    input_tokens_estimate: int
    output_tokens_estimate: int
    candidates: tuple[Candidate, ...]
    made_at: datetime
    turn: Turn = FIRST_TURN
    policy: Policy = Policy.EXPECTED_COST

    @property
    def routable(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.excluded is None)


class AttemptStatus(StrEnum):
    """How an attempt ended (INTERFACE §4)."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One upstream call: numbered from 1 within its request, priced at the row in force when it started.

    Budgets count it in the window of ``admitted_at``, when its request began; ``held`` is what they hold for all of
    its request, None where no budget does."""

    attempt_id: str
    request_id: str
    number: int
    candidate: Candidate
    price: Price
    started_at: datetime
    output_limit: int
    input_tokens_estimate: int
    admitted_at: datetime
    held: Money | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What is held for a request. ``amount`` is what its budgets hold, None where it falls under none;
    ``output_limit_max`` what the budget ``clamped_by`` has shortened every answer to; ``rates`` the caller's limits
    as they stand."""

    is_held: bool = False
    amount: Money | None = None
    output_limit_max: int | None = None
    clamped_by: Budget | None = None
    rates: RateStates = NO_RATES


NOTHING_RESERVED: Final = Reservation()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen of an upstream's answer: who answered and when, and how it ended."""

    http_status: int | None = None
    served_model: str | None = None
    upstream_request_id: str | None = None
    first_byte_at: datetime | None = None
    finish_reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = field(default=())
