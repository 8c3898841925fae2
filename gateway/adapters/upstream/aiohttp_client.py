"""The hot path's HTTP client: one call is one request; no redirect is followed, nothing is retried, no cookie is kept.

Nothing was sent when no connection came about; anything after that may have reached the provider and is BROKEN. A
provider that quotes the credential it was sent is not quoted any further.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
from pydantic import SecretStr

from gateway.core.failure import Failure, FailureClass
from gateway.pipeline.ports import FreeAnswer, UpstreamCall, UpstreamFailedError

KEEPALIVE_SECONDS: Final = 30
LINGER_SECONDS: Final = 1.0
"""How long a finished stream's connection may take to show its proper end before it is closed instead of reused."""
READ_BUFFER_BYTES: Final = 2**16
FREE_SECONDS_MAX: Final = 5.0
FREE_BYTES_MAX: Final = 4 * 1024 * 1024
SECRET_BYTES_MIN: Final = 8
"""A credential shorter than this is none, and may be a part of any text."""


class AiohttpUpstreams:
    """Implements the Upstreams and Inquiries ports. ``credentials`` maps (provider, account) to the key; None sends
    none."""

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
        return AiohttpAnswer(call.provider, response, secret)

    async def ask(self, provider: str, account: str, url: str, *, key_member: str | None = None) -> FreeAnswer:
        """A free question, in its own short time. Nothing of the address is quoted: it may carry the key."""
        session = self._session or self._open_session()
        secret = self.credentials.get((provider, account))
        headers, query = {"accept": "application/json"}, {}
        if secret is not None and key_member is None:
            headers["authorization"] = f"Bearer {secret.get_secret_value()}"
        elif secret is not None and key_member is not None:
            query[key_member] = secret.get_secret_value()
        timeout = aiohttp.ClientTimeout(total=FREE_SECONDS_MAX)
        try:
            async with session.get(
                url, params=query, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                body = await _bounded(response, FREE_BYTES_MAX)
                return FreeAnswer(response.status, body)
        except TimeoutError:
            silence = Failure(kind=FailureClass.TIMED_OUT, message=f"{provider} does not answer a free question")
            raise UpstreamFailedError(silence) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            kind = FailureClass.UNREACHABLE
            raise UpstreamFailedError(Failure(kind=kind, message=f"{provider}: {type(error).__name__}")) from None

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

    __slots__ = ("_held", "_provider", "_response", "_secret", "headers", "status")

    def __init__(self, provider: str, response: aiohttp.ClientResponse, secret: SecretStr | None) -> None:
        self._provider = provider
        self._response = response
        self._secret = b"" if secret is None else secret.get_secret_value().encode()
        self._held = b""
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def read(self) -> bytes:
        while True:
            try:
                chunk = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise UpstreamFailedError(_failure(FailureClass.BROKEN, self._provider, error)) from None
            if len(self._secret) < SECRET_BYTES_MIN:
                return chunk
            if self.status == 200:
                return chunk.replace(self._secret, b"*" * len(self._secret))
            ready = self._concealed(chunk)
            if ready or not chunk:
                return ready

    def _concealed(self, chunk: bytes) -> bytes:
        """An error's bytes without the credential, wherever they were cut: what may be its beginning waits for more."""
        data = (self._held + chunk).replace(self._secret, b"*" * len(self._secret))
        ready = max(0, len(data) - len(self._secret) + 1) if chunk else len(data)
        self._held = data[ready:]
        return data[:ready]

    def release(self, *, reusable: bool) -> None:
        response = self._response
        if response.connection is None:
            return  # read to its end: aiohttp has already taken the connection back
        if reusable:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, response.close)
        else:
            response.close()


async def _bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The whole body. Raises ValueError for one that is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        parts.append(part)
        if size > bytes_max:
            raise ValueError("too long")
    return b"".join(parts)


def _failure(kind: FailureClass, provider: str, error: Exception) -> Failure:
    """The transport's words, for operators; they name hosts, never credentials."""
    what = "cannot be reached" if kind is FailureClass.UNREACHABLE else "broke off"
    return Failure(kind=kind, message=f"{provider} {what}: {type(error).__name__}: {error}"[:500])
