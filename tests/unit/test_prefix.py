"""A fingerprint in tokens: what a provider counted stands, the rest is estimated beside it."""

from __future__ import annotations

from gateway.core.prefix import BOUNDARIES_MAX, Boundary, Fingerprint, Prompt, prompt_of

FINGERPRINT = Fingerprint(
    boundaries=(Boundary(11, 400), Boundary(12, 1_000), Boundary(13, 2_000, True), Boundary(14, 2_402)), family=11
)


def four_bytes(size_bytes: int) -> int:
    return -(-size_bytes // 4)


def test_without_an_anchor_all_is_estimated() -> None:
    """400, 1,000, 2,000 and 2,402 bytes at four a token."""
    assert prompt_of(FINGERPRINT, anchor=None, tokens_of_bytes=four_bytes) == Prompt(
        digests=(11, 12, 13, 14), tokens=(100, 250, 500, 601), family=11, passing=(2,)
    )


def test_only_the_tail_after_an_anchor_is_estimated() -> None:
    """1,000 bytes were 300 tokens: 400 of them 120, and then 1,000 and 1,402 more bytes at four a token."""
    prompt = prompt_of(FINGERPRINT, anchor=(1, 300), tokens_of_bytes=four_bytes)
    assert prompt.tokens == (120, 300, 550, 651)
    assert prompt.anchored_tokens == 300


def test_a_prompt_that_was_counted_whole_is_exact() -> None:
    """A request that is sent again: 700 tokens, told before, and its boundaries have their share of them."""
    prompt = prompt_of(FINGERPRINT, anchor=(3, 700), tokens_of_bytes=four_bytes)
    assert prompt.tokens == (116, 291, 582, 700)
    assert prompt.input_tokens == prompt.anchored_tokens == 700


def test_what_passes_is_not_remembered() -> None:
    """The third boundary is only looked up."""
    prompt = prompt_of(FINGERPRINT, anchor=None, tokens_of_bytes=four_bytes)
    assert prompt.remembered() == ((11, 12, 14), (100, 250, 601))
    assert Prompt(digests=(1, 2), tokens=(3, 4)).remembered() == ((1, 2), (3, 4))


def test_models_do_not_share_digests() -> None:
    """Every digest is another with another model, the family's too; sizes stay."""
    one, other = FINGERPRINT.of_model("kimi-k2-thinking"), FINGERPRINT.of_model("kimi-k2.6")
    assert not {*one.digests, one.family} & {*other.digests, other.family, *FINGERPRINT.digests}
    assert [boundary[1:] for boundary in one.boundaries] == [boundary[1:] for boundary in FINGERPRINT.boundaries]
    assert one.family == one.digests[0]
    assert Fingerprint(boundaries=(Boundary(5, 6),)).of_model("k").family == 0
    assert one == FINGERPRINT.of_model("kimi-k2-thinking")
    assert len(one.boundaries) <= BOUNDARIES_MAX
