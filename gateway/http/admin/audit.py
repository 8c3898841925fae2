"""`/admin/audit`: who changed what, newest first."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter

from gateway.core.audit import entry_json
from gateway.http.admin.answers import PAGE_MAX, page, stored
from gateway.http.admin.guards import readers, who
from gateway.http.services import Services

ENTRY_ID_MAX = 2**63 - 1


def audit_routes(services: Services) -> list[HTTPRouteHandler]:
    """The one route of ``/admin/audit``."""

    @get("/audit", summary="Who changed what, newest first", guards=readers(services))
    async def audit(
        request: Request[Any, Any, Any],
        cursor: Annotated[int | None, QueryParameter(ge=1, le=ENTRY_ID_MAX)] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 100,
        action: FromQuery[str | None] = None,
        target: FromQuery[str | None] = None,
    ) -> dict[str, object]:
        listing = services.administration.audit.list_entries(
            before=cursor, limit=limit + 1, action=action, target=target, team=who(request).team
        )
        return page(await stored(listing), limit, entry_json, lambda entry: str(entry.entry_id))

    return [audit]
