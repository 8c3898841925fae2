"""The bill of one provider: whole pico-dollars from its own prices, one line per answered request, none for a refusal.

It is evidence against the gateway's ledger, so nothing here is shared with the gateway. A price is in pico-dollars
(10^-12 USD) per token, which is micro-dollars per million tokens: 0.60 USD per million is 600_000.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from math import inf
from typing import Any, Final, Literal

import msgspec

LINES_MAX: Final = 2_000_000

Ended = Literal["complete", "aborted", "broken"]
Told = Literal["told", "untold", "distorted"]


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pico-dollars per token. ``cached`` None: no discount. ``write_5m`` None: cache writes are not billed apart."""

    input: int
    output: int
    cached: int | None = None
    write_5m: int | None = None
    write_1h: int | None = None


_K3_PRO: Final = Price(input=2_000_000, cached=200_000, output=10_000_000, write_5m=2_000_000, write_1h=4_000_000)

PRICES: Final[Mapping[str, Mapping[str, Price]]] = {
    "moonshot": {
        "kimi-k2-thinking": Price(input=600_000, cached=150_000, output=2_500_000),
        "kimi-k2-thinking-turbo": Price(input=1_150_000, cached=150_000, output=8_000_000),
        "kimi-k2-0905-preview": Price(input=600_000, cached=150_000, output=2_500_000),
        "kimi-k2.5": Price(input=600_000, cached=100_000, output=3_000_000),
        "kimi-k2.6": Price(input=950_000, cached=160_000, output=4_000_000),
        "kimi-k2.7-code": Price(input=950_000, cached=190_000, output=4_000_000),
        "kimi-k2.7-code-highspeed": Price(input=1_900_000, cached=380_000, output=8_000_000),
        "kimi-k3": Price(input=3_000_000, cached=300_000, output=15_000_000, write_5m=3_000_000, write_1h=6_000_000),
        "kimi-k3.1-pro": _K3_PRO,
        "kimi-k3.1-pro-highspeed": Price(
            input=4_000_000, cached=200_000, output=20_000_000, write_5m=4_000_000, write_1h=8_000_000
        ),
    },
    "cometapi": {
        "kimi-k2-thinking": Price(input=1_100_000, output=4_400_000),
        "kimi-k2-thinking-turbo": Price(input=2_200_000, output=15_950_000),
    },
    "evolink": {
        "kimi-k2-thinking": Price(input=556_000, cached=139_000, output=2_222_000),
    },
}


class BillLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request cost. ``input_tokens`` are neither cached nor written; the four classes sum to the charge.

    ``told`` is what the client could read: true usage, none, or a distorted one. ``arrived_at`` is in Unix seconds.
    ``early_output_tokens`` is the output that a statement has before it is restated; the same, if it never is.
    """

    line: int
    provider: str
    credential: str
    model: str
    request_id: str
    completion_id: str
    attempt_id: str | None
    arrived_at: float
    stream: bool
    ended: Ended
    aborted: bool
    told: Told
    prompt_tokens: int
    completion_tokens: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    early_output_tokens: int
    reasoning_tokens: int
    input_pico: int
    cached_pico: int
    cache_write_pico: int
    output_pico: int
    cost_pico: int


_CLASSES: Final = ("input", "cached", "cache_write", "output")


class _Total:
    """The sums of one credential and model."""

    __slots__ = ("aborted", "broken", "cost_pico", "pico", "reasoning_tokens", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = self.aborted = self.broken = self.cost_pico = self.reasoning_tokens = 0
        self.tokens = [0, 0, 0, 0]
        self.pico = [0, 0, 0, 0]

    def add(self, line: BillLine) -> None:
        self.requests += 1
        self.aborted += line.ended == "aborted"
        self.broken += line.ended == "broken"
        self.cost_pico += line.cost_pico
        self.reasoning_tokens += line.reasoning_tokens
        tokens, pico = self.tokens, self.pico
        tokens[0] += line.input_tokens
        tokens[1] += line.cached_tokens
        tokens[2] += line.cache_write_tokens
        tokens[3] += line.output_tokens
        pico[0] += line.input_pico
        pico[1] += line.cached_pico
        pico[2] += line.cache_write_pico
        pico[3] += line.output_pico

    def as_json(self) -> dict[str, Any]:
        classes = {
            name: {"tokens": tokens, "pico": pico}
            for name, tokens, pico in zip(_CLASSES, self.tokens, self.pico, strict=True)
        }
        return {
            "requests": self.requests,
            "aborted": self.aborted,
            "broken": self.broken,
            **classes,
            "reasoning_tokens": self.reasoning_tokens,
            "cost_pico": self.cost_pico,
        }


class Bill:
    """All that was charged. Totals are kept for ever; lines up to ``LINES_MAX``, the oldest dropped and counted.

    Lines have the numbers ``dropped`` + 1 to ``numbered``; the last of the dropped arrived at ``dropped_until``.
    """

    __slots__ = ("_lines_max", "_totals", "dropped", "dropped_until", "lines", "numbered", "provider", "spent_pico")

    def __init__(self, provider: str, *, lines_max: int = LINES_MAX) -> None:
        self.provider = provider
        self.lines: list[BillLine] = []
        self.dropped = self.numbered = 0
        self.dropped_until = -inf
        self._lines_max = lines_max
        self.spent_pico: dict[str, int] = {}
        self._totals: dict[tuple[str, str], _Total] = {}

    def next_line(self) -> int:
        self.numbered += 1
        return self.numbered

    def add(self, line: BillLine) -> None:
        assert line.cost_pico == line.input_pico + line.cached_pico + line.cache_write_pico + line.output_pico
        assert line.prompt_tokens == line.input_tokens + line.cached_tokens + line.cache_write_tokens
        if len(self.lines) >= self._lines_max:
            self._drop_oldest()
        self.lines.append(line)
        total = self._totals.get((line.credential, line.model))
        if total is None:
            total = self._totals[line.credential, line.model] = _Total()
        total.add(line)
        self.spent_pico[line.credential] = self.spent_pico.get(line.credential, 0) + line.cost_pico

    def _drop_oldest(self) -> None:
        """An eighth at once: to drop the first of a list moves all others."""
        gone = self.lines[: max(1, self._lines_max // 8)]
        self.dropped_until = max(self.dropped_until, *(line.arrived_at for line in gone))
        self.dropped += len(gone)
        del self.lines[: len(gone)]

    def requests_of(self, credential: str) -> int:
        return sum(total.requests for (of, _), total in self._totals.items() if of == credential)

    def between(self, after: int, last: int) -> list[BillLine]:
        """The kept lines numbered from ``after`` + 1 to ``last``, in order."""
        return self.lines[max(0, after - self.dropped) : max(0, last - self.dropped)]

    def as_json(self, *, lines_since: int | None) -> dict[str, Any]:
        """The whole bill; with ``lines_since`` None, the totals alone."""
        document: dict[str, Any] = {
            "provider": self.provider,
            "unit": "pico-dollar (10^-12 USD)",
            "total_pico": sum(total.cost_pico for total in self._totals.values()),
            "totals": [
                {"credential": credential, "model": model, **total.as_json()}
                for (credential, model), total in sorted(self._totals.items())
            ],
            "lines_dropped": self.dropped,
        }
        if lines_since is not None:
            document["lines"] = self.between(lines_since, self.numbered)
        return document


def rounded(numerator: int, denominator: int) -> int:
    """The nearest whole number, of two the even one."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def credential_label(api_key: str) -> str:
    """How a key that has no account name appears on the bill: a fingerprint, never the key."""
    return "key-" + blake2b(api_key.encode(), digest_size=4).hexdigest()
