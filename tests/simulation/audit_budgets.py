"""Budgets, audited from outside: what the auditor knows to be spent and held never exceeds a limit (law L6).

Spent are the ledger's final rows, held are calls in flight at their largest cost. Both are lower bounds of what the
product counts, and a refusal is measured by upper bounds, so that nobody is accused of what may have been right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from tests.simulation.evidence import Auditor, Closing, Row
from tests.simulation.providers import Call
from tests.simulation.requests import (
    CLAMPED_MIN,
    ROUNDING_SECONDS,
    Request,
    Window,
    is_calm,
    requests,
    window_of_day,
)
from tests.simulation.rights import BudgetRow

CHANGE_SECONDS: Final = 40.0
"""A request may be admitted so long after its key was read: then the limits of that moment are its limits."""
OUTAGE_SECONDS: Final = 60.0
"""The shipper may wait for so long before it tries again."""


# --- never more than the limit ---------------------------------------------------------------------------------------


def budgets_hold(auditor: Auditor) -> Iterator[str]:
    """At every call: what is spent, what is held and this call at its dearest are within every hard budget."""
    known = requests(auditor)
    for request in known:
        for budget in request.policy.budgets_of(request.holder):
            if budget.mode == "soft" or (budget.on_outage == "admit" and not is_calm(request.scenario)):
                continue
            for call in request.calls:
                limit = _limit_at(request, budget, call)
                total = 0 if limit is None else _committed(known, request, budget, call)
                if limit is not None and total > limit:
                    yield (
                        f"L6: call {call.number} at {call.opened_at:.3f} takes {budget.scope}/{budget.period} "
                        f"({budget.mode}) to {total} of {limit}"
                    )


def _limit_at(request: Request, budget: BudgetRow, call: Call) -> int | None:
    """The highest limit by which any request was measured that may have been admitted meanwhile; None = no limit."""
    policies = request.scenario.rights.policies_between(request.opened - CHANGE_SECONDS, call.opened_at)
    rows = [policy.budget(budget.scope, budget.period) for policy in policies]
    limits = [row.limit_pico for row in rows if row is not None and row.mode != "soft"]
    return max(limits) if len(limits) == len(rows) else None


def _committed(known: list[Request], request: Request, budget: BudgetRow, call: Call) -> int:
    """Spent and held in the budget's window when this call was made, with the call itself."""
    window = request.window(budget.period)
    total = request.least(call)
    for other in known:
        if budget.scope not in other.holder.scopes or other.window(budget.period) != window:
            continue
        for each in other.calls:
            if each.order < call.order:
                total += _share(other, each, request, budget, call)
    return total


def _share(other: Request, each: Call, request: Request, budget: BudgetRow, call: Call) -> int:
    """What an earlier call counts at the least, when this call of ``request`` is made."""
    if other.life < request.life:
        is_posted = each.attempt_id not in request.auditor.evidence.refused
        return other.cost(each) if is_posted else 0
    over, is_settled = other.over_at(each), other.is_settled(each)
    if other is request or over < request.opened - ROUNDING_SECONDS:
        return other.cost(each) if is_settled else 0
    if not _is_held(other, budget):
        return 0
    if over > call.opened_at + ROUNDING_SECONDS:
        return other.least(each)
    return min(other.cost(each), other.least(each)) if is_settled else 0


def _is_held(other: Request, budget: BudgetRow) -> bool:
    """Whether a request is certain to hold something in this budget's window: its policy had the budget, and it was
    not admitted without it for want of an answer."""
    own = other.policy.budget(budget.scope, budget.period)
    if own is None:
        return False
    return is_calm(other.scenario) or (own.mode != "soft" and own.on_outage == "refuse")


# --- no phantom refusals ---------------------------------------------------------------------------------------------


def budget_refusals_are_justified(auditor: Auditor) -> Iterator[str]:
    known = requests(auditor)
    for request in known:
        if request.code == "budget_exceeded" and not request.calls:
            budgets = [row for row in request.policy.budgets_of(request.holder) if row.mode != "soft"]
            if not any(_may_be_exceeded(known, request, budget) for budget in budgets):
                yield f"L6: connection {request.number} was refused, and there was room: {request.message}"
        if request.is_unknowable:
            yield from _unknowable(request)


def _may_be_exceeded(known: list[Request], request: Request, budget: BudgetRow) -> bool:
    """By the largest figures that the product could rightly have."""
    window = request.window(budget.period)
    total = request.most(CLAMPED_MIN) if budget.mode == "clamp" else request.most()
    total += sum(row["cost_pico"] for row in _undispatched(request.auditor, budget.scope))
    for other in known:
        if budget.scope not in other.holder.scopes or other.window(budget.period) != window:
            continue
        if other is request or other.opened > request.ended or other.life > request.life:
            continue
        settled = [each for each in other.calls if other.is_settled(each) or other.life < request.life]
        total += sum(other.cost(each) for each in settled)
        if other.life == request.life:
            is_open = other.ended >= request.opened and not other.was_refused
            total += other.most() * (is_open + len(other.calls) - len(settled))
    return total > budget.limit_pico


def _undispatched(auditor: Auditor, scope: str) -> Iterator[Row]:
    """Estimates of attempts that no provider knows: their process died after the intent and before the call."""
    for attempt_id, row in auditor.rows.items():
        if attempt_id not in auditor.calls and scope in _scopes(row):
            yield row


def _unknowable(request: Request) -> Iterator[str]:
    """What is spent is unknown only while the database or the dead journals cannot be read."""
    scenario = request.scenario
    hard = [row for row in request.policy.budgets_of(request.holder) if row.mode != "soft"]
    if not any(row.on_outage == "refuse" for row in hard):
        yield f"L6: connection {request.number} was refused for want of an answer, and none of its budgets minds"
    begun = request.connection.life.started_at
    spans = [*scenario.database.away, *((trouble.begins, trouble.ends) for trouble in scenario.disk)]
    is_away = any(begin <= request.ended and end + OUTAGE_SECONDS >= request.opened for begin, end in spans)
    by_chance = scenario.database.fails or scenario.database.loses_answer or scenario.database.slow
    if not is_away and not (by_chance or (scenario.disk and request.ended < begun + OUTAGE_SECONDS)):
        yield f"L6: connection {request.number} was refused for want of an answer, and the database was there"


# --- what is told of holds -------------------------------------------------------------------------------------------


def holds_are_told_and_overruns_flagged(auditor: Auditor) -> Iterator[str]:
    for request in requests(auditor):
        has_budgets = bool(request.policy.budgets_of(request.holder))
        spent = 0
        for call in request.calls:
            row = request.row(call)
            if row is None:
                continue
            name, held = f"row {call.attempt_id}", row["held_pico"]
            if (held is not None) != has_budgets:
                yield f"L6: {name} tells {held} as held, and its key has {'' if has_budgets else 'no '}budgets"
            if held is not None and held < spent + request.least(call):
                yield f"L11: {name} is held for {held}; it may cost {spent + request.least(call)}"
            spent += row["cost_pico"]
            if "recovered" not in row["flags"] and row["error_type"] != "unmetered":
                is_overrun = held is not None and spent > held
                if is_overrun != ("budget_overrun" in row["flags"]):
                    yield f"L6: {name} cost {spent} of {held}, and its flags are {row['flags']}"


def clamped_answers_say_so(auditor: Auditor) -> Iterator[str]:
    for request in requests(auditor):
        if not request.calls:
            continue
        last = request.calls[-1]
        may_clamp = any(row.mode == "clamp" for row in request.policy.budgets_of(request.holder))
        if last.limit != request.limit and not may_clamp:
            yield f"clamp: call {last.number} has the limit {last.limit}, asked were {request.limit}"
        if last.limit > request.limit:
            yield f"clamp: call {last.number} has the limit {last.limit}, more than {request.limit}"
        is_told = f"limited to {last.limit} tokens" in request.connection.answer_headers.get("x-gateway-warnings", "")
        is_answered = request.connection.status == 200 and "x-gateway-provider" in request.connection.answer_headers
        if is_answered and is_told != (last.limit < request.limit):
            yield f"clamp: connection {request.number} was limited to {last.limit} of {request.limit} without a word"


# --- the books -------------------------------------------------------------------------------------------------------


def postings_equal_rows(auditor: Auditor) -> Iterator[str]:
    """Law L6: what budgets are measured by is the sum of the rows, by scope and day."""
    rows: dict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0])
    for row in auditor.evidence.tables.ledger.values():
        for scope in _scopes(row):
            mine = rows[scope, _day(auditor, row)]
            mine[0] += row["cost_pico"]
            mine[1] += 1
    kept: dict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0])
    for (scope, day, _), posted in auditor.evidence.tables.postings.items():
        kept[scope, day][0] += posted.pico
        kept[scope, day][1] += posted.rows
    for place in sorted(set(rows) | set(kept)):
        if rows[place] != kept[place]:
            yield f"L6: {place[0]} has {kept[place]} posted on {place[1]}; its rows are {rows[place]}"


def rows_count_when_they_were_admitted(auditor: Auditor) -> Iterator[str]:
    for request in requests(auditor):
        for call in request.calls:
            row = request.row(call)
            admitted: datetime | None = None if row is None else row["admitted_at"]
            if admitted is not None and abs(request.seconds(admitted) - request.opened) > ROUNDING_SECONDS:
                yield f"L6: row {call.attempt_id} counts at {request.seconds(admitted)}; it came at {request.opened}"


def processes_know_what_is_spent(auditor: Auditor) -> Iterator[str]:
    """At its orderly end a process knows of every window what the ledger's rows amount to, and holds nothing."""
    for closing in auditor.evidence.closings:
        name = f"process {closing.life.number}"
        held = {key: amount for key, amount in closing.held.items() if amount}
        if closing.holds or closing.running or closing.waiting or held:
            yield (
                f"leftovers: {name} holds {list(closing.holds)}, runs {dict(closing.running)}, keeps {closing.waiting} "
                f"waiting and {held} in windows"
            )
        if closing.life.is_certain and not closing.life.disk_failed:
            yield from _spent_differences(auditor, closing, name)


def _spent_differences(auditor: Auditor, closing: Closing, name: str) -> Iterator[str]:
    sums: dict[tuple[str, str, date | None], int] = defaultdict(int)
    for attempt_id, row in auditor.rows.items():
        life = auditor.life_of(row)
        if life > closing.life.number:
            continue
        if attempt_id in auditor.evidence.refused and life < closing.life.number:
            continue  # nobody but its own process ever knew it
        for scope in _scopes(row):
            for period in ("day", "week", "month", "total"):
                window: Window = window_of_day(_day(auditor, row), period)
                sums[scope, period, window[0]] += row["cost_pico"]
    for place, spent in closing.spent.items():
        if spent != sums[place]:
            yield f"L6: {name} knows {spent} to be spent in {place}; the rows are {sums[place]}"


def _scopes(row: Row) -> tuple[str, ...]:
    team = () if row["team"] is None else (f"team:{row['team']}",)
    return (f"key:{row['key_id']}", *team, "organisation")


def _day(auditor: Auditor, row: Row) -> date:
    zone = ZoneInfo(auditor.evidence.scenario.rights.time_zone)
    moment: datetime = row["admitted_at"] or row["started_at"]
    return moment.astimezone(zone).date()


BUDGET_CHECKS: Final = (
    budgets_hold,
    budget_refusals_are_justified,
    holds_are_told_and_overruns_flagged,
    clamped_answers_say_so,
    postings_equal_rows,
    rows_count_when_they_were_admitted,
    processes_know_what_is_spent,
)
