"""Tools reach an upstream in the OpenAI form only; another form is converted if nothing is lost, and said so.

Names follow the newest models' rule here; :mod:`gateway.surfaces.fitness` applies the stricter one of the K2 models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
from msgspec import Raw

from gateway.surfaces.bodies import (
    LIST,
    OBJECT,
    STRING,
    Members,
    is_string,
    kind_of,
    present,
)
from gateway.surfaces.errors import invalid, shown

TOOLS_MAX: Final = 128
TOOL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,255}")
TOOL_NAME_K2: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{2,63}")

_NAME_WORDS: Final = "start with a letter or _ and go on with letters, digits, _ or -"
_FUNCTION: Final = Raw(b'"function"')
_BUILTIN: Final = "builtin_function"
_WEB_SEARCH: Final = "$web_search"
_FLAT_MEMBERS: Final = {
    "name": "name",
    "description": "description",
    "strict": "strict",
    "parameters": "parameters",
    "input_schema": "parameters",
}
_CHOICES: Final = frozenset({"auto", "none", "required"})
_ANTHROPIC_CHOICES: Final = {"auto": "auto", "none": "none", "any": "required"}


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: Raw = Raw(b"{}")


class _Tool(msgspec.Struct):
    type: Literal["function"]
    function: _Function


class _NamedFunction(msgspec.Struct):
    name: str


class _NamedTool(msgspec.Struct):
    function: _NamedFunction


_PLAIN: Final = msgspec.json.Decoder(list[_Tool])
_NAMED: Final = msgspec.json.Decoder(list[_NamedTool])


@dataclass(slots=True)
class Tools:
    """The tools of one request: ``raw`` in the OpenAI form, their names by place."""

    raw: Raw | None = None
    names: dict[str, int] = field(default_factory=dict)
    needs: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


def read_tools(members: Members) -> Tools:
    """Checks ``tools`` and ``tool_choice``, and converts them in place. Raises RefusedError."""
    _refuse_functions(members)
    tools = Tools()
    value = present(members, "tools")
    if value is not None:
        if not _read_plain(tools, value):
            _read_list(tools, value)
        if tools.names:
            assert tools.raw is not None
            members["tools"] = tools.raw
        else:
            del members["tools"]  # an empty list is no tools, and not every provider takes one
    _read_choice(tools, members)
    return tools


def _refuse_functions(members: Members) -> None:
    """Not converted: the caller would wait for a ``function_call`` that no answer carries."""
    for name, instead in (("functions", "tools"), ("function_call", "tool_choice")):
        if present(members, name) is not None:
            raise invalid(name, f"`{name}` is not supported by Kimi models; send `{instead}`.")


def _read_plain(tools: Tools, value: Raw) -> bool:
    """Takes a list in which nothing is to be converted, refused or noted, in one go; whether it was one."""
    try:
        listed = _PLAIN.decode(value)
    except msgspec.ValidationError:
        return False
    names = {tool.function.name: index for index, tool in enumerate(listed)}
    if (
        not 0 < len(listed) == len(names) <= TOOLS_MAX
        or not all(map(TOOL_NAME.fullmatch, names))
        or any(kind_of(tool.function.parameters) != "an object" for tool in listed)
    ):
        return False
    tools.raw = value
    tools.names = names
    tools.needs.add("tools")
    return True


def _read_list(tools: Tools, value: Raw) -> None:
    listed = LIST.of(value, "tools")
    if len(listed) > TOOLS_MAX:
        raise invalid("tools", f"`tools` has {len(listed)} tools; at most {TOOLS_MAX} are allowed.")
    converted = False
    for index, each in enumerate(listed):
        tool = _read_tool(tools, OBJECT.of(each, f"tools[{index}]"), index)
        if tool is not None:
            listed[index] = tool
            converted = True
    tools.raw = Raw(msgspec.json.encode(listed)) if converted else value


def _read_tool(tools: Tools, tool: Members, index: int) -> Raw | None:
    """Checks one tool; returns it in the OpenAI form if it was in another."""
    path = f"tools[{index}]"
    kind = STRING.optional(tool, "type", path=f"{path}.")
    function = present(tool, "function")
    if kind == _BUILTIN:
        _read_builtin(tools, function, path, index)
        return None
    if function is not None and kind in (None, "function"):
        members = OBJECT.of(function, f"{path}.function")
        _check_function(tools, members, f"{path}.function", index)
        if kind == "function":
            return None
        tool["type"] = _FUNCTION
        return Raw(msgspec.json.encode(tool))
    if "name" in tool and kind in (None, "function", "custom"):
        return _converted(tools, tool, path, index)
    if kind is not None and kind != "function":
        raise invalid(f"{path}.type", f'`{path}.type` is {shown(kind)}; only "function" tools are supported.')
    raise invalid(
        f"{path}.function",
        f'`{path}.function` is missing; a tool is {{"type": "function", "function": {{"name", "description", '
        f'"parameters"}}}}.',
    )


def _read_builtin(tools: Tools, function: Raw | None, path: str, index: int) -> None:
    members = {} if function is None else OBJECT.of(function, f"{path}.function")
    name = STRING.optional(members, "name", path=f"{path}.function.")
    if name != _WEB_SEARCH:
        raise invalid(f"{path}.function.name", f'`{path}.function.name` must be "{_WEB_SEARCH}" for a {_BUILTIN}.')
    _add_name(tools, name, f"{path}.function.name", index)
    tools.needs.add("web_search")


def _check_function(tools: Tools, members: Members, path: str, index: int) -> None:
    name = STRING.optional(members, "name", path=f"{path}.")
    if name is None:
        raise invalid(f"{path}.name", f"`{path}.name` is missing.")
    if TOOL_NAME.fullmatch(name) is None:
        raise invalid(f"{path}.name", f"`{path}.name` is {shown(name)}; a name must {_NAME_WORDS}.")
    _add_name(tools, name, f"{path}.name", index)
    tools.needs.add("tools")
    STRING.optional(members, "description", path=f"{path}.")
    parameters = present(members, "parameters")
    if parameters is not None and kind_of(parameters) != "an object":
        param = f"{path}.parameters"
        raise invalid(param, f"`{param}` must be a JSON schema, an object; it is {kind_of(parameters)}.")


def _add_name(tools: Tools, name: str, param: str, index: int) -> None:
    first = tools.names.setdefault(name, index)
    if first != index:
        raise invalid(param, f"`{param}` {shown(name)} is already the name of tools[{first}].")


def _converted(tools: Tools, tool: Members, path: str, index: int) -> Raw:
    """A flat tool, Anthropic's with ``input_schema`` or a bare one, as a function in the OpenAI form."""
    if "input_schema" in tool and "parameters" in tool:
        raise invalid(f"{path}.input_schema", f"`{path}` has both `parameters` and `input_schema`; send one.")
    function = {_FLAT_MEMBERS[name]: value for name, value in tool.items() if name in _FLAT_MEMBERS}
    _check_function(tools, function, path, index)
    name = shown(STRING.of(function["name"], f"{path}.name"))
    form = "input_schema" if "input_schema" in tool else "a bare function"
    tools.warnings.append(f"tool {name} was converted from {form} to the OpenAI form")
    dropped = sorted(set(tool) - set(_FLAT_MEMBERS) - {"type"})
    if dropped:
        more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
        tools.warnings.append(f"tool {name}: {shown(dropped[0])}{more} was dropped")
    return Raw(msgspec.json.encode({"type": _FUNCTION, "function": function}))


def _read_choice(tools: Tools, members: Members) -> None:
    value = present(members, "tool_choice")
    if value is None:
        return
    choice, named = _choice(value)
    if choice in ("required", "named") and not tools.names:
        raise invalid("tool_choice", "`tool_choice` demands a tool call, but the request has no `tools`.")
    if named is not None and named not in tools.names:
        raise invalid("tool_choice", f"`tool_choice` names {shown(named)}, which is not in `tools`.")
    if choice in ("required", "named"):
        tools.needs.add("tool_choice_required")
    if not is_string(value):
        written: object = choice if named is None else {"type": "function", "function": {"name": named}}
        members["tool_choice"] = Raw(msgspec.json.encode(written))


def _choice(value: Raw) -> tuple[str, str | None]:
    """``auto``, ``none``, ``required`` or ``named`` with the name; Anthropic's objects mean the same."""
    wrong = invalid(
        "tool_choice",
        '`tool_choice` must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}.',
    )
    if is_string(value):
        word = STRING.of(value, "tool_choice")
        if word not in _CHOICES:
            raise wrong
        return word, None
    if kind_of(value) != "an object":
        raise wrong
    choice = OBJECT.of(value, "tool_choice")
    kind = STRING.optional(choice, "type", path="tool_choice.")
    if kind in _ANTHROPIC_CHOICES:
        return _ANTHROPIC_CHOICES[kind], None
    if kind not in ("function", "tool"):
        raise wrong
    holder = OBJECT.optional(choice, "function", path="tool_choice.") or choice
    name = STRING.optional(holder, "name", path="tool_choice.function.")
    if name is None:
        raise wrong
    return "named", name


def names_for_k2(tools: Raw) -> None:
    """Refuses function names that K2 models do not take: they want 3 to 64 characters."""
    for index, tool in enumerate(_NAMED.decode(tools)):
        name = tool.function.name
        if name != _WEB_SEARCH and TOOL_NAME_K2.fullmatch(name) is None:
            param = f"tools[{index}].function.name"
            raise invalid(param, f"`{param}` is {shown(name)}; it must have 3 to 64 characters: {_NAME_WORDS}.")
