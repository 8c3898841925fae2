"""Alerts are told to one address: signed, no redirect followed, never for longer than a deadline, nothing of it logged.

The address may hold a secret, as those of chat services do, so neither it nor an answer appears in a message.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Final

import httpx
from pydantic import SecretStr

from gateway.core.alert import Alert, alert_body, headers_of, moment_text, sentence
from gateway.pipeline.ports import Clock

LOGGER: Final = logging.getLogger("gateway.alert")
TELL_SECONDS_MAX: Final = 10.0


class WebhookTeller:
    """Implements the AlertTeller port by POST to a URL."""

    name: Final = "webhook"

    def __init__(
        self,
        url: SecretStr,
        secret: SecretStr,
        *,
        clock: Clock,
        user_agent: str,
        seconds_max: float = TELL_SECONDS_MAX,
    ) -> None:
        self._url = url
        self._secret = secret
        self._clock = clock
        self._user_agent = user_agent
        self._seconds_max = seconds_max
        # The machine's certificates, as for providers; read here, because it takes longer than a request may wait.
        self._certificates = ssl.create_default_context()

    async def tell(self, alert: Alert) -> str | None:
        """None when it has arrived (2xx), else why not. The answer's body is not read."""
        try:
            async with asyncio.timeout(self._seconds_max):
                status = await self._post(alert)
        except (TimeoutError, httpx.TimeoutException):
            return f"no answer within {self._seconds_max:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"not reached: {type(error).__name__}"
        if 200 <= status < 300:
            return None
        return f"HTTP {status}, a redirect, which is not followed" if 300 <= status < 400 else f"HTTP {status}"

    async def _post(self, alert: Alert) -> int:
        body = alert_body(alert)
        timestamp = int(self._clock.now().timestamp())
        headers = headers_of(alert, body, secret=self._secret.get_secret_value().encode(), timestamp=timestamp)
        headers["user-agent"] = self._user_agent
        async with (
            httpx.AsyncClient(
                verify=self._certificates, timeout=self._seconds_max, follow_redirects=False, trust_env=False
            ) as client,
            client.stream("POST", self._url.get_secret_value(), content=body, headers=headers) as answer,
        ):
            return answer.status_code


class LogTeller:
    """Implements the AlertTeller port where there is nobody else to tell: one warning in the log."""

    name: Final = "log"

    async def tell(self, alert: Alert) -> str | None:
        """Never fails."""
        fields = {
            "alert_id": alert.alert_id,
            "budget_id": alert.budget_id,
            "scope": alert.scope,
            "share": alert.share,
            "spent": str(alert.spent),
            "limit": str(alert.limit),
            "period": alert.period.value,
            "window_from": moment_text(alert.begins_at),
            "window_to": moment_text(alert.ends_at),
        }
        LOGGER.warning("budget alert: %s", sentence(alert), extra={"fields": fields})
        return None
