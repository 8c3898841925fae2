"""The official OpenAI SDK works with only its base URL and its key changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any, TypeVar

import httpx
import openai
import pytest

from tests.http.house import MODEL, House, exact

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

T = TypeVar("T")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO = [{"role": "user", "content": "Hello [[out=30]]"}]


@pytest.fixture
def sdk(house: House) -> Iterator[openai.OpenAI]:
    """The blocking client; it is called from threads, because the gateway runs in this loop."""
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=house.key, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
async def async_sdk(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.key, max_retries=0, timeout=20) as client:
        yield client


async def blocking(call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call)


async def test_a_whole_answer(house: House, sdk: openai.OpenAI):
    """A plain completion has content, reasoning_content, normalised usage with its cost, and the ledger agrees."""
    raw = await blocking(
        lambda: sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, temperature=1.0)
    )
    answer = raw.parse()
    message = answer.choices[0].message
    assert message.content
    assert message.model_extra is not None and message.model_extra["reasoning_content"]
    assert answer.usage is not None and answer.usage.completion_tokens == 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    (row,) = await house.rows(raw.headers["x-request-id"])
    usage = exact(raw.text)["usage"]
    assert Decimal(usage["cost"]) == Decimal(row["cost"]) == Decimal(raw.headers["x-gateway-cost-usd"]) > 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] == row["reasoning_tokens"] > 0
    assert raw.headers["x-gateway-provider"] == row["provider"] == "evolink"
    assert raw.headers["x-gateway-attempts"] == "1"


async def test_a_whole_answer_asynchronously(async_sdk: openai.AsyncOpenAI):
    """The asynchronous client gets the same."""
    answer = await async_sdk.chat.completions.create(model="moonshotai/Kimi-K2-Thinking", messages=HELLO)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 30


def gather(stream: Any) -> tuple[str, str, list[Any]]:
    """Reasoning, content and usages of a stream."""
    reasoning, content, usages = "", "", []
    for chunk in stream:
        if chunk.usage is not None:
            usages.append(chunk.usage)
        for choice in chunk.choices:
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            content += choice.delta.content or ""
    return reasoning, content, usages


async def test_a_stream_with_reasoning(sdk: openai.OpenAI):
    """A stream carries reasoning_content as an extra member of its deltas, and no usage chunk nobody asked for."""

    def call() -> tuple[str, str, list[Any]]:
        return gather(sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True))

    reasoning, content, usages = await blocking(call)
    assert reasoning
    assert content
    assert usages == []


async def test_a_stream_with_usage(house: House, sdk: openai.OpenAI):
    """Who asks for usage gets it in one closing chunk without choices, with the cost the ledger has."""

    def call() -> tuple[str, list[Any], list[Any]]:
        stream = sdk.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        return stream.response.headers["x-request-id"], chunks, [c.usage for c in chunks if c.usage is not None]

    request_id, chunks, usages = await blocking(call)
    assert len(usages) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == usages[0]
    (row,) = await house.rows(request_id)
    assert usages[0].completion_tokens == row["output_tokens"] == 30
    assert Decimal(str(usages[0].model_extra["cost"])) == Decimal(row["cost"])


async def test_an_asynchronous_stream(async_sdk: openai.AsyncOpenAI):
    """The asynchronous client streams, too."""
    stream = await async_sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    finish = [choice.finish_reason async for chunk in stream for choice in chunk.choices if choice.finish_reason]
    assert finish == ["stop"]


async def test_a_streaming_helper(async_sdk: openai.AsyncOpenAI):
    """The SDK's own accumulator makes the whole completion out of the stream."""
    async with async_sdk.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_completion()
    assert whole.choices[0].message.content


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_loop_of_two_rounds(house: House, sdk: openai.OpenAI, streamed: bool):
    """Two rounds of tool calls, each replayed with its reasoning_content, end in an answer."""
    messages: list[Any] = [{"role": "user", "content": "Weather in Bern and Basel? [[reasoning=8]]"}]

    def ask() -> dict[str, Any]:
        if not streamed:
            answer = sdk.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
            return answer.choices[0].message.to_dict()
        return assembled(sdk.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], stream=True))

    for round_ in range(2):
        message = await blocking(ask)
        assert message["reasoning_content"]
        (call,) = message["tool_calls"]
        assert call["id"] == f"functions.get_weather:{round_}"
        assert "city" in json.loads(call["function"]["arguments"])
        messages += [
            {"role": "assistant", **message},
            {"role": "tool", "tool_call_id": call["id"], "content": "Sunny"},
            {"role": "user", "content": "And the other?"},
        ]
    messages.pop()
    last = await blocking(ask)
    assert last["content"]
    assert not last.get("tool_calls")


def assembled(stream: Any) -> dict[str, Any]:
    """The message that the pieces of a stream make."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in stream:
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            message["reasoning_content"] += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            for piece in choice.delta.tool_calls or ():
                if piece.index == len(message["tool_calls"]):
                    function = {"name": piece.function.name, "arguments": ""}
                    message["tool_calls"].append({"id": piece.id, "type": "function", "function": function})
                message["tool_calls"][piece.index]["function"]["arguments"] += piece.function.arguments or ""
    return message


async def test_the_models(sdk: openai.OpenAI):
    """The list and each of its entries read as the SDK's models, also those whose alias has a slash."""
    listed = await blocking(lambda: list(sdk.models.list()))
    assert {MODEL, "kimi-k2-thinking-turbo"} <= {model.id for model in listed}
    one = await blocking(lambda: sdk.models.retrieve(MODEL))
    assert (one.id, one.object) == (MODEL, "model")
    aliased = await blocking(lambda: sdk.models.retrieve("moonshotai/Kimi-K2-Thinking"))
    assert aliased.id == MODEL


async def test_an_unknown_model_to_retrieve(sdk: openai.OpenAI):
    """A model that is not there is the SDK's NotFoundError with the code model_not_found."""
    with pytest.raises(openai.NotFoundError) as caught:
        await blocking(lambda: sdk.models.retrieve("gpt-nothing"))
    assert caught.value.code == "model_not_found"


def wrong(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, **fields}


@pytest.mark.parametrize(
    ("error", "code", "param", "request_"),
    [
        (openai.BadRequestError, "invalid_request_error", "temperature", wrong(temperature=1.5)),
        (openai.BadRequestError, "invalid_request_error", "messages", wrong(messages=[])),
        (openai.BadRequestError, "context_length_exceeded", "messages", wrong(messages=HELLO, max_tokens=262_144)),
        (openai.NotFoundError, "model_not_found", "model", wrong(model="gpt-nothing")),
    ],
)
async def test_refusals_as_exceptions(
    sdk: openai.OpenAI, error: type[openai.APIStatusError], code: str, param: str, request_: dict[str, Any]
):
    """What is refused arrives as the SDK's own exception, with code, param and the request id."""
    with pytest.raises(error) as caught:
        await blocking(lambda: sdk.chat.completions.create(**request_))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id is not None
    assert caught.value.request_id in caught.value.message


async def test_a_wrong_key_as_an_exception(house: House):
    """A key that is none is an AuthenticationError with invalid_api_key."""
    stranger = openai.OpenAI(base_url=f"{house.url}/v1", api_key="sk-1234", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        await blocking(lambda: stranger.chat.completions.create(model=MODEL, messages=HELLO))
    assert caught.value.code == "invalid_api_key"


async def test_a_key_without_the_model_as_an_exception(house: House):
    """A key without the right to a model is a PermissionDeniedError with model_not_allowed."""
    made = await house.make_key(models=["kimi-k2-thinking-turbo"])
    limited = openai.OpenAI(base_url=f"{house.url}/v1", api_key=made["key"], max_retries=0)
    with limited, pytest.raises(openai.PermissionDeniedError) as caught:
        await blocking(lambda: limited.chat.completions.create(model=MODEL, messages=HELLO))
    assert caught.value.code == "model_not_allowed"


async def fail_everywhere(house: House, kind: str, **parameters: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as control:
        for simulator in house.simulators.values():
            await control.post(f"{house.addresses[simulator.provider]}/__sim/faults", json={"kind": kind, **parameters})


async def test_a_failing_upstream_as_an_exception(house: House, sdk: openai.OpenAI):
    """When every provider fails the SDK raises InternalServerError with upstream_error, and every attempt has a row."""
    await fail_everywhere(house, "server_error")
    with pytest.raises(openai.InternalServerError) as caught:
        await blocking(lambda: sdk.chat.completions.create(model=MODEL, messages=HELLO))
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert caught.value.request_id is not None
    rows = await house.rows(caught.value.request_id)
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert all(Decimal(row["cost"]) == 0 for row in rows)


async def test_an_error_in_a_stream_as_an_exception(house: House, sdk: openai.OpenAI):
    """A stream that breaks after its first byte raises APIError in the SDK and never just ends."""
    await fail_everywhere(house, "reset_mid_body", after_chunks=5)

    def call() -> None:
        for _ in sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            pass

    with pytest.raises(openai.APIError) as caught:
        await blocking(call)
    assert caught.value.code == "upstream_error"
