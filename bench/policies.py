"""The live gateway is driven with the same traffic under each policy, and what the providers bill has to order them.

Three simulated providers with caches of their own stand behind it, at crossing prices or with accounts of equal price.
The same rows go through ``gateway replay``'s engine in virtual time: both have to put the policies in the same order.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from bench import launch
from bench.audit import PICO_PER_USD
from bench.books import Admin, BooksError, Simulators
from bench.drive import Outcome, Target, drive
from bench.process import LaunchError, allow_many_sockets
from bench.prompts import BLOCK_TOKENS, KIMI, Request, Row, block_tokens, read_rows, tail_message
from gateway.core.catalogue import Account, Catalogue, Deployment, Model, Policy, ProviderCard, RoutingTerms
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.replay.engine import Engine
from gateway.replay.rows import Row as Played
from gateway.replay.scenario import Scenario
from gateway.replay.world import CacheTerms, Latency, ProviderTerms
from gateway.simulator import MESSAGE_TOKENS, filler

TRACE: Final = Path(__file__).parent.parent / "../shared/data/agentic/agentic_trace.jsonl"
POLICIES: Final = ("expected_cost", "list_price", "round_robin", "sticky")
CACHE_SECONDS: Final = 600.0
BEGINS_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
TIE_SHARE: Final = 0.005
"""Two policies whose spend differs by less than so much have no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """One provider of a scene: USD per 1,000,000 tokens as text, its accounts, and the limits of each of them as a
    share of the mean load; None = no limits."""

    input: str
    cached: str | None
    output: str
    accounts: tuple[str, ...] = ("main",)
    share: float | None = None


Scene = Mapping[str, Seller]

SCENES: Final[Mapping[str, Scene]] = {
    "crossing": {
        "moonshot": Seller(input="0.60", cached="0.15", output="2.50"),
        "cometapi": Seller(input="1.10", cached=None, output="4.40"),
        "evolink": Seller(input="0.40", cached=None, output="1.75"),
    },
    "accounts": {
        "moonshot": Seller(input="0.60", cached="0.15", output="2.50", accounts=("a", "b", "c", "d"), share=0.35),
        "cometapi": Seller(input="1.10", cached=None, output="4.40"),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is. ``speed`` divides times, ``scale`` divides input lengths; caches live as much shorter."""

    trace: Path
    rows: int
    offset: int
    speed: float
    scale: int
    seed: int

    @property
    def cache_seconds(self) -> float:
        return CACHE_SECONDS / self.speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Of the turns that continue a conversation: the tokens that plans believed to be cached where they were sent, in
    whole blocks of 256; those times the chance that they still were; and what was billed as cached."""

    turns: int
    matched: int
    expected: int
    billed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one policy came to: the providers' bill, the share of the input that their caches held, client failures."""

    usd: float
    cached_share: float
    failed: int
    by_provider: Mapping[str, int]
    predicted: Predicted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One row as a turn of a conversation: what it says after the turn before it, and its prefixes in tokens."""

    row: Row
    messages: tuple[bytes, ...]
    digests: tuple[int, ...]
    tokens: tuple[int, ...]


def turns_of(rows: Sequence[Row], *, scale: int) -> list[Turn]:
    """A row whose blocks go on where an earlier row's ended is its next turn: it says all that was said, that row's own
    last message included, and then the blocks that are new and a last message of its own."""
    turns: list[Turn] = []
    ended_at: dict[int, Turn] = {}
    for row in rows:
        before, known = None, 0
        for place in range(len(row.blocks), 1, -1):
            before = ended_at.get(row.blocks[place - 1])
            if before is not None:
                known = place
                break
        turn = _turn(row, before, row.blocks[known:], scale=scale)
        if len(row.blocks) > 1:
            ended_at[row.blocks[-1]] = turn
        turns.append(turn)
    return turns


def _turn(row: Row, before: Turn | None, blocks: Sequence[int], *, scale: int) -> Turn:
    messages = list(before.messages) if before is not None else []
    digests = list(before.digests) if before is not None else []
    tokens = list(before.tokens) if before is not None else []
    size = tokens[-1] if tokens else 0
    if blocks:
        block = block_tokens(scale)
        role = "assistant" if messages else "system"
        text = filler(block - MESSAGE_TOKENS, seed=blocks[0])
        text += "".join(filler(block, seed=each) for each in blocks[1:])
        messages.append(json.dumps({"role": role, "content": text}).encode())
        size += block * len(blocks)
        digests.append(blocks[-1] + 1)
        tokens.append(size)
    rest = (row.input_tokens - len(row.blocks) * BLOCK_TOKENS) // scale
    tail, own = tail_message(row, tokens=rest)
    return Turn(
        row=row,
        messages=(*messages, tail),
        digests=(*digests, (1 << 63) | row.number),
        tokens=(*tokens, size + own),
    )


def requests_of(turns: Sequence[Turn]) -> Iterator[Request]:
    """The turns as they are sent, every other one as a stream."""
    for turn in turns:
        row, stream = turn.row, turn.row.number % 2 == 0
        more = b',"stream":true' if stream else b""
        head = b'{"model":"%b","max_tokens":%d%b,"messages":[' % (KIMI.encode(), row.output_tokens + 64, more)
        yield Request(
            row=row,
            key=0,
            model=KIMI,
            stream=stream,
            include_usage=False,
            input_tokens=turn.tokens[-1],
            output_tokens=max(1, row.output_tokens),
            body=head + b",".join(turn.messages) + b"]}",
        )


def load_of(turns: Sequence[Turn], options: Options) -> float:
    """Tokens per minute of the run, input and output."""
    minutes = (turns[-1].row.at_ms - turns[0].row.at_ms) / 60_000 / options.speed
    return sum(each.tokens[-1] + each.row.output_tokens for each in turns) / minutes


# -- the live gateway --------------------------------------------------------------------------------------------------


def config_of(scene: Scene, addresses: Mapping[str, str], *, policy: str, tokens_per_minute: float) -> dict[str, str]:
    """The gateway's configuration for a scene, with a file for each account's key."""
    providers, prices, files = [], [], {}
    for name, seller in scene.items():
        providers.append(f'[providers.{name}]\ndialect = "{name}"\nbase_url = "{addresses[name]}/v1"\n')
        for account in seller.accounts:
            files[f"{name}-{account}.key"] = f"sk-bench-{name}-{account}"
            limit = f"tpm = {int(seller.share * tokens_per_minute)}\n" if seller.share is not None else ""
            key = f'api_key = {{ file = "{name}-{account}.key" }}'
            providers.append(f'[[providers.{name}.accounts]]\nname = "{account}"\n{key}\n{limit}')
        providers.append(f'[providers.{name}.models.{KIMI}]\nupstream = "{KIMI}"\ncontext = 1_048_576\n')
        cached = "" if seller.cached is None else f'cached_input = "{seller.cached}"\n'
        prices.append(
            f'[[prices]]\nprovider = "{name}"\nmodel = "{KIMI}"\neffective_from = 2025-11-06T00:00:00Z\n'
            f'input = "{seller.input}"\n{cached}output = "{seller.output}"\nsource = "bench"\n'
            "checked_at = 2026-11-22\n"
        )
    models = f'[routing]\npolicy = "{policy}"\n\n[models.{KIMI}]\ndefault_max_output = 32_768\n'
    return {
        "providers.toml": "\n".join(providers),
        "models.toml": models,
        "prices.toml": "\n".join(prices),
        **files,
    }


def _bill_price(seller: Seller) -> dict[str, int]:
    """A simulator's price, in pico-dollars a token."""
    usd = {"input": seller.input, "cached": seller.cached, "output": seller.output}
    return {name: round(float(text) * 1_000_000) for name, text in usd.items() if text is not None}


def live(scene: Scene, turns: Sequence[Turn], options: Options, *, policy: str) -> Spent:
    """Drive the rows through a fresh gateway and fresh providers, and read the providers' bill."""
    settings = {
        "chunk_ms": 0.0,
        "tokens_per_chunk": 64,
        "cache_ttl_seconds": options.cache_seconds,
        "prices": {name: {KIMI: _bill_price(seller)} for name, seller in scene.items()},
    }
    with (
        launch.working_folder() as folder,
        launch.simulators(folder, seed=options.seed, settings=settings) as addresses,
    ):
        config = config_of(scene, addresses, policy=policy, tokens_per_minute=load_of(turns, options))
        with launch.gateway(folder, config) as ours:
            _, key = Admin(url=ours.url, token=ours.admin_token).create_key("bench")
            simulators = Simulators(addresses=addresses)
            mark = simulators.mark()
            target = Target(url=ours.url, keys=[key], concurrency=256, run="policies")
            outcomes = asyncio.run(drive(requests_of(turns), target, speed=options.speed, done=lambda _: None))
            _wait_until_quiet(simulators)
            bill = simulators.bill(simulators.calls(mark))
            known = predicted(Admin(url=ours.url, token=ours.admin_token), outcomes) if policy == POLICIES[0] else None
    prompt = sum(line["prompt_tokens"] for line in bill)
    providers = {name: sum(line["provider"] == name for line in bill) for name in scene}
    return Spent(
        usd=sum(line["cost_pico"] for line in bill) / PICO_PER_USD,
        cached_share=sum(line["cached_tokens"] for line in bill) / prompt if prompt else 0.0,
        failed=sum(outcome.failed is not None for outcome in outcomes),
        by_provider=providers,
        predicted=known,
    )


def predicted(admin: Admin, outcomes: Sequence[Outcome]) -> Predicted:
    """What the plans said, from the explanation of each request, once all of them are in the ledger."""
    turns = matched = expected = billed = 0
    for outcome in outcomes:
        if not outcome.complete or outcome.request_id is None:
            continue
        told = admin.explained(outcome.request_id)
        attempt = told["attempts"][-1]
        served = (attempt["provider"], attempt["account"])
        candidate = next(each for each in told["candidates"] if (each["provider"], each["account"]) == served)
        if candidate["score"]["matched_tokens"]:
            turns += 1
            matched += int(candidate["score"]["matched_tokens"]) // 256 * 256
            expected += int(candidate["expected_cached_tokens"])
            billed += int(attempt["cached_tokens"] or 0)
    return Predicted(turns=turns, matched=matched, expected=expected, billed=billed)


def _wait_until_quiet(simulators: Simulators) -> None:
    deadline = time.monotonic() + 30
    while simulators.in_flight() and time.monotonic() < deadline:
        time.sleep(0.2)


# -- the same in virtual time ------------------------------------------------------------------------------------------


def replayed(scene: Scene, turns: Sequence[Turn], options: Options, *, policy: str) -> Spent:
    """The same turns at the same moments and sizes, against the same prices, limits and caches."""
    played = [
        Played(
            at=each.row.at_ms / 1000 / options.speed,
            input_tokens=each.tokens[-1],
            output_tokens=max(1, each.row.output_tokens),
            prompt=Prompt(digests=each.digests, tokens=each.tokens, family=each.digests[0]),
            tenant="bench",
            model=KIMI,
        )
        for each in turns
    ]
    tally = Engine(
        rows=played,
        conversations=range(len(played)),
        scenario=_scenario(scene, load_of(turns, options), options, Policy(policy)),
    ).run()
    return Spent(
        usd=float(tally.expected.usd()),
        cached_share=tally.cached_share,
        failed=tally.failures,
        by_provider={
            name: sum(each.requests for (provider, _), each in tally.accounts.items() if provider == name)
            for name in scene
        },
    )


def _scenario(scene: Scene, load: float, options: Options, policy: Policy) -> Scenario:
    cards, prices = {}, []
    for name, seller in scene.items():
        tpm = None if seller.share is None else int(seller.share * load)
        cards[name] = ProviderCard(
            name=name,
            dialect=name,
            base_url="",
            accounts=tuple(Account(provider=name, name=each, tpm=tpm) for each in seller.accounts),
            deployments={KIMI: Deployment(provider=name, model=KIMI, upstream=KIMI, context=2**20, max_output=2**18)},
        )
        prices.append(
            Price(
                provider=name,
                model=KIMI,
                effective_from=BEGINS_AT,
                input=UnitPrice.from_usd_per_million(seller.input),
                output=UnitPrice.from_usd_per_million(seller.output),
                cached_input=None if seller.cached is None else UnitPrice.from_usd_per_million(seller.cached),
            )
        )
    cache = CacheTerms(ttl_seconds=options.cache_seconds, ignored_ppm=0, block_tokens=256)
    swift = Latency(first_token_seconds=0.01, prefill_tokens_per_second=1e9, output_tokens_per_second=1e5)
    return Scenario(
        catalogue=Catalogue(
            providers=cards,
            models={KIMI: Model(name=KIMI)},
            prices=PriceTable(prices),
            digest="",
            loaded_at=BEGINS_AT,
            routing=RoutingTerms(policy=policy),
        ),
        model=Model(name=KIMI),
        begins_at=BEGINS_AT,
        terms={name: ProviderTerms(cache=cache, latency=swift, outages={}) for name in scene},
        seed=options.seed,
    )


# -- the command -------------------------------------------------------------------------------------------------------


def disagreements(live_usd: Mapping[str, float], replayed_usd: Mapping[str, float]) -> list[str]:
    """Pairs of policies that the two put in different orders; who differs by next to nothing has no order."""
    found = []
    for one, other in combinations(live_usd, 2):
        here, there = live_usd[one] / live_usd[other] - 1, replayed_usd[one] / replayed_usd[other] - 1
        if min(abs(here), abs(there)) > TIE_SHARE and (here > 0) != (there > 0):
            found.append(f"{one} against {other}: live {here:+.1%}, replayed {there:+.1%}")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--scene", "scenes", multiple=True, type=click.Choice(list(SCENES)), help="All of them without it.")
@click.option("--trace", type=click.Path(path_type=Path), default=None, help="[default: the agentic trace]")
@click.option("--rows", type=click.IntRange(10), default=600, help="How many rows.")
@click.option("--offset", type=click.IntRange(0), default=1_500, help="How many rows to pass over first.")
@click.option("--speed", type=click.FloatRange(1), default=20.0, help="How many times faster than recorded.")
@click.option("--scale", type=click.IntRange(1, 32), default=8, help="Divide input lengths by this.")
@click.option("--seed", type=int, default=1, help="Of the simulators.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of tables.")
def main(*, scenes: tuple[str, ...], trace: Path | None, as_json: bool, **given: Any) -> None:
    """Drive the live gateway under each policy, and the replay beside it. Exit status 1 where their orders differ."""
    options = Options(trace=trace or TRACE, **given)
    if not options.trace.exists():
        print(f"Skipped: there is no trace at {options.trace.name}; name one with --trace.", file=sys.stderr)
        return
    allow_many_sockets()
    rows = read_rows(options.trace, offset=options.offset, rows=options.rows)
    turns = turns_of(rows, scale=options.scale)
    console, result, differ = Console(), {}, False
    for name in scenes or tuple(SCENES):
        spent: dict[str, tuple[Spent, Spent]] = {}
        for policy in POLICIES:
            try:
                running = live(SCENES[name], turns, options, policy=policy)
            except (LaunchError, BooksError, OSError) as error:
                print(error, file=sys.stderr)
                sys.exit(1)
            spent[policy] = (running, replayed(SCENES[name], turns, options, policy=policy))
        wrong = disagreements(
            {p: one.usd for p, (one, _) in spent.items()}, {p: two.usd for p, (_, two) in spent.items()}
        )
        differ = differ or bool(wrong)
        result[name] = {p: {"live": asdict(one), "replayed": asdict(two)} for p, (one, two) in spent.items()}
        if not as_json:
            console.print(_table(name, spent))
            known = spent[POLICIES[0]][0].predicted
            if known is not None and known.billed:
                console.print(
                    f"{known.turns:,} turns that continue another: {known.billed:,} tokens billed as cached, "
                    f"{known.matched / known.billed - 1:+.2%} believed to be there, "
                    f"{known.expected / known.billed - 1:+.2%} expected."
                )
            console.print(*(wrong or ["Both put the policies in the same order."]), sep="\n")
    if as_json:
        print(json.dumps(result, indent=2))
    sys.exit(int(differ))


def _table(name: str, spent: Mapping[str, tuple[Spent, Spent]]) -> Table:
    table = Table(title=f"{name}: what the providers billed", title_justify="left")
    table.add_column("policy")
    for heading in ("live USD", "× ours", "cached", "failed", "replayed USD", "× ours", "cached"):
        table.add_column(heading, justify="right")
    ours_live, ours_replayed = spent["expected_cost"]
    for policy, (one, two) in spent.items():
        table.add_row(
            policy,
            f"{one.usd:.4f}",
            f"{one.usd / ours_live.usd:.3f}",
            f"{one.cached_share:.1%}",
            str(one.failed),
            f"{two.usd:.4f}",
            f"{two.usd / ours_replayed.usd:.3f}",
            f"{two.cached_share:.1%}",
        )
    return table


if __name__ == "__main__":
    main()
