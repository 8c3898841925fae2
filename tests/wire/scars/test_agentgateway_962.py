"""agentgateway website PR 962: an answer whose usage was missing was free."""

from __future__ import annotations

import pytest

from gateway.core.money import ZERO
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import Script, World, stream, unstreamed
from tests.wire.transcripts import ANSWER, DONE, closing, finish, totals, whole

UNTOLD = {
    "a stream that tells none": stream(ANSWER, finish(), DONE),
    "a stream that tells null": stream(ANSWER, finish(), closing(None), DONE),
    "a stream that tells zeros": stream(ANSWER, finish(), closing(totals(0, 0)), DONE),
    "a whole answer that tells none": unstreamed(whole(None)),
}


@pytest.mark.parametrize("script", UNTOLD.values(), ids=list(UNTOLD))
@on_virtual_time
async def test_what_was_answered_is_paid_for(script: Script) -> None:
    """L14: absent is not zero, it is an estimate that says so."""
    run = (
        await World(names=("evolink",))
        .scripted(evolink=script)
        .ask(stream=script.headers["content-type"] != "application/json")
    )
    assert (run.entry.status, run.entry.usage_source) == ("succeeded", "estimated")
    assert run.entry.input_tokens > 0 and run.entry.output_tokens > 0
    assert run.cost > ZERO
