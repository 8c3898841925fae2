"""`/admin/budgets`: limits of money for keys, teams and the organisation, one for each period."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, JSONBody, QueryParameter

from gateway.core.budget import ALERT_AT, BudgetMode, OnOutage, Period
from gateway.core.budget_terms import BudgetRecord, budget_json, check_budget, scope_of
from gateway.core.fields import check_choice
from gateway.http.admin.answers import FLUSH_SECONDS, PAGE_MAX, changed, checked, found, invalid, page, stored
from gateway.http.admin.guards import readers, who, writers
from gateway.http.services import Services

Asked = Request[Any, Any, Any]


class BudgetBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``PUT /admin/budgets``: one of ``key``, ``team`` and ``organisation``; ``limit`` is a decimal string
    of USD, ``alert_at`` whole percentages."""

    key: str | None = None
    team: str | None = None
    organisation: bool = False
    period: str
    limit: str
    mode: str = BudgetMode.STRICT.value
    on_outage: str = OnOutage.REFUSE.value
    alert_at: list[int] = msgspec.field(default_factory=lambda: list(ALERT_AT))


def budget_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route of ``/admin/budgets``."""
    return [_listing(services), *_writing(services)]


def _listing(services: Services) -> HTTPRouteHandler:
    @get("/budgets", summary="List budgets by scope, with what is spent of them", guards=readers(services))
    async def list_budgets(
        request: Asked,
        cursor: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
        key: FromQuery[str | None] = None,
        team: FromQuery[str | None] = None,
        organisation: FromQuery[bool | None] = None,
    ) -> dict[str, object]:
        asked = (key is not None) + (team is not None) + bool(organisation)
        scope = checked(lambda: scope_of(key=key, team=team, organisation=bool(organisation))) if asked else None
        after = None if cursor is None else _place(cursor)
        await services.flush(FLUSH_SECONDS)
        listing = services.administration.budgets.list_budgets(
            after=after, limit=limit + 1, scope=scope, team=who(request).team
        )
        return page(await stored(listing), limit, budget_json, _cursor)

    return list_budgets


def _writing(services: Services) -> list[HTTPRouteHandler]:
    store = services.administration.budgets

    @put("/budgets", summary="Set the budget of a scope and a period", guards=writers(services))
    async def put_budget(request: Asked, data: JSONBody[BudgetBody]) -> dict[str, object]:
        fields = msgspec.structs.asdict(data)
        named = {name: fields.pop(name) for name in ("key", "team", "organisation")}
        terms = checked(lambda: check_budget(scope_of(**named), **fields))
        return budget_json(found(await changed(services, store.put(terms, by=who(request))), terms.scope))

    @delete("/budgets", status_code=200, summary="Remove the budget of a scope and a period", guards=writers(services))
    async def remove_budget(
        request: Asked,
        period: FromQuery[str],
        key: FromQuery[str | None] = None,
        team: FromQuery[str | None] = None,
        organisation: FromQuery[bool | None] = None,
    ) -> dict[str, object]:
        scope = checked(lambda: scope_of(key=key, team=team, organisation=bool(organisation)))
        window = checked(lambda: check_choice("period", period, Period))
        removing = store.remove(scope, window, by=who(request))
        return budget_json(found(await changed(services, removing), f"{scope} per {window.value}"))

    return [put_budget, remove_budget]


def _cursor(record: BudgetRecord) -> str:
    return f"{record.terms.scope}/{record.terms.period.value}"


def _place(cursor: str) -> tuple[str, str]:
    scope, slash, period = cursor.rpartition("/")
    if not slash:
        raise invalid("cursor", "cursor is what next_cursor of the page before says.")
    return scope, period
