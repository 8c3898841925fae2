"""A worker that is alone has nobody to tell anything; what it would have told, it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.pipeline.ports import Message


class NoGossip:
    """Implements the Gossip and Claims ports where there is no other replica."""

    def tell(self, message: Message) -> None:
        pass

    def on_heard(self, callback: Callable[[Message], None]) -> None:
        pass

    async def claim(self, what: str, seconds: float) -> bool:  # noqa: ARG002 - the port's words
        return True

    def give_back(self, what: str) -> None:
        pass

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()
