"""The scanner finds exactly the values that tomllib finds, however oddly they are written."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.places import Path, Places


def paths_of(value: object, path: Path = ()) -> set[Path]:
    """Every table, value and array item of what tomllib read."""
    found = {path} if path else set()
    match value:
        case dict():
            return found.union(*(paths_of(inner, (*path, key)) for key, inner in value.items()))
        case list():
            return found.union(*(paths_of(inner, (*path, index)) for index, inner in enumerate(value)))
        case _:
            return found


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def check(text: str) -> None:
    """The same paths, and every leaf's span reads as that leaf."""
    values = tomllib.loads(text)
    places = Places(text)
    assert places.paths() == paths_of(values)
    for path in places.paths():
        leaf = at(values, path)
        if not isinstance(leaf, dict | list):
            place = places[path]
            assert tomllib.loads(f"x = {text[place.start : place.end]}")["x"] == leaf


NASTY = '''\
# [not.a.table]
title = "a # b = [c]" # comment with "quotes"
'quoted key'   .  "and \\u0061 \\"dot\\".ted" = 'C:\\path\\'
multi = """
[fake]
key = "value"\\
   \\""" still inside""""
literal = \'\'\'
# no comment
'' two quotes \'\'\'\'
date = 1979-05-27 07:32:00 # a blank inside
numbers = [ 1, [2, 3,], # ] not yet
  { a = [4], b.c = "}" }, 6,
]
[ a . "b.c" ]
empty = {}
nothing = []
x.y.z = 1
x.w = -inf
[[a.list]]
n = 1
[[a.list.inner]]
n = 1.1
[[a.list.inner]]
n = 1.2
[a.list.inner.deep]
n = 1.21
[[a.list]]
  [[a.list.inner]]
  n=2.1
[a]
late = true
'''


def test_nasty_formatting() -> None:
    """Brackets, hashes and quotes in every place where they mean nothing."""
    check(NASTY)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("quoted key", 'and a "dot".ted'), 3),
        (("multi",), 4),
        (("literal",), 8),
        (("date",), 11),
        (("numbers",), 12),
        (("numbers", 1, 1), 12),
        (("numbers", 2, "b", "c"), 13),
        (("numbers", 3), 13),
        (("a", "b.c"), 15),
        (("a", "b.c", "x", "w"), 19),
        (("a", "list", 0), 20),
        (("a", "list", 0, "inner", 1, "n"), 25),
        (("a", "list", 0, "inner", 1, "deep"), 26),
        (("a", "list", 1, "inner", 0, "n"), 30),
        (("a",), 31),
        (("a", "late"), 32),
        (("a", "list", 1, "missing"), 28),
        (("missing",), 1),
    ],
)
def test_lines(path: Path, line: int) -> None:
    """The line of a key, of a header, or of the nearest table around what is not there."""
    assert Places(NASTY).line(path) == line


def test_windows_line_endings_and_the_end_of_the_file() -> None:
    """A carriage return is a blank, and the last line needs no end."""
    text = '[a]\r\nb = """\r\nc = 1\r\n"""\r\nd = [1,\r\n 2]\r\n[[e]]\r\nf = 2'
    check(text)
    assert Places(text).line(("e", 0, "f")) == 8
    assert Places(text).line(("d",)) == 1
    assert Places(text).line(("a", "d", 1)) == 6


KEYS = st.sampled_from(["a", "b-1", "2", '"q.r"', "'l # s'", '"e\\"s"', '""', "c . d", 'e."f g".h'])
STRINGS = st.sampled_from(
    ['""', "''", '"a]b"', "'}#'", '"\\\\"', '"\\""', '""""""', '"""""two"""""', "'''\n[x]\ny = 1\n'''", '"""\\\n  a"""']
)
PLAIN = st.sampled_from(
    ["1", "-0.5", "1e3", "inf", "true", "0xFF", "1_000", "2026-05-25", "2026-05-25 01:02:03Z", "01:02:03"]
)
GAPS = st.sampled_from(["", " ", "\t", ' # ] } = "\n', "\n\n"])


def _array(items: list[str], gaps: list[str], *, trailing: bool) -> str:
    inner = ",".join(f"{gap}{item}{gap}" for item, gap in zip(items, gaps, strict=False))
    return f"[{inner}{',' if trailing and inner else ''}{gaps[0]}]"


def _inline(pairs: list[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"k{index}.{key} = {value}" for index, (key, value) in enumerate(pairs)) + " }"


VALUES = st.recursive(
    STRINGS | PLAIN,
    lambda inner: (
        st.builds(_array, st.lists(inner, max_size=4), st.lists(GAPS, min_size=4, max_size=4), trailing=st.booleans())
        | st.builds(_inline, st.lists(st.tuples(KEYS, inner), max_size=3))
    ),
    max_leaves=6,
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Statements whose keys are numbered where TOML would forbid a repetition."""
    lines: list[str] = []
    for number in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["pair", "pair", "table", "items", "comment"]))
        key, indent = draw(KEYS), draw(st.sampled_from(["", "  ", "\t"]))
        match kind:
            case "pair":
                lines.append(f"{indent}p{number}.{key}\t= {draw(VALUES)} # end")
            case "table":
                lines.append(f"{indent}[ t{number} .{key} ] # ]]")
            case "items":
                name = draw(st.sampled_from(["x", '"y z"']))
                lines.append(f"{indent}[[i{draw(st.integers(0, 1))} . {name}]]")
            case _:
                lines.append("# a = 1")
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@given(documents())
def test_any_document(text: str) -> None:
    """Whatever tomllib accepts is scanned to the same paths and values."""
    check(text)
