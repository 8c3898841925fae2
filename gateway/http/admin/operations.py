"""`/admin/providers`, `/admin/prices` and `/admin/config`: what the gateway runs with, and reading it again."""

from __future__ import annotations

from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.core.pricing import Price
from gateway.http.admin.answers import invalid
from gateway.http.admin.guards import readers, who, writers
from gateway.http.services import BadConfigurationError, Services


def operations_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route about the configuration."""

    @get(
        "/providers",
        summary="Every provider account: limits, credential, health",
        guards=readers(services, tenants=False),
    )
    async def providers() -> dict[str, object]:
        return {"data": services.provider_states()}

    @get("/prices", summary="Every price row, in USD per 1,000,000 tokens", guards=readers(services))
    async def prices() -> dict[str, object]:
        return {"data": [price_json(row) for row in services.conductor.configuration.catalogue.prices.rows()]}

    @post(
        "/config/reload",
        status_code=200,
        summary="Read the configuration again; a bad one changes nothing",
        guards=writers(services, tenants=False),
    )
    async def reload(request: Request[Any, Any, Any]) -> dict[str, object]:
        try:
            return await services.reload(who(request))
        except BadConfigurationError as error:
            raise invalid(None, str(error)) from None

    return [providers, prices, reload]


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
