"""`/admin/providers`, `/admin/prices` and `/admin/config`: what the gateway runs with, and reading it again."""

from __future__ import annotations

from typing import Any

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.http.admin.answers import invalid
from gateway.http.admin.guards import readers, who, writers
from gateway.http.explained import price_json
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
        rows = services.conductor.configuration.catalogue.prices.rows()
        names = ("price_id", "provider", "model")
        return {"data": [{name: getattr(row, name) for name in names} | price_json(row) for row in rows]}

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
