"""What is believed is bounded, and what was lost on the way is not believed for ever: worked by hand."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.core.beliefs import LOST_SECONDS, Beliefs
from gateway.core.happenings import Answered, Sent
from gateway.core.limits import RateLimits
from gateway.core.prefix import Boundary, Fingerprint, Prompt, prompt_of
from gateway.core.survival import PRIOR
from gateway.core.warmth import NOTHING_EXPECTED

AT_ONCE = RateLimits(scope="s", name="n", concurrency=4)
ACCOUNT = ("p", "a")
CACHE = (*ACCOUNT, "m")


def sent(attempt_id: str, at: float, *, matched_tokens: int = 0) -> Sent:
    return Sent(
        attempt_id=attempt_id,
        provider="p",
        account="a",
        model="m",
        tenant="t",
        at=at,
        digests=(1,),
        tokens=(1_000,),
        family=0,
        turn=0,
        follows=0,
        output_tokens=100,
        matched_tokens=matched_tokens,
        matched_age=20.0,
    )


def test_an_attempt_whose_end_was_never_heard_is_not_under_way_for_ever() -> None:
    """A replica was killed, or its last words were lost: half an hour later its attempts fill nobody's account."""
    beliefs = Beliefs()
    for number in range(4):
        beliefs.apply(sent(f"lost {number}", 0.0))
    assert beliefs.utilisation(ACCOUNT, AT_ONCE, 100.0) == 1.0
    beliefs.apply(sent("here", LOST_SECONDS))
    assert beliefs.utilisation(ACCOUNT, AT_ONCE, LOST_SECONDS) == 1.25
    beliefs.apply(sent("there", LOST_SECONDS + 1.0))
    assert beliefs.utilisation(ACCOUNT, AT_ONCE, LOST_SECONDS + 1.0) == 0.5
    beliefs.apply(Answered("lost 0", LOST_SECONDS + 2.0, 1_000, 0, 10, 5.0))
    assert beliefs.utilisation(ACCOUNT, AT_ONCE, LOST_SECONDS + 2.0) == 0.5


def test_what_is_older_than_two_hours_is_forgotten() -> None:
    """It takes no room any more once something was sent later, whatever a clock says afterwards."""
    beliefs, prompt = Beliefs(), Prompt(digests=(1,), tokens=(1_000,))
    beliefs.apply(sent("early", 0.0))
    assert beliefs.expected(CACHE, prompt, 7_000.0).matched_age == 7_000.0
    beliefs.apply(replace(sent("late", 7_200.0), digests=(2,)))
    assert beliefs.expected(CACHE, prompt, 7_000.0) == NOTHING_EXPECTED


def test_what_is_shorter_than_a_block_says_nothing_of_a_cache() -> None:
    """A system message of 200 tokens is never billed as cached: that is no sign that a cache forgets in a minute."""
    beliefs = Beliefs()
    for number in range(50):
        beliefs.apply(sent(str(number), 60.0 * number, matched_tokens=200))
        beliefs.apply(Answered(str(number), 60.0 * number + 5.0, 1_000, 0, 10, 5.0))
    assert beliefs.survival("p", "m", 3_000.0) == PRIOR
    beliefs.apply(sent("long", 3_000.0, matched_tokens=600))
    beliefs.apply(Answered("long", 3_005.0, 1_000, 0, 10, 5.0))
    assert beliefs.survival("p", "m", 3_005.0)[2] < PRIOR[2]


def test_a_count_that_cannot_be_is_no_anchor() -> None:
    """A provider that tells far more tokens than there are bytes makes no conversation too long for everybody."""
    read = Fingerprint(boundaries=(Boundary(1, 4_000), Boundary(2, 8_000)))
    assert prompt_of(read, anchor=(0, 1_000), tokens_of_bytes=lambda size: size // 4).tokens == (1_000, 2_000)
    assert prompt_of(read, anchor=(0, 20_000), tokens_of_bytes=lambda size: size // 4).tokens == (20_000, 21_000)
    wild = prompt_of(read, anchor=(0, 4_000_000), tokens_of_bytes=lambda size: size // 4)
    assert wild.tokens == (1_000, 2_000)
    assert wild.anchored_tokens == 0


def test_what_a_provider_does_not_say_of_its_cache_is_not_zero() -> None:
    """Its share is unknown, and it was billed in full all the same; who says zero has a share of zero (law L14)."""
    beliefs = Beliefs()
    beliefs.apply(sent("silent", 0.0, matched_tokens=600))
    beliefs.apply(Answered("silent", 5.0, 1_000, None, 10, 5.0))
    assert beliefs.cached_share(ACCOUNT) is None
    assert beliefs.survival("p", "m", 5.0)[2] < PRIOR[2]
    beliefs.apply(sent("saying", 6.0))
    beliefs.apply(Answered("saying", 9.0, 1_000, 0, 10, 5.0))
    assert beliefs.cached_share(ACCOUNT) == 0.0
