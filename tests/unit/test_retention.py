"""Shares by age are worked by hand: evidence in tokens, borrowed from the octave, and from the prior before that."""

from __future__ import annotations

import math

import pytest

from gateway.core.retention import BUCKETS, GAP, NEVER, PRIOR_SHARES, Evidence, Segment, bucket_of


def learned(*bills: tuple[list[Segment], int]) -> Evidence:
    evidence = Evidence()
    for segments, cached_tokens in bills:
        evidence.learn(segments, cached_tokens)
    return evidence


def weights(bucket: int, weight: int = 1_000) -> list[int]:
    return [weight if each == bucket else 0 for each in range(BUCKETS)]


@pytest.mark.parametrize(
    ("age", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 5), (60.0, 24), (1e9, GAP - 1), (NEVER, GAP)]
)
def test_buckets_are_quarters_of_octaves(age: float, bucket: int):
    """Four buckets per doubling; the first holds the first second, the last what was never used before."""
    assert bucket_of(age) == bucket


def test_nothing_known_is_the_prior():
    """Without a bill every share is the prior's, and all of it is unseen."""
    shares = Evidence().shares()
    assert tuple(shares.values) == PRIOR_SHARES
    assert [bucket for bucket, unseen in enumerate(shares.unseen) if unseen != 1.0] == [GAP]
    assert PRIOR_SHARES[bucket_of(60)] == 0.95
    assert PRIOR_SHARES[GAP] == 0.0


def test_a_bill_is_a_prefix():
    """What was billed as cached is counted from the shallow end: the deeper segment was missed, the gap was not."""
    evidence = learned(([Segment(100, 60.0), Segment(400, 60.0), Segment(500, 700.0), Segment(50, NEVER)], 300))
    assert (evidence.could[bucket_of(60)], evidence.were[bucket_of(60)]) == (500, 300)
    assert (evidence.could[bucket_of(700)], evidence.were[bucket_of(700)]) == (500, 0)
    assert (evidence.could[GAP], evidence.were[GAP]) == (50, 0)
    beyond = learned(([Segment(100, 60.0), Segment(50, NEVER)], 130))
    assert (beyond.were[bucket_of(60)], beyond.were[GAP]) == (100, 30)


def test_worked_by_hand():
    """1,000 of 1,000 tokens in four segments of 525 on average: the octave is 1,000 against 2,100 of the prior, the
    bucket 1,000 against 1,050 of the octave."""
    evidence = learned(
        ([Segment(100, NEVER)], 0), ([Segment(100, 60.0), Segment(900, 60.0), Segment(1_000, NEVER)], 1_000)
    )
    shares = evidence.shares()
    of_octave = 1_000 / 3_100 + 2_100 / 3_100 * 0.95
    assert shares.values[bucket_of(60)] == pytest.approx(1_000 / 2_050 + 1_050 / 2_050 * of_octave, abs=1e-12)
    assert shares.unseen[bucket_of(60)] == pytest.approx(1_050 / 2_050 * 2_100 / 3_100, abs=1e-12)
    assert shares.values[bucket_of(3)] == 0.95


def test_evidence_outweighs_the_prior():
    """A cache that keeps nothing past five minutes, and one hit in two below, is soon believed to be so."""
    evidence = learned(*[([Segment(1_000, age)], 1_000 * hit) for age, hit in [(60.0, 0), (60.0, 1)] * 200],
                       *[([Segment(1_000, 400.0)], 0)] * 400)  # fmt: skip
    shares = evidence.shares()
    assert shares.values[bucket_of(60)] == pytest.approx(0.5, abs=0.001)
    assert shares.values[bucket_of(400)] == pytest.approx(0.0, abs=0.001)


def test_what_is_unseen_may_be_anything():
    """The sum with all unseen cached, and with none, are what the prior's weight leaves open."""
    shares = Evidence().shares()
    minute = weights(bucket_of(60))
    assert shares.of(minute) == pytest.approx(950)
    assert shares.of(minute) + shares.more(minute) == pytest.approx(1_000)
    assert shares.of(minute) - shares.less(minute) == pytest.approx(0)


def test_leaving_a_part_out():
    """All but a part is as if the part had never been learned."""
    first, second = ([Segment(100, 60.0)], 80), ([Segment(300, 5.0), Segment(10, NEVER)], 300)
    rest = learned(first, second).without(learned(second))
    assert (rest.could, rest.were, rest.bills) == (learned(first).could, learned(first).were, 1)
    assert rest.shares() == learned(first).shares()
    assert not math.isnan(sum(learned(first, second).without(learned(first, second)).shares().values))
