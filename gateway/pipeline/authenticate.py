"""Who is asking: a well-formed key's digest is looked up; a malformed one costs no query; no key goes further."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from gateway.core import api_key
from gateway.core.exchange import Principal, Role
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.pipeline.ports import ApiKeys, StoreUnavailableError

BOOTSTRAP_ADMINISTRATOR = Principal(key_id="admin-token", key_name="admin token", role=Role.ADMIN)


def presented_secret(headers: Mapping[str, str]) -> str | None:
    """The secret of ``Authorization: Bearer`` or, without one, of ``x-api-key``."""
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, secret = authorization.partition(" ")
        return secret.strip() if scheme.casefold() == "bearer" else None
    return headers.get("x-api-key")


async def authenticate(headers: Mapping[str, str], keys: ApiKeys) -> Principal:
    """The holder of the presented key. Raises RefusedError."""
    secret = presented_secret(headers)
    if not secret:
        raise _refused("No API key was given. Send it as `Authorization: Bearer kgw_…` or in `x-api-key`.")
    if not api_key.is_well_formed(secret):
        raise _refused("The API key is malformed: a key of this gateway starts with kgw_ and ends with a checksum.")
    try:
        principal = await keys.find(api_key.digest(secret))
    except StoreUnavailableError:
        raise RefusedError(
            Refusal(
                code=RefusalCode.STORE_UNAVAILABLE,
                message="This API key cannot be looked up just now; keys already in use go on. Try again shortly.",
                retry_after=5,
            )
        ) from None
    if principal is None:
        raise _refused("The API key is unknown, revoked or expired. Ask the gateway's administrator for a new one.")
    return principal


async def authenticate_administrator(headers: Mapping[str, str], keys: ApiKeys, admin_token: str) -> Principal:
    """The bootstrap administrator by token, or the holder of a key. Raises RefusedError.

    Bytes are compared, as they were sent: HTTP reads them as Latin-1, whatever the token's characters are.
    """
    secret = presented_secret(headers)
    if secret and hmac.compare_digest(secret.encode("latin-1", "replace"), admin_token.encode()):
        return BOOTSTRAP_ADMINISTRATOR
    return await authenticate(headers, keys)


def _refused(message: str) -> RefusedError:
    return RefusedError(Refusal(code=RefusalCode.INVALID_API_KEY, message=message))
