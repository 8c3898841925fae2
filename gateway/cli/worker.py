"""One worker of `gateway serve --workers N`: a whole gateway that lives as long as its parent, and no longer.

Started as ``python -m gateway.cli.worker LINK SOCKET...`` with descriptors that it inherits, and what it is given on
standard input. A parent that has ended is a signal to stop, with all the time that open streams are given.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import sys
from collections.abc import Sequence
from typing import Any

from gateway.adapters.embedded import EmbeddedPostgresError
from gateway.adapters.logs import configure_logs
from gateway.adapters.postgres.schema import SchemaError
from gateway.adapters.workers import AnswerError, Link, Siblings, tell_at_once
from gateway.app import Gateway, GatewayServer
from gateway.catalog import CatalogError
from gateway.cli.common import database
from gateway.cli.workers import Given
from gateway.http.services import BadConfigurationError
from gateway.settings import SettingsError

LOGGER = logging.getLogger("gateway")


class WorkerServer(GatewayServer):
    """A gateway's server that tells its parent when it serves, and answers what that asks."""

    def __init__(self, gateway: Gateway, siblings: Siblings) -> None:
        super().__init__(gateway.uvicorn_config(), gateway)
        self._siblings = siblings

    async def work(self, end: socket.socket, sockets: list[socket.socket]) -> None:
        """Serves until it is told to stop, or until the parent has ended."""
        self._siblings.link = link = await Link.open(end, self._answer)
        hearing = asyncio.create_task(link.run())
        hearing.add_done_callback(self._orphaned)
        try:
            await self.serve(sockets=sockets)
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        await super().startup(None if sockets is None else list(sockets))
        if self.started and self._siblings.link is not None:
            self._siblings.link.tell("ready", self.gateway.conductor.configuration.catalogue.digest)

    async def _answer(self, what: str, content: Any) -> object:
        match what:
            case "flush":
                return await self.gateway.shipper.flush(float(content))
            case "snapshot":
                return self.gateway.snapshot()
            case "reload":
                try:
                    return await self.gateway.reload()
                except BadConfigurationError as error:
                    raise AnswerError(str(error)) from None
            case _:
                raise AnswerError(f"nobody here knows of {what!r}")

    def _orphaned(self, hearing: asyncio.Task[None]) -> None:
        if not hearing.cancelled():
            LOGGER.error("the parent of the workers has ended; stopping")
            self.end()


def main(arguments: Sequence[str]) -> None:
    """The life of a worker."""
    end, *sockets = [socket.socket(fileno=int(argument)) for argument in arguments]
    try:
        given = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent, through a pipe of its own
    except EOFError:
        sys.exit(1)  # the parent has ended before it said anything
    assert isinstance(given, Given)
    settings = given.settings
    configure_logs(level=settings.log_level, form=settings.log_format, always={"worker": given.number})
    siblings = Siblings(given.number, settings.workers)
    try:
        with database(settings, migrated=False) as url:  # an embedded one is stopped by whoever leaves it last
            gateway = Gateway(settings, url, environ=given.environ, siblings=siblings)
            server = WorkerServer(gateway, siblings)
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(server.work(end, sockets))
    except (SettingsError, CatalogError, SchemaError, EmbeddedPostgresError, OSError) as error:
        tell_at_once(end, "refused", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
