"""Errors at the edge, in the OpenAI envelope with the request id; no stack, no secret and no foreign text gets out."""

from __future__ import annotations

import logging
from typing import Any, Final

from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from gateway.core.refusal import INTERNAL, Refusal, RefusalCode, RefusedError
from gateway.pipeline.ports import Ids
from gateway.surfaces import chat_completions

LOGGER: Final = logging.getLogger("gateway.http")

_CODE_OF_STATUS: Final = {
    400: RefusalCode.INVALID_REQUEST,
    401: RefusalCode.INVALID_API_KEY,
    403: RefusalCode.ROLE_NOT_ALLOWED,
    404: RefusalCode.NOT_FOUND,
    405: RefusalCode.METHOD_NOT_ALLOWED,
    413: RefusalCode.REQUEST_TOO_LARGE,
}


def refusal_response(refusal: Refusal, *, request_id: str, allow: str | None = None) -> Response[bytes]:
    """A refusal as a Litestar response. ``allow``: the methods that the path does take."""
    headers = {"x-request-id": request_id}
    if allow is not None:
        headers["allow"] = allow
    if refusal.retry_after is not None:
        headers["retry-after"] = str(max(1, round(refusal.retry_after)))
    return Response(
        chat_completions.render_error(refusal, request_id=request_id),
        status_code=refusal.http_status,
        media_type=MediaType.JSON,
        headers=headers,
    )


def error_handlers(ids: Ids) -> ExceptionHandlersMap:
    """Litestar's handlers for our refusals, its own errors, and defects."""

    def refused(request: Request[Any, Any, Any], error: RefusedError) -> Response[bytes]:
        return refusal_response(error.refusal, request_id=_request_id(request, ids))

    def framework(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        allow = (error.headers or {}).get("allow")
        return refusal_response(_refusal_of(request, error), request_id=_request_id(request, ids), allow=allow)

    def defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        request_id = _request_id(request, ids)
        LOGGER.error("defect", exc_info=error, extra={"fields": {"request_id": request_id}})
        return refusal_response(INTERNAL, request_id=request_id)

    return {RefusedError: refused, HTTPException: framework, Exception: defect}


def _refusal_of(request: Request[Any, Any, Any], error: HTTPException) -> Refusal:
    """The framework's own errors: unknown paths, wrong methods, bodies that do not validate."""
    status = error.status_code
    message = str(error.detail)
    param = None
    if status == 404:
        message = f"There is no {request.method} {request.scope['path']} here; see /schema/openapi.json."
    elif isinstance(error.extra, list) and error.extra and isinstance(error.extra[0], dict):
        first = error.extra[0]
        param = str(first.get("key", "")).rstrip("_") or None  # `from_` is how Python has to spell `from`
        message = f"{message} {param or 'body'}: {first.get('message', '')}"
    code = _CODE_OF_STATUS.get(status, RefusalCode.INVALID_REQUEST if status < 500 else RefusalCode.INTERNAL)
    return Refusal(code=code, status=status, message=message, param=param)


def _request_id(request: Request[Any, Any, Any], ids: Ids) -> str:
    """The id that the request was given on arrival; a path that no route has was given none."""
    return str(request.scope.get("state", {}).get("request_id") or ids.request_id())
