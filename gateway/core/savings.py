"""The savings report: what was paid, and beside it what one choice for everything would have cost, with its error.

``saved = baseline - actual``, to the picodollar, for the very same requests. The baseline is a prediction; its error is
measured where it can be, on the requests that the provider in question really served: each group of conversations is
predicted from the bills of all the others (a jackknife that leaves out a group at a time; unlike a bootstrap it needs
no chance and only one pass). Where nothing was served nothing is known of a cache, and the band says so by its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.core.money import Money
from gateway.core.retention import Shares
from gateway.core.shadow import GROUPS, Check, ModelShadow, Shadow, Tally

INTERVAL: Final = 2.04
"""Standard errors of a 95 % interval: Student's t with 31 degrees of freedom."""


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """The prediction held against the bills of the requests that a provider served. Percentages; the interval is of
    95 %, None where there are too few conversations to tell."""

    requests: int
    billed: Money
    predicted: Money
    error_percent: float
    error_percent_low: float | None
    error_percent_high: float | None
    cached_tokens: int
    cached_tokens_predicted: int


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """One choice for everything. ``cost`` is predicted, ``actual`` is what the same requests really cost, and
    ``saved`` their difference; the bounds enclose 95 %, unless the past says nothing and they enclose all."""

    name: str
    requests: int
    actual: Money
    cost: Money
    cost_low: Money
    cost_high: Money
    is_measured: bool
    accuracy: Accuracy | None

    @property
    def saved(self) -> Money:
        return self.cost - self.actual

    @property
    def saved_low(self) -> Money:
        return self.cost_low - self.actual

    @property
    def saved_high(self) -> Money:
        return self.cost_high - self.actual


class ModelSavings(msgspec.Struct, frozen=True, kw_only=True):
    """One model's compared requests. ``failed`` is a part of ``actual``; ``saved_by_caches`` is the providers' merit,
    and no part of what a baseline says."""

    model: str
    requests: int
    actual: Money
    failed: Money
    saved_by_caches: Money
    baselines: tuple[Baseline, ...]


class Savings(msgspec.Struct, frozen=True, kw_only=True):
    """A period's report; what was left out has no prefixes on record or was never answered."""

    requests: int
    requests_left_out: int
    cost_left_out: Money
    models: tuple[ModelSavings, ...]


def savings(shadow: Shadow) -> Savings:
    """The report of all that the shadow was fed with."""
    return Savings(
        requests=shadow.requests,
        requests_left_out=shadow.requests_left_out,
        cost_left_out=Money(shadow.cost_left_out),
        models=tuple(_of_model(shadow.models[name]) for name in sorted(shadow.models)),
    )


def _of_model(shadow: ModelShadow) -> ModelSavings:
    learned = {provider: Learned.of(check) for provider, check in shadow.checks.items()}
    tallies = sorted(shadow.tallies.items(), key=lambda item: (item[1].is_rule, item[0]))
    return ModelSavings(
        model=shadow.model,
        requests=shadow.requests,
        actual=Money(shadow.actual),
        failed=Money(shadow.failed),
        saved_by_caches=Money(shadow.saved_by_caches),
        baselines=tuple(_baseline(name, tally, learned) for name, tally in tallies),
    )


class Learned(NamedTuple):
    """A provider's shares from all bills, and from all but one group's, with the accuracy that this shows."""

    shares: Shares
    without_group: tuple[Shares, ...]
    accuracy: Accuracy | None

    @classmethod
    def of(cls, check: Check) -> Learned:
        without_group = tuple(check.total.without(evidence).shares() for evidence in check.evidence)
        return cls(check.total.shares(), without_group, _accuracy(check, without_group) if check.requests else None)


UNKNOWN: Final = Learned.of(Check())
"""A provider that served nothing: all is prior."""


def _baseline(name: str, tally: Tally, learned: Mapping[str, Learned]) -> Baseline:
    known = [(learned.get(provider, UNKNOWN), discounts) for provider, discounts in tally.discounts.items()]
    saved = round(math.fsum(each.shares.of(discounts) for each, discounts in known))
    saved_most = sum(sum(discounts) for _, discounts in known)
    by_chance = _half_interval(
        [math.fsum(each.without_group[group].of(discounts) for each, discounts in known) for group in range(GROUPS)]
    )
    cost = tally.without_cache - saved
    accuracies = [each.accuracy for each, _ in known if each.accuracy is not None]
    by_method = max((_largest_percent(accuracy) for accuracy in accuracies), default=0.0) * cost / 100
    margin = max(by_chance, by_method)
    more = math.fsum(each.shares.more(discounts) for each, discounts in known)
    less = math.fsum(each.shares.less(discounts) for each, discounts in known)
    return Baseline(
        name=name,
        requests=tally.requests,
        actual=Money(tally.actual),
        cost=Money(cost),
        cost_low=Money(max(tally.without_cache - saved_most, math.floor(cost - margin - more))),
        cost_high=Money(min(tally.without_cache, math.ceil(cost + margin + less))),
        is_measured=all(each.accuracy is not None or not any(discounts) for each, discounts in known),
        accuracy=accuracies[0] if len(known) == 1 and accuracies else None,
    )


def _accuracy(check: Check, without_group: Sequence[Shares]) -> Accuracy:
    predicted = [
        check.without_cache[group] - without_group[group].of(check.discounts[group]) for group in range(GROUPS)
    ]
    cached = math.fsum(without_group[group].of(check.evidence[group].could) for group in range(GROUPS))
    all_predicted, all_billed = math.fsum(predicted), sum(check.billed)
    errors = [
        _percent(all_predicted - its, all_billed - bill)
        for its, bill in zip(predicted, check.billed, strict=True)
        if bill and all_billed - bill
    ]
    error = _percent(all_predicted, all_billed)
    half = _half_interval(errors) if len(errors) > 1 else None
    return Accuracy(
        requests=check.requests,
        billed=Money(all_billed),
        predicted=Money(round(all_predicted)),
        error_percent=error,
        error_percent_low=None if half is None else error - half,
        error_percent_high=None if half is None else error + half,
        cached_tokens=sum(check.cached),
        cached_tokens_predicted=round(cached),
    )


def _largest_percent(accuracy: Accuracy) -> float:
    bounds = (accuracy.error_percent, accuracy.error_percent_low, accuracy.error_percent_high)
    return max(abs(bound) for bound in bounds if bound is not None)


def _half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a figure, from what it would be without each of the groups."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    return INTERVAL * math.sqrt(spread * (len(values) - 1) / len(values))


def _percent(predicted: float, billed: int) -> float:
    return 100 * (predicted / billed - 1) if billed else 0.0
