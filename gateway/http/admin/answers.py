"""What every route of the administration answers alike: pages, what is not there or wrong, a store that is away."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from gateway.core.fields import FieldError
from gateway.core.grants import NotGrantedError
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.services import Services
from gateway.pipeline.ports import ArchiveUnavailableError, StoreUnavailableError

FLUSH_SECONDS: Final = 5.0
"""Money is read after what is durable has reached the database, or after this long."""
ARCHIVE_SECONDS: Final = 60
"""A file that is missing is put back by a person."""
PAGE_MAX: Final = 1_000

T = TypeVar("T")


async def stored(answer: Awaitable[T]) -> T:
    """What the store answers. Raises RefusedError: 503 while it is away, 400 or 403 for what it will not take."""
    try:
        return await answer
    except ArchiveUnavailableError as error:
        raise RefusedError(
            Refusal(code=RefusalCode.STORE_UNAVAILABLE, message=str(error), retry_after=ARCHIVE_SECONDS)
        ) from None
    except StoreUnavailableError:
        raise RefusedError(
            Refusal(
                code=RefusalCode.STORE_UNAVAILABLE,
                message="The database is away just now; nothing is lost. Try again shortly.",
                retry_after=5,
            )
        ) from None
    except NotGrantedError as error:
        raise RefusedError(Refusal(code=RefusalCode.ROLE_NOT_ALLOWED, message=str(error), param=error.field)) from None
    except FieldError as error:
        raise invalid(error.field, str(error)) from None


async def changed(services: Services, answer: Awaitable[T]) -> T:
    """The same for a write, after which this worker knows of it at once; the others look twice a second, and so does
    this one if it fails here."""
    result = await stored(answer)
    with contextlib.suppress(StoreUnavailableError):
        await services.keys_changed()
    return result


def checked(check: Callable[[], T]) -> T:
    """What a check of fields makes of them. Raises RefusedError naming the field."""
    try:
        return check()
    except FieldError as error:
        raise invalid(error.field, str(error)) from None


def given(body: msgspec.Struct) -> dict[str, Any]:
    """The fields that a change names, null among them."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def page(
    found: Sequence[T], limit: int, render: Callable[[T], dict[str, object]], cursor: Callable[[T], str]
) -> dict[str, object]:
    """A page of at most ``limit``, of which one more was asked for, and the cursor of the next one."""
    shown = found[:limit]
    return {
        "data": [render(each) for each in shown],
        "next_cursor": cursor(shown[-1]) if len(found) > limit else None,
    }


def found(answer: T | None, name: str) -> T:
    if answer is None:
        raise RefusedError(Refusal(code=RefusalCode.NOT_FOUND, message=f"There is no {name!r} here."))
    return answer


def invalid(param: str | None, message: str) -> RefusedError:
    return RefusedError(Refusal(code=RefusalCode.INVALID_REQUEST, message=message, param=param))
