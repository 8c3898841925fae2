"""A statement's file is read once, front to back, a piece at a time: CSV, JSON or JSON Lines, told apart by its start.

A file may be of any length; what is kept of it is one line, or one object, and the rest of a piece.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final, Literal

from gateway.core.statement import FIELDS, BadLine, LineReader, StatementError, StatementLine

Kind = Literal["csv", "json", "jsonl"]

DELIMITERS: Final = (",", ";", "\t", "|")
START_CHARACTERS: Final = 64 * 1024
"""A first line that is longer than this is no line of JSON Lines, but a whole document."""
VALUE_CHARACTERS_MAX: Final = 16 * 1024 * 1024
"""One object, or whatever stands beside the list in a JSON document, is no longer than this."""

_BOM: Final = "\ufeff"
_DECODER: Final = json.JSONDecoder(parse_float=Decimal)
_SPACE: Final = " \t\r\n"


class Statement:
    """The lines of one file. ``kind`` and ``not_told`` (fields that it has no column for) are known once the first
    line has been read; what is true of all lines is in ``reader`` after the last."""

    def __init__(self, reader: LineReader, pieces: Iterable[str]) -> None:
        self.reader = reader
        self.kind: Kind = "csv"
        self.not_told: tuple[str, ...] = ()
        self._pieces = iter(pieces)

    def __iter__(self) -> Iterator[StatementLine | BadLine]:
        """Raises StatementError where it is no statement, or none that the mapping fits."""
        start = ""
        for piece in self._pieces:
            start += piece
            if "\n" in start.strip(_SPACE + _BOM) or len(start) > START_CHARACTERS:
                break
        start = start.removeprefix(_BOM)
        if not start.strip():
            raise StatementError("The statement is empty.")
        self.kind = self._kind(start)
        pieces = itertools.chain([start], self._pieces)
        match self.kind:
            case "csv":
                return self._csv(_lines(pieces))
            case "json":
                return self._json(_Json(pieces).items(_path(self.reader.mapping.lines)))
            case "jsonl":
                return self._json(_objects(_lines(pieces)))

    def _kind(self, start: str) -> Kind:
        text = start.lstrip()
        if text[0] not in "[{":
            return "csv"
        first, newline, _ = text.partition("\n")
        if text[0] == "{" and newline:
            try:
                value = _DECODER.decode(first)
            except ValueError:
                return "json"  # an object over several lines
            if _at(value, _path(self.reader.mapping.amount)) is not None:
                return "jsonl"
        return "json"

    def _csv(self, lines: Iterator[str]) -> Iterator[StatementLine | BadLine]:
        header = next(line for line in lines if line.strip())
        names = self.reader.mapping.names()
        delimiter, places = _places(header, names)
        if places[-1] is None:
            there = ", ".join(_cells(header, delimiter))
            raise StatementError(
                f"The statement has no column {names[-1]!r} for the amount; it has: {there}. "
                "Name its columns in [providers.NAME.statement] of providers.toml."
            )
        self._tell(place is not None for place in places)
        rows = csv.reader(lines, delimiter=delimiter)
        width = len(_cells(header, delimiter))
        pick = _picker(places)
        try:
            for row in rows:
                number = rows.line_num + 1  # the header was taken away before
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if len(row) != width:
                    yield BadLine(number, f"it has {len(row)} columns, and the header {width}")
                    continue
                yield self.reader.read(number, pick(row))
        except csv.Error as error:
            raise StatementError(f"Line {rows.line_num + 1} of the statement is not CSV: {error}.") from None

    def _json(self, objects: Iterator[tuple[int, Any]]) -> Iterator[StatementLine | BadLine]:
        paths = tuple(None if name is None else _path(name) for name in self.reader.mapping.names())
        told = [False] * len(paths)
        for number, value in objects:
            if isinstance(value, BadLine):
                yield value
                continue
            if not isinstance(value, dict):
                yield BadLine(number, "it is not a JSON object")
                continue
            cells = [None if path is None else _at(value, path) for path in paths]
            for index, cell in enumerate(cells):
                told[index] = told[index] or cell is not None
            yield self.reader.read(number, cells)
        self._tell(told)

    def _tell(self, told: Iterable[bool]) -> None:
        self.not_told = tuple(name for name, is_told in zip(FIELDS, told, strict=True) if not is_told)


# --- CSV -------------------------------------------------------------------------------------------------------------


def _places(header: str, names: Sequence[str | None]) -> tuple[str, list[int | None]]:
    """The delimiter with which a header has most of these names, and where they are; capitals do not matter."""
    best: tuple[str, list[int | None]] = (DELIMITERS[0], [None] * len(names))
    found_most = 0
    for delimiter in DELIMITERS:
        cells = [cell.casefold() for cell in _cells(header, delimiter)]
        places = [
            None if name is None or name.casefold() not in cells else cells.index(name.casefold()) for name in names
        ]
        found = sum(place is not None for place in places)
        if found > found_most:
            best, found_most = (delimiter, places), found
    return best


def _cells(header: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter))]


def _picker(places: Sequence[int | None]) -> Callable[[Sequence[str]], list[object]]:
    def pick(row: Sequence[str]) -> list[object]:
        return [None if place is None else row[place] for place in places]

    return pick


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines, each with its end."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield f"{line}\n"
    if rest:
        yield rest


# --- JSON ------------------------------------------------------------------------------------------------------------


def _path(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(".") if part)


def _at(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path of an object; a name that has a dot in it may be a member as it is."""
    if isinstance(value, dict) and len(path) > 1 and (whole := value.get(".".join(path))) is not None:
        return whole
    for part in path:
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _objects(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line)
        except (ValueError, RecursionError):
            yield number, BadLine(number, "it is not JSON")


class _Json:
    """A JSON document that is never whole in memory: only its list is gone into, and that value by value."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)
        self._text = ""
        self._index = 0
        self._is_at_end = False

    def items(self, path: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """The values of the list at a path, numbered from 1; of a document that is a list, or with no path, of the
        first list."""
        if self._peek() != "[":
            for part in path or (None,):
                self._enter(part)
        if self._peek() != "[":
            raise StatementError("The statement has no list where the mapping says; name its path as `lines`.")
        self._index += 1
        for number in itertools.count(1):
            if self._peek() == "]":
                return
            yield number, self._value(f"item {number}")
            if self._peek() == ",":
                self._index += 1
            elif self._peek() != "]":
                raise StatementError(f"After item {number} the statement is not JSON.")

    def _enter(self, wanted: str | None) -> None:
        """Goes to the value of a member; without a name, of the first one that is a list."""
        if self._peek() != "{":
            raise StatementError(f"The statement is not a JSON object, so it has no member {wanted!r}.")
        self._index += 1
        while self._peek() != "}":
            name = self._value("a member's name")
            if not isinstance(name, str) or self._peek() != ":":
                break
            self._index += 1
            if name == wanted or (wanted is None and self._peek() == "["):
                return
            self._value(f"member {name!r}")
            if self._peek() == ",":
                self._index += 1
        missing = "list" if wanted is None else f"member {wanted!r}"
        raise StatementError(f"The statement has no {missing}. Name the path of its list as `lines`.")

    def _peek(self) -> str:
        """The next character that is not space; nothing at the end."""
        while True:
            while self._index < len(self._text):
                if self._text[self._index] not in _SPACE:
                    return self._text[self._index]
                self._index += 1
            if not self._more():
                return ""

    def _value(self, what: str) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._index)
            except (ValueError, RecursionError):
                pass
            else:  # a number at the end of a piece may go on in the next one
                if end < len(self._text) or self._is_at_end or not isinstance(value, int | Decimal):
                    self._index = end
                    return value
            if self._is_at_end:
                raise StatementError(f"The statement is not JSON at {what}.")
            if len(self._text) - self._index > VALUE_CHARACTERS_MAX:
                raise StatementError(f"The statement is not JSON at {what}, or that is longer than can be read.")
            self._more()

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            self._is_at_end = True
            return False
        self._text = self._text[self._index :] + piece
        self._index = 0
        return True
