"""The plain dialect: any OpenAI-compatible server, told nearly everything and believed in every provider's words.

The output limit travels as ``max_tokens``, which vLLM, SGLang and llama.cpp all understand; OpenAI's own newest models
want ``max_completion_tokens`` and are not what this gateway is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.failure import Failure
from gateway.core.usage import Usage
from gateway.providers import counting, failing, rendering
from gateway.providers.dialect import Balance, Dialect, RenderedCall, UsageReports

RULES: Final = rendering.RequestRules(
    limit_member="max_tokens",
    by_capability={},
    developer_role=True,
    reasoning_alias=True,
)
WORDS: Final = failing.Vocabulary(
    types={**failing.OPENAI_TYPES, **failing.EVOLINK_TYPES, **failing.MOONSHOT_TYPES},
    codes={**failing.NEW_API_CODES, **failing.OPENAI_CODES},
)


def render_request(request: InferenceRequest, deployment: Deployment, output_limit: int) -> RenderedCall:
    """Everything passes; only the model, the limit and the request for usage are set."""
    return rendering.render(RULES, request, deployment, output_limit)


def read_usage(reports: UsageReports) -> Usage | None:
    """Both spellings of cached tokens are read."""
    return counting.count(reports)


def classify_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Every provider's words are understood, since anything may stand behind a generic address."""
    return failing.classify(WORDS, status, headers, body)


def balance_url(base_url: str) -> str | None:  # noqa: ARG001 - the dialects share one shape
    """There is no common way to ask."""
    return None


def read_balance(body: bytes) -> Balance:
    """Raises ValueError: there is no common shape."""
    raise ValueError(f"a generic provider has no known balance format ({len(body)} bytes)")


DIALECT: Final = Dialect(
    name="openai",
    render_request=render_request,
    read_usage=read_usage,
    classify_failure=classify_failure,
    balance_url=balance_url,
    read_balance=read_balance,
    request_id_headers=("x-request-id", "x-oneapi-request-id", "msh-request-id"),
)
