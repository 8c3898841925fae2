"""An outcome is how one attempt ended: a value, whatever happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.core.exchange import AttemptStatus, Observation
from gateway.core.failure import Failure
from gateway.core.quality import Judgement
from gateway.core.usage import Usage, UsageSource
from gateway.providers.reading import AnswerReader

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    ``body`` is a whole answer (not streamed). Of a stream, ``held`` is what was not relayed yet, ``closing`` the data
    of the upstream's own closing usage chunk and ``done`` its end mark: all three wait for the settlement.
    ``relayed`` counts bytes of the answer given to the client; ``judgement`` is what its tool calls were found to be,
    None where there was nothing to check.
    """

    status: AttemptStatus
    failure: Failure | None
    usage: Usage
    usage_source: UsageSource
    seen: Observation
    reader: AnswerReader
    judgement: Judgement | None = None
    body: bytes | None = None
    held: bytes = b""
    closing: bytes | None = None
    done: bytes = DONE
    relayed: int = 0
