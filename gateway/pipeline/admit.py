"""What is asked: the body becomes a valid request for a model that exists and that this key may call, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Final

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Catalogue, Deployment, Model, OnRetired, last_end
from gateway.core.exchange import Admitted, InferenceRequest, Principal, Role
from gateway.core.prefix import prompt_of
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.pipeline.experience import Experience
from gateway.surfaces import chat_completions

SUNSET_DAYS: Final = 30
"""So many days before a model's certain end its callers are told with every answer."""


def admit(
    body: bytes,
    headers: Mapping[str, str],
    principal: Principal,
    catalogue: Catalogue,
    experience: Experience,
    beliefs: Beliefs,
    *,
    today: date,
    seed: int = 0,
) -> Admitted:
    """Parses and checks a chat completion request; ``seed`` is for its fingerprint. Raises RefusedError."""
    if principal.role is Role.FINANCE:
        raise _refused(
            RefusalCode.ROLE_NOT_ALLOWED, "This key's role is finance: it reads reports and cannot call models."
        )
    request = chat_completions.parse(body, headers=headers, seed=seed)
    model = catalogue.resolve(request.model_asked)
    if model is None:
        raise unknown_model(request.model_asked, catalogue)
    if principal.models is not None and model.name not in principal.models:
        raise _refused(
            RefusalCode.MODEL_NOT_ALLOWED,
            f"This key may not call {model.name}; it may call {', '.join(sorted(principal.models)) or 'no model'}.",
            param="model",
        )
    return for_model(request, model, principal, catalogue, experience, beliefs, today=today)


def for_model(
    request: InferenceRequest,
    model: Model,
    principal: Principal,
    catalogue: Catalogue,
    experience: Experience,
    beliefs: Beliefs,
    *,
    today: date,
) -> Admitted:
    """The request as one for ``model``, or for its successor where ``model`` is certainly retired everywhere."""
    deployments = [deployment for _, deployment in catalogue.deployments(model.name)]
    available = [deployment for deployment in deployments if deployment.is_available(today)]
    if deployments and not available:
        follower = successor(model, principal, catalogue)
        if follower is None:
            raise retired_model(model, deployments, today=today)
        warned = replace(request, warnings=(*request.warnings, f"{model.name} is retired; {follower.name} answers"))
        return for_model(warned, follower, principal, catalogue, experience, beliefs, today=today)
    fingerprint = request.fingerprint.of_model(model.name)
    prompt = prompt_of(
        fingerprint,
        anchor=beliefs.anchors(fingerprint.digests, model.name),
        tokens_of_bytes=partial(experience.input_tokens, model.name, key_id=principal.key_id),
    )
    hint = _ends_soon(model, deployments, principal, today=today)
    if hint is not None:
        request = replace(request, warnings=(*request.warnings, hint))
    if available:
        chat_completions.check(request, available, input_tokens_estimate=prompt.input_tokens)
    return Admitted(request=replace(request, model=model.name), model=model, prompt=prompt)


def _ends_soon(model: Model, deployments: list[Deployment], principal: Principal, *, today: date) -> str | None:
    """What a caller of a model is told that certainly ends soon, at the providers they may use."""
    allowed = principal.providers
    end = last_end((each for each in deployments if allowed is None or each.provider in allowed), today)
    if end is None or (end - today).days > SUNSET_DAYS:
        return None
    instead = f"; move to {model.successor}" if model.successor else ""
    return f"{model.name} is retired here on {end.isoformat()}{instead}"


def successor(model: Model, principal: Principal, catalogue: Catalogue) -> Model | None:
    """The model to route to instead of a retired one, where its policy and the key allow that."""
    if model.on_retired is not OnRetired.SUCCESSOR or model.successor is None or model.successor == model.name:
        return None
    follower = catalogue.resolve(model.successor)
    if follower is None or (principal.models is not None and follower.name not in principal.models):
        return None
    return follower


def unknown_model(asked: str, catalogue: Catalogue) -> RefusedError:
    known = ", ".join(sorted(catalogue.models))
    return _refused(
        RefusalCode.MODEL_NOT_FOUND, f"The model {asked!r} is not known here; known are: {known}.", param="model"
    )


def retired_model(model: Model, deployments: list[Deployment], *, today: date) -> RefusedError:
    """404 that names the date and the successor; or the first day of a model that is still to come."""
    starts = [day for deployment in deployments if (day := deployment.available_from) is not None and day > today]
    if starts:
        return _refused(
            RefusalCode.MODEL_NOT_FOUND,
            f"The model {model.name} is not available here before {min(starts).isoformat()}.",
            param="model",
        )
    dates = [deployment.available_until or deployment.retirement_reported for deployment in deployments]
    known = [day for day in dates if day is not None]
    when = f" since {max(known).isoformat()}" if known else ""
    instead = f" Use {model.successor} instead." if model.successor else ""
    return _refused(
        RefusalCode.MODEL_NOT_FOUND,
        f"The model {model.name} is retired at every provider configured here{when}.{instead}",
        param="model",
    )


def _refused(code: RefusalCode, message: str, *, param: str | None = None) -> RefusedError:
    return RefusedError(Refusal(code=code, message=message, param=param))
