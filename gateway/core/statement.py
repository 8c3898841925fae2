"""A provider's statement, line by line, in its own words: tokens it does not tell are None, amounts are as printed.

A mapping names the provider's columns; every provider has its own. An amount is rounded by who printed it: how far it
may be from the exact one is the statement's *quantum*. A line that cannot be read is told with its number and the
reason, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from gateway.core.money import PICO_PER_USD, WHOLE_DIGITS_MAX
from gateway.core.usage import TOKENS_MAX

Rounding = Literal["nearest", "any"]

TIME_FORMATS: Final = ("rfc3339", "unix", "unix_ms")
"""Besides these a pattern such as ``%d/%m/%Y %H:%M:%S``."""
FIELDS: Final = (
    *("request_id", "time", "model", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "amount"),
)
"""What a line may tell, in the order in which cells are given to a :class:`LineReader`."""
SHOWN_CHARACTERS_MAX: Final = 40
PICO_MAX: Final = 2**63 - 1
"""No single call costs nine million dollars."""

_CONTEXT: Final = Context(prec=100, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
_ONE: Final = Decimal(1)
_MOMENT_LATEST: Final = 253_402_300_799


class StatementError(Exception):
    """A statement cannot be read at all; the message says why and what to do."""


class StatementMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Which column tells what: names of a CSV header, or paths into each JSON object (``usage.prompt_tokens``).

    ``lines`` is the path to the list in a JSON document (empty: the document itself, or its first list). An amount
    times ``usd_per_unit`` is USD; None: not known. ``decimals`` is how many an amount is rounded to (None: as many as
    the longest one has), ``rounding`` whether to the nearest or in any direction. ``input_includes_cached``: the input
    column counts cached tokens and cache writes too.
    """

    amount: str
    request_id: str | None = None
    time: str | None = None
    model: str | None = None
    input_tokens: str | None = None
    cached_tokens: str | None = None
    cache_write_tokens: str | None = None
    output_tokens: str | None = None
    lines: str = ""
    time_format: str = "rfc3339"
    time_zone: str = "UTC"
    usd_per_unit: Decimal | None = _ONE
    decimals: int | None = None
    rounding: Rounding = "nearest"
    input_includes_cached: bool = True

    def names(self) -> tuple[str | None, ...]:
        """The column of each field, in the order of FIELDS."""
        return (
            *(self.request_id, self.time, self.model, self.input_tokens, self.cached_tokens, self.cache_write_tokens),
            *(self.output_tokens, self.amount),
        )


class StatementLine(msgspec.Struct, frozen=True, gc=False):
    """What a provider says of one call. ``input_tokens`` includes cached and written ones, as everywhere else."""

    number: int
    request_id: str | None
    at: datetime | None
    model: str | None
    input_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    amount_pico: int


class BadLine(msgspec.Struct, frozen=True, gc=False):
    """A line that cannot be read, and why."""

    number: int
    reason: str


class LineReader:
    """Cells become lines; what is true of the whole statement gathers meanwhile."""

    def __init__(self, mapping: StatementMapping) -> None:
        if mapping.usd_per_unit is None:
            raise StatementError("Nobody has published what a unit of this statement is worth.")
        self.mapping = mapping
        self.lines = 0
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self._moment = _moment_reader(mapping)
        self._pico_per_unit = _CONTEXT.multiply(mapping.usd_per_unit, Decimal(PICO_PER_USD))
        self._exponent_min = 0
        self._is_rounded = False
        self._resolution = timedelta(minutes=1)

    def read(self, number: int, cells: Sequence[object]) -> StatementLine | BadLine:
        """The line of eight cells in the order of FIELDS; None or an empty text is what is not told."""
        request_id, time, model, input_, cached, written, output, amount = cells
        try:
            line = StatementLine(
                number,
                _text(request_id),
                None if time is None or time == "" else self._at(time),
                _text(model),
                _tokens("input_tokens", input_),
                _tokens("cached_tokens", cached),
                _tokens("cache_write_tokens", written),
                _tokens("output_tokens", output),
                self._amount(amount),
            )
        except ValueError as error:
            return BadLine(number, str(error))
        if line.request_id is None and line.at is None:
            return BadLine(number, "it has neither a request id nor a time, so nothing says which call it is")
        if not self.mapping.input_includes_cached and line.input_tokens is not None:
            inside = line.input_tokens + (line.cached_tokens or 0) + (line.cache_write_tokens or 0)
            line = msgspec.structs.replace(line, input_tokens=inside)
        self.lines += 1
        return line

    def quantum_pico(self) -> int:
        """How far a printed amount may be from the exact one, in pico-dollars; ask when everything has been read."""
        decimals = -self._exponent_min if self.mapping.decimals is None else self.mapping.decimals
        unit = self._pico_per_unit.scaleb(-decimals, _CONTEXT)
        farthest = unit / 2 if self.mapping.rounding == "nearest" else unit.to_integral_value(ROUND_CEILING) - 1
        return max(int(farthest), int(self._is_rounded))

    def resolution(self) -> timedelta:
        """What the statement's times are cut to: a minute, a second, or nothing that matters."""
        return self._resolution

    def _at(self, value: object) -> datetime:
        at = self._moment(value)
        if at.microsecond:
            self._resolution = timedelta(microseconds=1)
        elif at.second and self._resolution > timedelta(seconds=1):
            self._resolution = timedelta(seconds=1)
        if self.first_at is None or at < self.first_at:
            self.first_at = at
        if self.last_at is None or at > self.last_at:
            self.last_at = at
        return at

    def _amount(self, value: object) -> int:
        if value is None or value == "":
            raise ValueError("it has no amount")
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            raise ValueError(f"the amount is {_shown(value)}, not a number")
        try:
            amount = Decimal(value)
        except InvalidOperation:
            raise ValueError(f"the amount {_shown(value)} is not a decimal number") from None
        if not amount.is_finite() or amount.adjusted() > WHOLE_DIGITS_MAX:
            raise ValueError(f"the amount {_shown(value)} is not an amount of money")
        exponent = amount.as_tuple().exponent
        if isinstance(exponent, int) and exponent < self._exponent_min:
            self._exponent_min = exponent
        exact = _CONTEXT.multiply(amount, self._pico_per_unit)
        whole = exact.to_integral_value(ROUND_HALF_EVEN, _CONTEXT)
        if abs(whole) > PICO_MAX:
            raise ValueError(f"the amount {_shown(value)} is not an amount of money")
        self._is_rounded = self._is_rounded or whole != exact
        return int(whole)


def _moment_reader(mapping: StatementMapping) -> Callable[[object], datetime]:
    zone = ZoneInfo(mapping.time_zone) if mapping.time_zone != "UTC" else UTC
    pattern = mapping.time_format

    def rfc3339(value: object) -> datetime:
        try:
            at = datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise ValueError(f"the time {_shown(value)} is not like 2026-10-12T08:00:00Z") from None
        return at.replace(tzinfo=zone).astimezone(UTC) if at.tzinfo is None else at.astimezone(UTC)

    def patterned(value: object) -> datetime:
        try:
            at = datetime.strptime(str(value).strip(), pattern)  # noqa: DTZ007 - the zone is added below
        except ValueError:
            raise ValueError(f"the time {_shown(value)} is not like {pattern}") from None
        return at.replace(tzinfo=zone).astimezone(UTC) if at.tzinfo is None else at.astimezone(UTC)

    def unix(value: object) -> datetime:
        try:
            seconds = Decimal(str(value).strip())
            if pattern == "unix_ms":
                seconds = seconds / 1000
            if not 0 <= seconds <= _MOMENT_LATEST:
                raise ValueError(value)
        except (InvalidOperation, ValueError):
            unit = "milliseconds" if pattern == "unix_ms" else "seconds"
            raise ValueError(f"the time {_shown(value)} is not {unit} since 1970") from None
        whole = int(seconds)
        micros = int((seconds - whole) * 1_000_000)
        return datetime.fromtimestamp(whole, UTC).replace(microsecond=micros)

    return {"rfc3339": rfc3339, "unix": unix, "unix_ms": unix}.get(pattern, patterned)


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = str(value).strip().replace("\0", "\ufffd")
    return text or None


def _tokens(name: str, value: object) -> int | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError(value)
        tokens = int(value) if isinstance(value, str | int) else _whole(value)
    except (ValueError, ArithmeticError):
        raise ValueError(f"{name} is {_shown(value)}, not a whole number") from None
    if not 0 <= tokens <= TOKENS_MAX:
        raise ValueError(f"{name} is {_shown(value)}, which no call has")
    return tokens


def _whole(value: object) -> int:
    """A number that JSON wrote with a point and that is whole all the same."""
    if not isinstance(value, Decimal) or value != value.to_integral_value():
        raise ValueError(value)
    return int(value)


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}…")
