"""A running gateway tells of a budget that its own traffic has passed."""

from __future__ import annotations

import psycopg
import pytest

from gateway.core.budget import scope_of_key
from tests.http.house import House, chat, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


async def test_a_request_that_passes_a_budget_is_told_of(anyio_backend: str, house: House) -> None:
    """From the answer through journal and ledger to the log, with nothing but the background task in between."""
    made = await house.make_key(name="spender", budget="1", period="month")
    scope = scope_of_key(made["id"])
    with psycopg.connect(house.database_url, autocommit=True) as db:
        db.execute("UPDATE budgets SET mode = 'soft', limit_pico = 1000 WHERE scope = %s", [scope])
    assert (await house.ask(chat(), key=made["key"])).status_code == 200

    async def told() -> bool:
        states = [state for state in await house.gateway.alerts.recent() if state.alert.scope == scope]
        return len(states) == 2 and all(state.delivered_by == "log" for state in states)

    await eventually(told)
    metrics = (await house.client.get("/metrics")).text
    assert 'gateway_budget_alerts_total{share="80"} 1.0' in metrics
    assert 'gateway_budget_alert_deliveries_total{by="log",outcome="delivered"} 2.0' in metrics
