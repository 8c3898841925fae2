"""What a seed decides before anything runs: providers and their characters, prices, clients, lives, and troubles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Final

from gateway.core.catalogue import Catalogue, OnClientAbort, OnModelMismatch, Timeouts
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price
from tests.pipeline.virtual_time import START
from tests.pipeline.world import card, catalogue
from tests.simulation.clients import MODEL, Manners
from tests.simulation.database import Troubles
from tests.simulation.disk import Trouble
from tests.simulation.life import POINTS, Doom
from tests.simulation.providers import Character
from tests.simulation.rights import NO_RIGHTS, Rights, rights, with_rates

ACCOUNTS: Final = {
    "evolink": ("main", "spare"), "moonshot": ("main",), "cometapi": ("main",), "writeco": ("main",),
}  # fmt: skip
LIMITS_FROM: Final = 100_000
"""Worlds of smaller seeds have no limits and no budgets, as there were none when those seeds were run first: what they
have shown stays seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """A price as the auditor keeps it: decimal text in USD per 1,000,000 tokens."""

    provider: str
    since: datetime
    input: str
    cached: str | None
    output: str
    write: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LifePlan:
    """One life: after so many seconds (or where ``doom`` says) it ends like that: term, kill or power."""

    seconds: float
    end: str
    doom: Doom | None
    down_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """One client, which comes at a moment, with the key of one of the holders."""

    arrives: float
    manners: Manners
    holder: int = 0
    limit: int | None = None
    """The output limit that it names where its request names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a seed decides beforehand."""

    seed: int
    begins: datetime
    rights: Rights
    prices: tuple[PriceRow, ...]
    catalogue: Catalogue
    timeouts: Timeouts
    drains: frozenset[str]
    characters: dict[tuple[str, str], Character]
    clients: tuple[ClientPlan, ...]
    returning: tuple[ClientPlan, ...]
    """Those who come at once whenever a process has started again."""
    lives: tuple[LifePlan, ...]
    disk: tuple[Trouble, ...]
    sync_seconds: float
    database: Troubles
    replays: bool
    segment_bytes_max: int


def scenario(seed: int) -> Scenario:
    """The scenario of a seed: always the same."""
    chance = Random(f"scenario {seed}")
    return _limited(seed, chance) if seed >= LIMITS_FROM else _scenario(seed, chance, START)


def _limited(seed: int, chance: Random) -> Scenario:
    """A world with limits and budgets, and with more clients, many of them at once."""
    also = Random(f"rights {seed}")
    horizon = also.choice((15.0, 40.0, 80.0))
    allowed, begins = rights(also, horizon, ACCOUNTS)
    made = _scenario(seed, chance, begins)
    cards = {name: with_rates(each, allowed.accounts) for name, each in made.catalogue.providers.items()}
    made.database.slow = also.choice((0.0, 0.0, 0.3))
    made.database.fails = also.choice((made.database.fails, 0.2))
    ignores = also.choice((0.0, 0.0, 0.1))
    return replace(
        made,
        characters={place: replace(each, ignores_limit=ignores) for place, each in made.characters.items()},
        rights=allowed,
        catalogue=replace(made.catalogue, providers=cards),
        clients=_crowd(also, horizon, holders=len(allowed.holders)),
        returning=tuple(
            ClientPlan(arrives=0.0, manners=Manners(), holder=also.randrange(len(allowed.holders)), limit=300)
            for _ in range(also.choice((0, 0, 2, 5)))
        ),
    )


def _crowd(chance: Random, horizon: float, *, holders: int) -> tuple[ClientPlan, ...]:
    rude = chance.choice((0.0, 0.2, 0.5))
    rushes = [chance.uniform(0, horizon) for _ in range(chance.choice((1, 2, 5)))]
    if chance.random() < 0.4:
        rushes.append(rushes[0] + chance.uniform(53.0, 61.0))  # they wait for the minute of the first to be over
    together = chance.choice((0.0, 0.5, 0.9))
    noisy = chance.randrange(holders)
    plans = []
    for _ in range(chance.choice((6, 12, 24, 40))):
        arrives = chance.uniform(0, horizon)
        if chance.random() < together:
            arrives = chance.choice(rushes) + chance.choice((0.0, 0.0, chance.uniform(0, 2)))
        plans.append(
            ClientPlan(
                arrives=arrives,
                manners=_impatient(chance) if chance.random() < rude else Manners(retries=chance.choice((0, 0, 2))),
                holder=noisy if chance.random() < 0.4 else chance.randrange(holders),
                limit=chance.choice((None, 50, 300, 2000)),
            )
        )
    return tuple(plans)


def _impatient(chance: Random) -> Manners:
    """Somebody who leaves while waiting for room, sometimes just when it may be his turn, or is rude otherwise."""
    if chance.random() < 0.5:
        return _manners(chance)
    return Manners(leaves_after=chance.choice((1.0, 2.0, chance.uniform(0, 10))))


def _scenario(seed: int, chance: Random, begins: datetime) -> Scenario:
    prices = _prices(chance, begins)
    timeouts = Timeouts(
        connect=5,
        first_byte=chance.choice((8.0, 15.0, 30.0)),
        idle=chance.choice((6.0, 10.0, 25.0)),
        total=Random(f"deadline {seed}").choice((20.0, 90.0)),
    )
    drains = frozenset(name for name in ACCOUNTS if chance.random() < 0.4)
    cards = [
        card(
            name,
            accounts=accounts,
            timeouts=timeouts,
            on_client_abort=OnClientAbort.DRAIN if name in drains else OnClientAbort.CANCEL,
            on_model_mismatch=chance.choice((OnModelMismatch.FLAG, OnModelMismatch.REJECT)),
        )
        for name, accounts in ACCOUNTS.items()
    ]
    horizon = chance.choice((15.0, 40.0, 80.0))
    return Scenario(
        seed=seed,
        begins=begins,
        rights=NO_RIGHTS,
        prices=prices,
        catalogue=catalogue(*cards, prices=tuple(map(_price, prices))),
        timeouts=timeouts,
        drains=drains,
        characters=_characters(chance),
        clients=_clients(chance, horizon),
        returning=(),
        lives=_lives(chance, horizon),
        disk=_disk(chance, horizon),
        sync_seconds=chance.choice((0.0002, 0.002, 0.02, 0.3)),
        database=_database(chance, horizon),
        replays=chance.random() < 0.5,
        segment_bytes_max=chance.choice((4096, 64 * 1024, 1024 * 1024)),
    )


def _prices(chance: Random, begins: datetime) -> tuple[PriceRow, ...]:
    """One or two rows a provider: a price may change while the simulation runs."""
    rows: list[PriceRow] = []
    for name in ACCOUNTS:
        rows.append(_price_row(chance, name, begins - timedelta(days=30)))
        if chance.random() < 0.5:
            change = begins + timedelta(seconds=chance.randrange(5, 60))
            rows.append(_price_row(chance, name, change))
    return tuple(rows)


def _price_row(chance: Random, name: str, since: datetime) -> PriceRow:
    return PriceRow(
        provider=name,
        since=since,
        input=str(Decimal(chance.randrange(100_000, 2_000_000)) / 10**6),
        cached=None if chance.random() < 0.2 else str(Decimal(chance.randrange(10_000, 99_000)) / 10**6),
        output=str(Decimal(chance.randrange(2_000_000, 9_000_000)) / 10**6),
        write=str(Decimal(chance.randrange(200_000, 3_000_000)) / 10**6) if name == "writeco" else None,
    )


def _price(row: PriceRow) -> Price:
    return Price(
        provider=row.provider,
        model=MODEL,
        effective_from=row.since,
        input=UnitPrice.from_usd_per_million(row.input),
        cached_input=None if row.cached is None else UnitPrice.from_usd_per_million(row.cached),
        output=UnitPrice.from_usd_per_million(row.output),
        cache_write=None if row.write is None else {"5m": UnitPrice.from_usd_per_million(row.write)},
    )


def _characters(chance: Random) -> dict[tuple[str, str], Character]:
    weather = chance.choice((0.0, 0.1, 0.3, 0.6))
    return {
        (name, account): Character(
            refuses=weather * chance.random() * 0.7,
            breaks=weather * chance.random(),
            odd_usage=chance.choice((0.1, 0.5, 0.9)),
            slow=chance.choice((0.0, 0.1, 0.5)),
            bills_in_full=chance.random() < 0.3,
            tells_model="kimi-k2-turbo" if chance.random() < 0.08 else None,
        )
        for name, accounts in ACCOUNTS.items()
        for account in accounts
    }


def _clients(chance: Random, horizon: float) -> tuple[ClientPlan, ...]:
    rude = chance.choice((0.0, 0.2, 0.6))
    count = chance.choice((4, 10, 20))
    return tuple(
        ClientPlan(
            arrives=chance.uniform(0, horizon),
            manners=_manners(chance) if chance.random() < rude else Manners(retries=chance.choice((0, 2))),
        )
        for _ in range(count)
    )


def _manners(chance: Random) -> Manners:
    match chance.randrange(6):
        case 0:
            return Manners(leaves_after=chance.uniform(0, 3))
        case 1:
            return Manners(leaves_after=chance.uniform(0, 30))
        case 2:
            return Manners(leaves_at=chance.randrange(1, 20))
        case 3:
            return Manners(leaves_in_upload=True)
        case 4:
            return Manners(deaf_at=chance.randrange(0, 10), leaves_after=chance.choice((None, 5.0, 40.0)))
        case _:
            return Manners(read_seconds=chance.uniform(0.01, 2.0))


def _lives(chance: Random, horizon: float) -> tuple[LifePlan, ...]:
    count = chance.choice((1, 1, 2, 3))
    lives = []
    for _ in range(count):
        doom = None
        end = chance.choice(("term", "kill", "kill", "power"))
        if end != "term" and chance.random() < 0.7:
            point = chance.choice(POINTS)
            when = chance.choice(("before", "after", "within") if point == "write" else ("before", "after"))
            doom = Doom(point=point, count=chance.choice((1, 2, 3, 5, 10, 20, 60)), when=when)
        seconds = horizon / count * chance.uniform(0.5, 1.3)
        lives.append(LifePlan(seconds=seconds, end=end, doom=doom, down_seconds=chance.choice((0.0, 0.5, 5.0))))
    return tuple(lives)


def _disk(chance: Random, horizon: float) -> tuple[Trouble, ...]:
    if chance.random() < 0.6:
        return ()
    troubles = []
    for _ in range(chance.choice((1, 2))):
        begins = chance.uniform(0, horizon)
        length = chance.choice((0.01, 1.0, 10.0))
        troubles.append(Trouble(kind=chance.choice(("full", "broken", "slow")), begins=begins, ends=begins + length))
    return tuple(troubles)


def _database(chance: Random, horizon: float) -> Troubles:
    troubles = Troubles(
        fails=chance.choice((0.0, 0.0, 0.05)),
        loses_answer=chance.choice((0.0, 0.0, 0.2)),
        refuses=chance.choice((0.0, 0.0, 0.0, 0.1)),
    )
    if chance.random() < 0.4:
        begins = chance.uniform(0, horizon)
        troubles.away.append((begins, begins + chance.choice((0.5, 10.0, 60.0))))
    return troubles
