"""What a provider refuses: each check is a value with the provider's own reason, in the order the providers look.

Moonshot is strict, and stricter with its newer models, whose sampling is fixed; the aggregators let more pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is not a completion. ``kind`` is neutral; :mod:`gateway.simulator.wire` gives it its form."""

    kind: str
    message: str | None = None
    retry_seconds: int = 1
    retry_after: str | None = None
    facts: dict[str, object] = {}


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """How a model behaves. ``fixed_sampling``: any temperature, top_p or n but the default is refused."""

    id: str
    context: int
    output_default: int
    fixed_sampling: bool
    thinking_switch: bool
    replay_required: bool
    tool_choice_required: bool
    tool_name: re.Pattern[str]


_TOOL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{2,63}")
_TOOL_NAME_NEW: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,255}")


def card_of(model: str) -> ModelCard:
    """The card of a model, from its family name; an unknown family behaves like kimi-k2-thinking."""
    new = model.startswith(("kimi-k2.", "kimi-k3"))
    k3 = model.startswith("kimi-k3")
    return ModelCard(
        id=model,
        context=1_048_576 if k3 else 262_144,
        output_default=131_072 if k3 else (32_768 if new else 1_024),
        fixed_sampling=new,
        thinking_switch=model in ("kimi-k2.5", "kimi-k2.6"),
        replay_required=new,
        tool_choice_required=k3,
        tool_name=_TOOL_NAME_NEW if new else _TOOL_NAME,
    )


def output_limit(request: Mapping[str, Any], card: ModelCard) -> int:
    """The output limit of a valid request."""
    limit = request.get("max_completion_tokens")
    if limit is None:
        limit = request.get("max_tokens")
    return card.output_default if limit is None else int(limit)


def thinks(request: Mapping[str, Any], card: ModelCard) -> bool:
    thinking = request.get("thinking")
    return not (card.thinking_switch and isinstance(thinking, dict) and thinking.get("type") == "disabled")


def check(provider: str, request: Mapping[str, Any], card: ModelCard, *, prompt_tokens: int) -> Refusal | None:
    """The first rule that a request breaks. The model is known; ``messages`` was not looked at yet."""
    strict = provider == "moonshot"
    message = (
        _check_messages(request.get("messages"), card, strict=strict)
        or _check_sampling(request, card, strict=strict)
        or _check_tools(request, card, strict=strict)
        or _check_size(request, card, prompt_tokens)
    )
    return Refusal(kind="invalid_request", message=message) if message else None


def _check_messages(messages: object, card: ModelCard, *, strict: bool) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "Invalid request: messages must be a non-empty list"
    called: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"Invalid request: message at position {index} is not an object"
        role = message.get("role")
        if role not in ("system", "user", "assistant", "tool"):
            return f"Invalid request: unknown role {role!r} at position {index}"
        if not isinstance(message.get("tool_calls") or [], list):
            return f"Invalid request: tool_calls at position {index} must be a list"
        if fault := _check_content(message, index, strict=strict):
            return fault
        if role == "assistant" and message.get("tool_calls"):
            if card.replay_required and strict and not isinstance(message.get("reasoning_content"), str):
                return (
                    "thinking is enabled but reasoning_content is missing in assistant tool call message "
                    f"at index {index}"
                )
            called |= {str(call.get("id")) for call in message["tool_calls"] if isinstance(call, dict)}
        if role == "tool" and str(message.get("tool_call_id")) not in called:
            return f"Invalid request: tool_call_id {message.get('tool_call_id') or ''} is not found"
    return None


def _check_content(message: dict[str, Any], index: int, *, strict: bool) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        if content or not strict or message.get("tool_calls") or message["role"] == "tool":
            return None
        return f"Invalid request: message at position {index} with role '{message['role']}' must not be empty"
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or "type" not in part:
                return f"Invalid request: content part at position {index} has no type"
            if strict and part["type"] == "text" and not part.get("text"):
                return "Invalid request: text content is empty"
        return None
    if content is None and (message.get("tool_calls") or message.get("tools") or message.get("partial")):
        return None
    return f"Invalid request: content at position {index} must be a string or a list of parts"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_sampling(request: Mapping[str, Any], card: ModelCard, *, strict: bool) -> str | None:
    if strict and card.fixed_sampling:
        return _check_fixed(request, card)
    bounds: dict[str, tuple[float, float]] = {
        "temperature": (0, 1 if strict else 2),
        "top_p": (0, 1),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
        "n": (1, 5),
    }
    for field, (low, high) in bounds.items():
        value = request.get(field)
        if value is not None and not (_number(value) and low <= value <= high):
            return f"Invalid request: {field} must be between {low} and {high}"
    count, temperature = request.get("n") or 1, request.get("temperature")
    if not isinstance(count, int):
        return "Invalid request: n must be an integer"
    if strict and count > 1 and temperature is not None and temperature < 0.3:
        return "Invalid request: n must be 1 when temperature is close to 0"
    return _check_stop(request.get("stop"))


def _check_fixed(request: Mapping[str, Any], card: ModelCard) -> str | None:
    thinking = request.get("thinking")
    if thinking is not None and not isinstance(thinking, dict):
        return f"Invalid request: thinking: expected type object, but {type(thinking).__name__} is not acceptable"
    temperature = 1 if thinks(request, card) else 0.6
    fixed = {"temperature": temperature, "top_p": 0.95, "n": 1, "presence_penalty": 0, "frequency_penalty": 0}
    for field, only in fixed.items():
        if request.get(field) not in (None, only):
            return f"invalid {field}: only {only} is allowed for this model"
    return _check_stop(request.get("stop"))


def _check_stop(stop: object) -> str | None:
    words = [stop] if isinstance(stop, str) else stop
    if words is None:
        return None
    if not isinstance(words, list) or len(words) > 5:
        return "Invalid request: stop must be a string or at most 5 strings"
    if any(not isinstance(word, str) or len(word.encode()) > 32 for word in words):
        return "Invalid request: a stop string is longer than 32 bytes"
    return None


def _check_tools(request: Mapping[str, Any], card: ModelCard, *, strict: bool) -> str | None:
    tools = request.get("tools")
    if tools is not None and not isinstance(tools, list):
        return "Invalid request: tools must be a list"
    if tools and len(tools) > 128:
        return "Invalid request: at most 128 tools are allowed"
    names: set[str] = set()
    for tool in tools or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "Invalid request: tools.function is missing"
        name = function["name"]
        if strict and not card.tool_name.fullmatch(name.removeprefix("$")):
            return f"Invalid request: function name is invalid, must match {card.tool_name.pattern}, got {name}"
        if name in names:
            return f"Invalid request: function name {name} is duplicated"
        names.add(name)
        if strict and (details := schema_fault(function.get("parameters"))):
            return (
                "Invalid request: tools.function.parameters is not a valid moonshot flavored json schema, "
                f"details: <{details}>"
            )
    return _check_tool_choice(request.get("tool_choice"), card, names, strict=strict)


def _check_tool_choice(choice: object, card: ModelCard, names: set[str], *, strict: bool) -> str | None:
    if choice in (None, "auto", "none"):
        return None
    if isinstance(choice, dict):
        function = choice.get("function")
        if strict and not card.tool_choice_required:
            return "tool_choice 'specified' is incompatible with thinking enabled"
        if not isinstance(function, dict) or function.get("name") not in names:
            return "Invalid request: tool_choice names no function of tools"
        return None
    if choice == "required" and (card.tool_choice_required or not strict):
        return None
    return f"Invalid request: tool_choice {choice!r} is not supported"


def schema_fault(schema: object) -> str | None:
    """What keeps a tool schema from being Moonshot flavoured; None when it passes."""
    if schema is None:
        return None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "At path '': root type must be object"
    return _schema_fault(schema, "")


def _schema_fault(schema: dict[str, Any], path: str) -> str | None:
    if "$ref" in schema and len(schema) > 1:
        return f"At path '{path}': $ref must have no siblings"
    if "anyOf" in schema and "type" in schema:
        return f"At path '{path}': with anyOf, type must be in its branches"
    properties = schema.get("properties") or {}
    if not isinstance(properties, dict):
        return f"At path '{path}': properties must be an object"
    for name, child in properties.items():
        place = f"{path}.{name}".lstrip(".")
        if not isinstance(child, dict) or not {"type", "$ref", "anyOf"} & child.keys():
            return f"At path '{place}': type is missing"
        if fault := _schema_fault(child, place):
            return fault
    items = schema.get("items")
    return _schema_fault(items, f"{path}[]") if isinstance(items, dict) else None


def _check_size(request: Mapping[str, Any], card: ModelCard, prompt_tokens: int) -> str | None:
    for field in ("max_tokens", "max_completion_tokens"):
        limit = request.get(field)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            return f"Invalid request: {field} must be a positive integer"
    named = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    if prompt_tokens > card.context:
        return "Invalid request: Input token length too long"
    if prompt_tokens + named > card.context:
        return (
            f"Invalid request: Your request exceeded model token limit : {card.context} "
            f"(requested: {prompt_tokens + named})"
        )
    return None
