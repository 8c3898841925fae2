"""The hot path's HTTP client: one call is one request; no redirect is followed, nothing is retried, no cookie is kept.

Nothing was sent when no connection came about; anything after that may have reached the provider and is BROKEN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
from pydantic import SecretStr

from gateway.core.failure import Failure, FailureClass
from gateway.pipeline.ports import UpstreamCall, UpstreamFailedError

KEEPALIVE_SECONDS: Final = 30
LINGER_SECONDS: Final = 1.0
"""How long a finished stream's connection may take to show its proper end before it is closed instead of reused."""
READ_BUFFER_BYTES: Final = 2**16


class AiohttpUpstreams:
    """Implements the Upstreams port. ``credentials`` maps (provider, account) to the key; None sends none."""

    def __init__(self, credentials: Mapping[tuple[str, str], SecretStr | None], *, user_agent: str) -> None:
        self.credentials = credentials
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def open(self, call: UpstreamCall) -> AiohttpAnswer:
        session = self._session or self._open_session()
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if call.stream else "application/json",
            **call.headers,
        }
        secret = self.credentials.get((call.provider, call.account))
        if secret is not None:
            headers["authorization"] = f"Bearer {secret.get_secret_value()}"
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=call.timeouts.connect, sock_read=None)
        try:
            response = await session.post(
                call.url, data=call.body, headers=headers, allow_redirects=False, timeout=timeout
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UpstreamFailedError(_failure(FailureClass.UNREACHABLE, call.provider, error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailedError(_failure(FailureClass.BROKEN, call.provider, error)) from None
        return AiohttpAnswer(call.provider, response)

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": self._user_agent, "accept-encoding": "identity"},
            auto_decompress=True,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
        )
        return self._session


class AiohttpAnswer:
    """Implements the UpstreamAnswer port over one aiohttp response."""

    __slots__ = ("_provider", "_response", "headers", "status")

    def __init__(self, provider: str, response: aiohttp.ClientResponse) -> None:
        self._provider = provider
        self._response = response
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailedError(_failure(FailureClass.BROKEN, self._provider, error)) from None

    def release(self, *, reusable: bool) -> None:
        response = self._response
        if response.connection is None:
            return  # read to its end: aiohttp has already taken the connection back
        if reusable:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, response.close)
        else:
            response.close()


def _failure(kind: FailureClass, provider: str, error: Exception) -> Failure:
    """The transport's words, for operators; they name hosts, never credentials."""
    what = "cannot be reached" if kind is FailureClass.UNREACHABLE else "broke off"
    return Failure(kind=kind, message=f"{provider} {what}: {type(error).__name__}: {error}"[:500])
