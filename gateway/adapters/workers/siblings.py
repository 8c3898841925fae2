"""The other workers, as one worker sees them: through the parent, and only while that lives."""

from __future__ import annotations

from typing import Any, Final

from gateway.adapters.workers.link import AnswerError, Link, LinkLostError

METRICS_SECONDS_MAX: Final = 5.0
RELOAD_SECONDS_MAX: Final = 30.0


class Siblings:
    """What a worker asks of all of them, itself included. ``number`` counts from 0 to ``count`` - 1."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.count = count
        self.link: Link | None = None

    async def metrics(self) -> bytes:
        """The text exposition of all workers. Raises LinkLostError, AnswerError."""
        return (await self._link().ask("metrics", answer=str, seconds_max=METRICS_SECONDS_MAX)).encode()

    async def reload(self) -> dict[str, Any]:
        """Has all workers reload. Raises LinkLostError; AnswerError with the reason where one of them could not."""
        return await self._link().ask("reload", answer=dict[str, Any], seconds_max=RELOAD_SECONDS_MAX)

    async def flush(self, seconds: float) -> bool:
        """Has all workers bring what is durable to the database; whether they did in that time. Never raises."""
        try:
            return await self._link().ask("flush", seconds, answer=bool, seconds_max=2 * seconds)
        except (LinkLostError, AnswerError):
            return False

    def _link(self) -> Link:
        if self.link is None:
            raise LinkLostError("not linked yet")
        return self.link
