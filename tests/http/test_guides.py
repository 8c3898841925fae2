"""The examples of the providers' own guides work with only the address and the key changed."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.http.house import House, events_of, exact

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
MESSAGES = [
    {"role": "system", "content": "You are Kimi."},
    {"role": "user", "content": "Give me 3 evaluation metrics for Kimi K2 Thinking."},
]


async def curl(house: House, body: dict[str, Any], folder: Path) -> tuple[dict[str, str], str]:
    """Headers and body of what curl got."""
    head = folder / "head"
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--noproxy", "*", "--dump-header", str(head),
               f"{house.url}/v1/chat/completions", "-H", f"Authorization: Bearer {house.key}",
               "-H", "Content-Type: application/json", "-d", json.dumps(body)]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert process.returncode == 0
    lines = head.read_text().splitlines()[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}, out.decode()


@needs_curl
async def test_a_completion_with_curl(house: House, tmp_path: Path):
    """The plain example."""
    _, text = await curl(house, {"model": "kimi-k2-thinking", "messages": MESSAGES, "temperature": 1.0}, tmp_path)
    assert exact(text)["choices"][0]["message"]["content"]


@needs_curl
async def test_a_stream_with_curl(house: House, tmp_path: Path):
    """The streamed example, with reasoning_content before content."""
    body = {"model": "kimi-k2-thinking", "messages": MESSAGES, "temperature": 1.0, "max_tokens": 16_000, "stream": True}
    headers, text = await curl(house, body, tmp_path)
    assert headers["content-type"].startswith("text/event-stream")
    *events, last = events_of(text)
    assert last == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    thought = [index for index, delta in enumerate(deltas) if delta.get("reasoning_content")]
    said = [index for index, delta in enumerate(deltas) if delta.get("content")]
    assert max(thought) < min(said)


@needs_curl
async def test_a_tool_in_the_other_form(house: House, tmp_path: Path):
    """A tool as one guide prints it, with input_schema, is converted, called, and named in a warning."""
    tool = {
        "name": "web_search",
        "description": "Search the web for pages",
        "input_schema": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    }
    body = {"model": "kimi-k2-thinking", "messages": MESSAGES, "tools": [tool], "temperature": 0.2, "max_tokens": 2048}
    headers, text = await curl(house, body, tmp_path)
    warning = headers["x-gateway-warnings"]
    assert "web_search" in warning
    assert "input_schema" in warning
    (call,) = exact(text)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "web_search"
    assert "query" in json.loads(call["function"]["arguments"])


async def test_the_thinking_guide_in_python(house: House):
    """The guide's loop: getattr for reasoning_content, tools until there are none, everything replayed."""
    client = openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.key, max_retries=0)
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_date",
                "description": "Today's date",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]
    messages: list[Any] = [{"role": "user", "content": "What day is it?"}]
    async with client:
        for _ in range(4):
            completion = await client.chat.completions.create(
                model="kimi-k2-thinking", messages=messages, max_tokens=1024 * 32, tools=tools, temperature=1.0
            )
            message = completion.choices[0].message
            assert hasattr(message, "reasoning_content")
            messages.append(message)
            if not message.tool_calls:
                break
            messages += [
                {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "Monday"}
                for call in message.tool_calls
            ]
    assert message.content
    assert len(messages) == 4
    (upstream,) = [simulator for simulator in house.simulators.values() if len(simulator.requests) > 0]
    assert upstream.provider == "evolink"


async def test_a_partial_answer(house: House):
    """The partial mode of the guide goes to the provider that has it."""
    messages = [*MESSAGES, {"role": "assistant", "content": "First,", "reasoning_content": "", "partial": True}]
    answer = await house.ask({"model": "kimi-k2-thinking", "messages": messages})
    assert answer.status_code == 200
    assert answer.headers["x-gateway-provider"] in ("moonshot", "evolink")


async def test_json_mode(house: House):
    """JSON mode gives JSON."""
    body = {"model": "kimi-k2-thinking", "messages": MESSAGES, "response_format": {"type": "json_object"}}
    answer = await house.ask(body)
    assert isinstance(json.loads(answer.json()["choices"][0]["message"]["content"]), dict)
