"""The proofs against the whole gateway of one worker, small; `make prove` runs the same ones at their real sizes."""

from __future__ import annotations

import pytest

from bench.launch import working_folder
from tests.prove.catalogue import PROOFS
from tests.prove.proof import Ground, Proof

GATEWAY = [proof for proof in PROOFS if proof.needs_gateway and not proof.several_workers]


@pytest.mark.prove
@pytest.mark.integration
@pytest.mark.parametrize("proof", GATEWAY, ids=lambda proof: proof.name)
def test_the_law_holds(proof: Proof) -> None:
    """A gateway of its own, with providers and a database beside it."""
    with working_folder() as folder:
        proven = proof.prove(proof.small, Ground(folder=folder, database=_none))
    assert not proven.violations, proven.figure


def _none() -> None:
    raise AssertionError("the gateway brings its own database")
