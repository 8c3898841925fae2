"""A table hands out its values by type and notes everything that is wrong with them; it never stops at the first.

A value of the wrong type reads as absent once its error is noted: a load with errors never hands out what it built.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Final, Literal, TypeVar

from gateway.catalog.findings import Finding, did_you_mean, quoted
from gateway.catalog.places import Path, Places
from gateway.core.money import UnitPrice

T = TypeVar("T")

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of providers and accounts stand in headers, metrics, comma lists and ``provider/account``."""

_MEANT: Final = {
    "api_base": "base_url",
    "url": "base_url",
    "endpoint": "base_url",
    "context_length": "context",
    "context_window": "context",
    "max_tokens": "max_output",
    "max_output_tokens": "max_output",
    "max_concurrency": "concurrency",
    "cache_hit": "cached_input",
    "cached": "cached_input",
    "hit": "cached_input",
    "miss": "input",
    "valid_from": "effective_from",
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
}
"""What other tools call our keys, where spelling alone would not lead there."""

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (Decimal, "a decimal number"),
    (str, "text"),
    (datetime, "a date with a time"),
    (date, "a date"),
    (time, "a time"),
    (list, "a list"),
    (dict, "a table"),
)

_AMOUNT: Final = re.compile(r"\d{1,9}(\.\d+)?", re.ASCII)


@dataclass(slots=True, kw_only=True)
class Document:
    """One file as it was read: its places, and the findings that gather while its values are taken."""

    file: str
    values: Mapping[str, object]
    places: Places
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def parse(cls, content: bytes, *, file: str) -> Document | Finding:
        """The document, or the one finding that says where it is not TOML."""
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return _broken(file, line, "This is not UTF-8 text.", "Save the file as UTF-8.")
        try:
            values = tomllib.loads(text, parse_float=Decimal)
            return cls(file=file, values=values, places=Places(text))
        except tomllib.TOMLDecodeError as error:
            reason, line = _syntax_error(str(error), text)
            return _broken(file, line, f"This is not TOML: {reason}.", "Correct the line, or the one before it.")
        except RecursionError:
            return _broken(file, 1, "Values are nested too deeply.", "Remove the needless brackets.")

    def root(self) -> Table:
        return Table(self, (), self.values)


class Table:
    """One table of a document. Ask for every key it may have, then call ``close``: what is left is unknown."""

    __slots__ = ("_asked", "_document", "_values", "path")

    def __init__(self, document: Document, path: Path, values: Mapping[str, object]) -> None:
        self._document = document
        self._values = values
        self._asked: set[str] = set()
        self.path = path

    @property
    def name(self) -> str:
        """The header without array indices, as an operator would look for it."""
        return ".".join(part if NAME.fullmatch(part) else quoted(part) for part in self.path if isinstance(part, str))

    @property
    def file(self) -> str:
        return self._document.file

    def line(self, *keys: str | int) -> int:
        return self._document.places.line((*self.path, *keys))

    def has(self, key: str) -> bool:
        return key in self._values

    def is_empty(self, key: str) -> bool:
        """Whether there is nothing at all under a key."""
        return not self._values.get(key)

    def written(self) -> tuple[str, ...]:
        """Every key that stands in the table."""
        return tuple(self._values)

    def error(self, key: str | None, message: str, mend: str, *, index: int | None = None) -> None:
        self._find("error", key, index, message, mend)

    def warn(self, key: str | None, message: str, mend: str) -> None:
        self._find("warning", key, None, message, mend)

    def text(self, key: str, *, like: str, required: bool = False) -> str | None:
        value = self._take(key, str, "text", like=quoted(like), required=required)
        if value is not None and not value.strip():
            self.error(key, f"{key} is empty.", f"Write it like {key} = {quoted(like)}.")
            return None
        return value

    def choice(self, key: str, known: Collection[str], *, required: bool = False) -> str | None:
        """One of some words; the hint is the closest one."""
        words = " | ".join(sorted(known))
        value = self._take(key, str, "text", like=quoted(min(known)), required=required)
        if value is None or value in known:
            return value
        mend = did_you_mean(value, known, otherwise=f"Write one of {words}.")
        self.error(key, f"{key} is {quoted(value)}, which is none of {words}.", mend)
        return None

    def words(self, key: str, *, like: str) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        items = self._take(key, list, "a list", like=like) or []
        good = tuple(item for item in items if isinstance(item, str) and item.strip())
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item.strip():
                self.error(key, f"{key} holds {_kind(item)}.", f"Write it like {key} = {like}.", index=index)
        return good

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self._take(key, bool, "true or false", like="true")
        return default if value is None else value

    def count(self, key: str, *, like: str, required: bool = False) -> int | None:
        """A whole number of at least 1."""
        value = self._take(key, int, "a whole number", like=like, required=required)
        if value is not None and value < 1:
            self.error(key, f"{key} is {value}; it must be at least 1.", f"Write it like {key} = {like}.")
            return None
        return value

    def whole(self, key: str, *, like: str, most: int) -> int | None:
        """A whole number from 0 to ``most``."""
        value = self._take(key, int, "a whole number", like=like)
        if value is not None and not 0 <= value <= most:
            self.error(key, f"{key} is {value}; it is from 0 to {most}.", f"Write it like {key} = {like}.")
            return None
        return value

    def seconds(self, key: str, *, default: float) -> float:
        """A duration in seconds above zero, whole or not."""
        value = self._take(key, (int, Decimal), "a number of seconds", like=f"{default:g}")
        if value is None:
            return default
        assert isinstance(value, int | Decimal)
        number = float(value)
        if not math.isfinite(number) or number <= 0:
            self.error(key, f"{key} is {value} seconds; it must be more than 0.", f"Write it like {key} = {default:g}.")
            return default
        return number

    def day(self, key: str) -> date | None:
        """A date; of a date with a time, its day in UTC."""
        value = self._take(key, date, "a date", like="2026-05-25")
        return _utc(value).date() if isinstance(value, datetime) else value

    def moment(self, key: str) -> datetime | None:
        """A moment in UTC: a date is its midnight, a time without a zone is taken as UTC."""
        value = self._take(key, date, "a date", like="2026-05-25T00:00:00Z", required=True)
        if value is None:
            return None
        if not isinstance(value, datetime):
            return datetime.combine(value, time(), tzinfo=UTC)
        if value.microsecond:
            self.error(key, f"{key} has a fraction of a second.", "Round it to whole seconds.")
            return None
        return _utc(value)

    def amount(self, key: str, *, required: bool = False) -> UnitPrice | None:
        """USD per 1,000,000 tokens, exact, so only ever a text: a TOML number could already be a rounded one."""
        value = self._decimal(key, "dollars per 1,000,000 tokens", like="0.60", required=required)
        if value is None:
            return None
        try:
            return UnitPrice.from_usd_per_million(value)
        except ValueError:
            mend = "Write USD per 1,000,000 tokens (not per token), with at most six decimals."
            self.error(key, f"{key} has more than six decimals.", mend)
            return None

    def dollars(self, key: str, *, default: float, like: str) -> float:
        """USD that only weigh a decision; a text all the same, as every amount of these files is."""
        value = self._decimal(key, "dollars", like=like, required=False)
        return default if value is None else float(value)

    def rate(self, key: str, *, like: str) -> Decimal | None:
        """What one of something is worth; above nothing, and a text, as every amount is."""
        value = self._decimal(key, "dollars", like=like, required=False)
        if value is not None and not Decimal(value):
            self.error(key, f"{key} is nothing.", f"Write it like {key} = {quoted(like)}.")
            return None
        return None if value is None else Decimal(value)

    def share(self, key: str, *, default: float, like: str) -> float:
        """A part of one: from 0 on and below 1."""
        value = self._take(key, (int, Decimal), "a share", like=like)
        if value is None:
            return default
        assert isinstance(value, int | Decimal)
        if not 0 <= float(value) < 1:
            self.error(key, f"{key} is {value}; it is a share, from 0 and below 1.", f"Write it like {key} = {like}.")
            return default
        return float(value)

    def intervals(self, key: str, *, like: str) -> tuple[tuple[float, float], ...]:
        """A list of spans in seconds, each ``[start, end]`` with its end after its start."""
        found: list[tuple[float, float]] = []
        for index, item in enumerate(self._take(key, list, "a list", like=like) or []):
            match item:
                case [int() | Decimal() as start, int() | Decimal() as end] if 0 <= start < end < Decimal("Infinity"):
                    found.append((float(start), float(end)))
                case _:
                    message = f"{key} holds what is no span of seconds."
                    self.error(key, message, f"Write it like {key} = {like}, starts before ends.", index=index)
        return tuple(found)

    def holds_table(self, key: str) -> bool:
        """Whether a table is under a key that may also have another value."""
        return isinstance(self._values.get(key), dict)

    def table(self, key: str, *, like: str) -> Table | None:
        values = self._take(key, dict, "a table", like=like)
        return None if values is None else Table(self._document, (*self.path, key), values)

    def tables(self, key: str) -> tuple[tuple[str, Table], ...]:
        """The named tables below a key, as written: ``[key.name]``."""
        inner = self.table(key, like="{ … }")
        return () if inner is None else inner.children()

    def children(self) -> tuple[tuple[str, Table], ...]:
        found: list[tuple[str, Table]] = []
        for name, values in self._values.items():
            self._asked.add(name)
            if isinstance(values, dict):
                found.append((name, Table(self._document, (*self.path, name), values)))
            else:
                self.error(name, f"{quoted(name)} is {_kind(values)}, not a table.", f"Write [{self.name}.NAME].")
        return tuple(found)

    def items(self, key: str) -> tuple[Table, ...]:
        """The items of an array of tables: ``[[key]]``."""
        header = ".".join([self.name, key] if self.path else [key])
        found: list[Table] = []
        values = self._values.get(key)
        if isinstance(values, dict):
            self._asked.add(key)
            self.error(key, f"[{header}] is one table, not a list of them.", f"Write [[{header}]].")
            return ()
        for index, item in enumerate(self._take(key, list, "a list of tables", like="[{ … }]") or []):
            if isinstance(item, dict):
                found.append(Table(self._document, (*self.path, key, index), item))
            else:
                self.error(key, f"{key} holds {_kind(item)}, not tables.", f"Write [[{header}]].", index=index)
        return tuple(found)

    def credential(self, key: str) -> Mapping[str, str] | None:
        """``{ env = NAME }`` or ``{ file = path }``. A literal is refused, and no value is ever quoted."""
        self._asked.add(key)
        if key not in self._values:
            return None
        mend = 'Write api_key = { env = "NAME_OF_A_VARIABLE" } or { file = "path" }, and keep the key itself there.'
        match self._values[key]:
            case str():
                self.error(key, f"{key} is a literal; secrets never stand in this file.", mend)
            case {"env": str(name), **others} if not others:
                if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                    return {"env": name}
                self.error(key, f"{key} does not name an environment variable.", mend)
            case {"file": str(path), **others} if not others and path.strip():
                return {"file": path}
            case _:
                self.error(key, f"{key} is neither an environment variable nor a file, or it is both.", mend)
        return None

    def close(self) -> bool:
        """Notes every key that nobody asked for; whether there were none."""
        unknown = [key for key in self._values if key not in self._asked]
        for key in unknown:
            where = f"in [{self.name}]" if self.path else "at the top of this file"
            self.error(key, f"{quoted(key)} is not a key {where}.", self._mend_unknown(key))
        return not unknown

    def _mend_unknown(self, key: str) -> str:
        if _MEANT.get(key) in self._asked:
            return f"Did you mean {_MEANT[key]}?"
        otherwise = f"Remove it, or write one of: {', '.join(sorted(self._asked))}."
        if isinstance(self._values[key], dict) and self.path and isinstance(self.path[-1], str):
            # [models.kimi-k2.6] is a table "6" inside a table "kimi-k2"
            otherwise = f"Quote a name that has a dot: {quoted(f'{self.path[-1]}.{key}')}."
        return did_you_mean(key, self._asked, otherwise=otherwise)

    def _take(
        self, key: str, kind: type[T] | tuple[type[T], ...], expected: str, *, like: str, required: bool = False
    ) -> T | None:
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            if required:
                self.error(None, f"[{self.name}] has no {key}.", f"Add {key} = {like}.")
            return None
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        self.error(key, f"{key} is {_kind(value)}, not {expected}.", f"Write it like {key} = {like}.")
        return None

    def _decimal(self, key: str, unit: str, *, like: str, required: bool) -> str | None:
        """A plain decimal amount as its text."""
        value = self._take(key, (str, int, Decimal), "an amount", like=quoted(like), required=required)
        if value is None:
            return None
        if not isinstance(value, str):
            shown = f"{value:f}" if isinstance(value, Decimal) else str(value)
            self.error(key, f"{key} is a number.", f'Write it as a string: {key} = "{shown}".')
            return None
        if not _AMOUNT.fullmatch(value):
            what = "is negative" if value.strip().startswith("-") else "is not a plain decimal amount"
            self.error(key, f"{key} {what}.", f'Write plain decimal {unit}, such as {key} = "{like}".')
            return None
        return value

    def _find(
        self, level: Literal["error", "warning"], key: str | None, index: int | None, message: str, mend: str
    ) -> None:
        keys = tuple(part for part in (key, index) if part is not None)
        found = Finding(level=level, file=self.file, line=self.line(*keys), message=message, mend=mend)
        self._document.findings.append(found)


def _kind(value: object) -> str:
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "something else")


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _broken(file: str, line: int, message: str, mend: str) -> Finding:
    return Finding(level="error", file=file, line=line, message=message, mend=mend)


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """tomllib's words without the position, and the line they were said of."""
    reason, _, position = message.rpartition(" (at ")
    found = re.match(r"line (\d+)", position)
    line = int(found.group(1)) if found else max(1, len(text.rstrip().splitlines()))
    return (reason or message)[:1].lower() + (reason or message)[1:], line
