"""A statement is the bill in a provider's own columns, units and rounding, as its console would hand it out.

``GET /__sim/statement`` streams it: ``from`` inclusive, ``to`` exclusive (by arrival), ``credential``, ``format``.
No provider publishes its format; these are plausible ones that differ in everything a reader may stumble over:

* Moonshot: CSV (or JSON with the same names): ``Request ID, Time, Model, Prompt Tokens, Cached Tokens, Completion
  Tokens, Amount (USD)``; RFC 3339 to the second, dollars as text with 8 decimals;
* CometAPI, as new-api logs it: CSV or JSON: ``id, created_at, token_name, model_name, prompt_tokens,
  completion_tokens, quota, request_id``; Unix seconds, ``quota`` in whole 1/500,000 USD, no cached tokens;
* EvoLink: JSON (or CSV with dotted names): ``request_id, created_at, api_key, model, usage.prompt_tokens,
  usage.completion_tokens, usage.prompt_tokens_details.cached_tokens, credits``; RFC 3339 to the millisecond, credits of
  one dollar as a number with 6 decimals.

The request id is the one of the response header. Prompt tokens include cached ones and cache writes. An amount is the
true one rounded half to even to its last place; a moment is cut. Lines come in the order in which answers ended.

With the setting ``restate_after_seconds`` an aborted or broken answer stands there for that long (since its arrival)
with the output that is *not* charged in the end: planned where the sent is charged, sent where the planned is. The
bill, and the balance with it, has the final figure from the start.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from gateway.simulator.bill import Bill, BillLine, rounded
from gateway.simulator.drift import Deviation, Drifts, Stated, moment

LINES_PER_PART: Final = 500
PICO_PER_QUOTA: Final = 10**12 // 500_000

_encode = msgspec.json.encode

Column = tuple[str, Callable[[Stated], Any]]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines, by arrival as Unix seconds and credential, and how; ``format`` None: the provider's usual one."""

    since: float | None = None
    until: float | None = None
    credential: str | None = None
    format: str | None = None

    @classmethod
    def of(cls, query: dict[str, str]) -> Order:
        """Raises ValueError for a name or a value that is none."""
        if unknown := set(query) - {"from", "to", "credential", "format"}:
            raise ValueError(f"Unknown parameter {min(unknown)!r}. Known: from, to, credential, format.")
        if query.get("format", "csv") not in ("csv", "json"):
            raise ValueError(f"format is csv or json, not {query['format']!r}.")
        since, until = query.get("from"), query.get("to")
        return cls(
            since=None if since is None else moment(since),
            until=None if until is None else moment(until),
            credential=query.get("credential"),
            format=query.get("format"),
        )

    def takes(self, line: BillLine) -> bool:
        if self.credential not in (None, line.credential):
            return False
        return (self.since is None or line.arrived_at >= self.since) and (
            self.until is None or line.arrived_at < self.until
        )


class Statements:
    """Writes statements of one provider. ``early_since``: a line that arrived later still has its early figure."""

    def __init__(self, provider: str, bill: Bill, drifts: Drifts, *, early_since: float | None) -> None:
        self._provider = provider
        self._bill = bill
        self._drifts = drifts
        self._early_since = early_since

    def written(self, order: Order) -> tuple[bytes, Iterator[bytes]]:
        """Content type, and the statement in parts. Raises ValueError when lines of the period are gone."""
        if self._bill.dropped and (order.since is None or order.since <= self._bill.dropped_until):
            raise ValueError(f"The oldest {self._bill.dropped} lines are no longer kept; ask for a later period.")
        columns = _COLUMNS[self._provider]
        parts = ([stated for lines, _ in part for stated in lines] for part in self._parts(order))
        if (order.format or _USUAL_FORMAT[self._provider]) == "json":
            return b"application/json", _json(columns, parts, around=_AROUND[self._provider])
        return b"text/csv; charset=utf-8", _csv(columns, parts)

    def planted(self, order: Order) -> Iterator[bytes]:
        """As JSON Lines, every :class:`Deviation` of the statement from the bill, in its order."""
        for part in self._parts(order):
            yield b"".join(_encode(each) + b"\n" for _, deviations in part for each in deviations)

    def _parts(self, order: Order) -> Iterator[Iterator[tuple[list[Stated], list[Deviation]]]]:
        """What the bill has now, some lines at a time: more may be added to it, and the oldest dropped, meanwhile."""
        last = self._bill.numbered
        for after in range(self._bill.dropped, last, LINES_PER_PART):
            if after < self._bill.dropped:
                raise RuntimeError("Lines of the statement were dropped while it was written.")
            lines = self._bill.between(after, min(after + LINES_PER_PART, last))
            yield (self._state(line) for line in lines if order.takes(line))

    def _state(self, line: BillLine) -> tuple[list[Stated], list[Deviation]]:
        is_early = self._early_since is not None and line.arrived_at > self._early_since
        return self._drifts.state(line, is_early=is_early)


# -- forms -----------------------------------------------------------------------------------------------------------


def _csv(columns: tuple[Column, ...], parts: Iterable[list[Stated]]) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(name for name, _ in columns)
    for part in parts:
        writer.writerows([_text(value(line)) for _, value in columns] for line in part)
        yield _taken(text)
    yield _taken(text)


def _text(value: Any) -> Any:
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else value


def _taken(text: io.StringIO) -> bytes:
    data = text.getvalue().encode()
    text.seek(0)
    text.truncate()
    return data


def _json(
    columns: tuple[Column, ...], parts: Iterable[list[Stated]], *, around: tuple[bytes, bytes]
) -> Iterator[bytes]:
    head, tail = around
    yield head
    separator = b""
    for part in parts:
        if part:
            yield separator + b",".join(_encode(_nested(columns, line)) for line in part)
            separator = b","
    yield tail


def _nested(columns: tuple[Column, ...], line: Stated) -> dict[str, Any]:
    """An object in which ``usage.prompt_tokens`` is a member of ``usage``."""
    document: dict[str, Any] = {}
    for name, value in columns:
        *outer, last = name.split(".")
        place = document
        for each in outer:
            place = place.setdefault(each, {})
        place[last] = value(line)
    return document


# -- columns ---------------------------------------------------------------------------------------------------------


def _decimal(pico: int, decimals: int) -> str:
    whole, part = divmod(rounded(pico, 10 ** (12 - decimals)), 10**decimals)
    return f"{whole}.{part:0{decimals}d}"


def _time(at: float, timespec: str) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


_COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "moonshot": (
        ("Request ID", lambda line: line.request_id),
        ("Time", lambda line: _time(line.arrived_at, "seconds")),
        ("Model", lambda line: line.model),
        ("Prompt Tokens", lambda line: line.prompt_tokens),
        ("Cached Tokens", lambda line: line.cached_tokens),
        ("Completion Tokens", lambda line: line.output_tokens),
        ("Amount (USD)", lambda line: _decimal(line.amount_pico, 8)),
    ),
    "cometapi": (
        ("id", lambda line: line.number),
        ("created_at", lambda line: int(line.arrived_at)),
        ("token_name", lambda line: line.credential),
        ("model_name", lambda line: line.model),
        ("prompt_tokens", lambda line: line.prompt_tokens),
        ("completion_tokens", lambda line: line.output_tokens),
        ("quota", lambda line: rounded(line.amount_pico, PICO_PER_QUOTA)),
        ("request_id", lambda line: line.request_id),
    ),
    "evolink": (
        ("request_id", lambda line: line.request_id),
        ("created_at", lambda line: _time(line.arrived_at, "milliseconds")),
        ("api_key", lambda line: line.credential),
        ("model", lambda line: line.model),
        ("usage.prompt_tokens", lambda line: line.prompt_tokens),
        ("usage.completion_tokens", lambda line: line.output_tokens),
        ("usage.prompt_tokens_details.cached_tokens", lambda line: line.cached_tokens),
        ("credits", lambda line: msgspec.Raw(_decimal(line.amount_pico, 6).encode())),
    ),
}
_USUAL_FORMAT: Final = {"moonshot": "csv", "cometapi": "csv", "evolink": "json"}
_AROUND: Final = {
    "moonshot": (b'{"code":0,"data":[', b'],"scode":"0x0","status":true}'),
    "cometapi": (b'{"success":true,"message":"","data":[', b"]}"),
    "evolink": (b'{"success":true,"message":"","data":[', b"]}"),
}
