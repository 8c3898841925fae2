"""The OpenAI chat surface as ASGI apps, past the framework's request machinery: it is the hot path."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from gateway.core.refusal import INTERNAL, Refusal, RefusalCode, RefusedError
from gateway.http.relay import AsgiReply, attend, read_body, read_headers
from gateway.http.services import Services
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.telling import refuse
from gateway.surfaces import chat_completions

LOGGER: Final = logging.getLogger("gateway.http")

Act = Callable[[Exchange, AsgiReply, Receive], Awaitable[None]]


def chat_route(services: Services) -> ASGIRouteHandler:
    """``POST /v1/chat/completions``."""

    async def act(exchange: Exchange, reply: AsgiReply, receive: Receive) -> None:
        services.refuse_while_stopping()
        task, watch = services.exchanges.begin(services.conductor, exchange, reply)
        await attend(receive, task, watch)

    return _prepared("/v1/chat/completions", services, act)


def dry_run_route(services: Services) -> ASGIRouteHandler:
    """``POST /v1/route``: the plan for the same body; nothing is called, held or counted."""

    async def act(exchange: Exchange, reply: AsgiReply, receive: Receive) -> None:  # noqa: ARG001 - one shape of act
        await reply.start(200, {"content-type": "application/json", "x-request-id": exchange.request_id})
        await reply.finish(chat_completions.render_route(exchange.plan))

    return _prepared("/v1/route", services, act)


def _prepared(path: str, services: Services, act: Act) -> ASGIRouteHandler:
    """An ASGI route that authenticates, reads and prepares an exchange, then acts; refusals and defects are told."""

    @asgi(path, copy_scope=False)
    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = services.conductor.ids.request_id()
        reply = AsgiReply(send, request_id)
        try:
            if scope["method"] != "POST":  # type: ignore[typeddict-item]
                await _refuse_method(reply, scope["path"], request_id)
                return
            exchange = await _prepare(services, scope, receive, request_id)
            await act(exchange, reply, receive)
        except RefusedError as refused:
            refusal = refused.refusal
            services.conductor.telemetry.refused(
                request_id=request_id, path=path, code=refusal.code.value, status=refusal.http_status
            )
            await refuse(reply, refusal, request_id=request_id)
        except ConnectionResetError:
            return
        except Exception:
            LOGGER.exception("defect", extra={"fields": {"request_id": request_id}})
            await refuse(reply, INTERNAL, request_id=request_id)

    return route


async def _refuse_method(reply: AsgiReply, path: str, request_id: str) -> None:
    """Only POST is answered here; HTTP wants that said in a header, too."""
    refusal = Refusal(code=RefusalCode.METHOD_NOT_ALLOWED, message=f"Use POST for {path}.")
    headers = {"content-type": "application/json", "x-request-id": request_id, "allow": "POST"}
    await reply.start(refusal.http_status, headers)
    await reply.finish(chat_completions.render_error(refusal, request_id=request_id))


async def _prepare(services: Services, scope: Scope, receive: Receive, request_id: str) -> Exchange:
    """The key is checked before the body is read."""
    headers = read_headers(scope)
    principal = await services.conductor.authenticate(headers)
    body = await read_body(receive, headers, seconds_max=services.body_seconds_max)
    return services.conductor.prepare(request_id, principal, body, headers)
