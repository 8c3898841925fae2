"""A recorded hour of traffic is played to the gateway over HTTP, and then every book has to agree to the pico-dollar.

The books are the providers' bills, the gateway's ledger and its spend report; what a client holds completely has to be
in the ledger exactly once, whatever was made to fail or was killed on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench import launch
from bench.audit import PICO_PER_USD, Books, Verdict, audit
from bench.books import Admin, BooksError, Mark, Simulators
from bench.drive import Outcome, Target, drive
from bench.process import LaunchError, allow_many_sockets
from bench.prompts import Row, read_rows, requests_of

TRACE: Final = Path(__file__).parent.parent / "../shared/data/mooncake/conversation_trace.jsonl"
QUIET_SECONDS_MAX: Final = 30.0
KILLS_MAX: Final = 1_000
PAGE_COLUMNS: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A provider fails from one share of the run's time to another; ``more`` are further fields of the fault."""

    provider: str
    start: float
    end: float
    kind: str
    more: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Failing:
        provider, _, rest = text.partition(":")
        try:
            start, end, *fault = rest.split(":", 2)
            kind, *fields = (fault[0] if fault else "unavailable").split(",")
            more = {name: json.loads(value) for name, _, value in (each.partition("=") for each in fields)}
            failing = cls(provider=provider, start=float(start), end=float(end), kind=kind, more=more)
        except ValueError:
            message = f"{text!r} is not PROVIDER:FROM:TO[:KIND[,FIELD=NUMBER…]], such as evolink:0.3:0.6."
            raise click.BadParameter(message) from None
        if not 0 <= failing.start < failing.end:
            raise click.BadParameter(f"{text!r}: FROM and TO are shares of the run's time, FROM before TO.")
        return failing

    def fault(self, seconds: float) -> dict[str, Any]:
        """The order to the simulator, for a run of so many seconds that begins now."""
        window = (self.end - self.start) * seconds
        return {**self.more, "kind": self.kind, "after_seconds": self.start * seconds, "window_seconds": window}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is. ``speed`` divides times, ``scale`` divides input lengths; shares are from 0 to 1."""

    trace: Path
    rows: int
    offset: int
    speed: float
    scale: int
    seed: int
    keys: int
    secrets: tuple[str, ...]
    turbo_share: float
    stream_share: float
    concurrency: int
    failing: tuple[Failing, ...]
    kill_every: float | None
    simulator: dict[str, Any]
    keep_limits: bool


@dataclass(slots=True, kw_only=True)
class Stage:
    """What a run is played on: a gateway and its providers, and how to kill the gateway if it is ours."""

    admin: Admin
    simulators: Simulators
    ours: launch.Gateway | None = None


@dataclass(slots=True, kw_only=True)
class Run:
    """What came of it."""

    outcomes: list[Outcome] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return len(self.restarts)

    @property
    def wrong(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed == "wrong answer"]

    @property
    def sound(self) -> bool:
        return self.verdict.agrees and not self.wrong


# -- playing -----------------------------------------------------------------------------------------------------------


def play(options: Options, stage: Stage, rows: Sequence[Row], console: Console) -> Run:
    """Drive the rows through the gateway, wait until it is quiet, read the books and compare them."""
    since = datetime.now(UTC)
    run, name = Run(), f"trace-{int(time.time() * 1000):x}"
    if options.secrets:
        secrets, key_ids = list(options.secrets), None
    else:
        created = [stage.admin.create_key(f"{name}-{number}") for number in range(options.keys)]
        secrets, key_ids = [secret for _, secret in created], frozenset(key_id for key_id, _ in created)
    mark = stage.simulators.mark()
    seconds = max((row.at_ms for row in rows), default=0.0) / 1000 / options.speed
    for failing in options.failing:
        stage.simulators.set_fault(failing.provider, failing.fault(seconds))
    target = Target(url=stage.admin.url, keys=secrets, concurrency=options.concurrency, run=name)
    started_at = time.monotonic()
    with _progress(len(rows), console) as done:
        asyncio.run(_play(options, stage, rows, target, run, done))
    run.seconds = time.monotonic() - started_at
    _wait_until_quiet(stage.simulators)
    run.calls, books = _read_books(stage, run, mark=mark, since=since, key_ids=key_ids, name=name)
    run.verdict = audit(books, killed=run.kills > 0)
    return run


async def _play(
    options: Options, stage: Stage, rows: Sequence[Row], target: Target, run: Run, done: Callable[[Outcome], None]
) -> None:
    requests = requests_of(
        rows, seed=options.seed, scale=options.scale, keys=len(target.keys), turbo_share=options.turbo_share,
        stream_share=options.stream_share,
    )  # fmt: skip
    driving = asyncio.create_task(drive(requests, target, speed=options.speed, done=done))
    if options.kill_every is not None and stage.ours is not None:
        await _kill_again_and_again(stage.ours, options.kill_every, driving, run)
    run.outcomes = await driving


async def _kill_again_and_again(ours: launch.Gateway, every: float, driving: asyncio.Task[Any], run: Run) -> None:
    """SIGKILL and a fresh start, again and again while requests are under way; the last start is waited for."""
    for _ in range(KILLS_MAX):
        finished, _ = await asyncio.wait({driving}, timeout=every)
        if finished:
            return
        await asyncio.to_thread(ours.kill)
        killed_at = time.monotonic()
        await asyncio.to_thread(ours.start)
        run.restarts.append(time.monotonic() - killed_at)


def _wait_until_quiet(simulators: Simulators) -> None:
    """A provider writes a call down when it ends; bounded, and what is still open then is missing on both sides."""
    deadline = time.monotonic() + QUIET_SECONDS_MAX
    while simulators.in_flight() and time.monotonic() < deadline:
        time.sleep(0.2)


def _read_books(
    stage: Stage, run: Run, *, mark: Mark, since: datetime, key_ids: frozenset[str] | None, name: str
) -> tuple[list[dict[str, Any]], Books]:
    """The run's part of every book; calls that belong to other keys' rows are left to them."""
    calls = stage.simulators.calls(mark)
    expected = frozenset(str(call["attempt_id"]) for call in calls)
    ledger = stage.admin.settled_ledger(since=since, expected=expected)
    mine = [row for row in ledger if (row["tags"].get("run") == name if key_ids is None else row["key_id"] in key_ids)]
    others = {row["attempt_id"] for row in ledger} - {row["attempt_id"] for row in mine}
    calls = [call for call in calls if call["attempt_id"] not in others]
    report = stage.admin.report(since=since, tag=name if key_ids is None else None)
    known = {str(row[column]) for row in mine for column in ("key_id", "key_name")}
    books = Books(
        bill=stage.simulators.bill(calls),
        calls=calls,
        ledger=mine,
        report=[row for row in report if str(row["key"]) in known],
        acknowledged=[answer for outcome in run.outcomes if (answer := outcome.acknowledged()) is not None],
    )
    return calls, books


# -- stages ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def launched(options: Options) -> Iterator[Stage]:
    """A gateway, its database and three providers of the run's own."""
    with (
        launch.working_folder() as folder,
        launch.simulators(folder, seed=options.seed, settings=options.simulator) as addresses,
        launch.gateway(folder, launch.demo_config(addresses, keep_limits=options.keep_limits)) as ours,
    ):
        admin = Admin(url=ours.url, token=ours.admin_token)
        yield Stage(admin=admin, simulators=Simulators(addresses=addresses), ours=ours)


def running(gateway: str, token: str | None, addresses: Sequence[str]) -> Stage:
    """A gateway and simulators that run already, such as those of the demo."""
    if not token:
        raise click.UsageError(
            "Set GATEWAY_ADMIN_TOKEN (or --admin-token) to the token of the gateway, or use --launch."
        )
    pairs = [address.partition("=") for address in addresses]
    if not all(name and url for name, _, url in pairs):
        raise click.UsageError("--simulator is NAME=URL, such as moonshot=http://127.0.0.1:9101.")
    simulators = Simulators(addresses={name: url.rstrip("/") for name, _, url in pairs})
    return Stage(admin=Admin(url=gateway.rstrip("/"), token=token), simulators=simulators)


# -- output ------------------------------------------------------------------------------------------------------------


def summary_of(run: Run) -> dict[str, Any]:
    """Everything a reader or a script may want of a run, as plain values; money in pico-dollars."""
    outcomes, sums = run.outcomes, run.verdict.sums
    complete = [outcome for outcome in outcomes if outcome.complete]
    prompt = sum(call["prompt_tokens"] for call in run.calls)
    return {
        "requests": len(outcomes),
        "complete": len(complete),
        "failures": dict(Counter(outcome.failed for outcome in outcomes if outcome.failed)),
        "details": Counter(outcome.detail for outcome in outcomes if outcome.failed).most_common(10),
        "providers": dict(Counter(outcome.provider for outcome in complete).most_common()),
        "first_byte_ms": _quantiles([o.first_byte_seconds for o in complete if o.first_byte_seconds is not None]),
        "late_ms": _quantiles([outcome.late_seconds for outcome in outcomes]),
        "seconds": round(run.seconds, 1),
        "kills": run.kills,
        "restart_seconds": [round(seconds, 2) for seconds in run.restarts],
        "calls_per_request": round(len(run.calls) / len(outcomes), 4) if outcomes else None,
        "refused_calls": dict(Counter(call["refused"] for call in run.calls if call["refused"])),
        "cached_share": round(sum(call["cached_tokens"] for call in run.calls) / prompt, 4) if prompt else None,
        **sums,
        "differences": [
            {"kind": one.kind, "where": one.where, "expected": one.expected, "found": one.found}
            for one in run.verdict.differences
        ],
        "differences_not_listed": dict(run.verdict.unlisted),
        "sound": run.sound,
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return None
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {name: round(cuts[place] * 1000, 1) for name, place in (("p50", 49), ("p95", 94), ("p99", 98))}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    table = Table(title="The trace, and what the books say of it", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    failures = ", ".join(f"{count} {what}" for what, count in summary["failures"].items()) or "none"
    table.add_row("requests sent, complete answers", f"{summary['requests']:,}, {summary['complete']:,}")
    table.add_row("failures that a client saw", failures)
    table.add_row("answered by", ", ".join(f"{name} {count:,}" for name, count in summary["providers"].items()) or "–")
    table.add_row("first byte p50, p95, p99", _milliseconds(summary["first_byte_ms"]))
    table.add_row("waited for a free place p50, p95, p99", _milliseconds(summary["late_ms"]))
    refused = sum(summary["refused_calls"].values())
    table.add_row("upstream calls, of these refused", f"{summary.get('upstream_calls', 0):,}, {refused:,}")
    table.add_row("prompt tokens read from provider caches", _share(summary["cached_share"]))
    if summary["kills"]:
        table.add_row(
            "gateway killed and restarted", f"{summary['kills']} times, ready after {_span(summary['restart_seconds'])}"
        )
    _add_money(table, summary)
    console.print(table)
    for detail, count in summary["details"]:
        console.print(f"{count} × {detail}", markup=False)


def _add_money(table: Table, summary: dict[str, Any]) -> None:
    reported, estimated = summary.get("reported", {}), summary.get("estimated", {})
    for group, books in reported.items():
        table.add_row(f"{group}: Σ bill, Σ ledger", f"{_usd(books['bill']['cost'])}, {_usd(books['ledger']['cost'])}")
    table.add_row(
        "Σ ledger, Σ report, estimates included",
        f"{_usd(summary.get('ledger_pico', 0))}, {_usd(summary.get('report_pico', 0))}",
    )
    if estimated.get("attempts"):
        text = (
            f"{estimated['attempts']}: {_usd(estimated['billed_pico'])} billed, {_usd(estimated['booked_pico'])} booked"
        )
        table.add_row("attempts settled by estimate", text)


def print_differences(summary: dict[str, Any], console: Console) -> None:
    if not summary["differences"]:
        verdict = "The books agree." if summary["sound"] else "The books agree; some answers were wrong."
        console.print(verdict, style="green" if summary["sound"] else "red")
        return
    table = Table(title="Differences", title_justify="left", style="red")
    for title in ("kind", "where", "expected", "found"):
        table.add_column(title, overflow="fold")
    for one in summary["differences"]:
        table.add_row(one["kind"], one["where"], one["expected"], one["found"])
    console.print(table)
    for kind, count in summary["differences_not_listed"].items():
        console.print(f"… and {count} more: {kind}", style="red")


def _usd(pico: int) -> str:
    whole, part = divmod(pico, PICO_PER_USD)
    return f"${whole:,}.{part:012d}"


def _span(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _milliseconds(cuts: dict[str, float] | None) -> str:
    return "–" if cuts is None else ", ".join(f"{value:,.0f} ms" for value in cuts.values())


@contextlib.contextmanager
def _progress(total: int, console: Console) -> Iterator[Callable[[Outcome], None]]:
    """A bar on a terminal, nothing in a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    failed = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests", total=total)

        def done(outcome: Outcome) -> None:
            nonlocal failed
            failed += outcome.failed is not None
            bar.update(task, advance=1, description=f"requests, {failed} failed" if failed else "requests")

        yield done


# -- the command -------------------------------------------------------------------------------------------------------

_SHARE: Final = click.FloatRange(0, 1)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    default=None,
    help="A trace in Mooncake's format.  [default: the conversation trace]",
)
@click.option("--rows", type=click.IntRange(1), default=300, help="How many rows.")
@click.option("--offset", type=click.IntRange(0), default=0, help="How many rows to pass over first.")
@click.option(
    "--speed", type=click.FloatRange(0, min_open=True), default=10.0, help="How many times faster than recorded."
)
@click.option("--scale", type=click.IntRange(1, 32), default=1, help="Divide input lengths by this, block by block.")
@click.option("--seed", type=int, default=1, help="Draws keys, models and forms, and the simulators' answers.")
@click.option(
    "--keys", type=click.IntRange(1, 1000), default=3, help="How many API keys to create and spread rows over."
)
@click.option("--key", "secrets", multiple=True, help="Use this API key instead of creating some. Repeatable.")
@click.option("--turbo", type=_SHARE, default=0.2, help="Share of requests for the turbo model.")
@click.option("--stream", type=_SHARE, default=0.5, help="Share of requests that stream.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=64, help="How many requests at once at most.")
@click.option(
    "--fail",
    "failing",
    multiple=True,
    metavar="PROVIDER:FROM:TO[:KIND[,FIELD=NUMBER…]]",
    help="A provider fails from FROM to TO, as shares of the run; KIND is a fault of the simulators'. Repeatable.",
)
@click.option(
    "--launch", "own", is_flag=True, help="Start simulators and a gateway for this run, and stop them after it."
)
@click.option(
    "--kill-every",
    type=click.FloatRange(0.5),
    help="With --launch: SIGKILL the gateway every so many seconds, and start it again.",
)
@click.option(
    "--chunk-ms",
    type=click.FloatRange(0),
    help="With --launch: the simulators' time between chunks.  [default: 0, or 20 with --kill-every]",
)
@click.option(
    "--keep-limits", is_flag=True, help="With --launch: keep the accounts' limits of the shipped configuration."
)
@click.option("--gateway", default="http://127.0.0.1:8080", help="Without --launch: the gateway.")
@click.option(
    "--admin-token",
    envvar="GATEWAY_ADMIN_TOKEN",
    show_default=False,
    help="Without --launch: its admin token.  [env: GATEWAY_ADMIN_TOKEN]",
)
@click.option(
    "--simulator",
    "addresses",
    multiple=True,
    default=[f"{name}=http://127.0.0.1:{9101 + place}" for place, name in enumerate(launch.PROVIDERS)],
    help="Without --launch: a provider's simulator. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def main(
    *, trace: Path | None, failing: tuple[str, ...], own: bool, chunk_ms: float | None, gateway: str,
    admin_token: str | None, addresses: tuple[str, ...], as_json: bool, turbo: float, stream: float, **given: Any,
) -> None:  # fmt: skip
    """Play a trace to the gateway and audit it. Exit status 1 on any difference between the books."""
    pace = chunk_ms if chunk_ms is not None else 20.0 if given["kill_every"] else 0.0
    options = Options(
        trace=trace or TRACE, turbo_share=turbo, stream_share=stream,
        failing=tuple(Failing.parse(text) for text in failing),
        simulator={"chunk_ms": pace, "tokens_per_chunk": 4}, **given,
    )  # fmt: skip
    if options.kill_every is not None and not own:
        raise click.UsageError("--kill-every needs --launch: only a gateway of our own is killed.")
    if not options.trace.exists():
        print(f"Skipped: there is no trace at {options.trace.name}; name one with --trace.", file=sys.stderr)
        return
    allow_many_sockets()
    rows = read_rows(options.trace, offset=options.offset, rows=options.rows)
    try:
        with launched(options) if own else contextlib.nullcontext(running(gateway, admin_token, addresses)) as stage:
            summary = summary_of(play(options, stage, rows, Console(stderr=True)))
    except (LaunchError, BooksError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    _print(summary, as_json=as_json)
    sys.exit(0 if summary["sound"] else 1)


def _print(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=PAGE_COLUMNS)
    print_summary(summary, console)
    print_differences(summary, console)


if __name__ == "__main__":
    main()
