"""A value conforms to a schema, or not, or that cannot be said; no schema costs more than its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.schema import STEPS_MAX, Steps, conforms
from gateway.simulator.model import conforming

WEATHER: Final = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "minLength": 1},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "hours": {"type": "array", "items": {"type": "integer"}, "maxItems": 2, "uniqueItems": True},
        "at": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
    },
    "required": ["place"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False}},
}
ACCEPTED: Final = Path(__file__).parents[3] / "shared/data/walle_validator_cases/validator_cases"


def verdict(value: object, schema: object) -> bool | None:
    return conforms(value, schema, Steps())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"place": "Paris"}, True),
        ({"place": "Paris", "unit": "c", "days": 3, "hours": [1, 2], "at": [1, 2.5]}, True),
        ({"place": "Paris", "at": None}, True),
        ({"place": "Paris", "days": 3.0}, True),
        ({}, False),
        ([], False),
        ({"place": ""}, False),
        ({"place": 1}, False),
        ({"place": "Paris", "unit": "k"}, False),
        ({"place": "Paris", "days": "3"}, False),
        ({"place": "Paris", "days": True}, False),
        ({"place": "Paris", "days": 0}, False),
        ({"place": "Paris", "days": 15}, False),
        ({"place": "Paris", "days": 1.5}, False),
        ({"place": "Paris", "hours": [1, 1]}, False),
        ({"place": "Paris", "hours": [1, 2, 3]}, False),
        ({"place": "Paris", "at": [1, 2, 3]}, False),
        ({"place": "Paris", "town": "x"}, False),
    ],
)
def test_a_usual_schema(value: object, expected: bool) -> None:
    """What tools are usually described by is judged in full."""
    assert verdict(value, WEATHER) is expected


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1, {"enum": [True]}, False),
        (True, {"enum": [1]}, False),
        (1, {"const": 1.0}, True),
        ([0], {"const": [False]}, False),
        ({"a": 1}, {"const": {"a": 1.0}}, True),
        ({"a": 1}, {"const": {"b": 1}}, False),
        ([True, 1], {"uniqueItems": True}, True),
        (3, {"multipleOf": 2}, False),
        (4, {"multipleOf": 2}, True),
        (0.3, {"multipleOf": 0.1}, None),
        (2, {"exclusiveMinimum": 2}, False),
        (2, {"minimum": 2, "exclusiveMinimum": True}, None),
        (2, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, False),
        (2.5, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, True),
        (2, {"not": {"type": "integer"}}, False),
        ("x", {"allOf": [{"type": "string"}, {"maxLength": 0}]}, False),
        ({"a": 1}, {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, False),
        ({}, {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, True),
        ({}, {"if": {"required": ["a"]}, "else": {"minProperties": 1}}, False),
        ([1, "x"], {"items": [{"type": "string"}]}, False),
        ({"a": {"a": {"a": 1}}}, {"type": "object", "additionalProperties": {"$ref": "#"}}, False),
        ({"a": {"a": {}}}, {"type": "object", "additionalProperties": {"$ref": "#"}}, True),
        ("x", {"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"type": "integer"}}}, False),
        (None, {"type": "string", "nullable": True}, None),
        (1, False, False),
        (1, True, True),
    ],
)
def test_rules_worked_by_hand(value: object, schema: object, expected: bool | None) -> None:
    """JSON's equality, whole numbers, branches and references."""
    assert verdict(value, schema) is expected


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^(a+)+$"},
        {"propertyNames": {"pattern": "^(a+)+$"}},
        {"$ref": "https://schemas.example/a.json"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "#anchor"},
        {"$ref": "#/nowhere"},
        {"$ref": 5},
        {"type": "decimal"},
        {"type": []},
        {"anyOf": []},
        {"required": "a"},
        {"properties": [], "type": "object"},
        {"not": {"pattern": "x"}},
        None,
        "string",
        5,
    ],
)
def test_what_cannot_be_judged_is_never_a_failure(schema: object) -> None:
    """No pattern is run, nothing is fetched, and a schema that is none says nothing."""
    assert verdict({"a": "a" * 40 + "!"}, schema) is None


def test_what_is_judged_decides_beside_what_is_not() -> None:
    """A value of the wrong type is wrong whatever its pattern would have said."""
    assert verdict(5, {"pattern": "^a", "type": "string"}) is False
    assert verdict("a", {"anyOf": [{"pattern": "^b"}, {"type": "string"}]}) is True


def doubling(levels: int) -> dict[str, Any]:
    """A schema whose validation takes two to the power of ``levels`` steps."""
    names = [f"d{level}" for level in range(levels)]
    following = [*names[1:], "end"]
    definitions: dict[str, Any] = {
        name: {"allOf": [{"$ref": f"#/$defs/{each}"}] * 2} for name, each in zip(names, following, strict=True)
    }
    return {"$defs": definitions | {"end": {"type": "integer"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1, doubling(60)),
        ({}, {"$ref": "#"}),
        ({}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ({}, {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        (1, {"enum": list(range(STEPS_MAX + 1, 1, -1))}),
        (list(range(STEPS_MAX + 1)), {"items": {"type": "integer"}}),
    ],
)
def test_a_schema_that_is_too_heavy_is_given_up(value: object, schema: object) -> None:
    """Doubling references, rings and masses end where the steps do."""
    assert verdict(value, schema) is None


def test_steps_are_shared() -> None:
    """Many checks of one answer may together take no more than one."""
    steps = Steps(40)
    verdicts = [conforms({"place": "Paris"}, WEATHER, steps) for _ in range(10)]
    assert verdicts[0] is True
    assert verdicts[-1] is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
KEYWORDS = st.sampled_from(
    [
        *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "minimum"),
        *("maxLength", "minItems", "multipleOf", "uniqueItems", "anyOf", "oneOf", "allOf", "not", "if", "then", "$ref"),
    ]
)
SCHEMAS = st.recursive(
    VALUES, lambda inner: st.dictionaries(KEYWORDS, inner | st.lists(inner, max_size=3), max_size=4), max_leaves=12
)


@pytest.mark.parametrize("word", ["const", "enum"])
def test_what_is_nested_too_deeply_to_compare_is_not_judged(word: str) -> None:
    """A value of six hundred lists in lists beside one like it: no verdict, and nothing raises."""
    deep: object = 1
    for _ in range(600):
        deep = [deep]
    assert verdict(deep, {word: deep if word == "const" else [deep]}) is None


@given(value=VALUES, schema=SCHEMAS)
def test_anything_may_be_a_schema(value: object, schema: object) -> None:
    """Nothing raises, and the negation of a verdict is its opposite."""
    said = verdict(value, schema)
    assert said in (True, False, None)
    assert verdict(value, {"not": schema}) is (None if said is None else not said) or "$ref" in json.dumps(schema)


@pytest.mark.skipif(not ACCEPTED.is_dir(), reason="needs ../shared/data/walle_validator_cases, which is not here")
def test_schemas_that_the_maker_accepts() -> None:
    """None of them is too heavy for any value, and a value made by it is never called wrong; the maker of values
    knows no end of a ring, and would write a text of any length."""
    files = sorted(ACCEPTED.glob("*/valid.jsonl"))
    schemas = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(schemas) > 50
    for schema in map(json.loads, schemas):
        assert verdict({"a": [1, "x", None]}, schema) in (True, False, None)
    for line in schemas:
        if "$ref" not in line and "minLength" not in line:
            made = conforming(json.loads(line), digest=7)
            assert verdict(made, json.loads(line)) is not False, (made, line)
