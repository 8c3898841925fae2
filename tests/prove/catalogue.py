"""Every proof there is, with its sizes; ``full`` are the figures that the project promises to reach."""

from __future__ import annotations

from typing import Final

from tests.prove import (
    allowances,
    alone,
    books,
    budgets,
    conservation,
    hangups,
    holds,
    outage,
    powerloss,
    price,
    replay,
    shared,
    storm,
)
from tests.prove.proof import Proof
from tests.simulation import running as simulation

PROOFS: Final = (
    Proof(
        name="conservation", claim="bills, ledger and report agree to the pico-dollar",
        prove=conservation.prove, unit="requests", small=400, usual=10_000, full=200_000,
    ),
    Proof(
        name="storm", claim="kill -9 under open streams loses nothing and doubles nothing",
        prove=storm.prove, unit="kills", small=1, usual=12, full=200,
    ),
    Proof(
        name="outage", claim="a database that is gone is nobody's error and nobody's loss",
        prove=outage.prove, unit="seconds", small=1, usual=20, full=600,
    ),
    Proof(
        name="hangups", claim="however a client leaves, its row is the bill or a flagged estimate",
        prove=hangups.prove, unit="streams in a cell", small=1, usual=8, full=50, ticks=24,
    ),
    Proof(
        name="replay", claim="shipping a journal again inserts nothing",
        prove=replay.prove, unit="settlements", small=600, usual=30_000, full=300_000, ticks=replay.ROUNDS,
        needs_gateway=False,
    ),
    Proof(
        name="books", claim="every report in every form is the sum of the ledger, and a closed month stays as it is",
        prove=books.prove, unit="attempts", small=200, usual=10_000, full=200_000,
        needs_gateway=False,
    ),
    Proof(
        name="powerloss", claim="a power cut loses nothing synced and invents nothing",
        prove=powerloss.prove, unit="states", small=100, usual=2_000, full=10_000,
        needs_gateway=False,
    ),
    Proof(
        name="simulation", claim="the laws hold in every world that a seed makes",
        prove=simulation.prove, unit="seeds", small=40, usual=1_000, full=10_000,
        needs_gateway=False,
    ),
    Proof(
        name="budgets", claim="what fits for a hundred lets a hundred through, and who leaves leaves no hold",
        prove=budgets.prove, unit="requests", small=150, usual=2_000, full=20_000,
        several_workers=True,
    ),
    Proof(
        name="holds", claim="no hold outlives its lease, and nobody is refused what he may have",
        prove=holds.prove, unit="requests", small=300, usual=2_000, full=20_000,
        several_workers=True,
    ),
    Proof(
        name="shared", claim="whatever becomes of Redis, no strict budget is overspent",
        prove=shared.prove, unit="losses of Redis", small=3, usual=8, full=40,
        several_workers=True,
    ),
    Proof(
        name="alone", claim="without Redis nothing fails, and warm caches stay known",
        prove=alone.prove, unit="seconds without Redis", small=2, usual=10, full=60, ticks=2,
        several_workers=True,
    ),
    Proof(
        name="allowances", claim="no life of reserves, crashes and replays passes a budget",
        prove=allowances.prove, unit="steps", small=4_000, usual=1_000_000, full=5_000_000,
        needs_gateway=False,
    ),
    Proof(
        name="price", claim="what the journal costs",
        prove=price.prove, unit="pairs of rounds", small=1, usual=40, full=200,
        needs_gateway=False,
    ),
)  # fmt: skip
