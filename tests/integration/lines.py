"""A line to the database that a test can open and cut: real connections, really lost."""

from __future__ import annotations

import asyncio
import socket

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Line:
    """A line to the database that is down until it is opened, and can be cut."""

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return make_conninfo(**{**self._target, "host": "127.0.0.1", "port": self._port, "sslmode": "disable"})

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """Every connection ends at once, and no new one is taken."""
        if self._server is not None:
            self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self._target.get("host", "localhost")), self._target.get("port", 5432)
        if host.startswith("/"):
            far_reader, far_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            far_reader, far_writer = await asyncio.open_connection(host, int(port or 5432))
        for source, target in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.create_task(self._carry(source, target))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        finally:
            writer.close()
