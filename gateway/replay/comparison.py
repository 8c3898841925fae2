"""Policies side by side over the same rows, and each provider alone: the best of these is the one to beat.

A provider alone still has its accounts chosen by expected cost, and its own retries and waits: the best that whoever
buys from it alone could do, known only in hindsight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.core.catalogue import Policy
from gateway.replay.engine import Engine
from gateway.replay.results import Tally
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.trace import conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one policy did, with all providers or with one alone."""

    policy: Policy
    provider: str | None
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every run over the same rows."""

    policies: tuple[Run, ...]
    alone: tuple[Run, ...]
    conversations: int

    @property
    def best_alone(self) -> Run | None:
        """The provider that would have cost least of those that could serve as many requests as any; first by name
        where several would."""
        if not self.alone:
            return None
        return min(self.alone, key=lambda run: (run.tally.unserved, run.tally.expected.pico, run.provider))

    def ratio(self, run: Run) -> float | None:
        """Its cost in parts of the best provider's alone; None where that is nothing, or not for the same requests."""
        best = self.best_alone
        if best is None or not best.tally.expected.pico or best.tally.unserved != run.tally.unserved:
            return None
        return run.tally.expected.pico / best.tally.expected.pico


def runs_of(scenario: Scenario, policies: Sequence[Policy]) -> int:
    """How many runs a comparison makes."""
    return len(policies) + len(scenario.providers())


def compare(
    rows: Sequence[Row],
    scenario: Scenario,
    policies: Sequence[Policy],
    progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Runs every policy, and every provider alone. ``progress`` is told of requests done over all runs."""
    numbers = conversations(rows)
    finished = 0

    def run(world: Scenario, policy: Policy, provider: str | None) -> Run:
        nonlocal finished
        engine = Engine(
            rows=rows,
            conversations=numbers,
            scenario=world.under(policy),
            progress=lambda done: progress(finished + done),
        )
        tally = engine.run()
        finished += len(rows)
        return Run(policy=policy, provider=provider, tally=tally)

    return Comparison(
        policies=tuple(run(scenario, policy, None) for policy in policies),
        alone=tuple(run(scenario.only(name), Policy.EXPECTED_COST, name) for name in scenario.providers()),
        conversations=len(set(numbers)),
    )
