"""Prompts are counted by one rule, and a prefix hits in blocks of 256 tokens of its own account and model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import Settings, count_text, count_tokens, filler
from gateway.simulator.cache import PrefixCache, Prompt


def request(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ({"role": "user", "content": "abcd"}, 5),
        ({"role": "user", "content": "abcde"}, 6),
        ({"role": "user", "content": ""}, 4),
        ({"role": "user", "content": "né"}, 5),
        ({"role": "user", "content": "月月"}, 6),
        ({"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "text", "text": "a"}]}, 6),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}, 260),
        ({"role": "assistant", "content": "abcd", "reasoning_content": "abcd"}, 6),
        ({"role": "tool", "content": "abcd", "tool_call_id": "f:0"}, 6),
    ],
)
def test_a_message_costs_its_header_and_its_texts(message: dict[str, object], tokens: int):
    """Four tokens a message, and a token for every four bytes begun of each text."""
    assert count_tokens({"messages": [message]}) == tokens


def test_tools_count_before_the_messages():
    """Tools cost their compact JSON and a header, and nothing else in a request counts."""
    tools = [{"type": "function", "function": {"name": "abc"}}]
    assert count_tokens({"messages": [], "tools": tools, "temperature": 1}) == 4 + 12


@settings(deadline=None)
@given(tokens=st.integers(0, 10_000), seed=st.integers(0, 2**48))
def test_filler_has_exactly_the_tokens_asked_for(tokens: int, seed: int):
    """A driver gets text of an exact size, and a prompt that is its sum."""
    text = filler(tokens, seed=seed)
    assert count_text(text) == tokens
    assert len(text.encode()) == tokens * 4
    assert count_tokens(request(text)) == tokens + 4


def prompt_of(text: str) -> Prompt:
    from gateway.simulator.tokens import serialize

    return Prompt.of(serialize(request(text)), model="m")


def test_a_shared_prefix_hits_in_whole_blocks():
    """Two prompts that share 2·512 content tokens share exactly those in the cache."""
    cache = PrefixCache(ttl_seconds=600)
    shared = filler(512, seed=1) + filler(512, seed=2)
    first, second = prompt_of(shared + filler(300, seed=3)), prompt_of(shared + filler(300, seed=4))
    assert cache.read(first, now=0) == 0
    cache.write(first, now=0, ready_at=0)
    assert cache.read(second, now=1) == 1024


def test_an_exact_resend_hits_all_of_it():
    """The part of the last block is read too, when nothing follows it."""
    cache = PrefixCache(ttl_seconds=600)
    prompt = prompt_of(filler(700, seed=1))
    cache.write(prompt, now=0, ready_at=0)
    assert cache.read(prompt, now=1) == prompt.tokens == 704


def test_a_prompt_of_one_block_is_not_cached():
    """Only prompts of more than 256 tokens are of use to the next request."""
    cache = PrefixCache(ttl_seconds=600)
    prompt = prompt_of(filler(100, seed=1))
    cache.write(prompt, now=0, ready_at=0)
    assert cache.read(prompt, now=1) == 0


def test_a_hit_renews_what_it_read():
    """An entry lives 600 s from its last use, not from its first."""
    cache = PrefixCache(ttl_seconds=600)
    prompt = prompt_of(filler(700, seed=1))
    cache.write(prompt, now=0, ready_at=0)
    assert cache.read(prompt, now=500) == 704
    assert cache.read(prompt, now=1000) == 704
    assert cache.read(prompt, now=1601) == 0


def test_nothing_is_read_before_it_was_prefilled():
    """A prefix that is still being computed does not help the request beside it."""
    cache = PrefixCache(ttl_seconds=600)
    prompt = prompt_of(filler(700, seed=1))
    cache.write(prompt, now=0, ready_at=2.0)
    assert cache.read(prompt, now=1) == 0
    assert cache.read(prompt, now=2) == 704


def test_a_full_cache_forgets_the_least_recently_used():
    """Memory is bounded, and what was used last stays."""
    cache = PrefixCache(ttl_seconds=600, entries_max=20)
    prompts = [prompt_of(filler(1000, seed=n)) for n in range(8)]
    for now, prompt in enumerate(prompts):
        cache.write(prompt, now=now, ready_at=now)
    assert len(cache) <= 20
    assert cache.read(prompts[-1], now=10) == prompts[-1].tokens
    assert cache.read(prompts[0], now=10) == 0


def test_caches_are_apart_by_account_and_model(direct, ask):
    """The key and the model decide whose prefixes are read."""
    simulator = direct.simulator()
    body = ask(filler(600, seed=1))
    usage = [
        direct.ask(simulator, body | {"model": model}, key=key).json["usage"]["cached_tokens"]
        for key, model in [
            ("sk-a", "kimi-k2-thinking"),
            ("sk-b", "kimi-k2-thinking"),
            ("sk-a", "kimi-k2-thinking-turbo"),
            ("sk-a", "kimi-k2-thinking"),
        ]
    ]
    assert usage == [0, 0, 0, 604]


def test_noise_ignores_the_cache_with_its_probability(direct, ask):
    """A request that ignores the cache still pays in full, and the same seed ignores the same ones."""
    runs = []
    for _ in range(2):
        simulator = direct.simulator("moonshot", Settings(cache_noise=0.5, seed=3))
        body = ask(filler(600, seed=1))
        runs.append([direct.ask(simulator, body).json["usage"]["cached_tokens"] for _ in range(40)])
    assert runs[0] == runs[1]
    assert 8 < runs[0].count(0) < 32
    assert set(runs[0]) == {0, 604}
