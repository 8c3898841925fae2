"""Moonshot's own API: 429 has four meanings that only the error type tells apart, and the limit has its new name.

Source: providers §1, checked 2026-11-22.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.failure import Failure
from gateway.core.statement import StatementMapping
from gateway.core.usage import Usage
from gateway.providers import balances, counting, failing, rendering
from gateway.providers.dialect import Balance, Dialect, RenderedCall, UsageReports

RULES: Final = rendering.RequestRules(
    limit_member="max_completion_tokens",
    by_capability=rendering.BY_CAPABILITY,
    unknown=rendering.OPENAI_ONLY | {"top_k", "min_p", "repetition_penalty"},
    names_conversation=True,
)
STATEMENT: Final = StatementMapping(
    lines="data",
    request_id="Request ID",
    time="Time",
    model="Model",
    input_tokens="Prompt Tokens",
    cached_tokens="Cached Tokens",
    output_tokens="Completion Tokens",
    amount="Amount (USD)",
    decimals=8,
)
"""Not documented: an assumption (README.md, Statements)."""
WORDS: Final = failing.Vocabulary(types=failing.MOONSHOT_TYPES, codes=failing.OPENAI_CODES)


def render_request(request: InferenceRequest, deployment: Deployment, output_limit: int) -> RenderedCall:
    """Moonshot calls ``max_tokens`` deprecated, and takes a conversation's name as ``prompt_cache_key``."""
    return rendering.render(RULES, request, deployment, output_limit)


def read_usage(reports: UsageReports) -> Usage | None:
    """Usage stands in the choices, at the top level or in both; cached tokens under one spelling or two (§1.5)."""
    return counting.count(reports)


def classify_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """By ``error.type``; ``code`` is normally absent (§1.6)."""
    return failing.classify(WORDS, status, headers, body)


def balance_url(base_url: str) -> str | None:
    """The balance of the account whose key is sent."""
    return f"{base_url.rstrip('/')}/users/me/balance"


def read_balance(body: bytes) -> Balance:
    """``available_balance`` in the platform's currency, which the body does not name: USD, on the .cn platform CNY."""
    answer = balances.decode(body)
    if answer.get("status") is not True:
        raise ValueError(f"the balance was refused: {balances.reason(answer)}")
    data = balances.member(answer, "data")
    return Balance(available=balances.amount(data, "available_balance"), unit="USD")


DIALECT: Final = Dialect(
    name="moonshot",
    render_request=render_request,
    read_usage=read_usage,
    classify_failure=classify_failure,
    balance_url=balance_url,
    read_balance=read_balance,
    request_id_headers=("msh-request-id", "x-request-id", "x-trace-id"),
    statement=STATEMENT,
)
