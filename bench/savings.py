"""How far the savings report is from the truth: shadows of routed traffic against all of it sent to one provider.

The study's simulator (`../shared/tools/routing_sim.py`, with its traces) routes a trace by its reference policy; our
shadow sees what a ledger would have kept of it: who served what, with which tokens billed as cached. It predicts what
all of it would have cost at each single provider. The truth is the same simulator with everything sent there. Beside
it stands the naive figure, list price without cache. Limits: 1 % of error, 2 % where the cache is shorter-lived and
noisier than anybody assumes; cells without a limit must only have the truth within their own band.

    python -m bench.savings [WORD]…         cells whose name has every word, such as: agentic flap30
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final, NamedTuple

from bench.study import study
from gateway.core.catalogue import Catalogue, Deployment, Model, ProviderCard
from gateway.core.estimate import expected_cost
from gateway.core.money import Money, UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.core.savings import savings
from gateway.core.shadow import PastRequest, Shadow

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
MODEL: Final = "kimi-k2-thinking"
BOUNDARIES_MAX: Final = 16


class Cell(NamedTuple):
    """A trace under a scenario, routed, and what is asked about it."""

    trace: str
    scenario: str
    limit_percent: float | None
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.trace, self.scenario, *(f"{name}={value:g}" for name, value in self.changes)])


class Line(NamedTuple):
    """One provider's counterfactual beside the truth, in dollars."""

    cell: str
    provider: str
    served: float
    truth: float
    shadow: float
    low: float
    high: float
    naive: float
    measured_percent: float | None
    limit_percent: float | None

    @property
    def error_percent(self) -> float:
        return 100 * (self.shadow / self.truth - 1)

    @property
    def is_inside(self) -> bool:
        return self.low <= self.truth <= self.high

    @property
    def is_well(self) -> bool:
        return self.is_inside if self.limit_percent is None else abs(self.error_percent) <= self.limit_percent


CELLS: Final = (
    Cell("conversation", "flap30", 1.0),
    Cell("conversation", "cross-nocache", 1.0),
    Cell("conversation", "flap30", 2.0, (("ttl", 300.0), ("q", 0.2))),
    Cell("conversation", "cross-nocache", 2.0, (("ttl", 300.0), ("q", 0.2))),
    Cell("agentic", "cross-nocache", 1.0),
    Cell("agentic", "flap30", None),
    Cell("synthetic", "cross-nocache", None),
    Cell("conversation", "cross-cache", None),
)


def main() -> int:
    study()
    cells = [cell for cell in CELLS if all(word in cell.name for word in sys.argv[1:])]
    print(
        f"{'traffic, scenario':44} {'all to':14} {'served':>6} {'truth $':>8} {'shadow $':>8} {'error':>7} "
        f"{'band $':>16} {'naive':>8} {'own check':>9}  limit"
    )
    failed = 0
    with ProcessPoolExecutor(max_workers=2) as pool:
        for lines in pool.map(run, cells):
            for line in lines:
                failed += not line.is_well
                print(_shown(line), flush=True)
    return 1 if failed else 0


def _shown(line: Line) -> str:
    own = "–" if line.measured_percent is None else f"{line.measured_percent:+.2f} %"
    limit = "in the band" if line.limit_percent is None else f"{line.limit_percent:g} %"
    return (
        f"{line.cell:44} {line.provider:14} {line.served:6.1%} {line.truth:8.2f} {line.shadow:8.2f} "
        f"{line.error_percent:+6.2f}% {line.low:7.2f}–{line.high:7.2f}{' ' if line.is_inside else '!'} "
        f"{100 * (line.naive / line.truth - 1):+7.1f}% {own:>9}  {limit} {'ok' if line.is_well else 'OVER'}"
    )


def run(cell: Cell) -> list[Line]:
    """Routes the trace, casts the shadows, and asks the simulator for the truth."""
    simulator = study()
    trace = simulator.load(cell.trace)
    accounts = simulator.scenario(cell.scenario, trace, **dict(cell.changes))
    log: list[tuple[int, int, float, int, int]] = []
    policy = _recording(simulator, log)
    simulator.Simulator(trace, accounts).run(policy)
    catalogue = _catalogue(accounts)
    shadow = Shadow(catalogue)
    for index, account, at, cached, output in sorted(log, key=lambda each: (each[2], each[0])):
        shadow.add(_request(trace, accounts, catalogue, index, account, at, cached, output))
    report = savings(shadow).models[0]
    served = [sum(1 for each in log if each[1] == number) / len(log) for number in range(len(accounts))]
    lines = []
    for number, account in enumerate(accounts):
        if account.price.hit is None:
            continue  # without a cache there is nothing to predict
        found = next(each for each in report.baselines if each.name == account.name)
        alone = simulator.Simulator(trace, [simulator.replace(account, down=[], rpm=float("inf"), tpm=float("inf"))])
        truth = alone.run(simulator.Cheapest())["usd"]
        naive = sum(account.price.cost(int(i), 0, int(o)) for i, o in zip(trace.inp, trace.out, strict=True))
        own = None if found.accuracy is None else found.accuracy.error_percent
        lines.append(
            Line(cell.name, account.name, served[number], truth, _usd(found.cost), _usd(found.cost_low),
                 _usd(found.cost_high), naive, own, cell.limit_percent)
        )  # fmt: skip
    return lines


def _usd(amount: Money) -> float:
    return amount.pico / 1e12


def _recording(simulator: ModuleType, log: list[tuple[int, int, float, int, int]]) -> Any:
    """The study's router, with what a ledger would keep of it: dispatch, account, cached and output tokens."""
    sent: dict[int, float] = {}

    class Recording(simulator.ExpectedCost):  # type: ignore[name-defined,misc]
        def on_sent(self, i: int, a: int, now: float) -> None:
            sent[i] = now
            super().on_sent(i, a, now)

        def on_done(self, i: int, a: int, now: float, cached: int, cost: float, lat: float) -> None:
            log.append((i, a, sent.pop(i), int(cached), int(self.tr.out[i])))
            super().on_done(i, a, now, cached, cost, lat)

    return Recording("geo", name="est-geo")


def _catalogue(accounts: list[Any]) -> Catalogue:
    def unit(usd: float) -> UnitPrice:
        return UnitPrice(round(usd * 1e6))

    cards, prices = {}, []
    for account in accounts:
        deployment = Deployment(provider=account.name, model=MODEL, upstream=MODEL, context=2**20, max_output=2**18)
        cards[account.name] = ProviderCard(
            name=account.name, dialect="openai", base_url="https://example.com/v1", deployments={MODEL: deployment}
        )
        hit = account.price.hit
        prices.append(
            Price(provider=account.name, model=MODEL, effective_from=EPOCH, input=unit(account.price.inp),
                  output=unit(account.price.out), cached_input=None if hit is None else unit(hit))
        )  # fmt: skip
    return Catalogue(
        providers=cards, models={MODEL: Model(name=MODEL)}, prices=PriceTable(prices), digest="", loaded_at=EPOCH
    )


def _request(
    trace: Any, accounts: list[Any], catalogue: Catalogue, index: int, account: int, at: float, cached: int, output: int
) -> PastRequest:
    provider = accounts[account].name
    price = catalogue.prices.in_force(provider, MODEL, EPOCH)
    assert price is not None
    input_tokens = int(trace.inp[index])
    cost = expected_cost(price, input_tokens=input_tokens, cached_tokens=cached, output_tokens=output)
    return PastRequest(
        request_id=str(index), at=EPOCH + timedelta(seconds=at), model=MODEL, tenant="", turn=0,
        prompt=_prompt([int(block) for block in trace.path[index]], index, input_tokens), provider=provider,
        account="main", price_id=price.price_id, input_tokens=input_tokens, cached_tokens=cached,
        output_tokens=output, is_read=True, is_told=True, cost=cost, failed_cost=Money(0), final_cost=cost,
    )  # fmt: skip


def _prompt(blocks: list[int], index: int, input_tokens: int) -> Prompt:
    """As many boundaries as a fingerprint keeps: the first, powers of two, the last ones; and the whole prompt, whose
    tail of less than a block nobody shares."""
    count = len(blocks)
    kept = {2**power - 1 for power in range(count.bit_length()) if 2**power <= count}
    for deep in range(count - 1, -1, -1):
        if len(kept) >= BOUNDARIES_MAX - 1:
            break
        kept.add(deep)
    depths = sorted(kept)
    digests, tokens = [blocks[depth] for depth in depths], [(depth + 1) * 512 for depth in depths]
    if not tokens or tokens[-1] < input_tokens:
        digests.append(2**40 + index)
        tokens.append(input_tokens)
    return Prompt(tuple(digests), tuple(tokens), blocks[0] if blocks else 0)


if __name__ == "__main__":
    sys.exit(main())
