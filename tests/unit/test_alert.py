"""An alert's words, its signature and how long a failed telling waits."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.core.alert import RETRY_SECONDS_MAX, TELL_SECONDS_MAX, Alert, alert_body, headers_of, retry_seconds
from gateway.core.budget import BudgetMode, Period
from gateway.core.money import Money

ALERT = Alert(
    alert_id="alert_1",
    budget_id="budget_1",
    scope="team:research",
    name='team "research"',
    period=Period.MONTH,
    mode=BudgetMode.STRICT,
    limit=Money.from_usd("100"),
    begins_at=datetime(2026, 2, 28, 23, tzinfo=UTC),
    ends_at=datetime(2026, 3, 31, 22, tzinfo=UTC),
    share=80,
    spent=Money.from_usd("84.200000000001"),
    raised_at=datetime(2026, 3, 10, 12, 0, 0, 5, tzinfo=UTC),
)


def test_what_is_told_is_all_that_is_known():
    """Every field of the document, with exact amounts as strings and moments in UTC."""
    assert json.loads(alert_body(ALERT)) == {
        "type": "budget.alert",
        "id": "alert_1",
        "budget": {
            "id": "budget_1",
            "scope": "team:research",
            "name": 'team "research"',
            "period": "month",
            "limit": "100",
            "mode": "strict",
        },
        "window": {"from": "2026-02-28T23:00:00Z", "to": "2026-03-31T22:00:00Z"},
        "share": 80,
        "spent": "84.200000000001",
        "raised_at": "2026-03-10T12:00:00.000005Z",
        "text": 'The team "research" has spent $84.200000000001 of its budget of $100 a month (84 %), which passes '
        "80 %. Requests are refused once it is used up. It is reset at 2026-03-31T22:00:00Z.",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"spent": Money.from_usd("120"), "share": 100},
            (
                'The team "research" has spent $120 of its budget of $100 a month (120 %), which passes 100 %. '
                "Requests are refused. It is reset at 2026-03-31T22:00:00Z."
            ),
        ),
        (
            {"mode": BudgetMode.SOFT, "spent": Money.from_usd("120"), "share": 100, "period": Period.DAY},
            (
                'The team "research" has spent $120 of its budget of $100 a day (120 %), which passes 100 %. '
                "Nothing is refused. It is reset at 2026-03-31T22:00:00Z."
            ),
        ),
        (
            {"name": "organisation", "scope": "organisation", "period": Period.TOTAL, "begins_at": None}
            | {"ends_at": None, "spent": Money.from_usd("80")},
            (
                "The organisation has spent $80 of its budget of $100 in total (80 %), which passes 80 %. "
                "Requests are refused once it is used up."
            ),
        ),
        (
            {"limit": Money(0), "period": Period.WEEK, "share": 100},
            (
                'The team "research" has spent $84.200000000001 of its budget of $0 a week. Requests are refused. '
                "It is reset at 2026-03-31T22:00:00Z."
            ),
        ),
    ],
)
def test_the_sentence_says_what_follows(changes: dict[str, object], words: str):
    """Whether requests are refused, and until when, for each kind of budget."""
    assert json.loads(alert_body(replace(ALERT, **changes)))["text"] == words


def test_a_receiver_can_verify_the_signature():
    """A few lines with the standard library, over the timestamp and the bytes as they came."""
    secret, body = b"a secret of both", alert_body(ALERT)
    headers = headers_of(ALERT, body, secret=secret, timestamp=1_773_144_000)
    signed = headers["x-gateway-timestamp"].encode() + b"." + body
    assert headers["x-gateway-signature"] == "v1=" + hmac.new(secret, signed, hashlib.sha256).hexdigest()
    assert headers["x-gateway-timestamp"] == "1773144000"
    assert headers["x-gateway-alert-id"] == "alert_1"
    assert headers["content-type"] == "application/json"


def test_the_signature_is_the_published_one():
    """Worked out by another program: printf '12.{}' | openssl dgst -sha256 -hmac key."""
    headers = headers_of(ALERT, b"{}", secret=b"key", timestamp=12)
    assert headers["x-gateway-signature"] == "v1=043e30e1e15664dc97494d18e4110984bcbd2c4e6f3e19de9569dc1ea6d9b03e"


def test_the_waits_double_up_to_a_quarter_of_an_hour():
    """From five seconds on, half of each left to chance, never longer than the longest."""
    assert [retry_seconds(tries, 1.0) for tries in (1, 2, 3, 4)] == [5.0, 10.0, 20.0, 40.0]
    assert [retry_seconds(tries, 0.0) for tries in (1, 2, 3, 4)] == [2.5, 5.0, 10.0, 20.0]
    assert retry_seconds(9, 1.0) == retry_seconds(10_000, 1.0) == RETRY_SECONDS_MAX == 900.0
    assert TELL_SECONDS_MAX == 24 * 3600
