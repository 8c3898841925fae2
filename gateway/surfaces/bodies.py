"""A request body is one JSON object, opened once: its members stay raw, and every bad byte ends as a refusal.

``open_body`` checks syntax, UTF-8 and surrogates of the whole body; what is read later can only have a wrong type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Raw

from gateway.surfaces.errors import invalid

NESTING_MAX: Final = 128
"""Levels of objects and lists in a body, the body itself included; deeper ones are refused before any decoder tires."""

COUNTED_BYTES_MAX: Final = 16_384
"""Up to this size counting brackets is cheaper than decoding a level."""
WINDOWS: Final = 128
WINDOW_BYTES: Final = 1024
"""Text with escapes is measured whole up to this many windows of so many bytes, and by these windows beyond."""

Members = dict[str, Raw]
T = TypeVar("T")

_BOM: Final = b"\xef\xbb\xbf"
_NULL: Final = b"null"
_OBJECT: Final = msgspec.json.Decoder(Members)
_LIST: Final = msgspec.json.Decoder(list[Raw])
_KINDS: Final = {
    ord("{"): "an object",
    ord("["): "a list",
    ord('"'): "a string",
    ord("t"): "a boolean",
    ord("f"): "a boolean",
    ord("n"): "null",
}
_ESCAPE: Final = re.compile(rb"\\u")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_TWO_BYTES: Final = tuple(b"\\u0%d" % digit for digit in range(8))
_ONE_BYTE: Final = tuple(b"\\u00%d" % digit for digit in range(8))


def open_body(body: bytes) -> Members:
    """The body's members as raw JSON; of duplicates the last. Raises RefusedError for anything but a JSON object."""
    body = body.removeprefix(_BOM)
    if not body or body.isspace():
        raise invalid(None, "The request body is empty; send a JSON object.")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise invalid(None, f"The request body is not valid UTF-8 (byte {error.start}).") from None
    try:
        return _OBJECT.decode(body)
    except RecursionError:
        raise nested_too_deep() from None
    except msgspec.ValidationError:
        raise invalid(None, "The request body must be a JSON object.") from None
    except msgspec.DecodeError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise invalid(None, f"The request body is not valid JSON: {what}.") from None


def nested_too_deep() -> Exception:
    return invalid(None, f"The request body nests objects and lists deeper than {NESTING_MAX} levels.")


def is_deeper(values: Iterable[Raw], levels: int) -> bool:
    """Whether any of the values nests more than ``levels`` objects and lists.

    Level by level, without recursion. A level takes two bytes and an opening bracket, so what is short or has few of
    them is not looked into, and neither is a string.
    """
    for left in range(levels, -1, -1):
        values = [value for value in values if len(value) > 2 * left + 1 and _may_be_deeper(value, left)]
        if not values:
            return False
        values = [child for value in values for child in _children(value)]
    return True


def _may_be_deeper(value: Raw, levels: int) -> bool:
    if memoryview(value)[0] not in b"{[":
        return False
    if len(value) > COUNTED_BYTES_MAX:
        return True
    raw = bytes(value)
    return raw.count(b"{") + raw.count(b"[") > levels


def _children(value: Raw) -> Iterable[Raw]:
    return _OBJECT.decode(value).values() if memoryview(value)[0] == 0x7B else _LIST.decode(value)


def is_null(value: Raw) -> bool:
    return len(value) == 4 and bytes(value) == _NULL


def is_string(value: Raw) -> bool:
    return memoryview(value)[0] == 0x22


def kind_of(value: Raw) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(memoryview(value)[0], "a number")


def present(members: Members, name: str) -> Raw | None:
    """A member's value; null is absent, and is dropped."""
    value = members.get(name)
    if value is not None and is_null(value):
        del members[name]
        return None
    return value


class Shape(Generic[T]):
    """A JSON type with its name in words, for decoding single members of an opened body."""

    __slots__ = ("_decoder", "_words")

    def __init__(self, type_: type[T], words: str) -> None:
        self._decoder = msgspec.json.Decoder(type_)
        self._words = words

    def of(self, value: Raw, param: str) -> T:
        """The decoded value. Raises RefusedError naming ``param``."""
        try:
            return self._decoder.decode(value)
        except (msgspec.ValidationError, RecursionError):
            raise invalid(param, f"`{param}` must be {self._words}; it is {kind_of(value)}.") from None

    def optional(self, members: Members, name: str, *, path: str = "") -> T | None:
        """A member's decoded value, None where it is absent or null; a null is dropped."""
        value = present(members, name)
        return None if value is None else self.of(value, path + name)


BOOLEAN: Final = Shape(bool, "true or false")
INTEGER: Final = Shape(int, "a whole number")
NUMBER: Final = Shape(float, "a number")
STRING: Final = Shape(str, "a string")
STRINGS: Final = Shape(list[str], "a list of strings")
OBJECT: Final = Shape(Members, "an object")
OBJECTS: Final = Shape(list[Members], "a list of objects")
LIST: Final = Shape(list[Raw], "a list")


def integer_between(members: Members, name: str, low: int, high: int, *, path: str = "") -> int | None:
    value = INTEGER.optional(members, name, path=path)
    if value is not None and not low <= value <= high:
        raise invalid(path + name, f"`{path}{name}` must be a whole number from {low} to {high}.")
    return value


def number_between(members: Members, name: str, low: float, high: float) -> float | None:
    value = NUMBER.optional(members, name)
    if value is not None and not low <= value <= high:
        raise invalid(name, f"`{name}` must be a number from {low:g} to {high:g}.")
    return value


def text_bytes(value: Raw) -> int:
    r"""The UTF-8 size of raw JSON, with ``\uXXXX`` counted as the character it stands for and the rest as it is.

    Exact up to 128 KiB; of longer text with escapes an even sample is measured, since sizes feed an estimate.
    """
    size = len(value)
    if _ESCAPE.search(value) is None:
        return size
    raw = bytes(value)
    if size <= WINDOWS * WINDOW_BYTES:
        return size - _escape_bytes(raw)
    sample = b"".join(raw[start : start + WINDOW_BYTES] for start in range(0, size, size // WINDOWS))
    return size - size * _escape_bytes(sample) // len(sample)


def _escape_bytes(raw: bytes) -> int:
    r"""How many bytes longer ``\uXXXX`` escapes are than the characters they stand for: 3 each, fewer or more."""
    raw = raw.replace(rb"\\", b"..")
    return (
        3 * raw.count(rb"\u")
        + sum(raw.count(prefix) for prefix in _TWO_BYTES)
        + sum(raw.count(prefix) for prefix in _ONE_BYTE)
        + len(_SURROGATE.findall(raw))
    )
