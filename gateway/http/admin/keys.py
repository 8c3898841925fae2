"""`/admin/keys`: virtual keys. A secret is in an answer once, when it is made."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from gateway.core import api_key
from gateway.core.fields import parse_grace
from gateway.core.keys import check_grant, key_change, key_json
from gateway.http.admin.answers import FLUSH_SECONDS, PAGE_MAX, changed, checked, found, given, invalid, page, stored
from gateway.http.admin.guards import readers, who, writers
from gateway.http.services import Services

SECRET_BYTES: Final = 32
Asked = Request[Any, Any, Any]
Unset = msgspec.UnsetType


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /admin/keys``. ``budget`` is a decimal string of USD, ``expires`` a date or a moment."""

    name: str
    team: str | None = None
    role: str = "inference"
    models: list[str] | None = None
    providers: list[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: str | None = None
    period: str | None = None
    budget_mode: str | None = None
    expires: str | None = None
    tags: dict[str, str] = {}


class KeyUpdate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``PATCH /admin/keys/{id}``: what is left out stays, null clears."""

    name: str | Unset = msgspec.UNSET
    models: list[str] | Unset | None = msgspec.UNSET
    providers: list[str] | Unset | None = msgspec.UNSET
    rpm: int | Unset | None = msgspec.UNSET
    tpm: int | Unset | None = msgspec.UNSET
    concurrency: int | Unset | None = msgspec.UNSET
    budget: str | Unset | None = msgspec.UNSET
    period: str | Unset | None = msgspec.UNSET
    budget_mode: str | Unset | None = msgspec.UNSET
    expires: str | Unset | None = msgspec.UNSET
    tags: dict[str, str] | Unset | None = msgspec.UNSET


class Rotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /admin/keys/{id}/rotate``."""

    grace: str = "0s"


def key_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route below ``/admin/keys``."""
    return [*_reading(services), *_writing(services), _rotating(services)]


def _reading(services: Services) -> list[HTTPRouteHandler]:
    store = services.administration.keys

    @get("/keys", summary="List virtual keys, by id", guards=readers(services))
    async def list_keys(
        request: Asked,
        cursor: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
        team: FromQuery[str | None] = None,
    ) -> dict[str, object]:
        tenant = who(request).team
        if tenant is not None and team not in (None, tenant):
            return {"data": [], "next_cursor": None}
        records = await stored(store.list_keys(after=cursor, limit=limit + 1, team=tenant or team))
        return page(records, limit, key_json, lambda record: record.key_id)

    @get("/keys/{key_id:str}", summary="Show a virtual key and what is spent of its budgets", guards=readers(services))
    async def show_key(request: Asked, key_id: FromPath[str]) -> dict[str, object]:
        await services.flush(FLUSH_SECONDS)
        return key_json(found(await stored(store.show(key_id, team=who(request).team)), key_id))

    return [list_keys, show_key]


def _writing(services: Services) -> list[HTTPRouteHandler]:
    store = services.administration.keys

    @post(
        "/keys",
        status_code=201,
        summary="Create a virtual key; its secret is in the answer, once",
        guards=writers(services),
    )
    async def create_key(request: Asked, data: JSONBody[NewKey]) -> dict[str, object]:
        catalogue = services.conductor.configuration.catalogue
        grant = checked(lambda: check_grant(catalogue, **msgspec.structs.asdict(data)))
        secret, digest, hint = new_secret()
        creating = store.create(grant, digest=digest, hint=hint, by=who(request))
        record, team_created = await changed(services, creating)
        return {"id": record.key_id, "key": secret, **key_json(record), "team_created": team_created}

    @patch("/keys/{key_id:str}", summary="Change a virtual key; null clears a field", guards=writers(services))
    async def update_key(request: Asked, key_id: FromPath[str], data: JSONBody[KeyUpdate]) -> dict[str, object]:
        catalogue = services.conductor.configuration.catalogue
        make = checked(lambda: key_change(catalogue, **given(data)))
        return key_json(found(await changed(services, store.update(key_id, make, by=who(request))), key_id))

    @delete("/keys/{key_id:str}", status_code=200, summary="Revoke a virtual key", guards=writers(services))
    async def revoke_key(request: Asked, key_id: FromPath[str]) -> dict[str, object]:
        return key_json(found(await changed(services, store.revoke(key_id, by=who(request))), key_id))

    return [create_key, update_key, revoke_key]


def _rotating(services: Services) -> HTTPRouteHandler:
    @post(
        "/keys/{key_id:str}/rotate",
        status_code=200,
        summary="Give a key a new secret; the old one ends after grace",
        guards=writers(services),
    )
    async def rotate_key(
        request: Asked, key_id: FromPath[str], data: JSONBody[Rotation | None] = None
    ) -> dict[str, object]:
        try:
            grace = parse_grace((data or Rotation()).grace)
        except ValueError as error:
            raise invalid("grace", str(error)) from None
        secret, digest, hint = new_secret()
        rotating = services.administration.keys.rotate(key_id, digest=digest, hint=hint, grace=grace, by=who(request))
        record = found(await changed(services, rotating), key_id)
        return {"id": record.key_id, "key": secret, **key_json(record)}

    return rotate_key


def new_secret() -> tuple[str, bytes, str]:
    """A fresh secret, its digest, and the end of it that may be shown."""
    secret = api_key.new_secret(os.urandom(SECRET_BYTES))
    return secret, api_key.digest(secret), api_key.hint(secret)
