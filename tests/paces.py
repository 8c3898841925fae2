"""Beliefs of accounts whose pace is known, for tests: each has answered once, another conversation, a day ago."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.beliefs import Beliefs
from gateway.core.happenings import Answered, Sent
from gateway.core.load import Pace
from tests.pipeline.virtual_time import START

ANSWER_SECONDS = 10.0


def paced(paces: Mapping[tuple[str, str], Pace]) -> Beliefs:
    beliefs, at = Beliefs(), START.timestamp() - 86_400.0
    for (provider, account), pace in paces.items():
        attempt_id = f"{provider}/{account}"
        beliefs.apply(Sent(attempt_id, provider, account, "another", "another", at, (99,), (9,), 0, 0, 0, 1))
        output_tokens = round(pace.tokens_per_second * ANSWER_SECONDS)
        seen = (at + ANSWER_SECONDS, 9, 0, output_tokens, ANSWER_SECONDS, pace.first_chunk_seconds)
        beliefs.apply(Answered(attempt_id, *seen))
    assert beliefs.pace == paces
    return beliefs
