"""What a cache is believed to hold, worked by hand."""

from __future__ import annotations

from gateway.core.survival import AGES_COUNT, PRIOR
from gateway.core.warmth import REMEMBERED_SECONDS, Expected, Match, Warmth, worth_remembering

EVEN = tuple(0.5 for _ in range(AGES_COUNT))


def test_a_prefix_is_as_young_as_what_extends_it() -> None:
    """1 and 2 were used at 100; 1, 2 and 3 at 150, but only 3 was written down: at 160 all are ten seconds old."""
    warmth = Warmth()
    warmth.touch((1, 2), 100.0)
    warmth.touch((3,), 150.0)
    assert warmth.matches((1, 2, 3, 4), (10, 20, 30, 40), 160.0) == (Match(10, 10.0), Match(20, 10.0), Match(30, 10.0))
    assert warmth.matches((1, 9), (10, 20), 160.0) == (Match(10, 60.0),)
    assert warmth.matches((9,), (10,), 160.0) == ()


def test_each_token_counts_with_the_chance_of_the_boundary_after_it() -> None:
    """Up to 1,000 three seconds old, from there to 3,000 an hour: 1,000 x 0.9 + 2,000 x 0.3."""
    warmth = Warmth()
    warmth.touch((1, 2), 0.0)
    warmth.touch((1,), 3_497.0)
    curve = (0.9, *EVEN[2:], 0.25)
    found = warmth.expected((1, 2, 3), (1_000, 3_000, 4_000), 3_500.0, (0.9, *([0.3] * (AGES_COUNT - 2)), 0.25))
    assert found == Expected(3_000, 3_500.0, 0.3, 1_500)
    found = warmth.expected((1, 2, 3), (1_000, 3_000, 4_000), 3_700.0, curve)
    assert found == Expected(3_000, 3_700.0, 0.25, 1_000)
    assert warmth.expected((3,), (4_000,), 3_500.0, PRIOR) is None


def test_a_prompt_read_just_now_is_fresh_from_its_beginning() -> None:
    """Its beginning was last written down an hour ago, its end three seconds ago: 3,000 x 0.9."""
    warmth = Warmth()
    warmth.touch((1, 2), 0.0)
    warmth.touch((3,), 3_497.0)
    found = warmth.expected((1, 2, 3), (1_000, 2_000, 3_000), 3_500.0, (0.9, *EVEN[1:]))
    assert found == Expected(3_000, 3.0, 0.9, 2_700)


def test_what_was_not_read_after_all_is_as_it_was() -> None:
    """A refused attempt leaves the earlier age behind, unless somebody else has used the cache since."""
    warmth = Warmth()
    warmth.touch((1,), 10.0)
    before = warmth.touch((1, 2), 50.0)
    assert before == (10.0, None)
    warmth.restore((1, 2), 50.0, before)
    assert warmth.matches((1, 2), (10, 20), 60.0) == (Match(10, 50.0),)
    before = warmth.touch((1, 2), 70.0)
    warmth.touch((1,), 75.0)
    warmth.restore((1, 2), 70.0, before)
    assert warmth.matches((1, 2), (10, 20), 80.0) == (Match(10, 5.0),)


def test_the_least_recently_used_goes_first_and_deep_ones_before_shallow() -> None:
    """Three fit: of the first prompt its beginning is left, for the second one begins alike."""
    warmth = Warmth(boundaries_max=3)
    warmth.touch((1, 2, 3), 10.0)
    warmth.touch((1, 4), 20.0)
    assert len(warmth) == 3
    assert warmth.matches((1, 2, 3), (10, 20, 30), 20.0) == (Match(10, 0.0), Match(20, 10.0))
    assert warmth.matches((1, 4), (10, 20), 20.0) == (Match(10, 0.0), Match(20, 0.0))


def test_old_memories_are_worth_nothing() -> None:
    """Twice the longest lifetime that is sold, and no longer; and time never runs backwards in a cache."""
    warmth = Warmth()
    warmth.touch((1,), 10.0)
    warmth.touch((1,), 5.0)
    assert warmth.matches((1,), (10,), 10.0 + REMEMBERED_SECONDS) == ()
    assert warmth.matches((1,), (10,), 9.0 + REMEMBERED_SECONDS) == (Match(10, REMEMBERED_SECONDS - 1),)


def test_what_is_forgotten_takes_no_room() -> None:
    """Of two hours ago nothing is left, of a moment later everything."""
    warmth = Warmth()
    warmth.touch((1, 2), 10.0)
    warmth.touch((3, 2), 11.0)
    warmth.forget(10.0)
    assert len(warmth) == 2
    assert warmth.matches((3, 2), (10, 20), 11.0) == (Match(10, 0.0), Match(20, 0.0))


def test_of_a_long_chain_a_ladder_and_the_last_are_remembered() -> None:
    """Of what another prompt shares with it, two thirds are found again."""
    assert worth_remembering(3) == (0, 1, 2)
    assert worth_remembering(20) == (0, 1, 2, 3, 5, 7, 11, 15, 19)
    for shared in range(1, 2_000):
        depths = [each + 1 for each in worth_remembering(2_000)]
        assert max(each for each in depths if each <= shared) >= shared * 2 / 3
