"""`/admin/teams`: what a team's keys share, what each has unless it says otherwise, and the most of each."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from gateway.core.teams import check_team, team_change, team_json
from gateway.http.admin.answers import FLUSH_SECONDS, PAGE_MAX, changed, checked, found, given, page, stored
from gateway.http.admin.guards import readers, who, writers
from gateway.http.services import Services

Asked = Request[Any, Any, Any]
Unset = msgspec.UnsetType


class NewTeam(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /admin/teams``. ``rpm``, ``tpm`` and ``concurrency`` are shared by all of its keys."""

    name: str
    models: list[str] | None = None
    providers: list[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    key_default_rpm: int | None = None
    key_default_tpm: int | None = None
    key_default_concurrency: int | None = None
    key_max_rpm: int | None = None
    key_max_tpm: int | None = None
    key_max_concurrency: int | None = None
    budget: str | None = None
    period: str | None = None
    budget_mode: str | None = None
    tags: dict[str, str] = {}


class TeamUpdate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``PATCH /admin/teams/{name}``: what is left out stays, null clears."""

    models: list[str] | Unset | None = msgspec.UNSET
    providers: list[str] | Unset | None = msgspec.UNSET
    rpm: int | Unset | None = msgspec.UNSET
    tpm: int | Unset | None = msgspec.UNSET
    concurrency: int | Unset | None = msgspec.UNSET
    key_default_rpm: int | Unset | None = msgspec.UNSET
    key_default_tpm: int | Unset | None = msgspec.UNSET
    key_default_concurrency: int | Unset | None = msgspec.UNSET
    key_max_rpm: int | Unset | None = msgspec.UNSET
    key_max_tpm: int | Unset | None = msgspec.UNSET
    key_max_concurrency: int | Unset | None = msgspec.UNSET
    budget: str | Unset | None = msgspec.UNSET
    period: str | Unset | None = msgspec.UNSET
    budget_mode: str | Unset | None = msgspec.UNSET
    tags: dict[str, str] | Unset | None = msgspec.UNSET


def team_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route below ``/admin/teams``."""
    return [*_reading(services), *_writing(services)]


def _reading(services: Services) -> list[HTTPRouteHandler]:
    store = services.administration.teams

    @get("/teams", summary="List teams, by name", guards=readers(services))
    async def list_teams(
        request: Asked,
        cursor: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
    ) -> dict[str, object]:
        tenant = who(request).team
        if tenant is not None:
            own = await stored(store.show(tenant)) if cursor is None else None
            return {"data": [] if own is None else [team_json(own)], "next_cursor": None}
        records = await stored(store.list_teams(after=cursor, limit=limit + 1))
        return page(records, limit, team_json, lambda record: record.terms.name)

    @get("/teams/{name:path}", summary="Show a team and what is spent of its budgets", guards=readers(services))
    async def show_team(request: Asked, name: FromPath[str]) -> dict[str, object]:
        asked = name.removeprefix("/")
        is_hidden = who(request).team not in (None, asked)
        await services.flush(FLUSH_SECONDS)
        return team_json(found(None if is_hidden else await stored(store.show(asked)), asked))

    return [list_teams, show_team]


def _writing(services: Services) -> list[HTTPRouteHandler]:
    store = services.administration.teams

    @post("/teams", status_code=201, summary="Create a team", guards=writers(services, tenants=False))
    async def create_team(request: Asked, data: JSONBody[NewTeam]) -> dict[str, object]:
        catalogue = services.conductor.configuration.catalogue
        terms = checked(lambda: check_team(catalogue, **msgspec.structs.asdict(data)))
        return team_json(await changed(services, store.create(terms, by=who(request))))

    @patch("/teams/{name:path}", summary="Change a team; null clears a field", guards=writers(services))
    async def update_team(request: Asked, name: FromPath[str], data: JSONBody[TeamUpdate]) -> dict[str, object]:
        catalogue = services.conductor.configuration.catalogue
        make = checked(lambda: team_change(catalogue, **given(data)))
        asked = name.removeprefix("/")
        return team_json(found(await changed(services, store.update(asked, make, by=who(request))), asked))

    return [create_team, update_team]
