"""Our routing against bounds that no routing can beat: the core that is live, in an independent simulator of providers.

`python -m bench.routing` needs ``../shared/tools/routing_sim.py`` and numpy. A row's figure is its spend divided by the
bound of its traffic and scenario; beside it stand list price and the study's own score in the same simulator.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.study import study
from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Account, Catalogue, Deployment, Model, Policy, ProviderCard, RoutingTerms
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import Candidate, InferenceRequest, Plan, Principal, Surface
from gateway.core.failure import FailureClass
from gateway.core.happenings import Answered, Ended, Sent
from gateway.core.health import WELL, Health, Subject
from gateway.core.hold import worth_holding
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt, Turn
from gateway.core.pricing import Price, PriceTable
from gateway.core.routing import Circumstances, plan
from gateway.core.warmth import worth_remembering

MODEL: Final = "kimi-k2-thinking"
BEGINS: Final = datetime(2026, 3, 1, tzinfo=UTC)
HOLD_USD_PER_SECOND: Final = 0.0005
"""What a second of a caller's time is taken to be worth in the rows that hold: the study's figure."""
HOLD_SECONDS_MAX: Final = 10.0
PROBE_SECONDS: Final = 5.0
"""How often a provider that is out is asked for free whether it is back; in the rows without free probes only the
simulator's own breaker lets requests try, and some of them fail."""
BOUND_ROUNDS: Final = 24
PAGE_COLUMNS: Final = 140
TRACES: Final = ("conversation", "agentic", "mixed", "synthetic")
UNSHARED: Final = 1 << 62
"""Prompts of less than a block share nothing: each has a digest of its own above this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One traffic in one scenario. ``target`` is the ratio to reach, None where none was named."""

    trace: str
    scenario: str
    target: float | None = None
    holds: bool = False
    probes: bool = False
    options: tuple[tuple[str, float], ...] = ()
    part: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        words = [f"{name}={value:g}" for name, value in self.options]
        if self.part is not None:
            words.append(f"{self.part[0]:g}..{self.part[1]:g} s")
        if self.holds:
            words.append(f"hold ≤ {HOLD_SECONDS_MAX:g} s")
        if self.probes:
            words.append("free probes")
        return ", ".join([self.scenario, *words])


TARGETS: Final = (
    Cell(trace="conversation", scenario="healthy", target=1.002),
    Cell(trace="conversation", scenario="flap10", target=1.016, probes=True),
    Cell(trace="conversation", scenario="flap30", target=1.038, probes=True),
    Cell(trace="conversation", scenario="accounts4", target=1.005),
    Cell(trace="conversation", scenario="accounts8", target=1.010),
    Cell(trace="conversation", scenario="turbo2", target=1.002),
    Cell(trace="conversation", scenario="limited", target=1.080, holds=True),
    Cell(trace="agentic", scenario="cross-nocache", target=1.025),
    Cell(trace="mixed", scenario="cross-nocache", target=1.070),
    Cell(trace="agentic", scenario="accounts4", target=1.33, holds=True),
)
OTHERS: Final = (
    *(Cell(trace="conversation", scenario=name) for name in ("flap10", "flap30")),
    *(Cell(trace="conversation", scenario=name, options=(("seed", 77),), probes=True) for name in ("flap10", "flap30")),
    *(Cell(trace="conversation", scenario="accounts4", options=(("q", each),)) for each in (0.0, 0.15, 0.3)),
    *(Cell(trace="conversation", scenario="accounts4", options=(("ttl", each),)) for each in (300.0, 3600.0)),
    *(Cell(trace="conversation", scenario=name) for name in ("cross-nocache", "cross-cache", "limited", "storm")),
    Cell(trace="conversation", scenario="flap30", part=(900.0, 2_700.0)),
    Cell(trace="conversation", scenario="accounts8", part=(900.0, 2_700.0)),
    Cell(trace="agentic", scenario="accounts4"),
    *(Cell(trace="agentic", scenario=name) for name in ("cross-cache", "storm")),
    *(Cell(trace="agentic", scenario=name, probes=True) for name in ("flap10", "flap30")),
    Cell(trace="agentic", scenario="cross-nocache", part=(0.0, 3_600.0)),
    Cell(trace="agentic", scenario="cross-nocache", part=(3_600.0, 7_200.0)),
    Cell(trace="agentic", scenario="cross-nocache", options=(("ttl", 300.0), ("q", 0.2))),
    *(Cell(trace="synthetic", scenario=name) for name in ("cross-nocache", "accounts4")),
    Cell(trace="synthetic", scenario="limited", holds=True),
)


def _usd(amount: float) -> UnitPrice:
    return UnitPrice.from_usd_per_million(f"{amount:.6f}")


def catalogue_of(accounts: list[Any], terms: RoutingTerms) -> tuple[Catalogue, list[tuple[str, str]]]:
    """The scenario as we would configure it, with the key of each account: one price, one provider."""
    providers: dict[Any, list[Any]] = {}
    for each in accounts:
        providers.setdefault(each.price, []).append(each)
    keys, cards, prices = {}, {}, []
    for price, members in providers.items():
        name = members[0].name
        keys.update({id(each): (name, each.name) for each in members})
        cards[name] = ProviderCard(
            name=name,
            dialect="openai",
            base_url="",
            accounts=tuple(
                Account(
                    provider=name,
                    name=each.name,
                    rpm=None if each.rpm == float("inf") else int(each.rpm),
                    tpm=None if each.tpm == float("inf") else int(each.tpm),
                )
                for each in members
            ),
            deployments={
                MODEL: Deployment(provider=name, model=MODEL, upstream=MODEL, context=10**7, max_output=10**6)
            },
        )
        hit = None if price.hit is None else _usd(price.hit)
        prices.append(
            Price(
                provider=name,
                model=MODEL,
                effective_from=BEGINS,
                input=_usd(price.inp),
                output=_usd(price.out),
                cached_input=hit,
                checked_at=date(2026, 3, 1),
            )
        )
    catalogue = Catalogue(
        providers=cards,
        models={MODEL: Model(name=MODEL)},
        prices=PriceTable(prices),
        digest="",
        loaded_at=BEGINS,
        routing=terms,
    )
    return catalogue, [keys[id(each)] for each in accounts]


class Ours:
    """The live core as one of the simulator's policies: it sees what a gateway sees, and no more."""

    def __init__(
        self, *, block: int, holds: bool = False, probes: bool = False, policy: Policy = Policy.EXPECTED_COST
    ) -> None:
        self.name = "ours+wait" if holds else "ours"
        self._block = block
        self._probes = probes
        self.max_wait = HOLD_SECONDS_MAX if holds else 0.0
        self._policy = policy
        self._terms = RoutingTerms(
            hold_usd_per_second=HOLD_USD_PER_SECOND if holds else 0.0, hold_seconds_max=HOLD_SECONDS_MAX
        )

    def reset(self, sim: Any) -> None:
        self.sim, self.tr = sim, sim.tr
        self.beliefs = Beliefs()
        self.catalogue, self.keys = catalogue_of(sim.acc, self._terms)
        self.places = {key: place for place, key in enumerate(self.keys)}
        self.answer_length = AnswerLength()
        self.request = InferenceRequest(surface=Surface.CHAT_COMPLETIONS, model=MODEL, model_asked=MODEL, fields={})
        self.principal = Principal(key_id="", key_name="")
        self.made: dict[int, tuple[Plan, Prompt, Turn]] = {}
        self.sent_count = 0
        self.attempts: dict[int, str] = {}

    def _prompt(self, i: int) -> Prompt:
        """Every block is a boundary that is looked up; the first stands for tools and system message."""
        path = self.tr.path[i].tolist()
        size = self._block
        tokens = (*range(size, size * len(path), size), int(self.tr.inp[i]))
        digests = tuple(each + 1 for each in path)
        return Prompt(digests=digests or (UNSHARED | i,), tokens=tokens, family=digests[0] if digests else 0)

    def choose(self, i: int, now: float, open_places: list[int]) -> int | None:
        prompt = self._prompt(i)
        turn = self.beliefs.turn(prompt, tenant="")
        made = plan(
            self.request,
            self.principal,
            Circumstances(
                catalogue=self.catalogue,
                health_of=lambda subject: self._health(subject, now),
                usable_accounts=frozenset(self.keys),
                answer_length=self.answer_length,
                now=BEGINS + timedelta(seconds=now),
                beliefs=self.beliefs,
                policy=self._policy,
            ),
            model=self.catalogue.models[MODEL],
            prompt=prompt,
            turn=turn,
            output_limit_of=lambda _: 32_768,
        )
        self.made[i] = (made, prompt, turn)
        if self.sim.can_wait:
            full = {}
            for each in made.routable:
                key = (each.provider, each.account)
                if self.places[key] not in open_places:
                    tokens = prompt.input_tokens + made.output_tokens_estimate
                    full[key] = max(1.0, self.beliefs.room_in(key, each.limits, tokens, self._at(now)))
            waited = now - float(self.tr.t[i])
            if full and worth_holding(made, full, self._terms, waited_seconds=waited) is not None:
                return None
        return next(
            place for each in made.candidates if (place := self.places[each.provider, each.account]) in open_places
        )

    def _at(self, now: float) -> float:
        return BEGINS.timestamp() + now

    def _health(self, subject: Subject, now: float) -> Health:
        if subject.account is None or subject.model is None:
            return WELL
        until = self.sim.open_until[self.places[subject.provider, subject.account]]
        if until <= now:
            return WELL
        return Health(out_until=BEGINS + timedelta(seconds=until), kind=FailureClass.UNREACHABLE)

    def _candidate(self, i: int, place: int) -> Candidate:
        return next(each for each in self.made[i][0].candidates if (each.provider, each.account) == self.keys[place])

    def on_sent(self, i: int, place: int, now: float) -> None:
        made, prompt, turn = self.made[i]
        provider, account = self.keys[place]
        score = self._candidate(i, place).score
        assert score is not None
        kept = worth_remembering(len(prompt.digests))
        self.sent_count += 1
        self.attempts[i] = f"{self.sent_count}"
        self.beliefs.apply(
            Sent(
                attempt_id=self.attempts[i],
                provider=provider,
                account=account,
                model=MODEL,
                tenant="",
                at=self._at(now),
                digests=tuple(prompt.digests[each] for each in kept),
                tokens=tuple(prompt.tokens[each] for each in kept),
                family=prompt.family,
                turn=turn.number,
                follows=turn.follows,
                output_tokens=made.output_tokens_estimate,
                matched_tokens=score.matched_tokens,
                matched_age=score.matched_age_seconds,
            )
        )

    def on_done(self, i: int, place: int, now: float, cached: int, cost: float, seconds: float) -> None:  # noqa: ARG002
        tokens, output = int(self.tr.inp[i]), int(self.tr.out[i])
        self.answer_length = self.answer_length.learn(output)
        self.beliefs.apply(
            Answered(
                attempt_id=self.attempts.pop(i),
                at=self._at(now),
                input_tokens=tokens,
                cached_tokens=cached,
                output_tokens=output,
                seconds=seconds,
            )
        )
        self.made.pop(i, None)

    def on_error(self, i: int, place: int, now: float) -> None:
        self.on_sent(i, place, now)
        self.beliefs.apply(Ended(self.attempts.pop(i), self._at(now), is_warm=False))
        if self._probes and self.sim.open_until[place] > now:
            asked = now + PROBE_SECONDS
            while self.sim.acc[place].is_down(asked):
                asked += PROBE_SECONDS
            self.sim.open_until[place] = asked

    def memory(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cell came to, in US$; ratios are to the bound of the same cell."""

    trace: str
    scenario: str
    target: float | None
    bound_usd: float
    ours_usd: float
    ours_ratio: float
    study_ratio: float
    list_price_ratio: float
    hit_share: float
    failures: int
    held_seconds_mean: float

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "ok" if self.ours_ratio <= self.target else "over"


def run(cell: Cell) -> Outcome:
    """One cell, in a process of its own: our core, the study's score, list price, and the bound."""
    simulator = study()
    trace = simulator.load(cell.trace)
    if cell.part is not None:
        trace = trace.part(*cell.part, cell.trace)
    options = {name: int(value) if name == "seed" else value for name, value in cell.options}
    accounts = simulator.scenario(cell.scenario, trace, **options)
    holding = {"max_wait": HOLD_SECONDS_MAX} if cell.holds else {}
    policies = {
        "ours": Ours(block=simulator.BLOCK, holds=cell.holds, probes=cell.probes),
        "study": simulator.ExpectedCost("geo", name="study", **holding),
        "list": simulator.Cheapest(),
    }
    found = {name: simulator.Simulator(trace, accounts).run(policy) for name, policy in policies.items()}
    is_limited = any(min(each.rpm, each.tpm) < float("inf") for each in accounts)
    least = min(each["usd"] for each in found.values()) * 0.99
    wait = HOLD_SECONDS_MAX if cell.holds and is_limited else 0.0
    bound = simulator.dp_bound(trace, accounts, iters=BOUND_ROUNDS, ub=least, wait=wait)[0]
    ours = found["ours"]
    return Outcome(
        trace=cell.trace,
        scenario=cell.name,
        target=cell.target,
        bound_usd=bound,
        ours_usd=ours["usd"],
        ours_ratio=ours["usd"] / bound,
        study_ratio=found["study"]["usd"] / bound,
        list_price_ratio=found["list"]["usd"] / bound,
        hit_share=ours["hit"],
        failures=ours["errors"],
        held_seconds_mean=ours["wait_s"],
    )


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Spend, as a multiple of what no routing can beat")
    for heading in ("traffic", "scenario"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bound $", "ours $", "list price", "study", "ours", "reach", "", "failed", "held s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in outcomes:
        reach = "" if each.target is None else f"≤ {each.target:.3f}"
        table.add_row(
            each.trace,
            each.scenario,
            f"{each.bound_usd:.2f}",
            f"{each.ours_usd:.2f}",
            f"{each.list_price_ratio:.3f}",
            f"{each.study_ratio:.3f}",
            f"{each.ours_ratio:.4f}",
            reach,
            each.verdict,
            str(each.failures),
            f"{each.held_seconds_mean:.2f}",
        )
    return table


@click.command(context_settings={"max_content_width": 100})
@click.option("--trace", type=click.Choice(TRACES), help="Only this traffic.")
@click.option("--scenario", help="Only scenarios whose name begins so, such as accounts or flap30.")
@click.option("--others", is_flag=True, help="Also seeds, parts, lifetimes and scenarios that have no target.")
@click.option("--processes", type=click.IntRange(1, 64), default=2, show_default=True, help="Cells run side by side.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a cell, instead of the table.")
def main(*, trace: str | None, scenario: str | None, others: bool, processes: int, as_json: bool) -> None:
    """Measure our routing against the bounds; the exit status says whether every target is reached."""
    console, errors = Console(width=None if sys.stdout.isatty() else PAGE_COLUMNS), Console(stderr=True)
    study()
    cells = [
        each
        for each in (*TARGETS, *(OTHERS if others else ()))
        if (trace is None or each.trace == trace) and (scenario is None or each.scenario.startswith(scenario))
    ]
    if not cells:
        errors.print("No cell is named so. Mend: leave --scenario out, or add --others.")
        sys.exit(1)
    done: dict[int, Outcome] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
        ProcessPoolExecutor(min(processes, len(cells))) as pool,
    ):
        task = progress.add_task("cells", total=len(cells))
        running = {pool.submit(run, cell): place for place, cell in enumerate(cells)}
        for future in as_completed(running):
            done[running[future]] = future.result()
            progress.advance(task)
    outcomes = [done[place] for place in range(len(cells))]
    if as_json:
        for each in outcomes:
            print(json.dumps({**asdict(each), "verdict": each.verdict}))
    else:
        console.print(_table(outcomes))
    sys.exit(any(each.verdict == "over" for each in outcomes))


if __name__ == "__main__":
    main()
