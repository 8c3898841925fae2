"""Every subject's health in this process: the pure state machine of ``core/health.py`` behind a dictionary.

What changes is told to other replicas, and what they tell is heard. Bounded by configuration: subjects are accounts,
models and their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from msgspec.structs import replace

from gateway.core.failure import Failure
from gateway.core.health import (
    WELL,
    Health,
    HealthChanged,
    Subject,
    after_failure,
    after_first_byte,
    after_free_probe,
    after_news,
    after_reload,
    after_success,
    claim_probe,
    probe_seconds,
    release_probe,
)
from gateway.pipeline.ports import Claims, Clock


def nobody(_: HealthChanged) -> None:
    """Whom a single worker tells."""


class MemoryHealthBook:
    """Implements the HealthBook port. ``jitter`` gives numbers in [0, 1); ``tell`` is told what other replicas should
    know, ``claims`` keeps their probes apart."""

    def __init__(
        self,
        clock: Clock,
        jitter: Callable[[], float],
        *,
        tell: Callable[[HealthChanged], None] = nobody,
        claims: Claims | None = None,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._tell = tell
        self._claims = claims
        self._states: dict[Subject, Health] = {}

    def of(self, subject: Subject) -> Health:
        return self._states.get(subject, WELL)

    def out(self) -> Sequence[tuple[Subject, Health]]:
        return [(subject, health) for subject, health in self if health.out_until is not None]

    def answering(self, subjects: Iterable[Subject], *, began: datetime) -> None:
        now = self._clock.now()
        for subject in subjects:
            before = self._states.get(subject)
            if before is not None and before.out_until is not None:
                self._set(subject, after_first_byte(before, now, began=began))

    def succeeded(self, subjects: Iterable[Subject], *, began: datetime) -> None:
        now = self._clock.now()
        for subject in subjects:
            before = self._states.get(subject)
            if before is not None or subject.is_circuit:
                self._set(subject, after_success(before or WELL, now, began=began))

    def failed(self, subject: Subject, failure: Failure, *, began: datetime, billed: bool) -> None:
        now = self._clock.now()
        after = after_failure(self.of(subject), failure, now, began=began, jitter=self._jitter(), billed=billed)
        self._set(subject, after)

    def asked_for_free(self, subjects: Iterable[Subject], *, ok: bool) -> None:
        now = self._clock.now()
        for subject in subjects:
            self._set(subject, after_free_probe(self.of(subject), now, ok=ok))

    async def claim_probe(self, subjects: Iterable[Subject]) -> bool:
        now = self._clock.now()
        waiting = [
            (subject, health)
            for subject in subjects
            if (health := self._states.get(subject)) is not None and health.awaits_probe(now)
        ]
        claimed: list[Subject] = []
        for subject, health in waiting:
            # Here at once, so that no other request of this worker asks meanwhile; elsewhere once it is granted.
            claim = claim_probe(health, now)
            self._states[subject] = replace(claim, changed_at=health.changed_at)
            try:
                is_granted = await self._is_granted(subject, probe_seconds(health))
            except BaseException:
                self.release_probe([*claimed, subject])
                raise
            if not is_granted:  # another replica's request sees to it; what it finds will be heard
                self.release_probe(claimed)
                return False
            claimed.append(subject)
            if self._states[subject].probe_until is not None:
                self._set(subject, claim_probe(self._states[subject], now))
        return True

    async def _is_granted(self, subject: Subject, seconds: float) -> bool:
        return self._claims is None or await self._claims.claim(_claim_of(subject), seconds)

    def release_probe(self, subjects: Iterable[Subject]) -> None:
        now = self._clock.now()
        for subject in subjects:
            before = self._states.get(subject)
            if before is not None and before.probe_until is not None:
                self._set(subject, release_probe(before, now))

    def hear(self, told: HealthChanged) -> None:
        """Another replica's news."""
        subject = told.subject
        before = self.of(subject)
        after = after_news(before, told.health)
        if after is not before:
            self._states[subject] = after

    def reconsider(self) -> None:
        """The configuration was read again: what providers have said of accounts and models may be mended by that."""
        now = self._clock.now()
        for subject, health in self.out():
            self._set(subject, after_reload(health, now))

    def _set(self, subject: Subject, after: Health) -> None:
        before = self._states.get(subject, WELL)
        self._states[subject] = after
        if after.changed_at != before.changed_at:
            self._tell(HealthChanged(*subject, after))
        if self._claims is not None and before.probe_until is not None and after.probe_until is None:
            self._claims.give_back(_claim_of(subject))

    def __iter__(self) -> Iterator[tuple[Subject, Health]]:
        """Every subject that anything is known of, for operators."""
        return iter(sorted(self._states.items(), key=lambda item: tuple(part or "" for part in item[0])))


def _claim_of(subject: Subject) -> str:
    return "probe:" + "/".join(part or "*" for part in subject)
