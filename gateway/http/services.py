"""What the face needs of the house: the conductor, the open exchanges, and the services behind the admin API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from gateway.core.grants import Administrator
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.relay import BODY_SECONDS_MAX, OpenExchanges
from gateway.http.savings import REQUESTS_MAX
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.ports import Administration, MoneyReports


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the gateway may get traffic. ``problems`` in an operator's words; ``details`` are figures."""

    ready: bool
    problems: tuple[str, ...]
    details: dict[str, object]


class BadConfigurationError(Exception):
    """The configuration on disk cannot be used; the text says where and how to mend it. The running one stays."""


async def _nothing_to_do() -> None:
    """For keys that are looked up every time."""


@dataclass(slots=True, kw_only=True)
class Services:
    """The composition root fills this in once; the routes only read it."""

    conductor: Conductor
    admin_token: SecretStr
    administration: Administration
    reports: MoneyReports
    readiness: Callable[[], Awaitable[Readiness]]
    metrics: Callable[[], Awaitable[bytes]]
    metrics_type: str
    provider_states: Callable[[], list[dict[str, object]]]
    reload: Callable[[Administrator], Awaitable[dict[str, object]]]
    flush: Callable[[float], Awaitable[bool]]
    exchanges: OpenExchanges = field(default_factory=OpenExchanges)
    keys_changed: Callable[[], Awaitable[None]] = _nothing_to_do
    body_seconds_max: float = BODY_SECONDS_MAX
    savings_requests_max: int = REQUESTS_MAX
    stopping: bool = False

    def refuse_while_stopping(self) -> None:
        """Raises RefusedError once shutdown has begun."""
        if self.stopping:
            raise RefusedError(
                Refusal(
                    code=RefusalCode.OVERLOADED,
                    message="The gateway is shutting down; send the request again.",
                    retry_after=1,
                )
            )
