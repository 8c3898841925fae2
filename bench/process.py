"""A process that was started here is measured by its tree and ended by its pid; no other process is ever touched."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

LOOPBACK: Final = "127.0.0.1"
STOP_SECONDS_MAX: Final = 45.0  # a gateway may let open streams run on for half a minute
LOG_TAIL_BYTES: Final = 2_000
OPEN_FILES: Final = 16_384
PORT_TRIES_MAX: Final = 100

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


class LaunchError(Exception):
    """A process did not come up; the message says which, and ends with the end of its log."""


@dataclass(slots=True, kw_only=True)
class Running:
    """One started process. ``also`` names further roots of its tree, such as a database server that detached itself."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    also: Callable[[], Iterable[int]] = field(default=tuple)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a power cut would; waits until it is gone."""
        self.popen.kill()
        self.popen.wait(STOP_SECONDS_MAX)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL past the deadline."""
        if not self.alive:
            return
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ""


def start(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    cpu: int | None = None,
) -> Running:
    """Start a process with its output in ``log``, pinned to one core when ``cpu`` is given."""
    with log.open("ab") as output:
        popen = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches us alone; we end our own in order
            preexec_fn=None if cpu is None else lambda: pin(cpu),  # noqa: PLW1509 - we have one thread
        )
    return Running(name=name, popen=popen, log=log)


def wait_until(ready: Callable[[], bool], *, of: Running, seconds_max: float, poll_seconds: float = 0.05) -> None:
    """Wait for readiness. Raises LaunchError past the deadline, or at once when the process has ended."""
    deadline = time.monotonic() + seconds_max
    while not ready():
        if not of.alive:
            raise LaunchError(
                f"{of.name} ended with status {of.popen.returncode} before it was ready.\n{of.log_tail()}"
            )
        if time.monotonic() > deadline:
            raise LaunchError(f"{of.name} was not ready within {seconds_max:g} s.\n{of.log_tail()}")
        time.sleep(poll_seconds)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def free_ports(count: int = 1) -> int:
    """The first of ``count`` consecutive ports of the loopback that nobody listens on just now."""
    for _ in range(PORT_TRIES_MAX):
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            first: int = probe.getsockname()[1]
        if first + count < 65_536 and all(_is_free(first + step) for step in range(count)):
            return first
    raise LaunchError(f"No {count} consecutive free ports were found on {LOOPBACK}.")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((LOOPBACK, port))
        return True
    return False


# -- measuring ---------------------------------------------------------------------------------------------------------


def pin(cpu: int) -> None:
    """Keep the calling process on one core, where the system allows."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {cpu})


def allow_many_sockets() -> None:
    """Raise the limit of open files towards what a thousand streams through a relay need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def tree(running: Running) -> list[int]:
    """The pids of a process, of what it said belongs to it, and of all their descendants."""
    return descendants((running.pid, *running.also()))


def descendants(roots: Iterable[int]) -> list[int]:
    """These pids and those of all their descendants."""
    found: dict[int, None] = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root)
            found[root] = None
            found.update((child.pid, None) for child in process.children(recursive=True))
    return list(found)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes and of the children they have already buried."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_SECOND


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes, what they share counted once (PSS); resident memory where the kernel tells no more."""
    return sum(_memory(pid) for pid in pids)


def _memory(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
