"""`gateway serve --workers N`, the parent: takes the address once, starts the workers, and serves nothing itself."""

from __future__ import annotations

import asyncio
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.adapters.exposition import Totals
from gateway.adapters.workers import Address, Supervisor
from gateway.settings import Settings, environment

COMMAND: Final = (sys.executable, "-m", "gateway.cli.worker")
SAFE_COMMAND: Final = (sys.executable, "-P", "-m", "gateway.cli.worker")
"""For a parent that does not look for modules in the folder it was started in: neither do its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a worker is given by its parent: what that read, so that one which is started later is like the others."""

    number: int
    settings: Settings
    environ: dict[str, str]


def serve_workers(settings: Settings, address: Address) -> str | None:
    """Serves until a signal says otherwise. Answers why it had to end, None for an orderly end."""
    environ = environment()
    registry = CollectorRegistry()
    restarts = Counter("gateway_worker_restarts", "Workers that ended and were started again.", registry=registry)
    supervisor = Supervisor(
        count=settings.workers,
        command=COMMAND if {"", str(Path.cwd())} & set(sys.path) else SAFE_COMMAND,
        given=lambda number: pickle.dumps(Given(number=number, settings=settings, environ=environ)),
        address=address,
        counts=Totals(registry),
        restarted=restarts.inc,
    )
    ready = Gauge("gateway_workers_ready", "Workers that serve.", registry=registry)
    ready.set_function(lambda: supervisor.ready)
    return asyncio.run(supervisor.run())
