"""new-api #5235, #7062: where the usage was missing at the end, all that had been charged before was given back."""

from __future__ import annotations

import pytest

from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import Script, World, answer, broken, stream
from tests.wire.transcripts import ANSWER, HELLO

CUTS = {
    "the body just ends": stream(ANSWER, HELLO),
    "the connection breaks": stream(ANSWER, HELLO, broken()),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
@on_virtual_time
async def test_a_stream_that_was_cut_is_paid_for_as_far_as_it_came(cut: Script) -> None:
    """Prompt and relayed output, estimated; and the entries before it stand as they were."""
    world = World(names=("evolink",)).scripted(evolink=[answer(), cut])
    before = (await world.ask()).entry
    run = await world.ask()
    assert (run.entry.status, run.entry.usage_source) == ("failed", "estimated")
    assert run.entry.input_pico > 0 and run.entry.output_pico > 0
    assert world.journal.entries()[0] == before
    assert run.entry.corrects is None
