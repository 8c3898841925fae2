"""Groups and conditions of a report as SQL: the same words for the sums and for the rows that they sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from psycopg import sql

from gateway.adapters.postgres.connections import Connection
from gateway.adapters.postgres.facts import Grain, Part, bounds, next_month, parts
from gateway.adapters.postgres.sql import statement
from gateway.core.spend import TIMES, Condition, Selection, SpendQuery, month_starts, selected_times, tag_of

_NAMES: Final = {"key": "key_name", "price": "price_id", "source": "usage_source"}
"""The column of the ledger that a column of a report is, where it has another name there."""
_TIMES: Final = {"month": "YYYY-MM", "day": "YYYY-MM-DD", "hour": 'YYYY-MM-DD"T"HH24:00'}
_OF_QUARTERS: Final = ("hour", "status", "source")
"""What days and months are not rolled up by."""
_FILLED: Final = "SELECT min(bucket) AS first, max(bucket) AS last FROM spend_rollup WHERE grain = 'month'"


class Question(NamedTuple):
    """A statement and its parameters."""

    statement: sql.Composed
    parameters: Mapping[str, Any]


class _Words:
    """Expressions over rows that have their moment in ``at``, and the parameters that these need: what a caller wrote
    may be anything, also what would mean something in a statement."""

    def __init__(self, at: str) -> None:
        self._at = sql.Identifier(at)
        self.parameters: dict[str, Any] = {}

    def column(self, name: str) -> sql.Composable:
        """The value of a group's column."""
        if name in TIMES:
            moment = sql.SQL("{} AT TIME ZONE %(timezone)s").format(self._at)
            return sql.SQL("to_char({}, {})").format(moment, sql.Literal(_TIMES[name]))
        tag = tag_of(name)
        if tag is None:
            return sql.Identifier(_NAMES.get(name, name))
        return sql.SQL("tags ->> {}::text").format(self._given(tag))

    def conditions(self, where: Sequence[Condition]) -> sql.Composable:
        """All of them."""
        return sql.SQL(" AND ").join([sql.SQL("true"), *map(self._condition, where)])

    def found_by_index(self, where: Sequence[Condition]) -> sql.Composable:
        """The same conditions once more as far as an index of the ledger knows them: it has ids of keys, not names."""
        keys = [
            sql.SQL("key_id = ANY (ARRAY(SELECT key_id FROM spend_groups WHERE {}))").format(self._condition(condition))
            for condition in where
            if condition.group == "key"
        ]
        return sql.SQL(" AND ").join([sql.SQL("true"), *keys])

    def _condition(self, condition: Condition) -> sql.Composable:
        column = self.column(condition.group)
        values = [value for value in condition.values if value is not None]
        among = sql.SQL("{} = ANY ({}::text[])").format(column, self._given(values))
        if None in condition.values:
            return sql.SQL("({} IS NULL OR {})").format(column, among)
        return among

    def _given(self, value: Any) -> sql.Composable:
        name = f"given_{len(self.parameters)}"
        self.parameters[name] = value
        return sql.Placeholder(name)


async def spend_question(db: Connection, query: SpendQuery) -> Question:
    """The statement that answers a report: the columns of its groups, then its sums."""
    words = _Words("at")
    groups = [words.column(name) for name in query.columns]
    names = [sql.Identifier(f"group_{number}") for number in range(len(groups))]
    named = [sql.SQL("{} AS {}").format(group, name) for group, name in zip(groups, names, strict=True)]
    question = sql.SQL(statement("spend").decode()).format(
        asked=sql.SQL(", ").join([*names, *map(sql.Identifier, query.sums)]),
        groups=sql.SQL(", ").join([*named, sql.SQL("true AS is_anything")]),
        facts=sql.SQL(statement("facts").decode()),
        where=words.conditions(query.selection.where),
        grouped=sql.SQL(", ").join(sql.SQL(str(number + 1)) for number in range(len(groups) + 1)),
        order=sql.SQL(", ").join([*(sql.SQL('{} COLLATE "C"').format(name) for name in names), sql.SQL("is_anything")]),
    )
    selection = query.selection
    asked = {"timezone": selection.timezone, "team": selection.team, **bounds(await _covered(db, query))}
    return Question(question, {**asked, **words.parameters})


async def ledger_question(selection: Selection) -> Question:
    """The statement that answers with every row that is selected."""
    words = _Words("started_at")
    question = sql.SQL(statement("ledger").decode()).format(
        where=words.conditions(selection.where), found=words.found_by_index(selection.where)
    )
    start, end = selected_times(selection)
    asked = {"start": start, "end": end, "team": selection.team, "timezone": selection.timezone}
    return Question(question, {**asked, **words.parameters})


async def _covered(db: Connection, query: SpendQuery) -> list[Part]:
    """The parts of the period, none of which reaches over the beginning of a time that the report tells apart."""
    start, end = selected_times(query.selection)
    told = {*query.groups, *(condition.group for condition in query.selection.where)}
    zone = ZoneInfo(query.selection.timezone)
    is_utc = query.selection.timezone == "UTC"
    if not told.isdisjoint(_OF_QUARTERS) or ("day" in told and not is_utc):
        return parts(start, end, coarsest="quarter")
    coarsest: Grain = "day" if "day" in told else "month"
    if "month" not in told or is_utc:
        return parts(start, end, coarsest=coarsest)
    return parts(start, end, coarsest=coarsest, cuts=month_starts(*await _filled(db, start, end), zone))


async def _filled(db: Connection, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The period as far as there is anything, for somebody may ask for all of time."""
    row = await (await db.execute(_FILLED)).fetchone()
    assert row is not None
    if row["first"] is None:
        return start, start
    return max(start, row["first"]), min(end, next_month(row["last"].astimezone(UTC)))
