"""Nobody grants more than they have, and nobody more than the team allows its keys.

Who asks for more learns the field, what was asked, and what is allowed. An administrator with a team is a tenant:
other teams do not exist for it, and what binds its own team it may only tighten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from gateway.core.budget import BudgetMode, scope_of_key
from gateway.core.budget_terms import BudgetTerms
from gateway.core.exchange import Principal, Role
from gateway.core.fields import FieldError
from gateway.core.keys import KeyGrant
from gateway.core.limits import NO_LIMITS
from gateway.core.teams import KEY_CEILINGS, LIMITS, RATES, TeamTerms

_LISTS: Final = ("models", "providers")
_RANK: Final = {Role.INFERENCE: 0, Role.FINANCE: 1, Role.ADMIN: 2}


class NotGrantedError(FieldError):
    """An administrator asked for more than it may grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Administrator:
    """Who administers, and what it may grant at the most; None = no limit. ``actor`` is what the audit calls it."""

    actor: str
    role: Role = Role.ADMIN
    team: str | None = None
    models: frozenset[str] | None = None
    providers: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budgets: tuple[BudgetTerms, ...] = ()
    expires_at: datetime | None = None
    request_id: str | None = None


COMMAND_LINE: Final = Administrator(actor="cli")
"""Whoever has the machine has the bootstrap administrator's rights."""
SIGNAL: Final = Administrator(actor="signal")


def administrator(principal: Principal, *, request_id: str | None = None) -> Administrator:
    """The holder of an administrative key; a budget that refuses nothing is no limit."""
    scope = scope_of_key(principal.key_id)
    own = next((limits for limits in principal.limits if limits.scope == scope), NO_LIMITS)
    budgets = tuple(
        BudgetTerms(scope=each.scope, period=each.period, limit=each.limit, mode=each.mode, on_outage=each.on_outage)
        for each in principal.budgets
        if each.scope == scope and each.mode is not BudgetMode.SOFT
    )
    return Administrator(
        actor=principal.key_id,
        role=principal.role,
        team=principal.team,
        models=principal.models,
        providers=principal.providers,
        rpm=own.rpm,
        tpm=own.tpm,
        concurrency=own.concurrency,
        budgets=budgets,
        expires_at=principal.expires_at,
        request_id=request_id,
    )


def placed(by: Administrator, grant: KeyGrant) -> KeyGrant:
    """The grant in the tenant of who makes it. Raises NotGrantedError for another team."""
    if by.team is None or grant.team == by.team:
        return grant
    if grant.team is not None:
        raise NotGrantedError("team", f'team: "{grant.team}" was asked for; this key grants only in "{by.team}".')
    return replace(grant, team=by.team)


def check_key(by: Administrator, grant: KeyGrant, team: TeamTerms | None, *, before: KeyGrant | None = None) -> None:
    """Refuses a grant beyond the team's ceilings or the grantor's own rights. Of an update only what it changes is
    looked at. Raises FieldError or NotGrantedError."""
    changed = _changed(grant, before)
    if team is not None:
        _check_ceilings(grant, team, changed)
    if _RANK[grant.role] > _RANK[by.role]:
        raise NotGrantedError("role", f"role: {grant.role.value} was asked for; your own is {by.role.value}.")
    effective = grant if team is None else within(grant, team)
    _check_own(by, effective, [name for name in (*_LISTS, *RATES) if name in changed])
    if "expires_at" in changed and by.expires_at is not None:
        asked = grant.expires_at
        if asked is None or asked > by.expires_at:
            shown = None if asked is None else asked.isoformat()
            raise _too_much("expires", shown, f"your own key ends {by.expires_at.isoformat()}")


def check_team_terms(by: Administrator, terms: TeamTerms, before: TeamTerms | None) -> None:
    """Refuses to loosen what binds a team beyond the grantor's own rights, and at all to who belongs to it. A new
    team's silence grants nothing: every key in it is looked at. Raises NotGrantedError."""
    for name in (*_LISTS, *LIMITS):
        asked, was = getattr(terms, name), None if before is None else getattr(before, name)
        if asked == was or _is_no_more(asked, was):
            continue
        if by.team is not None:
            raise _too_much(name, _shown(asked), f"whoever belongs to the team may lower it from {_shown(was)}")
        _check_own(by, terms, [name])


def check_spending(by: Administrator, budgets: Collection[BudgetTerms]) -> None:
    """Refuses a key that may spend more than its grantor. Raises NotGrantedError."""
    for own in by.budgets:
        if not any(terms.keeps(own) for terms in budgets):
            raise _too_much("budget", _listed(budgets), f"your own key spends at most {own}")


def check_budgets(by: Administrator, after: Collection[BudgetTerms], before: Collection[BudgetTerms]) -> None:
    """Refuses to loosen a scope's budgets beyond the grantor's own, and at all to who belongs to the team whose they
    are. Tightening is free. Raises NotGrantedError."""
    now = {terms.period: terms for terms in after}
    if all(was.period in now and now[was.period].is_no_looser_than(was) for was in before):
        return
    if by.team is not None and any(terms.team == by.team for terms in before):
        raise _too_much("budget", _listed(after), f"whoever belongs to the team may only lower {_listed(before)}")
    check_spending(by, after)


def within(grant: KeyGrant, team: TeamTerms) -> KeyGrant:
    """What a grant comes to in its team: what it does not say is the team's default or, without one, its ceiling."""
    return replace(
        grant,
        models=_common(grant.models, team.models),
        providers=_common(grant.providers, team.providers),
        rpm=_rate_within(grant.rpm, team.key_default_rpm, team.key_max_rpm),
        tpm=_rate_within(grant.tpm, team.key_default_tpm, team.key_max_tpm),
        concurrency=_rate_within(grant.concurrency, team.key_default_concurrency, team.key_max_concurrency),
    )


def _common(own: Sequence[str] | None, team: Sequence[str] | None) -> tuple[str, ...] | None:
    if own is None or team is None:
        allowed = own if team is None else team
        return None if allowed is None else tuple(allowed)
    return tuple(name for name in own if name in team)


def _rate_within(own: int | None, default: int | None, ceiling: int | None) -> int | None:
    said = default if own is None else own
    return min((limit for limit in (said, ceiling) if limit is not None), default=None)


def _changed(grant: KeyGrant, before: KeyGrant | None) -> frozenset[str]:
    names = (*_LISTS, *RATES, "expires_at")
    return frozenset(name for name in names if before is None or getattr(grant, name) != getattr(before, name))


def _check_ceilings(grant: KeyGrant, team: TeamTerms, changed: Collection[str]) -> None:
    """What a grant says of itself, beside what its team allows. Saying nothing is never too much."""
    allows = {**{name: name for name in _LISTS}, **dict(zip(RATES, KEY_CEILINGS, strict=True))}
    for name, ceiling in allows.items():
        asked, most = getattr(grant, name), getattr(team, ceiling)
        if name in changed and asked is not None and not _is_no_more(asked, most):
            allowed = f'the team "{team.name}" allows its keys at most {_shown(most)}'
            raise FieldError(name, f"{name}: {_shown(asked)} was asked for; {allowed}.")


def _check_own(by: Administrator, asked: KeyGrant | TeamTerms, names: Iterable[str]) -> None:
    for name in names:
        value, own = getattr(asked, name), getattr(by, name.removeprefix("key_default_").removeprefix("key_max_"))
        if not _is_no_more(value, own):
            raise _too_much(name, _shown(value), f"your own key has {_shown(own)}")


def _is_no_more(asked: Any, most: Any) -> bool:
    """Of two limits, or two lists of names; None is all there is."""
    if most is None or asked is None:
        return most is None
    return asked <= most if isinstance(asked, int) else set(asked) <= set(most)


def _shown(value: Any) -> str:
    if value is None:
        return "no limit"
    return str(value) if isinstance(value, int) else ", ".join(sorted(value))


def _listed(budgets: Iterable[BudgetTerms]) -> str:
    return " and ".join(str(terms) for terms in budgets) or "no budget"


def _too_much(field: str, asked: str | None, allowed: str) -> NotGrantedError:
    return NotGrantedError(field, f"{field}: {asked or 'no limit'} was asked for; {allowed}.")
