"""CometAPI, an aggregator on new-api's software: the status may be wrong, the error code is not.

Source: providers §2 and §4, checked 2026-11-22.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.failure import Failure, FailureClass
from gateway.core.statement import StatementMapping
from gateway.core.usage import Usage
from gateway.providers import balances, counting, failing, rendering
from gateway.providers.dialect import Balance, Dialect, RenderedCall, UsageReports

RULES: Final = rendering.RequestRules(
    limit_member="max_tokens",
    by_capability=rendering.BY_CAPABILITY,
    unknown=rendering.OPENAI_ONLY | {"prompt_cache_key", "prompt_cache_options", "safety_identifier"},
)
STATEMENT: Final = StatementMapping(
    lines="data",
    request_id="request_id",
    time="created_at",
    time_format="unix",
    model="model_name",
    input_tokens="prompt_tokens",
    output_tokens="completion_tokens",
    amount="quota",
    usd_per_unit=Decimal("0.000002"),
    decimals=0,
)
"""As new-api's logs have it, whose quota is 1/500,000 USD: an assumption (README.md, Statements)."""
WORDS: Final = failing.Vocabulary(
    types={**failing.OPENAI_TYPES, **failing.MOONSHOT_TYPES},
    codes={**failing.OPENAI_CODES, **failing.NEW_API_CODES},
    busy=FailureClass.OVERLOADED,
)


def render_request(request: InferenceRequest, deployment: Deployment, output_limit: int) -> RenderedCall:
    """The limit keeps its old name; cache keys are not documented here."""
    return rendering.render(RULES, request, deployment, output_limit)


def read_usage(reports: UsageReports) -> Usage | None:
    """Nested cached tokens, or Moonshot's choice-level usage passed through; may be the aggregator's own count (§4)."""
    return counting.count(reports)


def classify_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """By ``error.code``: 500 ``invalid_request`` is the caller's, 503 ``model_not_found`` the model's (§2.6). A bare
    429 is about somebody's upstream, not about our account (§4)."""
    return failing.classify(WORDS, status, headers, body)


def balance_url(base_url: str) -> str | None:  # noqa: ARG001 - the dialects share one shape
    """None: the only way to ask carries the key in the URL, where every proxy logs it (§2.4)."""
    return None


def read_balance(body: bytes) -> Balance:
    """For an operator who configures ``balance_url``: ``total_quota`` in USD, as what is left. The gateway adds the key
    to that address and writes it down nowhere; what stands between may."""
    answer = balances.decode(body)
    used = balances.amount(answer, "total_used_quota") if "total_used_quota" in answer else None
    return Balance(available=balances.amount(answer, "total_quota"), unit="USD", used=used)


DIALECT: Final = Dialect(
    name="cometapi",
    render_request=render_request,
    read_usage=read_usage,
    classify_failure=classify_failure,
    balance_url=balance_url,
    read_balance=read_balance,
    request_id_headers=("x-oneapi-request-id", "x-request-id"),
    balance_key_member="key",
    statement=STATEMENT,
)
