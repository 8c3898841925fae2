"""Connections to PostgreSQL, a few at a time; whoever asks while it is away is told so at once, not left waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from gateway.pipeline.ports import StoreUnavailableError

CONNECTIONS_MAX: Final = 4
WAIT_SECONDS_MAX: Final = 5.0
STATEMENT_SECONDS_MAX: Final = 60

Connection = psycopg.AsyncConnection[dict[str, Any]]


class Connections:
    """A small pool that opens on first use, in the event loop that uses it."""

    def __init__(
        self, database_url: str, *, connections_max: int = CONNECTIONS_MAX, wait_seconds_max: float = WAIT_SECONDS_MAX
    ) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            database_url,
            min_size=0,
            max_size=connections_max,
            open=False,
            timeout=wait_seconds_max,
            reconnect_timeout=wait_seconds_max,
            check=AsyncConnectionPool.check_connection,  # a restart of the server costs nobody a request
            kwargs={
                "row_factory": dict_row,
                "connect_timeout": int(WAIT_SECONDS_MAX),
                "options": f"-c statement_timeout={STATEMENT_SECONDS_MAX}s",
            },
        )
        self._is_open = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction of its own. Raises StoreUnavailableError when there is none to be had."""
        if not self._is_open:
            self._is_open = True
            await self._pool.open()
        try:
            async with self._pool.connection() as connection:
                yield connection
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise StoreUnavailableError(type(error).__name__) from error

    async def close(self) -> None:
        if self._is_open:
            await self._pool.close(timeout=WAIT_SECONDS_MAX)
