"""How every provider account is, as operators see it: pure, and without a credential."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Account, ProviderCard
from gateway.core.health import WELL, Health, Subject, failure_probability
from gateway.core.load import UNKNOWN_PACE, Pace
from gateway.core.validity import Validity
from gateway.pipeline.exchange import Configuration
from gateway.pipeline.ports import BalanceTold


def provider_states(
    configuration: Configuration,
    now: datetime,
    *,
    health: Iterable[tuple[Subject, Health]],
    validity: Validity,
    balances: Mapping[tuple[str, str], BalanceTold],
    beliefs: Beliefs,
) -> list[dict[str, object]]:
    """One row for each account, by provider and in the order of its accounts."""
    known = dict(health)
    return [
        {
            "provider": card.name,
            "account": account.name,
            "dialect": card.dialect,
            "base_url": card.base_url,
            "usable": (card.name, account.name) in configuration.usable_accounts,
            "limits": {"rpm": account.rpm, "tpm": account.tpm, "concurrency": account.concurrency},
            "models": sorted(card.deployments),
            "health": _state(known.get(Subject(card.name, account.name, None), WELL), now),
            "breaker": [_breaker(known, card, account, model, now) for model in sorted(card.deployments)],
            "tool_calls": _tool_calls(validity, card, now.timestamp()),
            "balance": _balance(balances.get((card.name, account.name))),
            "cache_hit_rate": _rounded(beliefs.cached_share((card.name, account.name))),
            "pace": _pace(beliefs.pace.get((card.name, account.name))),
            "out": [
                _out(subject, each, now)
                for subject, each in known.items()
                if each.out_until is not None
                and subject.provider == card.name
                and subject.account in (None, account.name)
            ],
        }
        for _, card in sorted(configuration.catalogue.providers.items())
        for account in card.accounts
    ]


def _state(health: Health, now: datetime) -> str:
    if health.is_out(now):
        return "out"
    return "awaits a probe" if health.awaits_probe(now) else "healthy"


def _breaker(
    known: Mapping[Subject, Health], card: ProviderCard, account: Account, model: str, now: datetime
) -> dict[str, object]:
    """The circuit of an account and a model: ``open`` for a while, ``half_open`` until one request has proved it."""
    circuit = known.get(Subject(card.name, account.name, model), WELL)
    return {
        "model": model,
        "state": {"out": "open", "awaits a probe": "half_open"}.get(_state(circuit, now), "closed"),
        "failure_probability": round(failure_probability(circuit, now), 4),
        "billed_share_of_failures": round(circuit.billed_share, 4),
        "consecutive_failures": circuit.consecutive_failures,
    }


def _out(subject: Subject, health: Health, now: datetime) -> dict[str, object]:
    return {
        "model": subject.model,
        "reason": None if health.kind is None else health.kind.value,
        "since": _moment(health.out_since),
        "until": _moment(health.out_until),
        "state": _state(health, now),
        "times_out": health.times_out,
        "probe_under_way": health.probe_in_flight(now),
        "last_probe": None
        if health.free_probe_at is None
        else {"at": _moment(health.free_probe_at), "ok": health.free_probe},
    }


def _balance(told: BalanceTold | None) -> dict[str, object] | None:
    """What the provider last said is left, as a decimal string; None where it does not say."""
    if told is None:
        return None
    return {
        "available": format(told.available, "f"),
        "unit": told.unit,
        "at": _moment(datetime.fromtimestamp(told.at, UTC)),
    }


def _pace(pace: Pace | None) -> dict[str, object] | None:
    """None where it has answered nothing yet; no time to a first chunk where all of its answers were whole bodies."""
    if pace is None:
        return None
    is_known = pace.first_chunk_seconds != UNKNOWN_PACE.first_chunk_seconds
    return {
        "first_chunk_seconds": round(pace.first_chunk_seconds, 3) if is_known else None,
        "tokens_per_second": round(pace.tokens_per_second, 1),
    }


def _tool_calls(validity: Validity, card: ProviderCard, now: float) -> dict[str, object]:
    """By model: what the tool-call answers of late weigh, the share of them that was right, and their faults."""
    found: dict[str, object] = {}
    for model in sorted(card.deployments):
        standing = validity.of(card.name, model, now)
        if standing.valid_share is not None:
            found[model] = {
                "checked": round(standing.checked, 1),
                "valid_share": round(standing.valid_share, 4),
                "faults": {fault.value: round(weight, 1) for fault, weight in sorted(standing.faults.items())},
            }
    return found


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
