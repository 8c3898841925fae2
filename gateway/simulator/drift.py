"""Drift is planted on command: how a statement differs from the bill is known line by line.

Set by JSON (``POST /__sim/statement``) or by :meth:`Drifts.plant`. A drift is a function of the bill line that it
meets: the same statement comes out as often as it is asked for, and the truth to test against is told from it. Token
drifts come before price drifts, and those before lines that are missing, extra or there twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from gateway.simulator.bill import BillLine, Price, rounded

DRIFTS: Final = {
    "tokens": "`tokens` more (fewer when negative) of a `token_class`, charged at the price of their model",
    "price": "the amount, or the part of it that is for `token_class`, times `factor`",
    "missing": "the line is left out",
    "duplicate": "the line stands there twice",
    "extra": "a second line with a request id that nobody was told",
}
_ORDER: Final = tuple(DRIFTS)
_FACTOR_DIGITS_MAX: Final = 30
_NUMBERS_PER_LINE: Final = 100

TokenClass = Literal["input", "cached", "cache_write", "output"]
_OUTPUT: Final = "output"


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One drift. The first block says which lines it meets (all that are given must hold), the second what it does.

    * ``since`` inclusive and ``until`` exclusive, RFC 3339 or a date, by the arrival of the request;
    * ``every`` N: lines whose number on the bill is a multiple of N;
    * ``request_ids``: these; ``share`` 0 to 1: that many, drawn by ``seed`` from the request id;
    * ``tokens`` with ``token_class`` output (the usual), input, or cached: then as many fresh ones become cached;
    * ``factor`` a decimal number as text: "0.5" is half the printed price;
    * ``charged``: the balance follows the statement instead of the bill. Absent: a price is really charged, all else is
      a mistake of the statement alone.
    """

    kind: str
    model: str | None = None
    credential: str | None = None
    since: str | None = None
    until: str | None = None
    every: int = 1
    request_ids: frozenset[str] | None = None
    share: float = 1.0
    seed: int = 0

    tokens: int = 1
    token_class: TokenClass | None = None
    factor: str = "0.5"
    charged: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in DRIFTS:
            raise ValueError(f"Unknown drift {self.kind!r}. Known: {', '.join(DRIFTS)}.")
        if self.every < 1:
            raise ValueError(f"every is at least 1, not {self.every}.")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is a probability from 0 to 1, not {self.share}.")
        if self.kind == "tokens" and self.token_class not in (None, "input", "cached", "output"):
            raise ValueError("token_class of a token drift is input, cached or output.")
        ratio_of(self.factor)
        for text in (self.since, self.until):
            if text is not None:
                moment(text)

    @property
    def is_charged(self) -> bool:
        return self.kind == "price" if self.charged is None else self.charged


class Stated(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A line as the statement has it, before its amount is rounded. ``number`` is its own, also of an extra one."""

    number: int
    request_id: str
    credential: str
    model: str
    arrived_at: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_pico: int


class Deviation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one drift does to one line: ``amount_pico`` is what it adds to the statement's total, before rounding.

    ``drift`` is its number in the order of planting, 0 for an ``early`` figure, which is restated later.
    ``stated_request_id`` is the id of an extra line.
    """

    drift: int
    kind: str
    line: int
    request_id: str
    stated_request_id: str
    credential: str
    model: str
    arrived_at: float
    token_class: TokenClass | None
    tokens: int
    amount_pico: int


class _Figures:
    """Tokens and pico-dollars of one line by class, while drifts change them."""

    __slots__ = ("pico", "tokens")

    def __init__(self, line: BillLine) -> None:
        self.tokens = {"input": line.input_tokens, "cached": line.cached_tokens, "output": line.output_tokens}
        self.pico = {
            "input": line.input_pico,
            "cached": line.cached_pico,
            "cache_write": line.cache_write_pico,
            "output": line.output_pico,
        }

    @property
    def amount_pico(self) -> int:
        return sum(self.pico.values())

    def add(self, token_class: str, tokens: int, pico_per_token: int) -> None:
        self.tokens[token_class] += tokens
        self.pico[token_class] += tokens * pico_per_token

    def stated(self, line: BillLine, *, number: int, request_id: str) -> Stated:
        return Stated(
            number=number,
            request_id=request_id,
            credential=line.credential,
            model=line.model,
            arrived_at=line.arrived_at,
            prompt_tokens=self.tokens["input"] + self.tokens["cached"] + line.cache_write_tokens,
            cached_tokens=self.tokens["cached"],
            output_tokens=self.tokens["output"],
            amount_pico=self.amount_pico,
        )


class _Planted:
    """A drift with its number and its moments as Unix seconds."""

    __slots__ = ("drift", "number", "ratio", "since", "until")

    def __init__(self, drift: Drift, number: int) -> None:
        self.drift = drift
        self.number = number
        self.ratio = ratio_of(drift.factor)
        self.since = None if drift.since is None else moment(drift.since)
        self.until = None if drift.until is None else moment(drift.until)

    def meets(self, line: BillLine) -> bool:
        drift = self.drift
        if drift.model not in (None, line.model) or drift.credential not in (None, line.credential):
            return False
        if line.line % drift.every or (drift.request_ids is not None and line.request_id not in drift.request_ids):
            return False
        if (self.since is not None and line.arrived_at < self.since) or (
            self.until is not None and line.arrived_at >= self.until
        ):
            return False
        return drift.share >= 1 or _drawn(line.request_id, drift.seed) < drift.share

    def as_json(self) -> dict[str, Any]:
        return {"number": self.number, "drift": self.drift}


class Drifts:
    """The drifts that are planted at one provider, and what those that are really charged come to.

    ``difference_pico`` is by credential how much more (less when negative) was charged than the bill says.
    """

    __slots__ = ("_numbered", "_planted", "_prices", "difference_pico")

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = prices
        self._planted: list[_Planted] = []
        self._numbered = 0
        self.difference_pico: dict[str, int] = {}

    def plant(self, drifts: Iterable[Drift], *, lines: Iterable[BillLine]) -> None:
        """Plants them; ``lines`` is the bill so far, whose charges follow."""
        for drift in drifts:
            self._numbered += 1
            self._planted.append(_Planted(drift, self._numbered))
        self._planted.sort(key=lambda planted: (_ORDER.index(planted.drift.kind), planted.number))
        self.difference_pico.clear()
        if any(planted.drift.is_charged for planted in self._planted):
            for line in lines:
                self.charge(line)

    def clear(self) -> None:
        """The statement is the bill again, and so is the balance."""
        self._planted.clear()
        self.difference_pico.clear()

    def charge(self, line: BillLine) -> None:
        """Takes a new line of the bill into account."""
        charged = [planted for planted in self._planted if planted.drift.is_charged]
        if not charged:
            return
        stated, _ = self._state(line, charged, is_early=False)
        more = sum(each.amount_pico for each in stated) - line.cost_pico
        self.difference_pico[line.credential] = self.difference_pico.get(line.credential, 0) + more

    def state(self, line: BillLine, *, is_early: bool) -> tuple[list[Stated], list[Deviation]]:
        """The line as the statement has it (none, once or twice), and every way in which that is not the bill.

        ``is_early``: with the figure that stands there until it is restated.
        """
        return self._state(line, self._planted, is_early=is_early)

    def _state(
        self, line: BillLine, planted: list[_Planted], *, is_early: bool
    ) -> tuple[list[Stated], list[Deviation]]:
        figures, deviations, price = _Figures(line), list[Deviation](), self._prices[line.model]
        if is_early and (tokens := line.early_output_tokens - line.output_tokens):
            figures.add("output", tokens, price.output)
            deviations.append(_deviation(0, "early", line, tokens * price.output, token_class=_OUTPUT, tokens=tokens))
        copies: list[_Planted] = []
        for each in planted:
            if not each.meets(line):
                continue
            match each.drift.kind:
                case "tokens":
                    deviations += _with_tokens(each, line, figures, price)
                case "price":
                    deviations += _with_price(each, line, figures)
                case "missing":
                    return [], [_deviation(each.number, "missing", line, -line.cost_pico)]
                case _:
                    copies.append(each)
        number = _NUMBERS_PER_LINE * line.line
        stated = [figures.stated(line, number=number, request_id=line.request_id)]
        for each in copies:
            is_extra = each.drift.kind == "extra"
            other = _request_id_of_nobody(line, each.number) if is_extra else line.request_id
            own_number = number + each.number % _NUMBERS_PER_LINE if is_extra else number
            stated.append(figures.stated(line, number=own_number, request_id=other))
            deviations.append(_deviation(each.number, each.drift.kind, line, figures.amount_pico, stated_as=other))
        return stated, deviations

    def as_json(self) -> list[dict[str, Any]]:
        return [planted.as_json() for planted in sorted(self._planted, key=lambda planted: planted.number)]


def _with_tokens(planted: _Planted, line: BillLine, figures: _Figures, price: Price) -> list[Deviation]:
    """No class falls below nothing, and no more is cached than was fresh."""
    token_class: TokenClass = planted.drift.token_class or _OUTPUT
    before = figures.amount_pico
    tokens = max(planted.drift.tokens, -figures.tokens[token_class])
    match token_class:
        case "cached":
            tokens = min(tokens, figures.tokens["input"])
            figures.add("input", -tokens, price.input)
            figures.add("cached", tokens, price.input if price.cached is None else price.cached)
        case "input":
            figures.add("input", tokens, price.input)
        case _:
            figures.add("output", tokens, price.output)
    if not tokens:
        return []
    added = figures.amount_pico - before
    return [_deviation(planted.number, "tokens", line, added, token_class=token_class, tokens=tokens)]


def _with_price(planted: _Planted, line: BillLine, figures: _Figures) -> list[Deviation]:
    """Nothing deviates where nothing was charged for what has another price."""
    only, before, (numerator, denominator) = planted.drift.token_class, figures.amount_pico, planted.ratio
    for token_class, pico in figures.pico.items():
        if only in (None, token_class):
            figures.pico[token_class] = rounded(pico * numerator, denominator)
    added = figures.amount_pico - before
    return [_deviation(planted.number, "price", line, added, token_class=only)] if added else []


def _deviation(
    number: int,
    kind: str,
    line: BillLine,
    amount_pico: int,
    *,
    stated_as: str | None = None,
    token_class: TokenClass | None = None,
    tokens: int = 0,
) -> Deviation:
    return Deviation(
        drift=number,
        kind=kind,
        line=line.line,
        request_id=line.request_id,
        stated_request_id=line.request_id if stated_as is None else stated_as,
        credential=line.credential,
        model=line.model,
        arrived_at=line.arrived_at,
        token_class=token_class,
        tokens=tokens,
        amount_pico=amount_pico,
    )


def _request_id_of_nobody(line: BillLine, number: int) -> str:
    return blake2b(f"{line.request_id}/{number}".encode(), digest_size=12, person=b"extra").hexdigest()


def _drawn(request_id: str, seed: int) -> float:
    """A number from 0 to 1 that only the request and the seed decide."""
    digest = blake2b(f"{seed}/{request_id}".encode(), digest_size=6, person=b"share").digest()
    return int.from_bytes(digest, "big") / 2**48


def ratio_of(text: str) -> tuple[int, int]:
    """A decimal number that is not negative, as an exact ratio. Raises ValueError."""
    try:
        factor = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no decimal number.") from None
    if not factor.is_finite() or factor < 0 or len(text) > _FACTOR_DIGITS_MAX or abs(factor.adjusted()) > 18:
        raise ValueError(f"{text!r} is no number from 0 up, of at most {_FACTOR_DIGITS_MAX} digits.")
    return factor.as_integer_ratio()


def moment(text: str) -> float:
    """RFC 3339 or a date (its midnight UTC) as Unix seconds. Raises ValueError."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date and no RFC 3339 moment, like 2026-10-12T08:30:00Z.") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
