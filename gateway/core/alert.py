"""An alert says that a budget has passed a share of itself in a window: in the same words, signed, however often told.

What is told is JSON, signed so that its receiver can tell it from anybody else's: HMAC-SHA256 over
``TIMESTAMP.BODY``. It is told at least once; its id is the same each time.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.core.budget import BudgetMode, Period
from gateway.core.money import Money

SIGNATURE_VERSION: Final = "v1"
ID_HEADER: Final = "x-gateway-alert-id"
TIMESTAMP_HEADER: Final = "x-gateway-timestamp"
SIGNATURE_HEADER: Final = "x-gateway-signature"
RETRY_SECONDS_MIN: Final = 5.0
RETRY_SECONDS_MAX: Final = 900.0
TELL_SECONDS_MAX: Final = 86_400
"""An alert that has not arrived for so long is given up: by then it is no news."""

_PERIOD_WORDS: Final = {
    Period.DAY: "a day",
    Period.WEEK: "a week",
    Period.MONTH: "a month",
    Period.TOTAL: "in total",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A share, in percent, that a budget has passed in its window ``[begins_at, ends_at)``, both None for the whole of
    time; what the budget was then, and what was spent in the window."""

    alert_id: str
    budget_id: str
    scope: str
    name: str
    period: Period
    mode: BudgetMode
    limit: Money
    begins_at: datetime | None
    ends_at: datetime | None
    share: int
    spent: Money
    raised_at: datetime


def alert_document(alert: Alert) -> dict[str, object]:
    """What is told, as a JSON object; amounts are decimal strings of US dollars, moments RFC 3339 in UTC."""
    return {
        "type": "budget.alert",
        "id": alert.alert_id,
        "budget": {
            "id": alert.budget_id,
            "scope": alert.scope,
            "name": alert.name,
            "period": alert.period.value,
            "limit": str(alert.limit),
            "mode": alert.mode.value,
        },
        "window": {"from": moment_text(alert.begins_at), "to": moment_text(alert.ends_at)},
        "share": alert.share,
        "spent": str(alert.spent),
        "raised_at": moment_text(alert.raised_at),
        "text": sentence(alert),
    }


def alert_body(alert: Alert) -> bytes:
    """The document's bytes, which are what is signed: the same for the same alert."""
    return msgspec.json.encode(alert_document(alert))


def sentence(alert: Alert) -> str:
    """What has happened, and what follows, for people."""
    budget = f"${alert.limit} {_PERIOD_WORDS[alert.period]}"
    spent = alert.spent.pico * 100 // alert.limit.pico if alert.limit.pico else None
    reached = "" if spent is None else f" ({spent} %), which passes {alert.share} %"
    told = [f"The {alert.name} has spent ${alert.spent} of its budget of {budget}{reached}."]
    if alert.mode is BudgetMode.SOFT:
        told.append("Nothing is refused.")
    elif alert.spent < alert.limit:
        told.append("Requests are refused once it is used up.")
    else:
        told.append("Requests are refused.")
    if alert.ends_at is not None:
        told.append(f"It is reset at {moment_text(alert.ends_at)}.")
    return " ".join(told)


def moment_text(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with Z; None for no moment."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """The value of the signature's header, by a secret that the receiver has too; ``timestamp`` is in Unix seconds."""
    digest = hmac.new(secret, b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()
    return f"{SIGNATURE_VERSION}={digest}"


def headers_of(alert: Alert, body: bytes, *, secret: bytes, timestamp: int) -> dict[str, str]:
    """What goes with a body: who may trust it, from when it is, and which alert it is."""
    return {
        "content-type": "application/json",
        ID_HEADER: alert.alert_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: signature(secret, timestamp, body),
    }


def retry_seconds(tries: int, chance: float) -> float:
    """How long to wait after so many tries: twice as long after each, up to RETRY_SECONDS_MAX, of which half is left to
    chance (0 to 1)."""
    assert tries >= 1
    longest = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2.0 ** min(tries - 1, 16))
    return longest * (0.5 + chance / 2)
