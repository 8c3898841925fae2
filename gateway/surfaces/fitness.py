"""A request fits the strictest candidate or is refused, so that failover cannot turn a valid request into an error.

Every surface asks here after ``parse``. What only some candidates lack is routing's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.surfaces.bodies import NUMBER
from gateway.surfaces.errors import invalid
from gateway.surfaces.tools import names_for_k2

TEMPERATURE_MAX: Final = 1.0
"""Moonshot's range for K2 is 0 to 1; others take up to 2, but a failover must not fail on it (providers §7.17)."""
ESTIMATE_SURE_PERCENT: Final = 95
"""Only what is too long even if the estimate is 5 % too high is refused; the provider knows better."""

_NEEDS: Final = {
    "tools": ("tools", "tools"),
    "web_search": ("tools", "the builtin tool $web_search"),
    "tool_choice_required": ("tool_choice", "a `tool_choice` that demands a tool call"),
    "json_object": ("response_format", "`response_format` json_object"),
    "json_schema": ("response_format", "`response_format` json_schema"),
    "images": ("messages", "images or videos"),
    "logprobs": ("logprobs", "`logprobs`"),
    "partial": ("messages", "`partial` answers"),
}


def check(request: InferenceRequest, deployments: Sequence[Deployment], *, input_tokens_estimate: int) -> None:
    """Raises RefusedError, naming the field, for what the strictest of the deployments would refuse.

    ``deployments`` are those that may be tried; none of them is not the request's fault, and passes.
    """
    if not deployments:
        return
    _check_needs(request, deployments)
    _check_sampling(request, deployments)
    _check_length(request, deployments, input_tokens_estimate)
    tools = request.fields.get("tools")
    if tools is not None and not all(each.sampling_fixed for each in deployments):
        names_for_k2(tools)


def _check_needs(request: InferenceRequest, deployments: Sequence[Deployment]) -> None:
    for need in sorted(request.needs):
        if not any(need in each.capabilities for each in deployments):
            param, words = _NEEDS.get(need, (need, f"`{need}`"))
            raise invalid(param, f"No provider of {request.model} supports {words}.")
    if not any(request.needs <= each.capabilities for each in deployments):
        param, _ = _NEEDS.get(min(request.needs), (min(request.needs), ""))
        together = " together with ".join(_NEEDS.get(need, ("", need))[1] for need in sorted(request.needs))
        raise invalid(param, f"No single provider of {request.model} supports {together}.")


def _check_sampling(request: InferenceRequest, deployments: Sequence[Deployment]) -> None:
    """Models with fixed sampling are not asked for a temperature, the others take at most 1."""
    raw = request.fields.get("temperature")
    if raw is not None and not all(each.sampling_fixed for each in deployments):
        temperature = NUMBER.of(raw, "temperature")
        if temperature > TEMPERATURE_MAX:
            raise invalid(
                "temperature", f"`temperature` is {temperature:g}; {request.model} takes 0 to {TEMPERATURE_MAX:g}."
            )
    if request.n > 1 and any(each.sampling_fixed for each in deployments):
        raise invalid("n", f"`n` is {request.n}; {request.model} gives one answer per request.")


def _check_length(request: InferenceRequest, deployments: Sequence[Deployment], estimate: int) -> None:
    limit = request.output_limit
    output_max = max(each.max_output for each in deployments)
    if limit is not None and limit > output_max:
        raise invalid(
            "max_tokens",
            f"The output limit `max_tokens` (`max_completion_tokens`) is {limit}; "
            f"{request.model} answers at most {output_max} tokens.",
        )
    context = max(each.context for each in deployments)
    if estimate * ESTIMATE_SURE_PERCENT // 100 + (limit or 1) <= context:
        return
    asked = "" if limit is None else f" and the output limit {limit}"
    mend = "Shorten the messages." if limit is None else "Lower max_tokens or shorten the messages."
    raise RefusedError(
        Refusal(
            code=RefusalCode.CONTEXT_LENGTH_EXCEEDED,
            message=f"The context of {request.model} is {context} tokens; the input is estimated at {estimate}"
            f"{asked}. {mend}",
            param="messages",
        )
    )


def output_limit_for(
    request: InferenceRequest, deployment: Deployment, *, default_max_output: int, input_tokens_estimate: int
) -> int:
    """The output limit to send and to hold for, in tokens: the client's own, else the default as far as it fits."""
    if request.output_limit is not None:
        return request.output_limit
    return max(1, min(default_max_output, deployment.max_output, deployment.context - input_tokens_estimate))
