"""The live gateway is driven with the same traffic under each policy, and what the providers bill has to order them.

Three simulated providers with caches of their own stand behind it, at crossing prices or with accounts of equal price.
The same rows go through ``gateway replay``'s engine in virtual time: both have to put the policies in the same order.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import launch
from bench.audit import PICO_PER_USD
from bench.books import Admin, Simulators
from bench.drive import Target, drive
from bench.process import allow_many_sockets
from bench.prompts import KIMI, Row, block_tokens, read_rows, requests_of, turn_ends

TRACE: Final = Path(__file__).parent.parent / "../shared/data/agentic/agentic_trace.jsonl"
POLICIES: Final = ("expected_cost", "list_price", "round_robin", "sticky")
CACHE_SECONDS: Final = 600.0
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
class Spent:
    """What one policy came to: the providers' bill, the share of the input that their caches held, client failures."""

    usd: float
    cached_share: float
    failed: int
    by_provider: Mapping[str, int]


def load_of(rows: Sequence[Row], options: Options) -> float:
    """Tokens per minute of the run, input and output."""
    minutes = (rows[-1].at_ms - rows[0].at_ms) / 60_000 / options.speed
    tokens = sum(
        each.input_tokens * block_tokens(options.scale) / block_tokens(1) + each.output_tokens for each in rows
    )
    return tokens / minutes


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


def live(scene: Scene, rows: Sequence[Row], options: Options, *, policy: str) -> Spent:
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
        config = config_of(scene, addresses, policy=policy, tokens_per_minute=load_of(rows, options))
        with launch.gateway(folder, config) as ours:
            _, key = Admin(url=ours.url, token=ours.admin_token).create_key("bench")
            simulators = Simulators(addresses=addresses)
            mark = simulators.mark()
            target = Target(url=ours.url, keys=[key], concurrency=256, run="policies")
            requests = requests_of(
                rows, seed=options.seed, scale=options.scale, keys=1, turbo_share=0.0, stream_share=0.5,
                ends=turn_ends(rows),
            )  # fmt: skip
            outcomes = asyncio.run(drive(requests, target, speed=options.speed, done=lambda _: None))
            _wait_until_quiet(simulators)
            bill = simulators.bill(simulators.calls(mark))
    prompt = sum(line["prompt_tokens"] for line in bill)
    providers = {name: sum(line["provider"] == name for line in bill) for name in scene}
    return Spent(
        usd=sum(line["cost_pico"] for line in bill) / PICO_PER_USD,
        cached_share=sum(line["cached_tokens"] for line in bill) / prompt if prompt else 0.0,
        failed=sum(outcome.failed is not None for outcome in outcomes),
        by_provider=providers,
    )


def _wait_until_quiet(simulators: Simulators) -> None:
    deadline = time.monotonic() + 30
    while simulators.in_flight() and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> None:
    rows = read_rows(TRACE, offset=1500, rows=int(sys.argv[1]))
    options = Options(trace=TRACE, rows=len(rows), offset=1500, speed=20.0, scale=8, seed=1)
    allow_many_sockets()
    for policy in sys.argv[2:]:
        print(policy, live(SCENES["crossing"], rows, options, policy=policy))


if __name__ == "__main__":
    main()
