"""What `gateway doctor` says of budgets: which are used up, and whether anybody was told."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from gateway.adapters.postgres.sql import statement
from gateway.cli.examination import Examination
from gateway.core.budget import Period, window_of
from gateway.core.money import Money

UNTOLD_WARN: Final = "5 minutes"
FORGOTTEN: Final = "7 days"
NAMED_MAX: Final = 5

PERIODS: Final = {
    Period.DAY: "today",
    Period.WEEK: "this week",
    Period.MONTH: "this month",
    Period.TOTAL: "in total",
}
_UNTOLD: Final = """
SELECT count(*) AS untold, min(raised_at) AS since, (array_agg(last_error ORDER BY raised_at DESC)
    FILTER (WHERE last_error IS NOT NULL))[1] AS last_error
FROM budget_alerts
WHERE delivered_at IS NULL AND raised_at BETWEEN now() - %s::interval AND now() - %s::interval
"""
_BUDGETS: Final = """
SELECT b.scope, b.period, b.limit_pico, organisation.time_zone FROM budgets AS b CROSS JOIN organisation
ORDER BY b.scope, b.period
"""


def check_alerts(found: Examination, db: psycopg.Connection[Any]) -> None:
    """Alerts that have not arrived."""
    with db.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_UNTOLD, [FORGOTTEN, UNTOLD_WARN]).fetchone()
    assert row is not None
    if not row["untold"]:
        found.ok("alerts", f"No budget alert has waited for more than {UNTOLD_WARN}.")
        return
    why = f" ({row['last_error']})" if row["last_error"] else ""
    message = f"{row['untold']} budget alerts were not delivered within {UNTOLD_WARN}{why}."
    mend = "Correct GATEWAY_ALERT_WEBHOOK_URL, or look after its receiver; `gateway serve` tells alerts for a day."
    found.warn("alerts", message, mend)


def check_budgets(found: Examination, db: psycopg.Connection[Any], *, now: datetime) -> None:
    """Budgets of which nothing is left in their present window."""
    with db.cursor(row_factory=dict_row) as cursor:
        budgets = cursor.execute(_BUDGETS).fetchall()
        windows = [window_of(each["scope"], Period(each["period"]), now, each["time_zone"]) for each in budgets]
        asked = {
            "keys": [window.key for window in windows],
            "scopes": [window.scope for window in windows],
            "first_days": [window.first_day for window in windows],
            "until_days": [window.until_day for window in windows],
        }
        spent: dict[str, int] = {}
        for row in cursor.execute(statement("balances"), asked).fetchall():
            spent[row["key"]] = spent.get(row["key"], 0) + int(row["posted_pico"])
    full = [
        f"{window.scope} (${Money(spent[window.key])} of ${Money(int(budget['limit_pico']))} {PERIODS[window.period]})"
        for budget, window in zip(budgets, windows, strict=True)
        if spent.get(window.key, 0) >= budget["limit_pico"] and spent.get(window.key, 0) > 0
    ]
    if not full:
        found.ok("budgets", f"None of {len(budgets)} budgets is used up." if budgets else "There are no budgets.")
        return
    more = f" and {len(full) - NAMED_MAX} more" if len(full) > NAMED_MAX else ""
    message = f"Used up: {', '.join(full[:NAMED_MAX])}{more}."
    found.warn(
        "budgets", message, "Raise them, or leave it: but for soft budgets, requests are refused until the window ends."
    )
