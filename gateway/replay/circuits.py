"""The health of every subject of one run, in virtual time: the state machine of ``core/health.py`` and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from gateway.core.failure import Failure, FailureClass
from gateway.core.health import (
    WELL,
    Health,
    Subject,
    after_failure,
    after_first_byte,
    after_free_probe,
    after_success,
    claim_probe,
    release_probe,
)
from gateway.replay.chance import draw

UNREACHABLE: Final = Failure(kind=FailureClass.UNREACHABLE, message="out")


class Circuits:
    """What the gateway knows of its providers' health."""

    __slots__ = ("_drawn", "_seed", "_states")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn = 0
        self._states: dict[Subject, Health] = {}

    def of(self, subject: Subject) -> Health:
        return self._states.get(subject, WELL)

    def are_well(self, subjects: Iterable[Subject], now: datetime) -> bool:
        """Whether none of them is out, or being probed by another request."""
        states = self._states
        for subject in subjects:
            health = states.get(subject)
            if health is not None and (health.is_out(now) or health.probe_in_flight(now)):
                return False
        return True

    def sent(self, subjects: Iterable[Subject], now: datetime) -> None:
        """A request goes there; where proof is awaited, it is the probe."""
        for subject in subjects:
            health = self._states.get(subject)
            if health is not None and health.awaits_probe(now):
                self._states[subject] = claim_probe(health, now)

    def answering(self, subjects: Iterable[Subject], now: datetime, *, began: datetime) -> None:
        """The first token of an answer has come."""
        for subject in subjects:
            health = self._states.get(subject)
            if health is not None and health.out_until is not None:
                self._states[subject] = after_first_byte(health, now, began=began)

    def succeeded(self, subjects: Iterable[Subject], now: datetime, *, began: datetime) -> None:
        for subject in subjects:
            health = self._states.get(subject)
            if health is not None or subject.is_circuit:
                self._states[subject] = after_success(health or WELL, now, began=began)

    def failed(self, about: Subject, subjects: Iterable[Subject], now: datetime, *, began: datetime) -> bool:
        """A request found nobody there: that is about the circuit; the others' probes are given back. Whether it has
        just gone out."""
        self._drawn += 1
        before = self.of(about)
        jitter = draw(self._seed, self._drawn)
        after = self._states[about] = after_failure(before, UNREACHABLE, now, began=began, jitter=jitter)
        for subject in subjects:
            health = self._states.get(subject)
            if subject != about and health is not None and health.probe_until is not None:
                self._states[subject] = release_probe(health, now)
        return before.out_until is None and after.out_until is not None

    def asked_for_free(self, subject: Subject, now: datetime, *, ok: bool) -> bool:
        """A question that costs nothing was asked of one that is out. Whether it still is."""
        health = self._states[subject] = after_free_probe(self.of(subject), now, ok=ok)
        return health.out_until is not None
