"""The real gateway in a process of its own, three providers beside it, and one reading of all their books."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench import launch
from bench.audit import Acknowledged, Books, Verdict, audit
from bench.books import Admin, Mark, Simulators
from tests.prove.client import Answer, Client

QUIET_SECONDS_MAX: Final = 60.0
QUIET_POLL_SECONDS: Final = 0.1


@dataclass(slots=True, kw_only=True)
class Stage:
    """A gateway and its providers, with one key; the books count from where the stage was set."""

    ours: launch.Gateway
    admin: Admin
    simulators: Simulators
    key_id: str
    client: Client
    since: datetime
    mark: Mark

    async def read(self, answers: Sequence[Answer]) -> Books:
        """Every book, once the providers are quiet and the ledger has what they were asked."""
        await self._quiet()
        return await asyncio.to_thread(self._read, answers)

    async def audit(self, answers: Sequence[Answer], *, killed: bool = False) -> tuple[Books, Verdict]:
        books = await self.read(answers)
        return books, audit(books, killed=killed)

    def _read(self, answers: Sequence[Answer]) -> Books:
        calls = self.simulators.calls(self.mark)
        expected = frozenset(str(call["attempt_id"]) for call in calls)
        ledger = self.admin.settled_ledger(since=self.since, expected=expected)
        mine = [row for row in ledger if row["key_id"] == self.key_id]
        names = {self.key_id, *(str(row["key_name"]) for row in mine)}
        report = self.admin.report(since=self.since, tag=None)
        return Books(
            bill=self.simulators.bill(calls),
            calls=calls,
            ledger=mine,
            report=[row for row in report if str(row["key"]) in names],
            acknowledged=[known for answer in answers if (known := acknowledged(answer)) is not None],
        )

    async def _quiet(self) -> None:
        """A provider writes a call down when it has ended."""
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        while await asyncio.to_thread(self.simulators.in_flight):
            assert time.monotonic() < deadline, "the providers still answer somebody"
            await asyncio.sleep(QUIET_POLL_SECONDS)


def acknowledged(answer: Answer) -> Acknowledged | None:
    if not answer.complete or answer.request_id is None:
        return None
    usage = answer.usage or {}
    return Acknowledged(
        request_id=answer.request_id,
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cost=answer.cost_pico,
    )


@contextlib.contextmanager
def staged(
    folder: Path,
    *,
    seed: int,
    simulator: Mapping[str, Any],
    config: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
    workers: int = 1,
    redis_url: str = "",
) -> Iterator[Stage]:
    """All of it, started as a user would in a folder that it makes, and gone at the end. ``config`` makes files of the
    configuration from the providers' addresses; the others are the demo's."""
    folder.mkdir(mode=0o711, exist_ok=True)  # as root, PostgreSQL's account has to pass through
    with (
        launch.simulators(folder, seed=seed, settings=simulator) as addresses,
        launch.gateway(
            folder,
            {**launch.demo_config(addresses, keep_limits=False), **(config(addresses) if config else {})},
            workers=workers,
            redis_url=redis_url,
        ) as ours,
    ):
        key_id, secret = ours.create_key(f"proof-{seed}")
        simulators = Simulators(addresses=addresses)
        yield Stage(
            ours=ours,
            admin=Admin(url=ours.url, token=ours.admin_token),
            simulators=simulators,
            key_id=key_id,
            client=Client(url=ours.url, secret=secret),
            since=datetime.now(UTC),
            mark=simulators.mark(),
        )


def differences(verdict: Verdict) -> list[str]:
    """What the audit found, a line each."""
    lines = [f"{each.kind}: {each.where}: expected {each.expected}, found {each.found}" for each in verdict.differences]
    return lines + [f"{kind}: {count} more" for kind, count in verdict.unlisted.items()]
