"""new-api #4168: an answer without any output was billed as if there had been some."""

from __future__ import annotations

from gateway.core.money import Money
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, broken, stream
from tests.wire.transcripts import DONE, ROLE, closing, finish, totals


@on_virtual_time
async def test_no_output_costs_no_output() -> None:
    """The provider's own zero beside a prompt is believed: 146 tokens at 0.556 USD per million."""
    script = stream(ROLE, finish(), closing(totals(146, 0)), DONE)
    run = await World(names=("evolink",)).scripted(evolink=script).ask()
    assert run.entry.output_pico == 0
    assert run.cost == Money.from_usd("0.000081176")


@on_virtual_time
async def test_a_stream_that_broke_before_any_output_has_none() -> None:
    """Its prompt may be owed, and is flagged."""
    run = await World(names=("evolink",)).scripted(evolink=stream(ROLE, broken())).ask()
    assert (run.entry.output_tokens, run.entry.output_pico) == (0, 0)
    assert run.entry.usage_source in {"estimated", "none"}
