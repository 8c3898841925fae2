"""Spend as bars: by time where a time is grouped, else by group from the dearest down; at most so many, and it says so.

With a time and another group each bar is stacked from the dearest of those groups. Amounts are rounded for the eye;
the table and the other formats are exact.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from gateway.core.money import PICO_PER_USD
from gateway.core.spend import TIMES, SpendQuery, SpendRow, moment_in

BARS_MAX: Final = 40
LABEL_CELLS_MAX: Final = 30
WIDTH_IN_A_PIPE: Final = 80
WIDTH_MAX: Final = 120
SIGNIFICANT_DIGITS: Final = 4
SHADES: Final = "█▓▒░"
"""Of a stacked bar, one for each of its groups; the last for all others where there are more groups."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_UNITS: Final = ("year", *TIMES)
_LENGTHS: Final = {"year": 4, "month": 7, "day": 10, "hour": 16}
_FORMATS: Final = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00"}

Series = tuple[str | None, ...]


async def show_chart(query: SpendQuery, rows: AsyncIterator[SpendRow]) -> None:
    """Draws the rows as wide as the terminal; in a pipe as wide as most of them are."""
    chart = Chart(query)
    async for row in rows:
        chart.add(row)
    console = Console()
    width = min(console.width, WIDTH_MAX) if console.is_terminal else WIDTH_IN_A_PIPE
    for line in chart.lines(width):
        click.echo(line)


class Chart:
    """The bars that rows add up to. It holds no more than ``BARS_MAX`` times, however many there are: hours become
    days, days months and months years."""

    def __init__(self, query: SpendQuery) -> None:
        self._query = query
        self._cost = query.sums.index("cost")
        times: list[str] = [name for name in TIMES if name in query.columns]
        self._finest: str | None = times[-1] if times else None
        self._unit: str | None = self._finest
        self._names = [
            name for name in query.columns if name not in TIMES and not (name == "key_id" and "key" in query.columns)
        ]
        self._series = [index for index, name in enumerate(query.columns) if name not in TIMES]
        self._costs: dict[str, Counter[Series]] = defaultdict(Counter)

    def add(self, row: SpendRow) -> None:
        label = ""
        if self._unit is not None and self._finest is not None:
            label = str(row.groups[self._query.columns.index(self._finest)])[: _LENGTHS[self._unit]]
        is_new = label not in self._costs
        self._costs[label][tuple(row.groups[index] for index in self._series)] += row.sums[self._cost]
        while is_new and self._unit not in {None, "year"} and self._is_too_long():
            self._coarsen()

    def _is_too_long(self) -> bool:
        return len(self._costs) > BARS_MAX or len(list(self._times(BARS_MAX + 1))) > BARS_MAX

    def _coarsen(self) -> None:
        assert self._unit is not None
        self._unit = _UNITS[_UNITS.index(self._unit) - 1]
        finer, self._costs = self._costs, defaultdict(Counter)
        for label, costs in finer.items():
            self._costs[label[: _LENGTHS[self._unit]]].update(costs)

    def _times(self, count_max: int) -> Iterator[str]:
        """Every time from the first to the last, also those without spend."""
        last = max(self._costs)
        label: str | None = min(self._costs)
        for _ in range(count_max):
            if label is None or label > last:
                return
            yield label
            label = _next(label, self._unit)

    def lines(self, width: int) -> Iterator[str]:
        """The chart, at most so many cells wide."""
        selected = self._query.selection
        period = " to ".join(moment_in(selected.timezone, moment) for moment in (selected.start, selected.end))
        if not self._costs:
            yield f"Nothing was spent from {period}."
            return
        yield f"Cost in USD from {period}"
        yield from self._by_group(width) if self._unit is None else self._by_time(width)

    def _by_group(self, width: int) -> Iterator[str]:
        labels = self._labels(self._costs[""])
        ranked = sorted(self._costs[""].items(), key=lambda item: (-item[1], labels[item[0]]))
        bars = [(labels[series], [cost]) for series, cost in ranked[:BARS_MAX]]
        others = [cost for _, cost in ranked[BARS_MAX:]]
        if others:
            bars.append((f"{len(others):,} others", [sum(others)]))
        yield from _drawn(bars, width)

    def _by_time(self, width: int) -> Iterator[str]:
        totals: Counter[Series] = Counter()
        for costs in self._costs.values():
            totals.update(costs)
        labels = self._labels(totals)
        ranked = sorted(totals, key=lambda series: (-totals[series], labels[series]))
        shown = ranked if len(ranked) <= len(SHADES) else ranked[: len(SHADES) - 1]
        others = ranked[len(shown) :]
        times = sorted(self._costs) if self._unit == "year" else list(self._times(BARS_MAX))
        bars = []
        for time in times:
            costs = self._costs[time]
            parts = [costs[series] for series in shown]
            bars.append((time, [*parts, costs.total() - sum(parts)] if others else parts))
        if self._names:
            keys = [(labels[series], totals[series]) for series in shown]
            if others:
                keys.append((f"{len(others):,} others", sum(totals[series] for series in others)))
            yield from _legend(keys, width)
        yield from _drawn(bars, width)
        if self._unit != self._finest:
            yield f"A bar is a {self._unit}: with one for each {self._finest} there would be more than {BARS_MAX}."

    def _labels(self, all_series: Sequence[Series] | Counter[Series]) -> dict[Series, str]:
        """What each is called; by its id as well, where two are called the same."""
        columns = [name for name in self._query.columns if name not in TIMES]
        named = {
            series: " / ".join(_text(value) for name, value in zip(columns, series, strict=True) if name in self._names)
            or "all"
            for series in all_series
        }
        often = Counter(named.values())
        return {
            series: label if often[label] == 1 else " / ".join(map(_text, series)) for series, label in named.items()
        }


def _next(label: str, unit: str | None) -> str | None:
    """The time after; None at the end of time."""
    assert unit is not None
    if unit == "year":
        return f"{int(label) + 1:04}"
    begins = datetime.strptime(label, _FORMATS[unit])  # noqa: DTZ007 - of the zone of the report
    try:
        if unit == "month":
            return f"{(begins + timedelta(days=31)).replace(day=1):%Y-%m}"
        return (begins + (timedelta(days=1) if unit == "day" else timedelta(hours=1))).strftime(_FORMATS[unit])
    except OverflowError:
        return None


def _text(value: str | None) -> str:
    """A name in one line of a terminal, whatever it holds."""
    return "–" if value is None else "".join(each if each.isprintable() else "?" for each in value)


def _legend(keys: Sequence[tuple[str, int]], width: int) -> Iterator[str]:
    decimals = _decimals([sum(cost for _, cost in keys)])
    for shade, (label, cost) in zip(SHADES, keys, strict=False):
        amount = _amount(cost, decimals)
        yield f"  {shade} {_cropped(label, width - len(amount) - 6)}  {amount}"


def _drawn(bars: Sequence[tuple[str, Sequence[int]]], width: int) -> Iterator[str]:
    """A line for each bar, label, amount and parts, none of them below nothing; and one for the total."""
    sums = [sum(parts) for _, parts in bars]
    decimals = _decimals([*sums, sum(sums)])
    amounts = [_amount(cost, decimals) for cost in (*sums, sum(sums))]
    label_cells = min(LABEL_CELLS_MAX, max(cell_len(label) for label, _ in (*bars, ("total", ()))))
    amount_cells = max(map(len, amounts))
    room = max(8, width - label_cells - amount_cells - 4)
    largest = max(max((sum(max(0, part) for part in parts) for _, parts in bars), default=0), 1)
    for (label, parts), amount in zip(bars, amounts, strict=False):
        bar = _bar([max(0, part) for part in parts], largest, room)
        yield f"{set_cell_size(_cropped(label, label_cells), label_cells)}  {amount:>{amount_cells}}  {bar}".rstrip()
    yield f"{'total':{label_cells}}  {amounts[-1]:>{amount_cells}}"


def _bar(parts: Sequence[int], largest: int, room: int) -> str:
    """A single part to an eighth of a cell; several in whole cells, whose ends are those of the sums."""
    if len(parts) == 1:
        whole, eighths = divmod(parts[0] * room * 8 // largest, 8)
        if parts[0] and not whole and not eighths:
            eighths = 1  # little is not nothing
        return (SHADES[0] * whole + _EIGHTHS[eighths]).rstrip()
    bar, so_far = "", 0
    for shade, part in zip(SHADES, parts, strict=False):
        so_far += part
        bar += shade * ((2 * so_far * room + largest) // (2 * largest) - len(bar))
    return bar


def _cropped(text: str, cells: int) -> str:
    return text if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1).rstrip()}…"


def _decimals(picos: Sequence[int]) -> int:
    """So many that the largest amount has ``SIGNIFICANT_DIGITS``; at least cents, at most pico-dollars."""
    digits = len(str(max((abs(pico) for pico in picos), default=0)))
    return min(12, max(2, SIGNIFICANT_DIGITS + len(str(PICO_PER_USD)) - 1 - digits))


def _amount(pico: int, decimals: int) -> str:
    """Rounded half away from nothing."""
    unit = PICO_PER_USD // 10**decimals
    whole, fraction = divmod((abs(pico) + unit // 2) // unit, 10**decimals)
    return f"{'-' if pico < 0 and (whole or fraction) else ''}{whole:,}.{fraction:0{decimals}}"
