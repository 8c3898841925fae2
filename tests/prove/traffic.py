"""Requests of every kind that users send, drawn by a seed: the same number is always the same request."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from gateway.simulator import filler

KIMI: Final = "kimi-k2-thinking"
TURBO: Final = "kimi-k2-thinking-turbo"
TURBO_SHARE: Final = 0.25
STREAM_SHARE: Final = 0.5
TOOLS_SHARE: Final = 0.2
SEVERAL_SHARE: Final = 0.15
SYSTEMS: Final = 24
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["word"],
        },
    },
}


def mixed(number: int, *, seed: int) -> dict[str, Any]:
    """One request: both models, streamed or not, tools, several choices, thinking from none to all of the answer."""
    chance = Random(f"{seed}/{number}")
    marks = f"[[out={chance.randrange(1, 300)}]] [[reasoning={chance.choice(['0', '0.3', '0.8'])}]]"
    body: dict[str, Any] = {
        "model": TURBO if chance.random() < TURBO_SHARE else KIMI,
        "max_tokens": chance.choice([200, 4096]),
    }
    if chance.random() < TOOLS_SHARE:
        body["tools"] = [_TOOL]
        marks += f" [[tool={chance.choice(['lookup', 'none'])}]]"
    if chance.random() < SEVERAL_SHARE:
        body |= {"n": chance.choice([2, 3]), "temperature": 0.6}
    if chance.random() < STREAM_SHARE:
        body["stream"] = True
        if chance.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    body["messages"] = _conversation(chance, f"{filler(12, seed=number)} {marks}")
    return body


def _conversation(chance: Random, question: str) -> list[dict[str, str]]:
    """A system prompt that others share, some turns that follow from it, and a question that nobody else asks."""
    system = chance.randrange(SYSTEMS)
    messages = [{"role": "system", "content": filler(256, seed=system)}]
    for turn in range(chance.randrange(3)):
        messages += [
            {"role": "user", "content": filler(128, seed=1_000 * system + turn)},
            {"role": "assistant", "content": filler(128, seed=2_000 * system + turn)},
        ]
    return [*messages, {"role": "user", "content": question}]


def paced(number: int, *, output_tokens: int, stream: bool = True, **more: Any) -> dict[str, Any]:
    """A short question for a long answer."""
    content = f"{filler(8, seed=number)} [[out={output_tokens}]]"
    body: dict[str, Any] = {"model": KIMI, "max_tokens": 4096, "messages": [{"role": "user", "content": content}]}
    return {**body, **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}), **more}
