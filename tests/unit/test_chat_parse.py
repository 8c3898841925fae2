"""A chat body is either a request that every later stage may trust, or a refusal that names the field."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import InferenceRequest, Surface
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.surfaces.chat_completions import parse
from gateway.surfaces.conversation import MEDIA_BYTES

USER = {"role": "user", "content": "Why is the sky blue?"}


def body(**members: object) -> bytes:
    return json.dumps({"model": "kimi-k2-thinking", "messages": [USER], **members}).encode()


def parsed(**members: object) -> InferenceRequest:
    return parse(body(**members), headers={})


def refused(raw: bytes) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        parse(raw, headers={})
    assert caught.value.refusal.http_status == 400
    assert caught.value.refusal.code is RefusalCode.INVALID_REQUEST
    return caught.value.refusal


def test_a_plain_request() -> None:
    """The members stay raw JSON; what is not said has its default."""
    request = parsed(seed=7)
    assert request.surface is Surface.CHAT_COMPLETIONS
    assert request.model == request.model_asked == "kimi-k2-thinking"
    assert {name: bytes(value) for name, value in request.fields.items()} == {
        "model": b'"kimi-k2-thinking"',
        "messages": json.dumps([USER]).encode(),
        "seed": b"7",
    }
    assert (request.stream, request.include_usage, request.n, request.output_limit) == (False, False, 1, None)
    assert request.needs == frozenset()
    assert request.warnings == ()


def test_unknown_members_pass_untouched() -> None:
    """Not a byte of a member that we do not know is changed, spaces and escapes included."""
    raw = b'{"model":"k","messages":[{"role":"user","content":"x","mood":[ 1 ]}],"new":{"a" : [1.50, "\\u00e9", null]}}'
    request = parse(raw, headers={})
    assert bytes(request.fields["new"]) == b'{"a" : [1.50, "\\u00e9", null]}'
    assert bytes(request.fields["messages"]) == b'[{"role":"user","content":"x","mood":[ 1 ]}]'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"hello", "not valid JSON"),
        (b'{"model": NaN}', "not valid JSON"),
        (b'{"model": "k",}', "not valid JSON"),
        (b'{"model": "k"} {}', "not valid JSON"),
        (b'{"model": "k\n"}', "not valid JSON"),
        (b'{"model": "\\ud83d"}', "not valid JSON"),
        (b'{"model": "\\x41"}', "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not valid UTF-8"),
        (b'{"other": "\xc3"}', "not valid UTF-8"),
        (b'{"other": "\xed\xa0\x80"}', "not valid UTF-8"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"model"', "must be a JSON object"),
        (b'{"a":' + b"[" * 500_000, "deeper than 128"),
        (b'{"a":' + b"[" * 800 + b"]" * 800 + b"}", "deeper than 128"),
    ],
)
def test_a_body_that_is_no_json_object(raw: bytes, words: str) -> None:
    """Whatever bytes come, the answer is a 400 that says what is wrong with them."""
    assert words in refused(raw).message


def test_nesting_is_allowed_up_to_128_levels_anywhere() -> None:
    """The body is the first level; one level more is refused wherever it is."""

    def nested(levels: int) -> object:
        return json.loads("[" * levels + "]" * levels)

    assert parsed(extra=nested(127)).n == 1
    assert "deeper than 128" in refused(body(extra=nested(128))).message
    assert parsed(messages=[{**USER, "extra": nested(125)}]).n == 1
    assert "deeper than 128" in refused(body(messages=[{**USER, "extra": {"a": nested(125)}}])).message
    part = {"type": "text", "text": "x"}
    assert parsed(messages=[{"role": "user", "content": [{**part, "extra": nested(123)}]}]).n == 1
    messages = [{"role": "user", "content": [{**part, "extra": nested(124)}]}]
    assert "deeper than 128" in refused(body(messages=messages)).message
    wide = [nested(100) for _ in range(200)]
    assert parsed(extra=wide).n == 1
    assert "deeper than 128" in refused(body(extra=[*wide, nested(127)])).message


def test_brackets_in_text_are_not_nesting() -> None:
    """Code is full of brackets."""
    assert parsed(messages=[{"role": "user", "content": "[{" * 10_000 + '\\"'}]).n == 1


def test_a_byte_order_mark_is_skipped() -> None:
    """Some editors write one; it says nothing."""
    assert parse(b"\xef\xbb\xbf" + body(), headers={}).model == "kimi-k2-thinking"


def test_the_last_of_duplicate_members_counts() -> None:
    """As in every JSON reader that our upstreams use."""
    raw = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}],"n":9,"n":2}'
    assert (parse(raw, headers={}).model, parse(raw, headers={}).n) == ("b", 2)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": " "}, "model"),
        ({"model": 5}, "model"),
        ({"model": "k" * 257}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [USER, "hello"]}, "messages[1]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, USER, {"role": "user", "content": None}]}, "messages[2].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": ""}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "partial": True}, USER]}, "messages[0].partial"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 6}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 6}, "stop"),
        ({"stop": "€" * 11}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_a_refusal_names_the_field(members: dict[str, object], param: str) -> None:
    """The path of the first field that is wrong, and a message that repeats it."""
    refusal = refused(body(**members))
    assert refusal.param == param
    assert f"`{param}`" in refusal.message or f"{param} " in refusal.message


def test_a_number_too_large_for_a_float_is_refused() -> None:
    """1e999 is JSON, but no temperature."""
    assert refused(b'{"model":"k","messages":[{"role":"user","content":"x"}],"temperature":1e999}').param == (
        "temperature"
    )


def test_null_is_absent() -> None:
    """SDKs that dump their whole model send nulls; they are dropped, and defaults hold."""
    names = ("stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop")
    more = ("tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "provider", "prompt_cache_key")
    request = parsed(**dict.fromkeys((*names, *more, "functions", "seed", "user")))
    assert set(request.fields) == {"model", "messages"}
    assert request.needs == frozenset()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_output_limit_by_either_name(name: str) -> None:
    """It leaves the fields: which name goes upstream is the dialect's choice."""
    request = parsed(**{name: 4096})
    assert request.output_limit == 4096
    assert set(request.fields) == {"model", "messages"}


def test_equal_output_limits_agree() -> None:
    """Careful clients send both."""
    assert parsed(max_tokens=5, max_completion_tokens=5).output_limit == 5


def test_the_closing_usage_chunk_is_for_streams_that_asked() -> None:
    """Without a stream the option means nothing and is not passed on."""
    assert parsed(stream=True, stream_options={"include_usage": True}).include_usage
    assert not parsed(stream=True, stream_options={}).include_usage
    assert not parsed(stream=True).include_usage
    unstreamed = parsed(stream_options={"include_usage": True})
    assert not unstreamed.include_usage
    assert "stream_options" not in unstreamed.fields


def test_openrouters_way_of_asking_for_usage() -> None:
    """``usage: {"include": true}`` is a word to the gateway, not to the upstream."""
    request = parsed(stream=True, usage={"include": True})
    assert request.include_usage
    assert "usage" not in request.fields


@pytest.mark.parametrize(
    ("members", "needs"),
    [
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {"json_object"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, {"json_schema"}),
        ({"logprobs": False, "top_logprobs": 0}, set()),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs"}),
        ({"messages": [USER, {"role": "assistant", "content": "Because", "partial": True}]}, {"partial"}),
        ({"messages": [USER, {"role": "assistant", "partial": True}]}, {"partial"}),
        ({"messages": [USER, {"role": "assistant", "content": "x", "partial": False}, USER]}, set()),
        ({"messages": [{"role": "system", "tools": []}, USER]}, {"tools"}),
    ],
)
def test_needs(members: dict[str, object], needs: set[str]) -> None:
    """What only some deployments can do is named, so that routing can tell."""
    assert parsed(**members).needs == needs


def test_a_json_object_cannot_be_begun() -> None:
    """The provider's documentation forbids partial answers in JSON mode."""
    messages = [USER, {"role": "assistant", "content": "{", "partial": True}]
    assert refused(body(messages=messages, response_format={"type": "json_object"})).param == "response_format"


def test_a_tool_loop_passes_as_it_came() -> None:
    """Reasoning, even empty, and ids with dots and colons survive byte for byte."""
    messages = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "",
            "tool_calls": [
                {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": ""}}
            ],
        },
        {"role": "tool", "tool_call_id": "functions.look:0", "content": ""},
    ]
    assert json.loads(bytes(parsed(messages=messages).fields["messages"])) == messages


@pytest.mark.parametrize("image", ["ms://file", {"url": "data:image/png;base64," + "A" * 100_000}])
def test_images_are_needed_and_count_flat(image: object) -> None:
    """A data URL of 100 kB is not 25,000 tokens of text."""
    content = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": image}]
    request = parsed(messages=[{"role": "user", "content": content}])
    assert request.needs == {"images"}
    assert MEDIA_BYTES < request.input_bytes < MEDIA_BYTES + 200


def test_input_is_measured_in_the_bytes_of_its_text() -> None:
    """The same text counts the same, written raw or with escapes."""
    text = "Der Himmel ist blau, 天空是蓝色的, небо синее, 😀!"
    raw, escaped = (
        parse(
            json.dumps({"model": "k", "messages": [{"role": "user", "content": text}]}, ensure_ascii=e).encode(),
            headers={},
        ).input_bytes
        for e in (False, True)
    )
    assert raw == escaped == len(text.encode()) + len('[{"role": "user", "content": ""}]')


def test_a_backslash_before_a_u_is_no_escape() -> None:
    """A path of Windows is six bytes long here, and stays so beside a real escape."""
    plain, with_path = (parsed(messages=[{"role": "user", "content": text}]).input_bytes for text in ("é", "é\\u0041"))
    assert with_path - plain == len(r"\\u0041")


def test_long_escaped_text_is_measured_by_a_sample() -> None:
    """Two megabytes of escapes count as the text they stand for, within one percent."""
    text = "天空是蓝色的" * 60_000
    size = parsed(messages=[{"role": "user", "content": text}]).input_bytes
    assert abs(size - len(text.encode())) < len(text.encode()) // 100


def test_tools_count_as_input() -> None:
    """The model reads their schemas too."""
    tools = [{"type": "function", "function": {"name": "look", "description": "x" * 1000}}]
    assert parsed(tools=tools).input_bytes > parsed().input_bytes + 1000
