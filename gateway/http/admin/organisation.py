"""`/admin/organisation`: its name, and the time zone in which days and budgets begin."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get, patch
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from gateway.core.organisation import organisation_json
from gateway.http.admin.answers import changed, stored
from gateway.http.admin.guards import readers, who, writers
from gateway.http.services import Services

Asked = Request[Any, Any, Any]


class OrganisationUpdate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of ``PATCH /admin/organisation``: what is left out stays. ``time_zone`` is an IANA name."""

    name: str | None = None
    time_zone: str | None = None


def organisation_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route of ``/admin/organisation``."""
    store = services.administration.organisation

    @get("/organisation", summary="Show the organisation", guards=readers(services, tenants=False))
    async def show_organisation() -> dict[str, object]:
        return organisation_json(await stored(store.show()))

    @patch("/organisation", summary="Change the organisation", guards=writers(services, tenants=False))
    async def update_organisation(request: Asked, data: JSONBody[OrganisationUpdate]) -> dict[str, object]:
        updating = store.update(name=data.name, time_zone=data.time_zone, by=who(request))
        return organisation_json(await changed(services, updating))

    return [show_organisation, update_organisation]
