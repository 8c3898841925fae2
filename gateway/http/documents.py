"""What a request to the slower routes is made of is looked at here first, so that whatever is wrong has a name.

The framework then reads the same body again; only requests that it can read get that far.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import msgspec
from litestar import Request

from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.relay import late_body, read_headers

_NAMED: Final = re.compile(r"(?:missing required|contains unknown) field `(.+)`")


async def check_request(request: Request[Any, Any, Any], *, seconds_max: float) -> None:
    """Raises RefusedError for too long headers, a NUL in the address, or a body that takes longer than ``seconds_max``
    or is not what the route takes."""
    read_headers(request.scope)
    if "\0" in request.scope["path"]:
        raise RefusedError(Refusal(code=RefusalCode.NOT_FOUND, message="There is nothing here with a NUL in its name."))
    if b"%00" in request.scope["query_string"]:
        raise _invalid(None, "The query has a NUL in it, which means nothing here.")
    field = request.route_handler.parsed_data_field
    if field is None:
        return
    try:
        async with asyncio.timeout(seconds_max):
            body = await request.body()
    except TimeoutError:
        raise late_body(seconds_max) from None
    if body or not field.is_optional:
        check_document(body, field.annotation)


def check_document(body: bytes, kind: Any) -> None:
    """Raises RefusedError, naming the field, for a body that is not JSON of this kind."""
    try:
        msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        named = _NAMED.search(what)
        param = ".".join(part for part in (path.strip("`.").partition("[")[0], named[1] if named else "") if part)
        raise _invalid(param or None, f"{param or 'The body'}: {what}.") from None
    except msgspec.DecodeError as error:
        raise _invalid(None, f"The body is not valid JSON: {error}.") from None
    except UnicodeDecodeError:
        raise _invalid(None, "The body is not valid UTF-8.") from None
    except RecursionError:
        raise _invalid(None, "The body nests objects and lists too deep.") from None


def _invalid(param: str | None, message: str) -> RefusedError:
    return RefusedError(Refusal(code=RefusalCode.INVALID_REQUEST, message=message, param=param))
