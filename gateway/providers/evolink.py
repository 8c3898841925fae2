"""EvoLink, an aggregator: error codes are HTTP numbers, the wait is a sentence beside the message.

Source: providers §3 and §4, checked 2026-11-22.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.failure import Failure
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
    model="model",
    input_tokens="usage.prompt_tokens",
    cached_tokens="usage.prompt_tokens_details.cached_tokens",
    output_tokens="usage.completion_tokens",
    amount="credits",
    usd_per_unit=None,
    decimals=6,
)
"""Not documented: an assumption (README.md, Statements). What a credit costs, only the operator's invoice says."""
WORDS: Final = failing.Vocabulary(
    types={**failing.OPENAI_TYPES, **failing.MOONSHOT_TYPES, **failing.EVOLINK_TYPES},
    codes={**failing.OPENAI_CODES, **failing.NEW_API_CODES},
)


def render_request(request: InferenceRequest, deployment: Deployment, output_limit: int) -> RenderedCall:
    """The limit keeps its old name; cache keys are not documented here."""
    return rendering.render(RULES, request, deployment, output_limit)


def read_usage(reports: UsageReports) -> Usage | None:
    """Nested cached tokens (§3.2); usage in streams is not documented, so every place is read."""
    return counting.count(reports)


def classify_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """By ``error.type``, then as new-api (§3.4); ``fallback_suggestion`` names the wait."""
    return failing.classify(WORDS, status, headers, body)


def balance_url(base_url: str) -> str | None:
    """The credits, which only the multimodal host serves; both hosts are one account (§3.1, §3.3)."""
    parts = urlsplit(base_url)
    host = "api.evolink.ai" if parts.netloc == "direct.evolink.ai" else parts.netloc
    return urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/credits", "", ""))


def read_balance(body: bytes) -> Balance:
    """Credits, whose rate to the dollar nobody has published: the key's own share where it has one."""
    answer = balances.decode(body)
    if answer.get("success") is not True:
        raise ValueError(f"the balance was refused: {balances.reason(answer)}")
    data = balances.member(answer, "data")
    user, token = balances.member(data, "user"), balances.member(data, "token")
    left = balances.amount(user, "remaining_credits")
    if token.get("unlimited_credits") is not True:
        left = min(left, balances.amount(token, "remaining_credits"))
    return Balance(available=left, unit="credits", used=balances.amount(user, "used_credits"))


DIALECT: Final = Dialect(
    name="evolink",
    render_request=render_request,
    read_usage=read_usage,
    classify_failure=classify_failure,
    balance_url=balance_url,
    read_balance=read_balance,
    request_id_headers=("x-request-id", "x-oneapi-request-id"),
    statement=STATEMENT,
)
