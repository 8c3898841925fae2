"""What a provider really charges is solved from its own lines: a factor or unit prices that explain every one of them.

Lines whose tokens both sides agree on and whose amounts they do not are gathered into runs in time. A price is only
found where it explains the lines of a run to their last printed digit; single lines that are off are no price.
Everything is exact: whole pico-dollars, integers and fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from gateway.core.money import UnitPrice, decimal_text

LINES_MIN: Final = 5
"""Fewer lines than these are single findings and no price."""
SPARE_LINES: Final = 3
"""So many lines more than unknown prices: as many as unknowns are explained by some price always."""
OUTLIERS_MAX: Final = Fraction(1, 10)
"""So much of a run may be off for reasons of its own; those lines stay findings."""
CONTRADICTIONS: Final = 3
"""So many lines in a row at the price that we know end a run."""
SAMPLE_MAX: Final = 4_096
FACTOR_DECIMALS_MAX: Final = 6
PRICE_DECIMALS: Final = (2, 3, 4, 5, 6)
CLASSES: Final = ("input", "cached_input", "cache_write", "output")


class PricedLine(NamedTuple):
    """A line whose tokens are agreed on: by class, what is charged for them there, and what they cost here."""

    at: datetime
    tokens: tuple[int, int, int, int]
    amount_pico: int
    cost_pico: int

    def is_drifted(self, quantum_pico: int) -> bool:
        return abs(self.amount_pico - self.cost_pico) > quantum_pico

    def is_telling(self, quantum_pico: int) -> bool:
        """Whether another price would have shown in it."""
        return abs(self.cost_pico) > 4 * quantum_pico


class Hypothesis(msgspec.Struct, frozen=True, kw_only=True):
    """What may be charged: ``factor`` times what we know, or ``units`` in pico-dollars per token by class, None for a
    class that no line has."""

    factor: Fraction | None = None
    units: tuple[int | None, ...] = ()

    def explains(self, line: PricedLine, quantum_pico: int) -> bool:
        """Whether the line's amount is what this price makes, as exactly as it is printed."""
        if self.factor is not None:
            numerator, denominator = self.factor.numerator, self.factor.denominator
            return abs(line.amount_pico * denominator - line.cost_pico * numerator) <= quantum_pico * denominator
        charged = sum(tokens * (unit or 0) for tokens, unit in zip(line.tokens, self.units, strict=True))
        return abs(line.amount_pico - charged) <= quantum_pico


class Run:
    """Drifted lines that follow on each other in time, with a sample of them, evenly taken."""

    __slots__ = ("_stride", "drifted", "first_at", "is_over", "last_at", "sample")

    def __init__(self, at: datetime) -> None:
        self.first_at = self.last_at = at
        self.drifted = 0
        self.sample: list[PricedLine] = []
        self.is_over = False
        self._stride = 1

    def covers(self, at: datetime) -> bool:
        """Whether a moment is within it."""
        return self.first_at <= at and (not self.is_over or at <= self.last_at)

    def add(self, line: PricedLine) -> None:
        if self.drifted % self._stride == 0:
            self.sample.append(line)
            if len(self.sample) > SAMPLE_MAX:
                self.sample = self.sample[::2]
                self._stride *= 2
        self.drifted += 1
        self.last_at = line.at


def runs(lines: Iterable[PricedLine], quantum_pico: int) -> list[Run]:
    """The runs among the lines of one price, which come in order of time. ``is_over``: it ends before they do."""
    found: list[Run] = []
    contradictions = CONTRADICTIONS
    for line in lines:
        if line.is_drifted(quantum_pico):
            if contradictions >= CONTRADICTIONS:
                found.append(Run(line.at))
            found[-1].add(line)
            contradictions = 0
        elif line.is_telling(quantum_pico):
            contradictions += 1
            if found and contradictions >= CONTRADICTIONS:
                found[-1].is_over = True
        if contradictions >= CONTRADICTIONS and found and found[-1].drifted < LINES_MIN:
            found.pop()
    return [run for run in found if run.drifted >= LINES_MIN]


def priced(run: Run, quantum_pico: int) -> list[tuple[Run, Hypothesis]]:
    """The run with its price; or its stretches, each with a factor of its own, as far as those follow on each other."""
    found: list[tuple[Run, Hypothesis]] = []
    sample = run.sample
    while (whole := solved(sample, quantum_pico)) is None:
        stretch = _one_factor(sample, quantum_pico)
        hypothesis = solved(stretch, quantum_pico)
        if hypothesis is None or len(stretch) == len(sample):
            return found
        sample = sample[len(stretch) :]
        found.append((_part(stretch, until=sample[0].at), hypothesis))
    if not found:
        return [(run, whole)]
    rest = _part(sample, until=run.last_at)
    rest.is_over = run.is_over
    return [*found, (rest, whole)]


def _one_factor(lines: Sequence[PricedLine], quantum_pico: int) -> list[PricedLine]:
    """The first lines that one factor may explain."""
    least, most = Fraction(0), None
    taken: list[PricedLine] = []
    for line in lines:
        if line.cost_pico <= 0:
            break
        least = max(least, Fraction(line.amount_pico - quantum_pico, line.cost_pico))
        highest = Fraction(line.amount_pico + quantum_pico, line.cost_pico)
        most = highest if most is None else min(most, highest)
        if least > most:
            break
        taken.append(line)
    return taken


def _part(lines: Sequence[PricedLine], *, until: datetime) -> Run:
    part = Run(lines[0].at)
    for line in lines:
        part.add(line)
    part.last_at = until
    part.is_over = True
    return part


def solved(lines: Sequence[PricedLine], quantum_pico: int) -> Hypothesis | None:
    """The simplest price that explains these lines: a factor, then unit prices, with as few decimals as will do."""
    if len(lines) < LINES_MIN:
        return None
    return _factor(lines, quantum_pico) or _units(lines, quantum_pico)


def _explains_enough(hypothesis: Hypothesis, lines: Sequence[PricedLine], quantum_pico: int) -> bool:
    misses_left = int(len(lines) * OUTLIERS_MAX)
    for line in lines:
        if not hypothesis.explains(line, quantum_pico):
            misses_left -= 1
            if misses_left < 0:
                return False
    return True


def _factor(lines: Sequence[PricedLine], quantum_pico: int) -> Hypothesis | None:
    """From the ratio in the middle, of the dearer half of the lines: what is rounded matters least there."""
    charged = sorted((line for line in lines if line.cost_pico > 0), key=lambda line: line.cost_pico)
    ratios = sorted(Fraction(line.amount_pico, line.cost_pico) for line in charged[len(charged) // 2 :])
    if not ratios:
        return None
    middle = ratios[len(ratios) // 2]
    for decimals in range(FACTOR_DECIMALS_MAX + 1):
        factor = Fraction(round(middle * 10**decimals), 10**decimals)
        hypothesis = Hypothesis(factor=factor)
        if factor >= 0 and _explains_enough(hypothesis, lines, quantum_pico):
            return hypothesis
    return None


def _units(lines: Sequence[PricedLine], quantum_pico: int) -> Hypothesis | None:
    """By least squares; lines that fit worst are put aside a few at a time, as long as no more than outliers are."""
    kept = list(lines)
    fewest = len(lines) - int(len(lines) * OUTLIERS_MAX)
    while True:
        classes = [index for index in range(len(CLASSES)) if any(line.tokens[index] for line in kept)]
        if len(kept) < len(classes) + SPARE_LINES:
            return None
        exact = _least_squares(kept, classes)
        if exact is None:
            return None
        for decimals in PRICE_DECIMALS:
            step = 10 ** (6 - decimals)
            rounded = {index: round(unit / step) * step for index, unit in zip(classes, exact, strict=True)}
            hypothesis = Hypothesis(units=tuple(rounded.get(index) for index in range(len(CLASSES))))
            if min(rounded.values()) >= 0 and _explains_enough(hypothesis, lines, quantum_pico):
                return hypothesis
        worst = max(1, (len(kept) - fewest) // 2)
        if len(kept) - worst < fewest:
            return None
        units = {index: round(unit) for index, unit in zip(classes, exact, strict=True)}
        kept.sort(key=lambda line: abs(line.amount_pico - sum(line.tokens[each] * units[each] for each in classes)))
        del kept[-worst:]


def _least_squares(lines: Sequence[PricedLine], classes: Sequence[int]) -> list[Fraction] | None:
    """The unit prices with the least sum of squared differences, exactly; None where classes cannot be told apart."""
    size = len(classes)
    rows = [[Fraction(0)] * (size + 1) for _ in range(size)]
    sums = [[0] * (size + 1) for _ in range(size)]
    for line in lines:
        tokens = [line.tokens[each] for each in classes]
        for row, count in zip(sums, tokens, strict=True):
            for column, other in enumerate(tokens):
                row[column] += count * other
            row[size] += count * line.amount_pico
    rows = [[Fraction(value) for value in row] for row in sums]
    for step in range(size):
        pivot = next((index for index in range(step, size) if rows[index][step]), None)
        if pivot is None:
            return None
        rows[step], rows[pivot] = rows[pivot], rows[step]
        rows[step] = [value / rows[step][step] for value in rows[step]]
        for index in range(size):
            if index != step and rows[index][step]:
                factor = rows[index][step]
                rows[index] = [value - factor * base for value, base in zip(rows[index], rows[step], strict=True)]
    return [row[size] for row in rows]


class EffectivePrice(msgspec.Struct, frozen=True, kw_only=True):
    """A price that a provider really charges: for a model, instead of which of our rows, since (and until) when.

    ``lines`` are explained by it out of ``drifted``; ``units`` and ``known_units`` are by class, None = not known.
    """

    model: str
    price_id: str
    since: datetime
    until: datetime | None
    lines: int
    drifted: int
    factor: Decimal | None
    units: tuple[UnitPrice | None, ...]
    known_units: tuple[UnitPrice | None, ...]
    difference_pico: int

    def words(self, provider: str) -> str:
        """The finding as a sentence."""
        since = f"{self.since:%Y-%m-%dT%H:%M:%SZ}"
        until = "" if self.until is None else f" until {self.until:%Y-%m-%dT%H:%M:%SZ}"
        times = "" if self.factor is None else f" {self.factor} x the price row"
        changed = [
            f"{name} {unit} instead of {known or 'unknown'}"
            for name, unit, known in zip(CLASSES, self.units, self.known_units, strict=True)
            if unit is not None and unit != known
        ]
        units = f" ({', '.join(changed)})" if changed else ""
        if not times:
            times, units = " " + ", ".join(changed), ""
        every = "every line" if self.lines == self.drifted else f"{self.lines:,} of {self.drifted:,} lines"
        return (
            f"{provider} charged{times}{units} for {self.model} since {since}{until}: "
            f"that explains {every} to the last printed digit."
        )

    def row(self, provider: str) -> str | None:
        """A row of ``prices.toml`` to paste; None where a price that it needs is not known."""
        units = dict(zip(CLASSES, self.units, strict=True))
        known = dict(zip(CLASSES, self.known_units, strict=True))
        price = {name: units[name] or known[name] for name in CLASSES}
        if price["input"] is None or price["output"] is None:
            return None
        lines = [
            "[[prices]]",
            f'provider = "{provider}"',
            f'model = "{self.model}"',
            f"effective_from = {self.since:%Y-%m-%dT%H:%M:%SZ}",
            f'input = "{price["input"]}"',
        ]
        if price["cached_input"] is not None and price["cached_input"] != price["input"]:
            lines.append(f'cached_input = "{price["cached_input"]}"')
        lines.append(f'output = "{price["output"]}"')
        if price["cache_write"] is not None:
            lines.append(f'cache_write = {{ "5m" = "{price["cache_write"]}" }}')
        lines.append(f'source = "solved from {self.lines} lines of a statement"')
        return "\n".join(lines)


def effective_price(
    hypothesis: Hypothesis,
    run: Run,
    *,
    model: str,
    price_id: str,
    known: Sequence[UnitPrice | None],
    drifted: int,
    lines: int,
    difference_pico: int,
) -> EffectivePrice:
    """The finding, once a hypothesis has been held against every line of its run: so many drifted, so many of them
    are explained."""
    units: tuple[UnitPrice | None, ...]
    if hypothesis.factor is None:
        units = tuple(None if unit is None else UnitPrice(unit) for unit in hypothesis.units)
    else:
        units = tuple(_times(unit, hypothesis.factor) for unit in known)
    return EffectivePrice(
        model=model,
        price_id=price_id,
        since=run.first_at,
        until=run.last_at if run.is_over else None,
        lines=lines,
        drifted=drifted,
        factor=None if hypothesis.factor is None else _decimal(hypothesis.factor),
        units=units,
        known_units=tuple(known),
        difference_pico=difference_pico,
    )


def _times(unit: UnitPrice | None, factor: Fraction) -> UnitPrice | None:
    """A unit price times a factor, where that is one again."""
    if unit is None:
        return None
    times = unit.pico_per_token * factor
    return UnitPrice(int(times)) if times.denominator == 1 else None


def _decimal(factor: Fraction) -> Decimal:
    units = factor * 10**FACTOR_DECIMALS_MAX
    assert units.denominator == 1
    return Decimal(decimal_text(int(units), decimals=FACTOR_DECIMALS_MAX))
