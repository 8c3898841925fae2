"""What the framework cannot tell of the routes stands here: the rules of fields, examples, and forms of answers.

``tests/http/test_openapi_fuzz.py`` holds every answer against it, and every refusal against the rules.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.core.budget import BudgetMode, OnOutage, Period
from gateway.core.exchange import Role
from gateway.core.fields import LIMIT_MAX, NAME_CHARACTERS_MAX, SHARE_MAX, SHARES_MAX, TAG_CHARACTERS_MAX, TAGS_MAX
from gateway.http.books import MEDIA_TYPES

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_OBJECT: Final[Json] = {"type": "object"}
_ROWS: Final[Json] = {"type": "array", "items": _OBJECT}
_NAME: Final[Json] = {"minLength": 1, "maxLength": NAME_CHARACTERS_MAX}
_LIMIT: Final[Json] = {"minimum": 1, "maximum": LIMIT_MAX}
_AMOUNT: Final[Json] = {"pattern": r"^[0-9]{1,9}(\.[0-9]{1,12})?$", "description": "USD, a decimal string."}
_SOME: Final[Json] = {"minItems": 1}
_FIELDS: Final[Json] = {
    "name": _NAME,
    "key": {"minLength": 1},
    "team": _NAME,
    "models": _SOME,
    "providers": _SOME,
    **dict.fromkeys(("rpm", "tpm", "concurrency"), _LIMIT),
    **{f"key_{kind}_{name}": _LIMIT for kind in ("default", "max") for name in ("rpm", "tpm", "concurrency")},
    "budget": _AMOUNT,
    "limit": _AMOUNT,
    "alert_at": {
        "maxItems": SHARES_MAX,
        "items": {"type": "integer", "minimum": 1, "maximum": SHARE_MAX},
        "description": "Whole percentages.",
    },
    "expires": {"description": "A date, which is its midnight UTC, or a moment with its zone."},
    "grace": {"pattern": "^[0-9]{1,6}[smhd]$", "description": "How long the old secret stays good, such as 24h."},
    "tags": {"maxProperties": TAGS_MAX, "additionalProperties": {"type": "string", "maxLength": TAG_CHARACTERS_MAX}},
}
"""What a field of a body has to be beyond its type, by its name."""
_CHOICES: Final = {"role": Role, "period": Period, "budget_mode": BudgetMode, "mode": BudgetMode, "on_outage": OnOutage}

EXAMPLES: Final[Json] = {
    "NewKey": {"name": "ci", "models": ["kimi-k2-thinking"], "rpm": 60, "budget": "25.00", "period": "month"},
    "KeyUpdate": {"rpm": 120, "tags": {"service": "search"}},
    "Rotation": {"grace": "24h"},
    "NewTeam": {"name": "search", "key_max_rpm": 600, "budget": "500", "period": "month"},
    "TeamUpdate": {"rpm": 1200, "tags": {"cost_centre": "1234"}},
    "BudgetBody": {"organisation": True, "period": "month", "limit": "1000.00", "alert_at": [80, 100]},
    "OrganisationUpdate": {"time_zone": "Europe/Berlin"},
}
CHAT_EXAMPLE: Final[Json] = {
    "model": "kimi-k2-thinking",
    "messages": [{"role": "user", "content": "How many primes are there below 100?"}],
    "max_tokens": 1024,
}

_MODEL: Final[Json] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        **dict.fromkeys(("id", "object", "owned_by"), _TEXT),
        "created": {"type": "integer"},
        "pricing": {"type": ["object", "null"], "description": "USD per 1,000,000 tokens, from and to."},
        "lifecycle": _OBJECT,
    },
}
_READY: Final[Json] = {
    "type": "object",
    "required": ["status", "problems"],
    "properties": {"status": {"enum": ["ready", "not ready"]}, "problems": {"type": "array", "items": _TEXT}},
}
_REPORT: Final[Json] = {
    "type": "object",
    "required": ["from", "to", "rows", "total"],
    "properties": {"from": _TEXT, "to": _TEXT, "rows": _ROWS, "total": _OBJECT},
}


def _object(**fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}


def _as_json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _in_any_form(schema: Json) -> Json:
    """The same as JSON, JSON Lines and CSV, as ``format`` asks."""
    kinds = {form: media_type.partition(";")[0] for form, media_type in MEDIA_TYPES.items()}
    return {media_type: {"schema": schema if form == "json" else _TEXT} for form, media_type in kinds.items()}


ANSWERS: Final[dict[tuple[str, str], Json]] = {
    ("/v1/models", "200"): _as_json(_object(object=_TEXT, data={"type": "array", "items": _MODEL})),
    ("/v1/models/{name}", "200"): _as_json(_MODEL),
    ("/readyz", "200"): _as_json(_READY),
    ("/readyz", "503"): _as_json(_READY),
    ("/metrics", "200"): {"text/plain": {"schema": _TEXT}},
    ("/admin/ledger", "200"): _in_any_form(_object(data=_ROWS)),
    ("/admin/reports/spend", "200"): _in_any_form(_REPORT),
    ("/admin/reports/savings", "200"): _as_json(
        _object(**{"from": _TEXT, "to": _TEXT}, requests={"type": "integer"}, models=_ROWS)
    ),
    ("/admin/requests/{request_id}", "200"): _as_json(
        _object(request_id=_TEXT, candidates={"type": ["array", "null"]}, attempts=_ROWS)
    ),
}
"""What an answer holds, by path and status, where the handler has it rendered already."""


def with_rules(name: str, schema: Json) -> Json:
    """The schema of a body with what each of its fields has to be, and an example."""
    fields = schema.get("properties", {})
    described = {field: _with_rule(field, of) for field, of in fields.items()}
    example = {"examples": [EXAMPLES[name]]} if name in EXAMPLES else {}
    return {**schema, "properties": described, **example} if fields else schema


def _with_rule(field: str, schema: Json) -> Json:
    choices = _CHOICES.get(field)
    if choices is None:
        return {**schema, **_FIELDS.get(field, {})}
    is_optional = any(each.get("type") == "null" for each in schema.get("oneOf", ()))
    return {**schema, "enum": [*(choice.value for choice in choices), *([None] if is_optional else [])]}
