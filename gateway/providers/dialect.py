"""A dialect is how one provider's wire differs, as pure functions: the same ones in the same order in every file.

Requests go out through ``render_request``; answers are read in passing by an ``AnswerReader`` (``reading.py``) whose
reports ``read_usage`` turns into usage; refusals become a ``Failure`` by words before status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from gateway.core.catalogue import Deployment
from gateway.core.exchange import InferenceRequest
from gateway.core.failure import Failure
from gateway.core.statement import StatementMapping
from gateway.core.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedCall:
    """A request in a provider's words. ``path`` follows the base URL; ``warnings`` say what was dropped or changed."""

    path: str
    body: bytes
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReports:
    """Every ``usage`` object an answer carried, decoded but not believed: the last top-level one, and one a choice.

    ``choices_seen`` is how many choices the answer had; 0 = not known, then those that reported are all there were.
    """

    top_level: object | None = None
    by_choice: Mapping[int, object] = field(default_factory=dict)
    answer_has_content: bool = False
    choices_seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is left on an account; ``available`` in the provider's own unit (``unit``: USD, CNY or credits)."""

    available: Decimal
    unit: str
    used: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One provider's differences.

    render_request(request, deployment, output_limit): the upstream call; ``output_limit`` in tokens, always sent.
    read_usage(reports): usage, or None where nothing usable was told (then it is estimated and flagged).
    classify_failure(status, headers, body): what a refusal says; header names are lower case.
    balance_url(base_url): where the balance is read, None if the provider has none.
    read_balance(body): the balance; raises ValueError for another shape.
    statement: the columns of its statements, where nothing else is configured; None: they have to be.
    balance_key_member: the member of the query that carries the key to a balance, None where a header does.
    """

    name: str
    render_request: Callable[[InferenceRequest, Deployment, int], RenderedCall]
    read_usage: Callable[[UsageReports], Usage | None]
    classify_failure: Callable[[int, Mapping[str, str], bytes], Failure]
    balance_url: Callable[[str], str | None]
    read_balance: Callable[[bytes], Balance]
    request_id_headers: tuple[str, ...] = ("x-request-id",)
    balance_key_member: str | None = None
    statement: StatementMapping | None = None
