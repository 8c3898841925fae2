"""What happens to an attempt is noted once: believed here at once, and told to the other replicas.

Nothing here is durable or waited for, and no money hangs on it: it is what the next plan is made by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.core.beliefs import Beliefs
from gateway.core.exchange import Attempt, AttemptStatus
from gateway.core.happenings import Answered, Checked, Ended, Happening, Sent
from gateway.core.usage import UsageSource
from gateway.core.validity import Validity
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.outcome import Outcome
from gateway.pipeline.ports import Clock, Gossip


@dataclass(slots=True, kw_only=True)
class Noting:
    """The beliefs of this worker, and whom it tells what happens."""

    gossip: Gossip
    clock: Clock
    beliefs: Beliefs = field(default_factory=Beliefs)
    validity: Validity = field(default_factory=Validity)

    def sent(self, exchange: Exchange, this: Attempt) -> None:
        """An attempt is on its way: its prompt will be warm there."""
        candidate, prompt, turn = this.candidate, exchange.admitted.prompt, exchange.plan.turn
        digests, tokens = prompt.remembered()
        score = candidate.score
        self._note(
            Sent(
                attempt_id=this.attempt_id,
                provider=candidate.provider,
                account=candidate.account,
                model=candidate.deployment.model,
                tenant=exchange.principal.tenant,
                at=this.started_at.timestamp(),
                digests=digests,
                tokens=tokens,
                family=prompt.family,
                turn=turn.number,
                follows=turn.follows,
                output_tokens=exchange.plan.output_tokens_estimate,
                matched_tokens=0 if score is None else score.matched_tokens,
                matched_age=0.0 if score is None else score.matched_age_seconds,
            )
        )

    def over(self, exchange: Exchange, this: Attempt, outcome: Outcome) -> None:
        """How it ended: with the provider's figures, or without."""
        now = self.clock.now()
        if outcome.status is AttemptStatus.SUCCEEDED and outcome.usage_source is UsageSource.PROVIDER:
            first = outcome.seen.first_byte_at
            self._note(
                Answered(
                    attempt_id=this.attempt_id,
                    at=now.timestamp(),
                    input_tokens=outcome.usage.input_tokens,
                    cached_tokens=outcome.usage.cache_read,
                    output_tokens=outcome.usage.output_tokens,
                    seconds=(now - this.started_at).total_seconds(),
                    first_chunk_seconds=None
                    if outcome.body is not None or first is None
                    else (first - this.started_at).total_seconds(),
                )
            )
        else:
            is_read = outcome.reader.has_content or outcome.usage_source is not UsageSource.NONE
            self._note(Ended(attempt_id=this.attempt_id, at=now.timestamp(), is_warm=is_read))
        if outcome.judgement is not None:
            self._note(
                Checked(
                    provider=this.candidate.provider,
                    model=this.candidate.deployment.model,
                    tenant=exchange.principal.tenant,
                    at=now.timestamp(),
                    fault=next(iter(outcome.judgement.faults), None),
                )
            )

    def heard(self, happening: Happening | Checked) -> None:
        """Another replica's attempt."""
        if isinstance(happening, Checked):
            self.validity.apply(happening)
        else:
            self.beliefs.apply(happening)

    def _note(self, happening: Happening | Checked) -> None:
        self.heard(happening)
        self.gossip.tell(happening)
