"""Connections to PostgreSQL, a few at a time; whoever asks while it is away is told so at once, not left waiting.

No task runs beside those who ask: a connection is made by whoever finds none idle, and kept for the next one. (The
pool that comes with the driver connects in the background and lets everybody wait for it until a deadline.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from gateway.pipeline.ports import StoreUnavailableError

CONNECTIONS_MAX: Final = 4
WAIT_SECONDS_MAX: Final = 5.0
STATEMENT_SECONDS_MAX: Final = 60

Connection = psycopg.AsyncConnection[dict[str, Any]]


class Connections:
    """At most so many connections, opened when they are needed; for one event loop."""

    def __init__(
        self, database_url: str, *, connections_max: int = CONNECTIONS_MAX, wait_seconds_max: float = WAIT_SECONDS_MAX
    ) -> None:
        self._database_url = database_url
        self._wait_seconds_max = wait_seconds_max
        self._room = asyncio.Semaphore(connections_max)
        self._idle: list[Connection] = []
        self._is_closed = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction of its own. Raises StoreUnavailableError when there is none to be had."""
        try:
            await asyncio.wait_for(self._room.acquire(), self._wait_seconds_max)
        except TimeoutError:
            raise StoreUnavailableError("every connection is in use") from None
        try:
            connection = await self._connection()
            try:
                async with connection.transaction():
                    yield connection
            finally:
                await self._give_back(connection)
        except psycopg.OperationalError as error:
            raise StoreUnavailableError(type(error).__name__) from error
        finally:
            self._room.release()

    async def _connection(self) -> Connection:
        """An idle connection that still answers, so that a restart of the server costs nobody a request; or a new
        one. Raises psycopg.OperationalError."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("")
            except psycopg.OperationalError:
                await connection.close()
            except BaseException:
                await connection.close()
                raise
            else:
                return connection
        return await psycopg.AsyncConnection.connect(
            self._database_url,
            autocommit=True,  # a transaction says where it begins and ends
            row_factory=dict_row,
            connect_timeout=int(WAIT_SECONDS_MAX),
            options=f"-c statement_timeout={STATEMENT_SECONDS_MAX}s",
        )

    async def _give_back(self, connection: Connection) -> None:
        """Keeps a connection that is as good as new; one that was left in the middle of something is closed."""
        is_well = not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE
        if is_well and not self._is_closed:
            self._idle.append(connection)
        else:
            await connection.close()

    async def close(self) -> None:
        """Closes what is idle now, and what is in use when it is given back."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()
