"""A row is one request as it was recorded: when it came, how large it was, and the chain of its prefixes.

A trace file and the ledger's own past give the same rows, in order of time.
"""

from __future__ import annotations

import msgspec

from gateway.core.money import Money
from gateway.core.prefix import Prompt


class Served(msgspec.Struct, frozen=True, gc=False):
    """How it was really answered, where that is known: by whom, with how many tokens billed as cached, for how much."""

    provider: str
    account: str
    cached_tokens: int
    cost: Money


class Row(msgspec.Struct, frozen=True, gc=False):
    """``at`` is the arrival in Unix seconds (of a trace: since its beginning); the last count of ``prompt`` is
    ``input_tokens``. ``conversation`` is the client's own name for it, None where the prefixes have to tell."""

    at: float
    input_tokens: int
    output_tokens: int
    prompt: Prompt
    tenant: str
    model: str
    conversation: str | None = None
    served: Served | None = None
