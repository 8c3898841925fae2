"""Every value of a TOML text has a line and a span here: tomllib knows the values, this knows their places.

tomllib keeps no positions and the libraries that do would read the files a second time with another grammar; so this
is a scanner of our own, which only ever sees text that tomllib has accepted and lets tomllib decode every key.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]
"""Keys and array indices from the root of a document to a value."""

_SIMPLE_KEY: Final = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY: Final = re.compile(rf"{_SIMPLE_KEY}(?:[ \t]*\.[ \t]*{_SIMPLE_KEY})*")
_SPACE: Final = re.compile(r"[ \t\r\n]+|#[^\n]*")
_STRING: Final = re.compile(
    r"""
      \"{3} (?:\\.|[^\\])*? \"{3} \"{0,2}     # basic text over several lines; it may end in quotes of its own
    | '{3} .*? '{3} '{0,2}
    | " (?:\\.|[^"\\\n])* "
    | ' [^'\n]* '
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\r\n]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value is written: the line of its key (from 1) and the characters of the value."""

    line: int
    start: int
    end: int


class Places:
    """The places of every table, value and array item of one text that tomllib accepts."""

    __slots__ = ("_places",)

    def __init__(self, text: str) -> None:
        self._places = _Scanner(text).scan()

    def __getitem__(self, path: Path) -> Place:
        return self._places[path]

    def __contains__(self, path: Path) -> bool:
        return path in self._places

    def paths(self) -> frozenset[Path]:
        return frozenset(self._places)

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest table around it that is written down."""
        while path and path not in self._places:
            path = path[:-1]
        return self._places[path].line if path else 1


class _Scanner:
    """Walks the text once. ``_last`` holds the index of the latest item of every array of tables."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._places: dict[Path, Place] = {}
        self._last: dict[Path, int] = {}

    def scan(self) -> dict[Path, Place]:
        table: Path = ()
        while self._skip_space():
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._places

    def _header(self) -> Path:
        start = self._at
        is_item = self._text.startswith("[[", start)
        self._at += 2 if is_item else 1
        self._skip_space()
        *parents, name = self._key()
        path: Path = ()
        for parent in parents:
            path = self._inside(self._note((*path, parent), start))
        path = (*path, name)
        if is_item:
            self._note(path, start)
            self._last[path] = self._last.get(path, -1) + 1
            path = self._inside(path)
        self._skip_space()
        self._at += 2 if is_item else 1
        self._places[path] = Place(line=self._line(start), start=start, end=self._at)
        return path

    def _pair(self, table: Path) -> None:
        start = self._at
        *parents, name = self._key()
        path = table
        for parent in parents:
            path = self._note((*path, parent), start)
        self._skip_space()
        self._at += 1  # the equals sign
        self._skip_space()
        self._value((*path, name), start)

    def _value(self, path: Path, key_start: int) -> None:
        start = self._at
        match self._text[start]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._at = self._match(_STRING).end()
            case _:
                self._at += len(self._match(_PLAIN).group().rstrip())
        self._places[path] = Place(line=self._line(key_start), start=start, end=self._at)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while self._skip_space() and self._text[self._at] != "]":
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._value((*path, index), self._at)
            index += 1
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._skip_space() and self._text[self._at] != "}":
            if self._text[self._at] == ",":
                self._at += 1
                continue
            self._pair(path)
        self._at += 1

    def _key(self) -> list[str]:
        match = self._match(_KEY)
        self._at = match.end()
        keys: list[str] = []
        level: object = tomllib.loads(f"{match.group()} = 0")
        while isinstance(level, dict):
            key, level = next(iter(level.items()))
            keys.append(key)
        return keys

    def _note(self, path: Path, start: int) -> Path:
        """A table that is only implied, by a header or dotted key below it; a header of its own overrides this."""
        self._places.setdefault(path, Place(line=self._line(start), start=start, end=start))
        return path

    def _inside(self, path: Path) -> Path:
        return (*path, self._last[path]) if path in self._last else path

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        assert match is not None, "only text that tomllib accepted is scanned"
        return match

    def _skip_space(self) -> bool:
        """Past blanks, line breaks and comments; False at the end of the text."""
        while match := _SPACE.match(self._text, self._at):
            self._at = match.end()
        return self._at < len(self._text)

    def _line(self, offset: int) -> int:
        return bisect_right(self._line_starts, offset)
