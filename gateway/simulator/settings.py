"""How one simulated provider behaves, as one value; nothing here changes while a request is served."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gateway.simulator.limits import Limits

AbortBilling = Literal["stop", "full"]
BreakBilling = Literal["none", "stop", "full"]

_ABORT_BILLING: Final[dict[str, AbortBilling]] = {"moonshot": "stop", "cometapi": "full", "evolink": "full"}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in the unit of their name. What the fields do:

    * ``chunk_ms`` between chunks (0 = burst); without stream the whole generation takes as long as the chunks would;
    * ``first_byte_ms`` before any answer, plus uncached tokens / ``prefill_tokens_per_second``;
    * ``abort_billing`` when the client leaves: ``stop`` bills the tokens sent so far, ``full`` all of the answer; None
      is the provider's habit (Moonshot stop, the aggregators full);
    * ``break_billing`` the same for an answer that the provider itself cut;
    * ``cache_noise`` the probability that a request does not read the cache though it could;
    * ``accounts`` maps API keys to account names, which share limits, cache and balance; None accepts every key that
      starts with ``sk-``, each its own account;
    * ``retired`` models that are answered as gone;
    * ``restate_after_seconds`` how long a statement has the early figure of an answer that did not reach its end; None:
      it has the final one from the start;
    * ``write_bytes_max`` how much of a burst goes out in one write.
    """

    seed: int = 0
    chunk_ms: float = 0.0
    tokens_per_chunk: int = 1
    first_byte_ms: float = 0.0
    prefill_tokens_per_second: float | None = None
    abort_billing: AbortBilling | None = None
    break_billing: BreakBilling = "stop"
    cache_ttl_seconds: float = 600.0
    cache_noise: float = 0.0
    limits: Limits = Limits()
    accounts: dict[str, str] | None = None
    retired: frozenset[str] = frozenset()
    balance_pico: int = 10**18
    restate_after_seconds: float | None = None
    write_bytes_max: int = 16_384
    body_bytes_max: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.tokens_per_chunk < 1:
            raise ValueError("tokens_per_chunk is at least 1.")
        if not 0 <= self.cache_noise <= 1:
            raise ValueError("cache_noise is a probability from 0 to 1.")
        if self.restate_after_seconds is not None and self.restate_after_seconds < 0:
            raise ValueError("restate_after_seconds is not negative.")

    def abort_billing_of(self, provider: str) -> AbortBilling:
        return self.abort_billing or _ABORT_BILLING[provider]
