"""The admin API: JSON, one rule for who may what, lists by cursor, money as decimal strings and streamed.

``admin`` may everything; ``finance`` may read money; nobody else may anything here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.types import Guard

from gateway.core import api_key
from gateway.core.exchange import Role
from gateway.core.keys import FieldError, KeyGrant, KeyRecord, check_grant, parse_grace
from gateway.core.pricing import Price
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.books import MEDIA_TYPES, Form, Row, period, render_ledger, render_report
from gateway.http.relay import read_headers
from gateway.http.services import BadConfigurationError, Services
from gateway.pipeline.authenticate import authenticate_administrator
from gateway.pipeline.ports import StoreUnavailableError

SECRET_BYTES: Final = 32
FLUSH_SECONDS: Final = 5.0
"""Money is read after what is durable has reached the database, or after this long."""
ESTIMATES_AS_NUMBERS: Final = msgspec.json.Encoder(decimal_format="number")
"""A plan's estimates are JSON numbers, as in ``/v1/route``; amounts of the ledger are decimal strings."""
PAGE_MAX: Final = 1_000

T = TypeVar("T")


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
    expires: str | None = None
    tags: dict[str, str] = {}


class Rotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /admin/keys/{id}/rotate``."""

    grace: str = "0s"


def admin_routes(services: Services) -> list[Router]:
    """Everything below ``/admin``."""
    handlers = [*_key_routes(services), *_money_routes(services), *_operations_routes(services)]
    return [Router("/admin", route_handlers=handlers, tags=["administration"])]


def only(services: Services, *roles: Role) -> list[Guard]:
    """A guard that lets these roles in, before anything else of a request is looked at; it raises RefusedError."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        headers = read_headers(connection.scope)
        principal = await authenticate_administrator(
            headers, services.conductor.keys, services.admin_token.get_secret_value()
        )
        if principal.role not in roles:
            wanted = " or ".join(role.value for role in roles)
            raise RefusedError(
                Refusal(
                    code=RefusalCode.ROLE_NOT_ALLOWED,
                    message=f"This needs the role {wanted}; this key's role is {principal.role.value}.",
                )
            )

    return [guard]


def _key_routes(services: Services) -> list[HTTPRouteHandler]:
    readers = only(services, Role.ADMIN, Role.FINANCE)
    writers = only(services, Role.ADMIN)

    @post("/keys", status_code=201, summary="Create a virtual key; its secret is in the answer, once", guards=writers)
    async def create_key(data: JSONBody[NewKey]) -> dict[str, object]:
        grant = grant_of(data, services)
        secret = api_key.new_secret(os.urandom(SECRET_BYTES))
        record, team_created = await _stored(
            services.keys.create(grant, digest=api_key.digest(secret), hint=api_key.hint(secret))
        )
        return {"id": record.key_id, "key": secret, **key_json(record), "team_created": team_created}

    @get("/keys", summary="List virtual keys, by id", guards=readers)
    async def list_keys(
        cursor: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
        team: FromQuery[str | None] = None,
    ) -> dict[str, object]:
        found = await _stored(services.keys.list_keys(after=cursor, limit=limit + 1, team=team))
        page = found[:limit]
        following = page[-1].key_id if len(found) > limit else None
        return {"data": [key_json(record) for record in page], "next_cursor": following}

    @get("/keys/{key_id:str}", summary="Show a virtual key", guards=readers)
    async def show_key(key_id: FromPath[str]) -> dict[str, object]:
        return key_json(_found(await _stored(services.keys.show(key_id)), key_id))

    @delete("/keys/{key_id:str}", status_code=200, summary="Revoke a virtual key", guards=writers)
    async def revoke_key(key_id: FromPath[str]) -> dict[str, object]:
        record = _found(await _stored(services.keys.revoke(key_id)), key_id)
        await _made_known(services)
        return key_json(record)

    @post(
        "/keys/{key_id:str}/rotate",
        status_code=200,
        summary="Give a key a new secret; the old one ends after grace",
        guards=writers,
    )
    async def rotate_key(key_id: FromPath[str], data: JSONBody[Rotation | None] = None) -> dict[str, object]:
        try:
            grace = parse_grace((data or Rotation()).grace)
        except ValueError as error:
            raise invalid("grace", str(error)) from None
        secret = api_key.new_secret(os.urandom(SECRET_BYTES))
        rotated = services.keys.rotate(key_id, digest=api_key.digest(secret), hint=api_key.hint(secret), grace=grace)
        record = _found(await _stored(rotated), key_id)
        await _made_known(services)
        return {"id": record.key_id, "key": secret, **key_json(record)}

    return [create_key, list_keys, show_key, revoke_key, rotate_key]


def _money_routes(services: Services) -> list[HTTPRouteHandler]:
    readers = only(services, Role.ADMIN, Role.FINANCE)

    @get("/ledger", summary="Every upstream attempt of a period, one a line", guards=readers)
    async def ledger(
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        tz: FromQuery[str] = "UTC",
        format_: Annotated[Form, QueryParameter(name="format")] = "jsonl",
    ) -> Stream:
        start, end = _period(from_, to, tz, now=services.conductor.clock.now())
        await services.flush(FLUSH_SECONDS)
        rows = services.reports.ledger(start, end)
        first = await _stored(_first(rows))
        return Stream(render_ledger(first, rows, format_), media_type=MEDIA_TYPES[format_])

    @get("/reports/spend", summary="Spend by any mix of groups", guards=readers)
    async def spend(
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        group_by: FromQuery[str] = "key",
        tz: FromQuery[str] = "UTC",
        format_: Annotated[Form, QueryParameter(name="format")] = "json",
    ) -> Response[bytes]:
        start, end = _period(from_, to, tz, now=services.conductor.clock.now())
        await services.flush(FLUSH_SECONDS)
        groups = [group.strip() for group in group_by.split(",") if group.strip()]
        try:
            columns = services.reports.columns(groups)
        except ValueError as error:
            raise invalid("group_by", f"{error}.") from None
        report = await _stored(services.reports.spend(start, end, group_by=groups, timezone=tz))
        return Response(render_report(report, columns, format_), media_type=MEDIA_TYPES[format_])

    @get(
        "/requests/{request_id:str}",
        summary="One request explained: candidates, attempts, every line of its cost",
        guards=readers,
    )
    async def explain(request_id: FromPath[str]) -> Response[bytes]:
        await services.flush(FLUSH_SECONDS)
        found = _found(await _stored(services.reports.explain(request_id)), request_id)
        return Response(ESTIMATES_AS_NUMBERS.encode(found), media_type=MEDIA_TYPES["json"])

    return [ledger, spend, explain]


def _operations_routes(services: Services) -> list[HTTPRouteHandler]:
    readers = only(services, Role.ADMIN, Role.FINANCE)
    writers = only(services, Role.ADMIN)

    @get("/providers", summary="Every provider account: limits, credential, health", guards=readers)
    async def providers() -> dict[str, object]:
        return {"data": services.provider_states()}

    @get("/prices", summary="Every price row, in USD per 1,000,000 tokens", guards=readers)
    async def prices() -> dict[str, object]:
        return {"data": [price_json(row) for row in services.conductor.configuration.catalogue.prices.rows()]}

    @post(
        "/config/reload",
        status_code=200,
        summary="Read the configuration again; a bad one changes nothing",
        guards=writers,
    )
    async def reload() -> dict[str, object]:
        try:
            return await services.reload()
        except BadConfigurationError as error:
            raise invalid(None, str(error)) from None

    return [providers, prices, reload]


def grant_of(data: NewKey, services: Services) -> KeyGrant:
    """A checked grant. Raises RefusedError naming the field."""
    try:
        return check_grant(services.conductor.configuration.catalogue, **msgspec.structs.asdict(data))
    except FieldError as error:
        raise invalid(error.field, str(error)) from None


def _period(start: str | None, end: str | None, tz: str, *, now: datetime) -> tuple[datetime, datetime]:
    """The period that is asked for. Raises RefusedError naming the parameter."""
    try:
        return period(start, end, tz, now=now)
    except FieldError as error:
        raise invalid(error.field, str(error)) from None


def key_json(record: KeyRecord) -> dict[str, object]:
    """A key under the interface's names."""
    grant = record.grant
    return {
        "id": record.key_id,
        "name": grant.name,
        "team": grant.team,
        "role": grant.role.value,
        "models": grant.models,
        "providers": grant.providers,
        "rpm": grant.rpm,
        "tpm": grant.tpm,
        "concurrency": grant.concurrency,
        "budget": None if grant.budget is None else str(grant.budget),
        "period": None if grant.period is None else grant.period.value,
        "expires": None if grant.expires_at is None else grant.expires_at.isoformat(),
        "tags": dict(grant.tags),
        "hint": f"…{record.hint}",
        "created_at": record.created_at.isoformat(),
        "revoked_at": None if record.revoked_at is None else record.revoked_at.isoformat(),
    }


def price_json(row: Price) -> dict[str, object]:
    """A price row; amounts are decimal strings in USD per 1,000,000 tokens."""
    write = row.cache_write
    return {
        "price_id": row.price_id,
        "provider": row.provider,
        "model": row.model,
        "effective_from": row.effective_from.isoformat(),
        "input": str(row.input),
        "cached_input": None if row.cached_input is None else str(row.cached_input),
        "cache_write": None if write is None else {ttl: str(unit) for ttl, unit in write.items()},
        "output": str(row.output),
        "source": row.source,
        "checked_at": None if row.checked_at is None else row.checked_at.isoformat(),
    }


def invalid(param: str | None, message: str) -> RefusedError:
    return RefusedError(Refusal(code=RefusalCode.INVALID_REQUEST, message=message, param=param))


async def _first(rows: AsyncIterator[Row]) -> Row | None:
    """The first row, so that a store that is away is told as a status and not in the middle of a body."""
    return await anext(rows, None)


async def _stored(answer: Awaitable[T]) -> T:
    """What the store answers, or 503 while it is away."""
    try:
        return await answer
    except StoreUnavailableError:
        raise RefusedError(
            Refusal(
                code=RefusalCode.STORE_UNAVAILABLE,
                message="The database is away just now; nothing is lost. Try again shortly.",
                retry_after=5,
            )
        ) from None


async def _made_known(services: Services) -> None:
    """This worker knows of a change at once; the others look twice a second, and so does this one if it fails here."""
    with contextlib.suppress(StoreUnavailableError):
        await services.keys_changed()


def _found(answer: T | None, name: str) -> T:
    if answer is None:
        raise RefusedError(Refusal(code=RefusalCode.NOT_FOUND, message=f"There is no {name!r} here."))
    return answer
