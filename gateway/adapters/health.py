"""Every subject's health in this process: the pure state machine of ``core/health.py`` behind a dictionary.

Bounded by configuration: subjects are accounts, models and their pairs. A subject that is well again is forgotten
once its window says nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gateway.core.failure import Failure
from gateway.core.health import WELL, Health, Subject, after_failure, after_success, claim_probe, release_probe
from gateway.pipeline.ports import Clock


class MemoryHealthBook:
    """Implements the HealthBook port. ``jitter`` gives numbers in [0, 1)."""

    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._states: dict[Subject, Health] = {}

    def of(self, subject: Subject) -> Health:
        return self._states.get(subject, WELL)

    def succeeded(self, subjects: Iterable[Subject]) -> None:
        now = self._clock.now()
        for subject in subjects:
            before = self._states.get(subject)
            is_circuit = subject.account is not None and subject.model is not None
            if before is not None or is_circuit:
                self._states[subject] = after_success(before or WELL, now)

    def failed(self, subject: Subject, failure: Failure) -> None:
        self._states[subject] = after_failure(self.of(subject), failure, self._clock.now(), jitter=self._jitter())

    def claim_probe(self, subjects: Iterable[Subject]) -> None:
        now = self._clock.now()
        for subject in subjects:
            before = self._states.get(subject)
            if before is not None and before.awaits_probe(now):
                self._states[subject] = claim_probe(before, now)

    def release_probe(self, subjects: Iterable[Subject]) -> None:
        for subject in subjects:
            before = self._states.get(subject)
            if before is not None and before.probe_until is not None:
                self._states[subject] = release_probe(before)

    def __iter__(self) -> Iterator[tuple[Subject, Health]]:
        """Every subject that is or was unwell, for operators."""
        return iter(sorted(self._states.items(), key=lambda item: tuple(part or "" for part in item[0])))
