"""The proofs about the journal alone, small; `make prove` runs the same ones at their real sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prove.catalogue import PROOFS
from tests.prove.proof import Ground, Proof

JOURNAL = [proof for proof in PROOFS if not proof.needs_gateway]


@pytest.mark.prove
@pytest.mark.integration
@pytest.mark.parametrize("proof", JOURNAL, ids=lambda proof: proof.name)
def test_the_law_holds(proof: Proof, tmp_path: Path, database_url: str) -> None:
    """On a disk and a database of the test's own."""

    @contextlib.contextmanager
    def database() -> Iterator[str]:
        yield database_url

    proven = proof.prove(proof.small, Ground(folder=tmp_path, database=database))
    assert not proven.violations, proven.figure
