"""What a provider really charges, solved from lines that were worked out by hand."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from gateway.core.effective_price import Hypothesis, PricedLine, Run, effective_price, priced, runs, solved
from gateway.core.money import UnitPrice

START = datetime(2026, 10, 12, tzinfo=UTC)
QUANTUM = 5_000
"""Half of the eighth decimal of a dollar."""
TOKENS = ((1_000, 0, 0, 500), (2_000, 512, 0, 100), (100, 0, 0, 3_000), (4_096, 2_048, 0, 77), (10, 0, 0, 999))
UNITS = (600_000, 150_000, 0, 2_500_000)


def rounded(pico: int, step: int = 2 * QUANTUM) -> int:
    return round(Fraction(pico, step)) * step


def line(number: int, units: tuple[int, int, int, int], *, quantum: int = QUANTUM) -> PricedLine:
    """A call that is charged at some units, and costs what ours are."""
    tokens = TOKENS[number % len(TOKENS)]
    tokens = (tokens[0] + number, tokens[1] * (1 + number % 7), tokens[2], tokens[3] + 7 * number)
    charged = sum(count * unit for count, unit in zip(tokens, units, strict=True))
    cost = sum(count * unit for count, unit in zip(tokens, UNITS, strict=True))
    return PricedLine(START + timedelta(minutes=number), tokens, rounded(charged, 2 * quantum), cost)


def only_run(lines: list[PricedLine], quantum: int = QUANTUM) -> Run:
    (run,) = runs(lines, quantum)
    return run


def test_half_the_price_is_a_factor_that_begins_where_it_begins() -> None:
    """The run starts at the first line that is off; the factor is exactly a half."""
    half = tuple(unit // 2 for unit in UNITS)
    lines = [line(number, UNITS if number < 20 else half) for number in range(40)]
    run = only_run(lines)
    assert (run.first_at, run.is_over, run.drifted) == (START + timedelta(minutes=20), False, 20)
    ((same, hypothesis),) = priced(run, QUANTUM)
    assert same is run and hypothesis == Hypothesis(factor=Fraction(1, 2))
    assert all(hypothesis.explains(each, QUANTUM) for each in lines[20:])
    assert not any(hypothesis.explains(each, QUANTUM) for each in lines[:20])


def test_another_price_of_input_alone_leaves_the_others_as_they_are() -> None:
    """Unit prices by class come out exact, though every amount was rounded."""
    lines = [line(number, (550_000, 150_000, 0, 2_500_000)) for number in range(20)]
    assert solved(lines, QUANTUM) == Hypothesis(units=(550_000, 150_000, None, 2_500_000))


def test_another_price_of_output_alone_is_found_through_coarse_amounts() -> None:
    """Amounts in 1/500,000 of a dollar still tell a price that has two decimals."""
    quantum = 1_000_000
    lines = [line(number, (600_000, 150_000, 0, 2_200_000), quantum=quantum) for number in range(60)]
    assert solved(lines, quantum) == Hypothesis(units=(600_000, 150_000, None, 2_200_000))


def test_a_price_that_needs_six_decimals_is_found() -> None:
    """A rounder price that does not explain the lines is not taken."""
    lines = [line(number, (555_556, 138_889, 0, 2_222_223)) for number in range(400)]
    assert solved(lines, QUANTUM) == Hypothesis(units=(555_556, 138_889, None, 2_222_223))


def test_classes_that_cannot_be_told_apart_leave_a_ratio() -> None:
    """Lines of one mix have one ratio, and no unit prices: a factor where there is one."""
    same = PricedLine(START, (1_000, 0, 0, 1_000), 2_480_000_000, 3_100_000_000)
    assert solved([same] * 6, QUANTUM) == Hypothesis(factor=Fraction(4, 5))


def test_noise_is_no_price() -> None:
    """Every line off by another amount, and lines off now and then, are findings of their own."""
    chance = random.Random(7)
    noisy = [
        each._replace(amount_pico=each.cost_pico + chance.randrange(10**6, 10**8))
        for each in (line(number, UNITS) for number in range(60))
    ]
    assert priced(only_run(noisy), QUANTUM) == []
    half = tuple(unit // 2 for unit in UNITS)
    sparse = [line(number, half if number % 5 == 0 else UNITS) for number in range(60)]
    assert runs(sparse, QUANTUM) == []


def test_four_lines_are_too_few() -> None:
    """Any four amounts have something in common."""
    half = tuple(unit // 2 for unit in UNITS)
    assert runs([line(number, half) for number in range(4)], QUANTUM) == []
    assert len(runs([line(number, half) for number in range(5)], QUANTUM)) == 1


def test_as_many_lines_as_unknown_prices_prove_nothing() -> None:
    """Three unknown prices explain any five lines badly, and are not looked for in so few."""
    lines = [line(number, (550_000, 150_000, 0, 2_500_000)) for number in range(5)]
    assert solved(lines, QUANTUM) is None


def test_a_line_that_is_off_for_its_own_reasons_spoils_no_price() -> None:
    """One in ten may be off; the price is still exact, by factor and by unit prices."""
    half = tuple(unit // 2 for unit in UNITS)
    for units, expected in (
        (half, Hypothesis(factor=Fraction(1, 2))),
        ((550_000, 150_000, 0, 2_500_000), Hypothesis(units=(550_000, 150_000, None, 2_500_000))),
    ):
        lines = [line(number, units) for number in range(40)]
        for number in (3, 17):
            lines[number] = lines[number]._replace(amount_pico=lines[number].amount_pico + 7 * 10**9)
        assert solved(lines, QUANTUM) == expected


def test_a_price_that_was_there_for_a_while_has_an_end() -> None:
    """After three lines at the known price the run is over; lines too small to tell end nothing."""
    half = tuple(unit // 2 for unit in UNITS)
    lines = [line(number, half if 10 <= number < 30 else UNITS) for number in range(40)]
    tiny = PricedLine(START + timedelta(minutes=15, seconds=1), (0, 0, 0, 0), 0, 0)
    run = only_run(sorted([*lines, tiny, tiny, tiny]))
    assert (run.is_over, run.drifted, run.last_at) == (True, 20, START + timedelta(minutes=29))


def test_two_discounts_in_a_row_are_two_prices() -> None:
    """Half the price, then four fifths of it: each with its own beginning."""
    half, less = (tuple(unit * part // 10 for unit in UNITS) for part in (5, 8))
    lines = [line(number, half if number < 20 else less) for number in range(40)]
    (first, one), (second, other) = priced(only_run(lines), QUANTUM)
    assert (one.factor, other.factor) == (Fraction(1, 2), Fraction(4, 5))
    assert (first.is_over, second.first_at, second.is_over) == (True, START + timedelta(minutes=20), False)


def test_a_long_run_keeps_a_sample_from_its_first_line_to_about_its_last() -> None:
    """Memory stays flat however many lines have drifted."""
    half = tuple(unit // 2 for unit in UNITS)
    run = only_run([line(number, half) for number in range(20_000)])
    assert run.drifted == 20_000 and 2_000 < len(run.sample) <= 4_096
    assert run.sample[0].at == START and run.sample[-1].at > START + timedelta(minutes=19_900)


def test_the_finding_says_it_in_a_sentence_and_as_a_row_to_paste() -> None:
    """The factor times our units is the row, where that is a price again."""
    run = Run(START)
    known = (UnitPrice(1_100_000), None, None, UnitPrice(4_400_000))
    found = effective_price(
        Hypothesis(factor=Fraction(1, 2)),
        run,
        model="kimi-k2-thinking",
        price_id="cometapi/kimi-k2-thinking@2025-11-06T00:00:00Z#0",
        known=known,
        drifted=7,
        lines=7,
        difference_pico=-1,
    )
    assert found.factor == Decimal("0.5")
    assert found.words("cometapi") == (
        "cometapi charged 0.5 x the price row (input 0.55 instead of 1.1, output 2.2 instead of 4.4) for "
        "kimi-k2-thinking since 2026-10-12T00:00:00Z: that explains every line to the last printed digit."
    )
    assert found.row("cometapi") == (
        '[[prices]]\nprovider = "cometapi"\nmodel = "kimi-k2-thinking"\neffective_from = 2026-10-12T00:00:00Z\n'
        'input = "0.55"\noutput = "2.2"\nsource = "solved from 7 lines of a statement"'
    )
