"""Who may what is decided before anything else of a request is looked at, by role and by team."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from gateway.core.exchange import Principal, Role
from gateway.core.grants import Administrator, administrator
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.relay import read_headers
from gateway.http.services import Services
from gateway.pipeline.authenticate import authenticate_administrator

_PRINCIPAL: Final = "principal"


def readers(services: Services, *, tenants: bool = True) -> list[Guard]:
    """Lets administrators and finance in; those of a team only where ``tenants`` says so."""
    return _only(services, (Role.ADMIN, Role.FINANCE), tenants=tenants)


def writers(services: Services, *, tenants: bool = True) -> list[Guard]:
    """Lets administrators in; those of a team only where ``tenants`` says so."""
    return _only(services, (Role.ADMIN,), tenants=tenants)


def _only(services: Services, roles: tuple[Role, ...], *, tenants: bool) -> list[Guard]:
    """A guard that raises RefusedError for everybody else, and keeps who it let in for the handler."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        headers = read_headers(connection.scope)
        principal = await authenticate_administrator(
            headers, services.conductor.keys, services.admin_token.get_secret_value()
        )
        if principal.role not in roles:
            wanted = " or ".join(role.value for role in roles)
            raise _refused(f"This needs the role {wanted}; this key's role is {principal.role.value}.")
        if principal.team is not None and not tenants:
            raise _refused(
                f'This is about the whole organisation; this key belongs to the team "{principal.team}" and '
                "administers that team alone."
            )
        connection.state[_PRINCIPAL] = principal

    return [guard]


def who(request: Request[Any, Any, Any]) -> Administrator:
    """Whom the guard let in, with the request's id for the audit."""
    principal: Principal = request.state[_PRINCIPAL]
    return administrator(principal, request_id=request.state.request_id)


def _refused(message: str) -> RefusedError:
    return RefusedError(Refusal(code=RefusalCode.ROLE_NOT_ALLOWED, message=message))
