"""The OpenAPI page is whole: the routes past the framework are on it, and every error has the envelope it is sent in.

Bodies of inference are described as far as the gateway looks at them; what it does not know passes, and may be sent.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from gateway.http.described import ANSWERS, CHAT_EXAMPLE, with_rules

Json = dict[str, Any]

ERROR: Final[Json] = {"$ref": "#/components/schemas/Error"}
_TEXT: Final[Json] = {"type": "string"}
_ERROR_SCHEMA: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {**_TEXT, "description": "What happened and what to do, with the request's id."},
                "type": _TEXT,
                "param": {"type": ["string", "null"], "description": "The field or parameter it is about."},
                "code": {**_TEXT, "description": "What a program may switch on."},
            },
        }
    },
}
_MESSAGE: Final[Json] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"description": "A string, or a list of parts.", "type": ["string", "array", "null"]},
        "reasoning_content": {"type": ["string", "null"], "description": "Sent back as it was received."},
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_call_id": {"type": ["string", "null"]},
    },
}
_PREFERENCES: Final[Json] = {
    "type": ["object", "null"],
    "description": "Which providers may serve the request, and in which order.",
    "properties": {
        "order": {"type": ["array", "null"], "items": _TEXT},
        "only": {"type": ["array", "null"], "items": _TEXT},
        "ignore": {"type": ["array", "null"], "items": _TEXT},
        "allow_fallbacks": {"type": ["boolean", "null"]},
        "sort": {"enum": ["price", "latency", "throughput", None]},
        "max_price": {
            "type": ["object", "null"],
            "description": "USD per 1,000,000 tokens.",
            "properties": {name: {"type": ["number", "string", "null"]} for name in ("prompt", "completion")},
        },
    },
}
_CHAT_REQUEST: Final[Json] = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": 256, "description": "One of GET /v1/models."},
        "messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/ChatMessage"}},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        },
        "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
        "stop": {"type": ["string", "array", "null"], "items": _TEXT, "maxItems": 5},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_choice": {"type": ["string", "object", "null"]},
        "response_format": {"type": ["object", "null"]},
        "prompt_cache_key": {"type": ["string", "null"], "maxLength": 512, "description": "Names the conversation."},
        "provider": _PREFERENCES,
    },
}
_CHAT_ANSWER: Final[Json] = {
    "type": "object",
    "required": ["choices"],
    "properties": {
        "id": _TEXT,
        "model": _TEXT,
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {
            "type": "object",
            "properties": {
                **{name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
                "cost": {"type": "number", "description": "USD."},
            },
        },
    },
}
_PLAN: Final[Json] = {
    "type": "object",
    "required": ["model", "input_tokens_estimate", "candidates"],
    "properties": {
        "model": _TEXT,
        "input_tokens_estimate": {"type": "integer"},
        "policy": _TEXT,
        "turn": {"type": "integer", "description": "Of its conversation, from 0."},
        "candidates": {
            "type": "array",
            "description": "In the order in which they would be tried, then those that are out.",
            "items": {
                "type": "object",
                "properties": {
                    **dict.fromkeys(("provider", "account", "upstream_model", "state"), _TEXT),
                    "expected_cost_usd": {"type": ["number", "null"]},
                    "expected_cached_tokens": {"type": "integer"},
                    "score": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
                    "excluded": {"type": ["string", "null"]},
                },
            },
        },
    },
}
_HEADERS: Final = (
    ("x-session-id", "Names the conversation, for whoever sends no prompt_cache_key."),
    ("x-gateway-tags", "Report tags: k=v, separated by commas."),
    ("x-gateway-debug", "plan: the answer's x-gateway-plan says who was considered, and at what score."),
)
_INFERENCE_ERRORS: Final = (400, 401, 402, 403, 404, 405, 408, 413, 415, 422, 429, 431, 500, 502, 503)
_ADMIN_ERRORS: Final = (400, 401, 403, 404, 405, 408, 413, 431, 500, 503)
_LISTING_ERRORS: Final = (400, 401, 404, 405, 431, 500, 503)
_BARE_ERRORS: Final = (400, 405, 431, 500, 503)


class WholePage(JsonRenderPlugin):
    """Renders what the framework knows of its routes, and the rest."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: Json) -> bytes:
        return super().render(request, whole(openapi_schema))


def whole(page: Json) -> Json:
    """The page with the inference routes, the errors as they are sent, and how to authenticate."""
    paths = {path: _with_errors(path, item) for path, item in page["paths"].items()}
    components = page.get("components", {})
    bodies = {name: with_rules(name, schema) for name, schema in components.get("schemas", {}).items()}
    schemas = {**bodies, "Error": _ERROR_SCHEMA, "ChatMessage": _MESSAGE}
    header = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "header": header}
    return {
        **page,
        "paths": {**_inference_paths(), **paths},
        "components": {**components, "schemas": schemas, "securitySchemes": schemes},
        "security": [{"bearer": []}, {"header": []}],
    }


def _with_errors(path: str, item: Json) -> Json:
    """The operations of a path with every error that they may answer, in the envelope that they answer it in, and with
    the answers that the framework cannot see into."""
    sent = {"/admin": _ADMIN_ERRORS, "/v1": _LISTING_ERRORS}
    errors = _errors(next((sent[start] for start in sent if path.startswith(start)), _BARE_ERRORS))
    return {
        method: {**operation, "responses": _described(path, {**operation["responses"], **errors})}
        for method, operation in item.items()
        if "responses" in operation
    }


def _described(path: str, responses: Json) -> Json:
    return {
        status: {**response, "content": ANSWERS[path, status]} if (path, status) in ANSWERS else response
        for status, response in responses.items()
    }


def _inference_paths() -> Json:
    streamed = {"text/event-stream": {"schema": {"description": "Chunks as they come, then [DONE]."}}}
    chat = _operation("Answer a conversation", "createChatCompletion", _CHAT_ANSWER)
    chat["responses"]["200"]["content"] |= streamed
    plan = _operation("The plan for the same body; nothing is called, held or counted", "planChatCompletion", _PLAN)
    return {"/v1/chat/completions": {"post": chat}, "/v1/route": {"post": plan}}


def _operation(summary: str, name: str, answer: Json) -> Json:
    headers = [
        {"name": header, "in": "header", "required": False, "schema": _TEXT, "description": what}
        for header, what in _HEADERS
    ]
    return {
        "tags": ["inference"],
        "summary": summary,
        "operationId": name,
        "parameters": headers,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _CHAT_REQUEST, "example": CHAT_EXAMPLE}},
        },
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {"schema": answer}}},
            **_errors(_INFERENCE_ERRORS),
        },
    }


def _errors(statuses: tuple[int, ...]) -> Json:
    content = {"application/json": {"schema": ERROR}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
