"""The gateway of one run: what it knows of its providers, and how it plans by that; never what a provider really holds.

The same functions in the same order as the live pipeline: plan by the core, tell what happened, believe accordingly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Deployment, Policy
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import Candidate, InferenceRequest, Plan, Principal, Surface
from gateway.core.happenings import Answered, Ended, Sent
from gateway.core.health import Subject
from gateway.core.hold import Hold, worth_holding
from gateway.core.prefix import Turn
from gateway.core.routing import Circumstances, plan, subjects
from gateway.core.warmth import worth_remembering
from gateway.replay.circuits import Circuits
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.world import AccountKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and the turn of the conversation that it was made for."""

    plan: Plan
    turn: Turn


class Timing(NamedTuple):
    """When an attempt was sent, how long its answer took, and its first token."""

    began: datetime
    seconds: float
    first_seconds: float


class Gateway:
    """Plans for rows and learns from their ends."""

    def __init__(self, scenario: Scenario) -> None:
        self._catalogue = scenario.catalogue
        self._model = scenario.model
        self._beliefs = Beliefs()
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

    def plan(self, row: Row, now: datetime) -> Planned:
        """All candidates for a row at this moment, best first."""
        principal = self._principal(row.tenant)
        turn = self._beliefs.turn(row.prompt, tenant=row.tenant)
        made = plan(
            self._request,
            principal,
            Circumstances(
                catalogue=self._catalogue,
                health_of=self._circuits.of,
                usable_accounts=self._usable,
                answer_length=self._answer_length,
                now=now,
                beliefs=self._beliefs,
                policy=self._catalogue.routing.policy,
            ),
            model=self._model,
            prompt=row.prompt,
            turn=turn,
            output_limit_of=self._output_limit,
        )
        return Planned(plan=made, turn=turn)

    def _output_limit(self, deployment: Deployment) -> int:
        return min(deployment.max_output, self._model.default_max_output)

    def _principal(self, tenant: str) -> Principal:
        known = self._principals.get(tenant)
        if known is None:
            known = self._principals[tenant] = Principal(key_id=tenant, key_name=tenant)
        return known

    def hold(self, planned: Planned, room_in: Mapping[AccountKey, float], waited_seconds: float) -> Hold | None:
        """What is worth waiting for; other policies than by expected cost wait for nobody."""
        terms = self._catalogue.routing
        if terms.policy is not Policy.EXPECTED_COST:
            return None
        return worth_holding(planned.plan, room_in, terms, waited_seconds=waited_seconds)

    def well(self, candidates: Iterable[Candidate], now: datetime) -> list[Candidate]:
        """Those that are still well, or else those whose only trouble is an open circuit: never eject the last one."""
        left = list(candidates)
        well = [each for each in left if self._circuits.are_well(subjects(each), now)]
        return well or [each for each in left if self._circuits.are_well(subjects(each)[:2], now)]

    def sent(self, name: str, row: Row, candidate: Candidate, turn: Turn, now: datetime) -> None:
        """An attempt begins."""
        self._circuits.sent(subjects(candidate), now)
        score = candidate.score
        assert score is not None, "an unpriced candidate is not routable"
        digests, tokens = row.prompt.remembered()
        places = worth_remembering(len(digests))  # of a trace's many blocks
        self._beliefs.apply(
            Sent(
                attempt_id=name,
                provider=candidate.provider,
                account=candidate.account,
                model=self._model.name,
                tenant=row.tenant,
                at=now.timestamp(),
                digests=tuple([digests[place] for place in places]),
                tokens=tuple([tokens[place] for place in places]),
                family=row.prompt.family,
                turn=turn.number,
                follows=turn.follows,
                output_tokens=self._answer_length.expected(candidate.output_limit),
                matched_tokens=score.matched_tokens,
                matched_age=score.matched_age_seconds,
            )
        )

    def answering(self, candidate: Candidate, now: datetime, *, began: datetime) -> None:
        """The first token of an answer has come."""
        self._circuits.answering(subjects(candidate), now, began=began)

    def answered(
        self, name: str, row: Row, candidate: Candidate, now: datetime, *, cached_tokens: int, timing: Timing
    ) -> None:
        """An attempt was answered, and this is what it was billed."""
        self._circuits.succeeded(subjects(candidate), now, began=timing.began)
        self._answer_length = self._answer_length.learn(row.output_tokens)
        self._beliefs.apply(
            Answered(
                attempt_id=name,
                at=now.timestamp(),
                input_tokens=row.input_tokens,
                cached_tokens=cached_tokens,
                output_tokens=row.output_tokens,
                seconds=timing.seconds,
                first_chunk_seconds=timing.first_seconds,
            )
        )

    def failed(self, name: str, candidate: Candidate, now: datetime, *, began: datetime) -> bool:
        """An attempt found nobody there. Whether the account is out from now on."""
        involved = subjects(candidate)
        self._beliefs.apply(Ended(attempt_id=name, at=now.timestamp(), is_warm=False))
        return self._circuits.failed(involved[2], involved, now, began=began)

    def asked_for_free(self, account: AccountKey, now: datetime, *, ok: bool) -> bool:
        """Whether an account is still out after it was asked what costs nothing."""
        provider, name = account
        return self._circuits.asked_for_free(Subject(provider, name, self._model.name), now, ok=ok)
