"""The gateway of one run: what it knows of its providers, and how it plans by that; never what a provider really holds.

The same functions and the same order as the live pipeline: plan by the core, tell what happened, believe accordingly.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from gateway.core.catalogue import Deployment
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import Candidate, InferenceRequest, Plan, Principal, Surface
from gateway.core.routing import Circumstances, plan, subjects
from gateway.replay.circuits import Circuits
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.world import AccountKey


class Gateway:
    """Plans for rows and learns from their ends."""

    def __init__(self, scenario: Scenario) -> None:
        self._catalogue = scenario.catalogue
        self._model = scenario.model
        self._circuits = Circuits(scenario.seed)
        self._answer_length = AnswerLength()
        self._usable: frozenset[AccountKey] = frozenset(
            (card.name, account.name)
            for card, _ in scenario.catalogue.deployments(scenario.model.name)
            for account in card.accounts
        )
        self._request = InferenceRequest(
            surface=Surface.CHAT_COMPLETIONS, model=scenario.model.name, model_asked=scenario.model.name, fields={}
        )
        self._principals: dict[str, Principal] = {}

    def plan(self, row: Row, now: datetime) -> Plan:
        """All candidates for a row at this moment, best first."""
        return plan(
            self._request,
            self._principal(row.tenant),
            Circumstances(
                catalogue=self._catalogue,
                health_of=self._circuits.of,
                usable_accounts=self._usable,
                answer_length=self._answer_length,
                pace={},
                now=now,
            ),
            model=self._model,
            input_tokens=row.input_tokens,
            output_limit_of=self._output_limit,
        )

    def _output_limit(self, deployment: Deployment) -> int:
        return min(deployment.max_output, self._model.default_max_output)

    def _principal(self, tenant: str) -> Principal:
        known = self._principals.get(tenant)
        if known is None:
            known = self._principals[tenant] = Principal(key_id=tenant, key_name=tenant)
        return known

    def well(self, candidates: Iterable[Candidate], now: datetime) -> list[Candidate]:
        """Those that are still well, or else those whose only trouble is an open circuit: never eject the last one."""
        left = list(candidates)
        well = [each for each in left if self._circuits.are_well(subjects(each), now)]
        return well or [each for each in left if self._circuits.are_well(subjects(each)[:2], now)]

    def sent(self, name: str, row: Row, candidate: Candidate, now: datetime) -> None:
        """An attempt begins."""
        self._circuits.sent(subjects(candidate), now)

    def answered(
        self,
        name: str,
        row: Row,
        candidate: Candidate,
        *,
        now: datetime,
        cached_tokens: int,
        seconds: float,
        first_seconds: float,
    ) -> None:
        """An attempt was answered, and this is what it was billed."""
        self._circuits.succeeded(subjects(candidate), now)
        self._answer_length = self._answer_length.learn(row.output_tokens)

    def failed(self, name: str, candidate: Candidate, now: datetime) -> None:
        """An attempt found nobody there."""
        involved = subjects(candidate)
        self._circuits.failed(involved[2], involved, now)
