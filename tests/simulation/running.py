"""Many seeds, on as many processes as there are processors; the found ones always first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from tests.prove.proof import Ground, Proven, told
from tests.simulation.scenario import LIMITS_FROM
from tests.simulation.world import Result, simulate

FOUND: Final = Path(__file__).with_name("seeds.txt")
TOGETHER: Final = 20
"""Seeds that one process is given at a time."""
ALONE_MAX: Final = 300
"""So few are not worth other processes."""
SPEED_MIN: Final = 100
"""How many times faster than real time."""
FIRST: Final = LIMITS_FROM + 10_000
"""Where ``prove`` starts; what came before was run while the simulation was written."""


def found_seeds() -> list[int]:
    """The seeds that have shown something, in the order of the file."""
    lines = FOUND.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def repeat_command(seed: int) -> str:
    """The one command that shows a failure again."""
    return f"python -m tests.simulation --seed {seed} --trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of many came to."""

    seeds: int
    failed: tuple[Result, ...]
    virtual_seconds: float
    real_seconds: float
    calls: int
    lives: int

    @property
    def speed(self) -> float:
        """How many times faster than real time, all processes together."""
        return self.virtual_seconds / self.real_seconds

    @property
    def figure(self) -> str:
        return (
            f"{self.seeds:,} seeds, {self.lives:,} lives, {self.calls:,} calls, {self.virtual_seconds / 3600:,.0f} h "
            f"at {self.speed:,.0f} x real time ({self.seeds / self.real_seconds * 60:,.0f} seeds a minute): "
            f"{len(self.failed)} violated a law"
        )


def run(seeds: Sequence[int], tick: Callable[[int], None] = lambda _: None) -> Outcome:
    """Runs them all."""
    begun = time.perf_counter()
    results = []
    for result in _results(seeds):
        results.append(result)
        tick(1)
    return Outcome(
        seeds=len(results),
        failed=tuple(sorted((each for each in results if each.violations), key=lambda each: each.seed)),
        virtual_seconds=sum(each.virtual_seconds for each in results),
        real_seconds=time.perf_counter() - begun,
        calls=sum(each.calls for each in results),
        lives=sum(each.lives for each in results),
    )


def _results(seeds: Sequence[int]) -> Iterator[Result]:
    if len(seeds) <= ALONE_MAX:
        yield from map(simulate, seeds)
        return
    groups = [seeds[at : at + TOGETHER] for at in range(0, len(seeds), TOGETHER)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_several, group) for group in groups]):
            yield from done.result()


def _several(seeds: Sequence[int]) -> list[Result]:
    return [simulate(seed).without_trace() for seed in seeds]


def prove(size: int, ground: Ground) -> Proven:
    """``size`` new seeds after those that were found."""
    outcome = run([*found_seeds(), *range(FIRST, FIRST + size)], ground.tick)
    violations = [f"{repeat_command(each.seed)}: {each.violations[0]}" for each in outcome.failed]
    slow = None if outcome.speed >= SPEED_MIN else f"{SPEED_MIN} x real time"
    return Proven(figure=outcome.figure, violations=told(violations), missed=slow)
