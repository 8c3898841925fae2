"""The rest of the public face: models, health, readiness and metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.core.catalogue import Catalogue
from gateway.core.exchange import Principal
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.services import Services
from gateway.surfaces import chat_completions


def public_routes(services: Services) -> list[HTTPRouteHandler]:
    """``GET`` routes that need no administrator."""

    @get("/v1/models", summary="The models this key may call", tags=["inference"])
    async def models(request: Request[Any, Any, Any]) -> Response[bytes]:
        principal = await _principal(services, request)
        catalogue, pairs = _routable(services)
        body = chat_completions.render_models(catalogue, principal, at=services.conductor.clock.now(), routable=pairs)
        return Response(body, media_type=MediaType.JSON, headers={"x-request-id": request.state.request_id})

    @get("/v1/models/{name:path}", summary="One model, by name or alias", tags=["inference"])
    async def model(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
        principal = await _principal(services, request)
        catalogue, pairs = _routable(services)
        asked = name.lstrip("/")
        at = services.conductor.clock.now()
        body = chat_completions.render_model(catalogue, principal, asked, at=at, routable=pairs)
        if body is None:
            raise RefusedError(
                Refusal(
                    code=RefusalCode.MODEL_NOT_FOUND,
                    message=f"There is no model {asked!r} that this key may call; GET /v1/models lists them.",
                    param="model",
                )
            )
        return Response(body, media_type=MediaType.JSON, headers={"x-request-id": request.state.request_id})

    @get("/healthz", summary="Whether the process answers", tags=["operations"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", summary="Whether the gateway should get traffic", tags=["operations"])
    async def readyz() -> Response[bytes]:
        state = await services.readiness()
        body = {"status": "ready" if state.ready else "not ready", "problems": state.problems, **state.details}
        return Response(msgspec.json.encode(body), status_code=200 if state.ready else 503, media_type=MediaType.JSON)

    @get("/metrics", summary="Prometheus metrics", tags=["operations"])
    async def metrics() -> Response[bytes]:
        return Response(await services.metrics(), headers={"content-type": services.metrics_type})

    return [models, model, healthz, readyz, metrics]


async def _principal(services: Services, request: Request[Any, Any, Any]) -> Principal:
    return await services.conductor.authenticate({name.lower(): value for name, value in request.headers.items()})


def _routable(services: Services) -> tuple[Catalogue, frozenset[tuple[str, str]]]:
    """Provider and model pairs that are priced, available today and have an account with a credential."""
    configuration = services.conductor.configuration
    catalogue, now = configuration.catalogue, services.conductor.clock.now()
    usable = {provider for provider, _ in configuration.usable_accounts}
    pairs = frozenset(
        (card.name, name)
        for card in catalogue.providers.values()
        for name, deployment in card.deployments.items()
        if card.name in usable
        and deployment.is_available(now.date())
        and catalogue.prices.in_force(card.name, name, now) is not None
    )
    return catalogue, pairs
