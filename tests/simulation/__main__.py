"""``python -m tests.simulation``: many seeds with a bar, or one with its trace; status 1 if a law is broken."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.simulation.planted import PLANTS, PLANTS_OF_ALLOWANCES, hunt
from tests.simulation.running import found_seeds, repeat_command, run
from tests.simulation.scenario import LIMITS_FROM
from tests.simulation.world import Result, simulate

FAILURES_SHOWN_MAX = 5


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seeds", type=click.IntRange(min=0), default=1_000, help="how many new seeds, after the found ones")
@click.option("--start", type=int, default=LIMITS_FROM, help="the first of them")
@click.option("--seed", type=int, default=None, help="only this one")
@click.option("--trace", is_flag=True, help="with --seed: everything that happened")
@click.option("--planted", is_flag=True, help="how many of the planted bugs are found within --seeds")
def main(seeds: int, start: int, seed: int | None, trace: bool, planted: bool) -> None:
    """Simulates the gateway in hostile worlds, each of them made by a number."""
    if seed is not None:
        sys.exit(_one(seed, with_trace=trace))
    sys.exit(_planted(seeds) if planted else _many(range(start, start + seeds)))


def _one(seed: int, *, with_trace: bool) -> int:
    result = simulate(seed)
    for line in result.trace if with_trace else ():
        click.echo(line)
    click.echo(f"seed {seed}: {result.virtual_seconds:.1f} s, {result.calls} calls, trace {result.trace_hash}")
    _tell(result)
    return 1 if result.violations else 0


def _tell(result: Result) -> None:
    for violation in result.violations:
        click.echo(f"  {violation}")


def _many(new: range) -> int:
    seeds = [*found_seeds(), *new]
    with _bar() as bar:
        task = bar.add_task("seeds", total=len(seeds))
        outcome = run(seeds, lambda done: bar.advance(task, done))
    click.echo(outcome.figure)
    for result in outcome.failed[:FAILURES_SHOWN_MAX]:
        click.echo(f"\nTo see it again:  {repeat_command(result.seed)}")
        _tell(result)
    return 1 if outcome.failed else 0


def _planted(seeds: int) -> int:
    plants, found = (*PLANTS, *PLANTS_OF_ALLOWANCES), 0
    with _bar() as bar:
        task = bar.add_task("planted bugs", total=len(plants))
        for plant in plants:
            seed, violation = hunt(plant, seeds)
            found += violation is not None
            told = f"seed {seed}: {violation[:100]}" if violation else f"not found in {seeds} seeds"
            bar.console.print(f"{plant.name:32} {told}", markup=False, highlight=False, soft_wrap=True)
            bar.advance(task)
    click.echo(f"{found} of {len(plants)} planted bugs found")
    return 0 if found >= len(plants) - 1 else 1


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    main()
