"""A JSON value against a JSON Schema in bounded work: it conforms, it does not, or that cannot be said.

Schemas are whatever callers send. So no pattern is ever run (one of forty characters can take for ever), no reference
leads out of the schema, and no step is taken that the caller's ``Steps`` do not have. What is not judged here makes the
verdict None, never False; the rules are those of draft 2020-12 that Moonshot's own dialect knows, and the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote

STEPS_MAX: Final = 4_000
"""Two to three milliseconds; a call with a dozen arguments takes some fifty steps."""
DEPTH_MAX: Final = 64

Verdict = bool | None
"""Whether a value conforms; None = not judged."""

_UNJUDGED: Final = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "additionalItems",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "pattern",
        "patternProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""Keywords that can refuse a value and are not looked at."""


class _TooHeavyError(Exception):
    """The schema asks for more work than a check may take."""


class Steps:
    """What is left of the work that one or several checks may take together."""

    __slots__ = ("_left",)

    def __init__(self, left: int = STEPS_MAX) -> None:
        self._left = left

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _TooHeavyError


def conforms(value: object, schema: object, steps: Steps) -> Verdict:
    """Whether a decoded JSON value conforms to a decoded JSON Schema. Never raises."""
    try:
        return _Check(schema, steps).of(value, schema, DEPTH_MAX)
    except (_TooHeavyError, RecursionError):  # nothing bounds how deep what a constant is compared with may be
        return None


class _Check:
    """One check: its steps, and the schema that references are looked up in."""

    __slots__ = ("_root", "_spend")

    def __init__(self, root: object, steps: Steps) -> None:
        self._root = root
        self._spend = steps.spend

    def of(self, value: object, schema: object, depth: int) -> Verdict:
        self._spend(1)
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            return None
        if depth == 0:
            raise _TooHeavyError
        if value is None and schema.get("nullable") is True:  # OpenAPI's word, which some clients send
            return None
        self._spend(len(schema))
        return _all(self._rule(keyword, value, schema, depth - 1) for keyword in schema)

    def _rule(self, keyword: str, value: object, schema: dict[str, Any], depth: int) -> Verdict:
        """What one keyword says of the value; True where it says nothing of values of this type."""
        if keyword in _UNJUDGED:
            return None
        wanted = schema[keyword]
        if (measure := _MEASURES.get(keyword)) is not None:
            return measure(value, wanted)
        if (applicator := _APPLICATORS.get(keyword)) is not None:
            return applicator(self, value, wanted, depth)
        match keyword:
            case "properties" | "additionalProperties" if isinstance(value, dict):
                if keyword == "additionalProperties" and "properties" in schema:
                    return True  # looked at with the properties
                return self._properties(value, schema, depth)
            case "items" | "prefixItems" if isinstance(value, list):
                if keyword == "prefixItems" and "items" in schema:
                    return True  # looked at with the items
                return self._items(value, schema, depth)
            case "if":
                return self._branch(value, schema, depth)
            case _:
                return True

    def _properties(self, value: dict[str, Any], schema: dict[str, Any], depth: int) -> Verdict:
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        if not isinstance(known, dict):
            return None
        if "patternProperties" in schema:
            others = True  # which of the others they are is not judged
        self._spend(len(value))
        return _all(self.of(each, known.get(name, others), depth) for name, each in value.items())

    def _items(self, value: list[Any], schema: dict[str, Any], depth: int) -> Verdict:
        first, others = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(others, list):  # how drafts before 2020 wrote prefixItems
            first, others = others, True
        if not isinstance(first, list):
            return None
        self._spend(len(value))
        return _all(
            self.of(each, first[place] if place < len(first) else others, depth) for place, each in enumerate(value)
        )

    def _branch(self, value: object, schema: dict[str, Any], depth: int) -> Verdict:
        is_so = self.of(value, schema["if"], depth)
        if is_so is None:
            return None
        return self.of(value, schema.get("then" if is_so else "else", True), depth)

    def reference(self, value: object, wanted: object, depth: int) -> Verdict:
        """A place in the same schema, as a JSON pointer; anything else is not judged."""
        if not isinstance(wanted, str) or not (wanted == "#" or wanted.startswith("#/")):
            return None
        at = self._root
        for part in wanted.split("/")[1:]:
            self._spend(1)
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if not isinstance(at, dict) or name not in at:
                return None
            at = at[name]
        return self.of(value, at, depth)

    def all_of(self, value: object, wanted: object, depth: int) -> Verdict:
        return _all(self.of(value, each, depth) for each in wanted) if isinstance(wanted, list) else None

    def any_of(self, value: object, wanted: object, depth: int) -> Verdict:
        if not isinstance(wanted, list) or not wanted:
            return None
        return _not(_all(_not(self.of(value, each, depth)) for each in wanted))

    def one_of(self, value: object, wanted: object, depth: int) -> Verdict:
        if not isinstance(wanted, list) or not wanted:
            return None
        verdicts = [self.of(value, each, depth) for each in wanted]
        if verdicts.count(True) > 1:
            return False
        return None if None in verdicts else True in verdicts

    def none_of(self, value: object, wanted: object, depth: int) -> Verdict:
        return _not(self.of(value, wanted, depth))

    def enum(self, value: object, wanted: object, _: int) -> Verdict:
        if not isinstance(wanted, list):
            return None
        return any(self._is_same(value, each) for each in wanted)

    def const(self, value: object, wanted: object, _: int) -> Verdict:
        return self._is_same(value, wanted)

    def _is_same(self, one: object, other: object) -> bool:
        """JSON's equality: 1 is 1.0, and neither of them is true."""
        self._spend(1)
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(self._is_same(each, other[name]) for name, each in one.items())
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(self._is_same, one, other))
        return isinstance(one, bool) == isinstance(other, bool) and one == other

    def required(self, value: object, wanted: object, _: int) -> Verdict:
        if not isinstance(wanted, list):
            return None
        self._spend(len(wanted))
        return not isinstance(value, dict) or all(name in value for name in wanted if isinstance(name, str))

    def unique(self, value: object, wanted: object, _: int) -> Verdict:
        if wanted is not True or not isinstance(value, list):
            return True
        self._spend(len(value))
        if any(isinstance(each, (dict, list)) for each in value):
            return None
        return len({(isinstance(each, bool), each) for each in value}) == len(value)


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    """False as soon as one is, None where one is not judged, else True."""
    result: Verdict = True
    for verdict in verdicts:
        if verdict is False:
            return False
        if verdict is None:
            result = None
    return result


def _not(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


def _has_type(value: object, wanted: object) -> Verdict:
    names = wanted if isinstance(wanted, list) else [wanted]
    kinds = [_TYPES.get(name) for name in names if isinstance(name, str)]
    if not names or len(kinds) < len(names) or None in kinds:
        return None
    return any(is_one(value) for is_one in kinds if is_one is not None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return _is_number(value) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


_TYPES: Final[Mapping[str, Callable[[object], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": _is_whole,
}


def _is_multiple(value: object, wanted: object) -> Verdict:
    """Of whole numbers only: what fractions are multiples of each other depends on how they are rounded."""
    if not _is_number(value):
        return True
    if isinstance(value, int) and isinstance(wanted, int) and wanted > 0:
        return value % wanted == 0
    return None


def _bound(holds: Callable[[Any, Any], bool]) -> Callable[[object, object], Verdict]:
    def rule(value: object, wanted: object) -> Verdict:
        if not _is_number(wanted):
            return None  # drafts before 6 wrote true beside a minimum
        return not _is_number(value) or holds(value, wanted)

    return rule


def _size(kind: type[Any], holds: Callable[[int, int], bool]) -> Callable[[object, object], Verdict]:
    def rule(value: object, wanted: object) -> Verdict:
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            return None
        return not isinstance(value, kind) or holds(len(value), wanted)

    return rule


_MEASURES: Final[Mapping[str, Callable[[object, object], Verdict]]] = {
    "type": _has_type,
    "minimum": _bound(lambda value, wanted: value >= wanted),
    "maximum": _bound(lambda value, wanted: value <= wanted),
    "exclusiveMinimum": _bound(lambda value, wanted: value > wanted),
    "exclusiveMaximum": _bound(lambda value, wanted: value < wanted),
    "multipleOf": _is_multiple,
    "minLength": _size(str, lambda size, wanted: size >= wanted),
    "maxLength": _size(str, lambda size, wanted: size <= wanted),
    "minItems": _size(list, lambda size, wanted: size >= wanted),
    "maxItems": _size(list, lambda size, wanted: size <= wanted),
    "minProperties": _size(dict, lambda size, wanted: size >= wanted),
    "maxProperties": _size(dict, lambda size, wanted: size <= wanted),
}

_APPLICATORS: Final[Mapping[str, Callable[[_Check, object, object, int], Verdict]]] = {
    "$ref": _Check.reference,
    "allOf": _Check.all_of,
    "anyOf": _Check.any_of,
    "oneOf": _Check.one_of,
    "not": _Check.none_of,
    "enum": _Check.enum,
    "const": _Check.const,
    "required": _Check.required,
    "uniqueItems": _Check.unique,
}
