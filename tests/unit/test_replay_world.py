"""What an account's cache holds, when the account is out, and that chance does not depend on what was asked before."""

import pytest

from gateway.core.prefix import Prompt
from gateway.replay.chance import draw, seed_of
from gateway.replay.world import AccountWorld, Bursts, CacheTerms, Latency, Outages, PrefixCache, ProviderTerms


def prompt(*digests: int, rest: int = 0) -> Prompt:
    """Blocks of 512 tokens, and a rest after the last."""
    tokens = [512 * (place + 1) for place in range(len(digests))]
    tokens[-1] += rest
    return Prompt(digests=digests, tokens=tuple(tokens))


def test_the_longest_prefix_that_is_there_is_cached_in_whole_blocks():
    """Two blocks in common are 1,024 tokens; the rest behind a prompt's last block never is."""
    cache = PrefixCache(CacheTerms())
    cache.use(prompt(1, 2, 3), at=0.0)
    assert cache.cached_tokens(prompt(1, 2, 9), at=1.0) == 1_024
    assert cache.cached_tokens(prompt(1, 2, 3, rest=300), at=1.0) == 1_536
    assert cache.cached_tokens(prompt(8, 9), at=1.0) == 0


def test_an_entry_lives_until_its_time_since_the_last_use_is_over():
    """Of ten minutes: there after 600 s, gone after 600.5; a use refreshes all that it begins with."""
    cache = PrefixCache(CacheTerms(ttl_seconds=600))
    cache.use(prompt(1, 2, 3), at=0.0)
    assert cache.cached_tokens(prompt(1, 2, 3), at=600.0) == 1_536
    cache.use(prompt(1, 2), at=500.0)
    assert cache.cached_tokens(prompt(1, 2, 3), at=600.5) == 1_024


def test_an_older_use_that_becomes_known_later_does_not_age_an_entry():
    """Prompts are readable when they were read, and long ones take longer: their use may be the older one."""
    cache = PrefixCache(CacheTerms(ttl_seconds=600))
    cache.use(prompt(1, 2), at=100.0)
    cache.use(prompt(1, 2), at=90.0)
    assert cache.cached_tokens(prompt(1, 2), at=700.0) == 1_024


def test_the_least_recently_used_leaves_a_full_cache_the_longest_prefix_first():
    """Room for three blocks: another prompt of two pushes out the two deepest blocks of the first."""
    cache = PrefixCache(CacheTerms(capacity_tokens=3 * 512))
    cache.use(prompt(1, 2, 3), at=0.0)
    cache.use(prompt(7, 8), at=1.0)
    assert cache.cached_tokens(prompt(1, 2, 3), at=2.0) == 512
    assert cache.cached_tokens(prompt(7, 8), at=2.0) == 1_024


def test_boundaries_of_any_size_are_billed_in_whole_blocks():
    """A boundary at 1,000 tokens is 768 cached ones in blocks of 256."""
    cache = PrefixCache(CacheTerms(block_tokens=256))
    said = Prompt(digests=(5, 6), tokens=(1_000, 1_700))
    cache.use(said, at=0.0)
    assert cache.cached_tokens(Prompt(digests=(5, 9), tokens=(1_000, 4_000)), at=1.0) == 768


def test_outages_include_their_beginning_and_not_their_end():
    """Overlapping ones are one."""
    outages = Outages([(50.0, 60.0), (10.0, 20.0), (12.0, 15.0)])
    assert [outages.is_out(at) for at in (9.9, 10.0, 16.0, 19.9, 20.0, 55.0, 60.0)] == [
        *(False, True, True, True, False, True, False)
    ]


def test_bursts_are_out_for_their_share_of_a_long_time():
    """A tenth of a million seconds, in about a minute each; another name falls out at other times."""
    bursts = Bursts(share=0.1, mean_seconds=60, seed=4)
    found = bursts.until(1_000_000.0, seed_of("a"))
    out = sum(end - start for start, end in found)
    assert out == pytest.approx(100_000, rel=0.05)
    assert out / len(found) == pytest.approx(60, rel=0.05)
    assert found == bursts.until(1_000_000.0, seed_of("a"))
    assert found != bursts.until(1_000_000.0, seed_of("b"))


def test_whether_a_cache_is_ignored_depends_on_request_and_account_alone():
    """A tenth of all requests, other ones at another account, and always the same."""
    terms = ProviderTerms(cache=CacheTerms(ignored_ppm=100_000), outages={})
    one, two = AccountWorld("p", "one", terms, 0.0), AccountWorld("p", "two", terms, 0.0)
    at_one = [one.ignores_cache(request, 1) for request in range(20_000)]
    assert sum(at_one) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert at_one == [one.ignores_cache(request, 1) for request in range(20_000)]
    assert at_one != [two.ignores_cache(request, 1) for request in range(20_000)]


def test_draws_are_even():
    """Mean and spread of a uniform number."""
    drawn = [draw(1, number) for number in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.01)
    assert sum((each - 0.5) ** 2 for each in drawn) / len(drawn) == pytest.approx(1 / 12, abs=0.002)
    assert all(0 <= each < 1 for each in drawn)


def test_latency_is_a_start_the_uncached_prompt_and_the_answer():
    """Half a second, 6,000 tokens at 12,000 a second; then 90 at 45."""
    assert Latency().first(6_000) == 1.0
    assert Latency().rest(90) == 2.0
