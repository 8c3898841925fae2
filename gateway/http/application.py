"""The Litestar application: routes over the services it is given, and one envelope for every error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from litestar import Litestar, MediaType, Request, Response
from litestar.openapi import OpenAPIConfig
from litestar.types import ControllerRouterHandler

from gateway import __version__
from gateway.http.api import public_routes
from gateway.http.chat import chat_route, dry_run_route
from gateway.http.documents import check_request
from gateway.http.errors import error_handlers
from gateway.http.openapi import WholePage
from gateway.http.relay import BODY_BYTES_MAX
from gateway.http.services import Services

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


def create_application(
    services: Services, *, admin: Sequence[ControllerRouterHandler] = (), lifespan: Sequence[Lifespan] = ()
) -> Litestar:
    """The whole face over ``services``."""
    return Litestar(
        route_handlers=[chat_route(services), dry_run_route(services), *public_routes(services), *admin],
        exception_handlers=error_handlers(services.conductor.ids),
        lifespan=list(lifespan),
        before_request=_arrival(services),
        openapi_config=OpenAPIConfig(
            title="kimi-gateway",
            version=__version__,
            path="/schema",
            render_plugins=[WholePage(path="/openapi.json")],
        ),
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,
        debug=False,
    )


def _arrival(services: Services) -> Callable[[Request[Any, Any, Any]], Awaitable[Response[None] | None]]:
    """Gives every request of the slower routes an id, for its answer and the log, and looks at what it is made of."""

    async def before_request(request: Request[Any, Any, Any]) -> Response[None] | None:
        request.state.request_id = services.conductor.ids.request_id()
        await check_request(request, seconds_max=services.body_seconds_max)
        return _options(request) if request.method == "OPTIONS" else None

    return before_request


def _options(request: Request[Any, Any, Any]) -> Response[None]:
    """Every method of the path; the framework's own answer names those of the handler that was there first."""
    methods = sorted(request.app.route_handler_method_map[request.scope["path_template"]])
    return Response(None, status_code=204, headers={"allow": ", ".join(methods)}, media_type=MediaType.TEXT)
