"""What the gateway adds to a call, beside what a bare relay adds: same run, same load, rounds taking turns, medians.

The server has one core, load generator and fake provider have the other. CPU is that of the server's whole process
tree, database included. Absolute figures depend on the machine; the ratios are what the limits are set on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.bare_relay import CLIENTS
from bench.launch import READY_SECONDS_MAX, gateway, one_provider_config, working_folder
from bench.load import Load, closed_loop, hold_open, open_loop, post
from bench.process import (
    LOOPBACK,
    LaunchError,
    Running,
    accepts,
    allow_many_sockets,
    cpu_seconds,
    descendants,
    free_ports,
    memory_bytes,
    pin,
    start,
    tree,
    wait_until,
)
from bench.upstream import DELTAS

KEY: Final = "sk-bench-client"
SERVER_CPU: Final = 0
LOAD_CPU: Final = 1
PAGE_COLUMNS: Final = 110
SETTLE_SECONDS: Final = 0.5
"""The CPU clock runs on for so long after a load: what a server puts off is its work all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How many times the bare relay's figure the gateway's may be."""

    title: str
    unit: str
    ratio_max: float
    digits: int = 1


# First limits, to be tightened by whoever makes the gateway faster, and never widened without a reason in the commit.
LIMITS: Final = {
    "request": Limit(title="CPU per request, no stream, 32 at once", unit="µs", ratio_max=3.0, digits=0),
    "burst": Limit(title="CPU per chunk, burst, 8 streams", unit="µs", ratio_max=4.0, digits=2),
    "paced": Limit(title="CPU per chunk, every 5 ms, 16 streams", unit="µs", ratio_max=1.6),
    "memory": Limit(title="memory per open stream", unit="KiB", ratio_max=2.0),
    "large": Limit(title="CPU per request with a body of 1 MB", unit="ms", ratio_max=2.5, digits=2),
    "latency": Limit(title="added median latency, 20 requests/s", unit="ms", ratio_max=6.0, digits=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much load one round is."""

    rounds: int
    requests: int
    burst_streams: int
    paced_streams: int
    open_streams: int
    large_requests: int
    latency_requests: int


FULL: Final = Sizes(
    rounds=3, requests=2_000, burst_streams=256, paced_streams=16, open_streams=1_000, large_requests=120,
    latency_requests=60,
)  # fmt: skip
QUICK: Final = Sizes(
    rounds=1, requests=600, burst_streams=96, paced_streams=16, open_streams=300, large_requests=40,
    latency_requests=40,
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Server:
    """One server under test with its figures: several of each kind, one of memory."""

    name: str
    port: int
    key: str
    running: Running | None
    figures: dict[str, list[float]] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    database_seconds: float = 0.0

    def figure(self, kind: str) -> float | None:
        known = self.figures.get(kind)
        return median(known) if known else None


# -- requests ----------------------------------------------------------------------------------------------------------


def _body(prompt: str, *, stream: bool, history: Sequence[dict[str, str]] = ()) -> bytes:
    messages = [{"role": "system", "content": "You are terse."}, *history, {"role": "user", "content": prompt}]
    document: dict[str, Any] = {"model": "kimi-k2-thinking", "max_tokens": 1_024}
    if stream:
        document |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**document, "messages": messages}).encode()


def _large_body() -> bytes:
    """154 messages, a megabyte in all: a full window of 256K tokens."""
    text = "It was a bright cold day in the harbour, and the clocks were striking. " * 92
    roles = ("user", "assistant")
    history = [{"role": roles[number % 2], "content": f"{number} {text}"} for number in range(152)]
    return _body("What happened at noon?", stream=False, history=history)


_SMALL: Final = _body("Why is the sea salt? " * 16, stream=False)
_BURST: Final = _body("Tell me a long story.", stream=True)
_PACED: Final = _body("Tell me a long story. [[pace=5]]", stream=True)
_SLOW: Final = _body("Tell me a slow story. [[pace=250]] [[chunks=28]]", stream=True)
_LARGE: Final = _large_body()


# -- measuring ---------------------------------------------------------------------------------------------------------


async def _cpu(server: Server, load: Callable[[], Awaitable[Load]], *, expected: int) -> float:
    """CPU seconds of the server while it bears a load; what failed is noted with the server."""
    assert server.running is not None
    before = _cpu_by_pid(server.running)
    done = await load()
    await asyncio.sleep(SETTLE_SECONDS)
    spent = {pid: now - before.get(pid, 0.0) for pid, now in _cpu_by_pid(server.running).items()}
    _note(server, done, expected=expected)
    elsewhere = set(descendants(server.running.also()))
    server.database_seconds = sum(seconds for pid, seconds in spent.items() if pid in elsewhere)
    return sum(spent.values())


def _cpu_by_pid(running: Running) -> dict[int, float]:
    return {pid: cpu_seconds((pid,)) for pid in tree(running)}


def _note(server: Server, load: Load, *, expected: int) -> None:
    for what, count in load.bad.items():
        server.bad[what] = server.bad.get(what, 0) + count
    if load.good + sum(load.bad.values()) != expected:
        server.bad["unfinished"] = server.bad.get("unfinished", 0) + expected - load.good


async def _request(server: Server, sizes: Sizes) -> float:
    request = post(server.port, _SMALL, key=server.key)
    load = lambda: closed_loop(server.port, request, count=sizes.requests, concurrency=32)  # noqa: E731
    spent = await _cpu(server, load, expected=sizes.requests)
    server.figures.setdefault("database", []).append(server.database_seconds / sizes.requests * 1e6)
    return spent / sizes.requests * 1e6


async def _burst(server: Server, sizes: Sizes) -> float:
    request = post(server.port, _BURST, key=server.key)
    load = lambda: closed_loop(server.port, request, count=sizes.burst_streams, concurrency=8)  # noqa: E731
    return await _cpu(server, load, expected=sizes.burst_streams) / (sizes.burst_streams * DELTAS) * 1e6


async def _paced(server: Server, sizes: Sizes) -> float:
    request, streams = post(server.port, _PACED, key=server.key), sizes.paced_streams
    load = lambda: closed_loop(server.port, request, count=streams, concurrency=streams, stagger_seconds=0.005)  # noqa: E731
    return await _cpu(server, load, expected=streams) / (streams * DELTAS) * 1e6


async def _large(server: Server, sizes: Sizes) -> float:
    request = post(server.port, _LARGE, key=server.key)
    load = lambda: closed_loop(server.port, request, count=sizes.large_requests, concurrency=2)  # noqa: E731
    return await _cpu(server, load, expected=sizes.large_requests) / sizes.large_requests * 1e3


async def _latency(server: Server, sizes: Sizes) -> float:
    request = post(server.port, _SMALL, key=server.key)
    load = await open_loop(server.port, request, count=sizes.latency_requests, rate=20)
    _note(server, load, expected=sizes.latency_requests)
    return load.median_seconds * 1e3


async def _memory(server: Server, sizes: Sizes) -> float:
    """Growth of the server from idle to all streams open. Asked once, of a young process: heaps do not shrink again."""
    assert server.running is not None
    running, request, grown = server.running, post(server.port, _SLOW, key=server.key), 0
    warm = await closed_loop(server.port, post(server.port, _SMALL, key=server.key), count=64, concurrency=8)
    _note(server, warm, expected=64)
    idle = memory_bytes(tree(running))

    def at_full() -> None:
        nonlocal grown
        grown = memory_bytes(tree(running)) - idle

    load = await hold_open(server.port, request, streams=sizes.open_streams, ramp_per_second=250, at_full=at_full)
    _note(server, load, expected=sizes.open_streams)
    return grown / sizes.open_streams / 1024


MEASURES: Final[dict[str, Callable[[Server, Sizes], Awaitable[float]]]] = {
    "request": _request,
    "burst": _burst,
    "paced": _paced,
    "large": _large,
    "latency": _latency,
}


async def measure(servers: Sequence[Server], direct: Server, sizes: Sizes, step: Callable[[str], None]) -> None:
    """Every figure of every server: memory first, then rounds in which the servers take turns."""
    for server in servers:
        step(f"memory, {server.name}")
        server.figures["memory"] = [await _memory(server, sizes)]
    for number in range(sizes.rounds):
        for kind, of in MEASURES.items():
            without = await _latency(direct, sizes) if kind == "latency" else 0.0
            order = servers if number % 2 == 0 else servers[::-1]
            for server in order:
                step(f"{kind}, {server.name}")
                server.figures.setdefault(kind, []).append(await of(server, sizes) - without)


# -- servers -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(name: str, arguments: Sequence[str], *, port: int, folder: Path, cpu: int | None) -> Iterator[Running]:
    running = start(name, [sys.executable, "-m", *arguments], log=folder / f"{name}.log", cpu=cpu)
    try:
        wait_until(lambda: accepts(port), of=running, seconds_max=READY_SECONDS_MAX)
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def fake_provider(folder: Path, cpu: int | None) -> Iterator[int]:
    port = free_ports()
    with _started("upstream", ["bench.upstream", str(port)], port=port, folder=folder, cpu=cpu):
        yield port


@contextlib.contextmanager
def bare_relay(client: str, upstream: int, folder: Path, cpu: int | None) -> Iterator[Server]:
    port = free_ports()
    url = f"http://{LOOPBACK}:{upstream}/v1/chat/completions"
    arguments = ["bench.bare_relay", "--port", str(port), "--upstream", url, "--key", KEY, "--client", client]
    name = f"bare-{client}"
    with _started(name, arguments, port=port, folder=folder, cpu=cpu) as running:
        yield Server(name=name, port=port, key=KEY, running=running)


@contextlib.contextmanager
def real_gateway(upstream: int, folder: Path, cpu: int | None) -> Iterator[Server]:
    config = one_provider_config(f"http://{LOOPBACK}:{upstream}")
    with gateway(folder, config, cpu=cpu) as launched:
        _, key = launched.create_key("bench")
        yield Server(name="gateway", port=launched.port, key=key, running=launched.running)


def installed_clients() -> list[str]:
    """The upstream clients that can be compared here."""
    return [client for client in CLIENTS if find_spec(client.replace("-", "_"))]


# -- output ------------------------------------------------------------------------------------------------------------


def gateway_rows(bare: Server, real: Server | None) -> list[dict[str, Any]]:
    """One row per figure: both servers, their ratio, its limit, and whether it holds."""
    rows: list[dict[str, Any]] = []
    for kind, limit in LIMITS.items():
        low, high = bare.figure(kind), real.figure(kind) if real else None
        ratio = high / low if low and high is not None and low > 0 else None
        verdict = None if ratio is None else "ok" if ratio <= limit.ratio_max else "over"
        rows.append(
            {"figure": kind, "title": limit.title, "unit": limit.unit, "bare": low, "gateway": high, "ratio": ratio,
             "limit": limit.ratio_max, "verdict": verdict}
        )  # fmt: skip
    return rows


def result_console() -> Console:
    """The terminal, or a page wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PAGE_COLUMNS)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def print_gateway(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="What the gateway costs, beside a bare relay in the same run", title_justify="left")
    table.add_column("figure")
    for title in ("unit", "bare", "gateway", "ratio", "limit", ""):
        table.add_column(title, justify="right")
    for row in rows:
        digits = LIMITS[row["figure"]].digits
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}×"
        cells = (_number(row["bare"], digits), _number(row["gateway"], digits))
        colour = {"ok": "green", "over": "red"}.get(row["verdict"] or "", "dim")
        verdict = f"[{colour}]{row['verdict'] or 'not measured'}[/]"
        table.add_row(row["title"], row["unit"], *cells, ratio, f"{row['limit']:g}×", verdict)
    console.print(table)


def print_clients(servers: Sequence[Server], console: Console) -> None:
    table = Table(title="The bare relay with each upstream client", title_justify="left")
    table.add_column("figure")
    for title in ("unit", *(server.name.removeprefix("bare-") for server in servers)):
        table.add_column(title, justify="right")
    for kind, limit in LIMITS.items():
        values = [server.figure(kind) for server in servers]
        base = values[0] or None
        cells = [
            _number(value, limit.digits) + (f" ({value / base:.1f}×)" if value is not None and base else "")
            for value in values
        ]
        table.add_row(limit.title, limit.unit, *cells)
    console.print(table)


def _complaints(servers: Sequence[Server]) -> list[str]:
    return [f"{server.name}: {count} × {what}" for server in servers for what, count in sorted(server.bad.items())]


# -- the command -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(steps: int, console: Console) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=steps)
        begun = 0

        def step(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun)
            begun += 1

        yield step


def _run(servers: Sequence[Server], upstream: int, sizes: Sizes, console: Console) -> None:
    direct = Server(name="direct", port=upstream, key=KEY, running=None)
    steps = len(servers) * (1 + sizes.rounds * len(MEASURES))
    with _progress(steps, console) as step, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(servers, direct, sizes, step))


def _two_cores() -> tuple[int | None, int | None]:
    """The server's core and the load's; no pinning where there is only one, or none can be chosen."""
    with contextlib.suppress(AttributeError, OSError):
        if {SERVER_CPU, LOAD_CPU} <= os.sched_getaffinity(0):
            return SERVER_CPU, LOAD_CPU
    return None, None


def _compare_clients(sizes: Sizes, console: Console) -> dict[str, Any]:
    server_cpu, load_cpu = _two_cores()
    with working_folder() as folder, contextlib.ExitStack() as stack:
        upstream = stack.enter_context(fake_provider(folder, load_cpu))
        servers = [
            stack.enter_context(bare_relay(client, upstream, folder, server_cpu)) for client in installed_clients()
        ]
        _run(servers, upstream, sizes, console)
    return {
        "clients": {
            server.name.removeprefix("bare-"): {kind: server.figure(kind) for kind in LIMITS} for server in servers
        },
        "servers": servers,
        "complaints": _complaints(servers),
    }


def _compare_gateway(sizes: Sizes, console: Console, *, with_gateway: bool) -> dict[str, Any]:
    server_cpu, load_cpu = _two_cores()
    real, skipped = None, None if with_gateway else "left out"
    with working_folder() as folder, contextlib.ExitStack() as stack:
        upstream = stack.enter_context(fake_provider(folder, load_cpu))
        bare = stack.enter_context(bare_relay("aiohttp", upstream, folder, server_cpu))
        if with_gateway:
            try:
                real = stack.enter_context(real_gateway(upstream, folder, server_cpu))
            except LaunchError as error:
                skipped = str(error)
        servers = [bare, real] if real else [bare]
        _run(servers, upstream, sizes, console)
    return {
        "rows": gateway_rows(bare, real),
        "database_us_per_request": real.figure("database") if real else None,
        "rounds": {server.name: server.figures for server in servers},
        "skipped": skipped,
        "complaints": _complaints(servers),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 50), help="Rounds per figure; the median is shown.  [default: 3]")
@click.option("--quick", is_flag=True, help="One short round: a smoke test, not a measurement.")
@click.option("--clients", is_flag=True, help="Compare upstream HTTP clients inside the bare relay instead.")
@click.option("--no-gateway", is_flag=True, help="Measure the bare relay alone.")
@click.option("--strict", is_flag=True, help="Exit with status 1 when a figure is over its limit, missing or unsound.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
def main(*, rounds: int | None, quick: bool, clients: bool, no_gateway: bool, strict: bool, as_json: bool) -> None:
    """The benchmark of the hot path: the gateway beside a bare relay, each figure beside its limit."""
    sizes = QUICK if quick else FULL
    if rounds is not None:
        sizes = Sizes(**{name: getattr(sizes, name) for name in Sizes.__slots__} | {"rounds": rounds})
    allow_many_sockets()
    if (load_cpu := _two_cores()[1]) is not None:
        pin(load_cpu)
    console, notes = result_console(), Console(stderr=True)
    started_at = time.monotonic()
    if clients:
        result = _compare_clients(sizes, notes)
        print_result = partial(print_clients, result.pop("servers"))
    else:
        result = _compare_gateway(sizes, notes, with_gateway=not no_gateway)
        print_result = partial(print_gateway, result["rows"])
    result["seconds"] = round(time.monotonic() - started_at, 1)
    if not as_json:
        print_result(console)
    _finish(result, console, as_json=as_json, strict=strict)


def _finish(result: dict[str, Any], console: Console, *, as_json: bool, strict: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for complaint in result["complaints"]:
            console.print(f"unsound: {complaint}", markup=False)
        if result.get("database_us_per_request") is not None:
            spent = f"{result['database_us_per_request']:,.0f} µs of the gateway's CPU per request are its database's."
            console.print(spent, style="dim")
        if result.get("skipped"):
            console.print(f"The gateway was not measured: {result['skipped']}", markup=False)
        console.print(f"{result['seconds']} s", style="dim")
    sound = not result["complaints"] and not result.get("skipped")
    if strict and not (sound and all(row["verdict"] == "ok" for row in result.get("rows", ()))):
        sys.exit(1)


if __name__ == "__main__":
    main()
