"""What operators see of accounts: what is not known is not zero."""

from __future__ import annotations

from typing import Any

from gateway.core.beliefs import Beliefs
from gateway.core.load import UNKNOWN_PACE, Pace
from gateway.core.validity import Validity
from gateway.http.admin.provider_states import provider_states
from tests.paces import paced
from tests.pipeline.virtual_time import START
from tests.pipeline.world import card, catalogue, configuration


def only(beliefs: Beliefs) -> dict[str, Any]:
    in_force = configuration(catalogue(card("evolink")))
    (row,) = provider_states(in_force, START, health=(), validity=Validity(), balances={}, beliefs=beliefs)
    return row


def test_what_nobody_has_seen_of_an_account_is_null() -> None:
    """Before its first answer nothing; after whole bodies alone no time to a first chunk."""
    new = only(Beliefs())
    assert (new["pace"], new["cache_hit_rate"], new["balance"]) == (None, None, None)
    whole = Pace(first_chunk_seconds=UNKNOWN_PACE.first_chunk_seconds, tokens_per_second=20.0)
    seen = only(paced({("evolink", "main"): whole}))
    assert seen["pace"] == {"first_chunk_seconds": None, "tokens_per_second": 20.0}
    streamed = Pace(first_chunk_seconds=0.25, tokens_per_second=20.0)
    assert only(paced({("evolink", "main"): streamed}))["pace"] == {
        "first_chunk_seconds": 0.25,
        "tokens_per_second": 20,
    }
