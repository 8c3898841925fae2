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
        raise invalid(None, f"The request body is not valid JSON: {error}.") from None


def nested_too_deep() -> Exception:
    return invalid(None, f"The request body nests objects and lists deeper than {NESTING_MAX} levels.")


def is_deeper(values: Iterable[Raw], levels: int) -> bool:
    """Whether any of the values nests more than ``levels`` objects and lists.

    A level takes two bytes, so what is shorter cannot be deep and long strings are not looked into.
    """
    for left in range(levels, -1, -1):
        values = [value for value in values if len(value) > 2 * left + 1 and memoryview(value)[0] in b"{["]
        if not values:
            return False
        values = [child for value in values for child in _children(value)]
    return True


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
    r"""The UTF-8 size of raw JSON, with ``\uXXXX`` counted as the character it stands for and the rest as it is."""
    size = len(value)
    if _ESCAPE.search(value) is None:
        return size
    raw = bytes(value).replace(rb"\\", b"..")
    size -= 3 * raw.count(rb"\u")
    if rb"\u0" in raw:
        size -= sum(raw.count(prefix) for prefix in _TWO_BYTES)
        size -= sum(raw.count(prefix) for prefix in _ONE_BYTE)
    if _SURROGATE.search(raw) is not None:
        size -= len(_SURROGATE.findall(raw))
    return size
