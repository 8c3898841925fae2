"""How long a cache lives, learned from bills: worked by hand."""

from __future__ import annotations

import pytest

from gateway.core.survival import AGES_COUNT, FADES_SECONDS, PRIOR, Survival, age_index


def test_the_prior_falls_with_age() -> None:
    """Nearly certain within five minutes, nearly nothing after an hour."""
    assert PRIOR[age_index(299.0)] == 0.95
    assert sorted(PRIOR, reverse=True) == list(PRIOR)
    assert PRIOR[age_index(4_000.0)] == pytest.approx(0.0095)
    assert len(PRIOR) == AGES_COUNT


def test_hits_and_misses_move_the_age_they_were_seen_at() -> None:
    """Two misses and a hit against a prior of eight at 0.95: (0.95 x 8 + 1) / (8 + 3)."""
    survival = Survival()
    for is_hit in (False, False, True):
        survival.learn(50.0, is_hit=is_hit, at=1_000.0)
    curve = survival.curve(1_000.0)
    assert curve[age_index(50.0)] == pytest.approx((0.95 * 8 + 1) / 11)
    assert curve[age_index(100.0)] == 0.95


def test_whoever_was_found_wanting_is_tried_again() -> None:
    """After one half-life a hundred misses count for fifty; after many the prior is back."""
    survival = Survival()
    for _ in range(100):
        survival.learn(50.0, is_hit=False, at=0.0)
    assert survival.curve(0.0)[3] == pytest.approx(0.95 * 8 / 108)
    assert survival.curve(FADES_SECONDS)[3] == pytest.approx(0.95 * 8 / 58)
    assert survival.curve(20 * FADES_SECONDS)[3] == pytest.approx(0.95, abs=1e-3)


def test_an_age_remembers_four_hundred_answers() -> None:
    """A thousand hits and then as many misses: it is believed to be gone for good."""
    survival = Survival()
    for number in range(2_000):
        survival.learn(50.0, is_hit=number < 1_000, at=0.0)
    assert survival.curve(0.0)[3] < 0.11


def test_asking_changes_nothing() -> None:
    """Whoever asked half a minute ago, and whoever did not, are told the same."""
    asked, unasked = Survival(), Survival()
    for survival in (asked, unasked):
        for _ in range(100):
            survival.learn(50.0, is_hit=False, at=0.0)
    assert asked.curve(3_600.0) == unasked.curve(3_600.0)
    asked.curve(7_210.0)
    assert asked.curve(7_250.0) == unasked.curve(7_250.0)
    assert asked.curve(3_600.0) == unasked.curve(3_600.0)
