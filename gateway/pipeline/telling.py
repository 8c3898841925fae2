"""What a client is told of its exchange: headers, and refusals in the surface's own form, ours without secrets."""

from __future__ import annotations

import math
from typing import Final

from gateway.core.catalogue import Catalogue, Model
from gateway.core.exchange import Attempt, Candidate, Plan
from gateway.core.failure import Failure, FailureClass
from gateway.core.health import WHY
from gateway.core.refusal import INTERNAL, Refusal, RefusalCode, RefusedError
from gateway.pipeline.admit import retired_model
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.outcome import Outcome
from gateway.pipeline.ports import MeteringUnavailableError, Reply
from gateway.surfaces import chat_completions
from gateway.surfaces.rates import rate_headers

SHUTTING_DOWN: Final = Refusal(
    code=RefusalCode.OVERLOADED, message="The gateway is shutting down; send the request again.", retry_after=1
)


async def refuse(reply: Reply, refusal: Refusal, *, request_id: str) -> None:
    """Answers with a refusal: as a status, or, once the status line is out, as an error in the stream."""
    if reply.started:
        await reply.finish(chat_completions.render_stream_error(refusal, request_id=request_id))
        return
    body = chat_completions.render_error(refusal, request_id=request_id)
    headers = {"content-type": "application/json", "x-request-id": request_id, "content-length": str(len(body))}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(math.ceil(refusal.retry_after))
    if refusal.rates is not None:
        headers |= rate_headers(refusal.rates)
    await reply.start(refusal.http_status, headers)
    await reply.finish(body)


def headers_of(exchange: Exchange, this: Attempt) -> dict[str, str]:
    headers = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-request-id": exchange.request_id,
        "x-gateway-provider": this.candidate.provider,
        "x-gateway-attempts": str(this.number),
        **rate_headers(exchange.reservation.rates),
    }
    warnings = [*exchange.admitted.request.warnings, *dict.fromkeys(exchange.warnings)]
    if warnings:
        headers["x-gateway-warnings"] = "; ".join(warnings)
    if exchange.admitted.request.asks_plan:
        headers["x-gateway-plan"] = chat_completions.render_plan_header(exchange.plan)
    return headers


def gone(model: Model, catalogue: Catalogue, made: Plan) -> RefusedError:
    deployments = [deployment for _, deployment in catalogue.deployments(model.name)]
    return retired_model(model, deployments, today=made.made_at.date())


def refusal_for(exchange: Exchange, outcome: Outcome, failures: list[tuple[Candidate, Failure]]) -> Refusal:
    """What a caller is told of a failed exchange: their own fault in the upstream's words, ours without them."""
    failure = outcome.failure
    assert failure is not None
    if failure.kind in (FailureClass.CALLER_FAULT, FailureClass.CONTENT_FILTERED):
        return chat_completions.refusal_of(failure)
    if failure.kind is FailureClass.SHUTDOWN:
        return SHUTTING_DOWN
    if failure.kind is FailureClass.DEFECT:
        return INTERNAL
    tried = "; ".join(f"{c.provider} ({c.account}): {WHY[f.kind]}" for c, f in failures if f.kind in WHY)
    if outcome.relayed:
        return Refusal(
            code=RefusalCode.UPSTREAM_ERROR, message=f"The answer broke off, and what came is not whole. {tried}."
        )
    return Refusal(
        code=RefusalCode.UPSTREAM_ERROR,
        message=f"No provider could answer for {exchange.admitted.model.name}. Tried: {tried}.",
    )


def unmetered(error: MeteringUnavailableError) -> RefusedError:
    return RefusedError(
        Refusal(
            code=RefusalCode.METERING_UNAVAILABLE,
            message=f"The gateway cannot record spend now, so it buys nothing: {error}. Try again shortly.",
            retry_after=5,
        )
    )
