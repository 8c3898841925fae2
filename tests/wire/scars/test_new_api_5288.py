"""new-api #5288: the text of an error was counted as output, and billed."""

from __future__ import annotations

import pytest

from gateway.core.money import ZERO
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import JSON_HEADERS, Script, World, refusal, stream
from tests.wire.transcripts import encoded, sse

WORDS = "The upstream is overloaded, please try again later. " * 400
ERROR = {"error": {"message": WORDS, "type": "server_error"}}
ERRORS = {
    "as a status": refusal(500, kind="server_error", message=WORDS),
    "as a whole body with status 200": Script(headers=JSON_HEADERS, body=(encoded(ERROR),)),
    "as the first event of a stream": stream(sse(ERROR)),
}


@pytest.mark.parametrize("script", ERRORS.values(), ids=list(ERRORS))
@on_virtual_time
async def test_an_error_is_no_output(script: Script) -> None:
    """However long its text, in whichever place it came."""
    run = await World(names=("evolink",)).scripted(evolink=script).ask()
    assert (run.entry.status, run.entry.usage_source) == ("failed", "none")
    assert (run.entry.input_tokens, run.entry.output_tokens, run.cost) == (0, 0, ZERO)
