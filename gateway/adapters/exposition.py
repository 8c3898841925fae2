"""The figures of several processes as one exposition: counters are summed, and never fall because a process ended.

A process hands over all of its samples (:func:`snapshot`); whoever gathers them keeps the latest of each, and what the
ended ones last told, for as long as it lives itself (:class:`Totals`). Nothing of this is in the path of a request:
counting stays a plain addition in the process. Figures in files that processes share would make it dearer, 1.1 instead
of 0.4 µs for a counter and 2.1 instead of 1.0 µs for a histogram, of which a request has about eight; a snapshot of
800 samples takes 4 ms and is taken every few seconds. In return, what a killed process counted after its last snapshot
is missing here; exact figures are in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

GAUGES: Final[dict[str, Callable[[float, float], float]]] = {
    "gateway_journal_lag_seconds": max,
    "gateway_journal_available": min,
    "gateway_provider_out": max,
    "gateway_failure_probability": max,
    "gateway_account_balance": max,
    "gateway_gossip_lag_seconds": max,
}
"""How gauges become one; those that are not listed are summed."""

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with its samples: name of the sample, labels, value."""

    name: str
    kind: str
    documentation: str
    samples: tuple[Sample, ...]


Snapshot = tuple[Family, ...]


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """Every sample of a process, as it is now."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple((sample.name, tuple(sample.labels.items()), sample.value) for sample in metric.samples),
        )
        for metric in registry.collect()
    )


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot that says what all of them say together."""
    about: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for each in snapshots:
        for family in each:
            about.setdefault(family.name, family)
            known = values.setdefault(family.name, {})
            for name, labels, value in family.samples:
                before = known.get((name, labels))
                known[name, labels] = value if before is None else _together(family, name, before, value)
    return tuple(
        Family(
            name,
            family.kind,
            family.documentation,
            tuple((sample, labels, value) for (sample, labels), value in values[name].items()),
        )
        for name, family in about.items()
    )


def _together(family: Family, sample: str, one: float, other: float) -> float:
    if family.kind == "gauge":
        return GAUGES[family.name](one, other) if family.name in GAUGES else one + other
    return min(one, other) if sample.endswith("_created") else one + other


class Totals:
    """What the workers of one parent have counted together, the ended ones included."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """``registry`` holds what the parent itself has to tell."""
        self._registry = registry
        self._living: dict[int, bytes] = {}
        self._ended: Snapshot = ()

    def update(self, worker: int, content: bytes) -> None:
        """The latest snapshot of a living worker, as JSON."""
        self._living[worker] = content

    def ended(self, worker: int) -> None:
        """A worker is gone: what it counted stays, what it measured of itself does not."""
        last = self._living.pop(worker, None)
        if last is not None:
            counted = tuple(family for family in _read(last) if family.kind != "gauge")
            self._ended = merged((self._ended, counted))

    def render(self) -> str:
        """The text exposition."""
        living = [_read(content) for content in self._living.values()]
        return generate_latest(_Collected((self._ended, *living, snapshot(self._registry)))).decode()


def _read(content: bytes) -> Snapshot:
    return msgspec.json.decode(content, type=Snapshot)


class _Collected(CollectorRegistry):
    """Snapshots as a registry, for the library to write them."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        super().__init__()
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        for family in merged(self._snapshots):
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric
