"""Where it could go: the pure plan over what is configured, healthy and learned at this moment; nothing is held."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Catalogue, Deployment
from gateway.core.exchange import Admitted, Candidate, Exclusion, Plan, Principal
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.core.routing import Circumstances, plan, retry_after_seconds
from gateway.core.validity import Validity
from gateway.pipeline.experience import Experience
from gateway.pipeline.ports import HealthBook
from gateway.surfaces import chat_completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """What a plan reads besides the request."""

    catalogue: Catalogue
    usable_accounts: frozenset[tuple[str, str]]
    health: HealthBook
    experience: Experience
    beliefs: Beliefs
    validity: Validity
    now: datetime


def make_plan(admitted: Admitted, principal: Principal, planning: Planning) -> Plan:
    """All candidates for an admitted request, best first."""
    request, model, prompt = admitted.request, admitted.model, admitted.prompt

    def output_limit_of(deployment: Deployment) -> int:
        return chat_completions.output_limit_for(
            request,
            deployment,
            default_max_output=model.default_max_output,
            input_tokens_estimate=admitted.input_tokens,
        )

    circumstances = Circumstances(
        catalogue=planning.catalogue,
        health_of=planning.health.of,
        usable_accounts=planning.usable_accounts,
        answer_length=planning.experience.answer_length(model.name),
        now=planning.now,
        beliefs=planning.beliefs,
        validity=planning.validity,
        policy=planning.catalogue.routing.policy,
    )
    return plan(
        request,
        principal,
        circumstances,
        model=model,
        prompt=prompt,
        turn=planning.beliefs.turn(prompt, tenant=principal.tenant),
        output_limit_of=output_limit_of,
    )


def is_gone_everywhere(made: Plan) -> bool:
    """Whether every provider of the model has retired it, by date or by its own word."""
    gone = (Exclusion.GONE, Exclusion.RETIRED)
    return bool(made.candidates) and all(candidate.exclusion in gone for candidate in made.candidates)


def no_candidate(made: Plan) -> RefusedError:
    """Why nothing can be tried, candidate by candidate."""
    why = "; ".join(_why(candidate) for candidate in made.candidates) or "no provider is configured for it"
    kinds = {candidate.exclusion for candidate in made.candidates}
    if kinds == {Exclusion.RIGHTS}:
        return RefusedError(
            Refusal(
                code=RefusalCode.PROVIDER_NOT_ALLOWED,
                message=f"This key may not use any provider of {made.model}: {why}.",
            )
        )
    return RefusedError(
        Refusal(
            code=RefusalCode.NO_PROVIDER_AVAILABLE,
            message=f"No provider can serve {made.model} now: {why}.",
            retry_after=retry_after_seconds(made),
        )
    )


def _why(candidate: Candidate) -> str:
    return f"{candidate.provider} ({candidate.account}): {candidate.excluded}"
