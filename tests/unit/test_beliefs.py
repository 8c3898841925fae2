"""What is believed is bounded, and what was lost on the way is not believed for ever: worked by hand."""

from __future__ import annotations

from gateway.core.beliefs import LOST_SECONDS, Beliefs
from gateway.core.happenings import Answered, Sent
from gateway.core.limits import RateLimits

AT_ONCE = RateLimits(scope="s", name="n", concurrency=4)
ACCOUNT = ("p", "a")


def sent(attempt_id: str, at: float) -> Sent:
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
