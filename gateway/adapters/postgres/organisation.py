"""The organisation in PostgreSQL: one row, whose time zone says when every day and every budget's window begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import available_timezones

import psycopg

from gateway.adapters.postgres.changes import Store
from gateway.core.budget import ORGANISATION
from gateway.core.fields import FieldError, check_name
from gateway.core.grants import Administrator, NotGrantedError
from gateway.core.organisation import Organisation, organisation_json

_SHOW: Final = "SELECT name, time_zone FROM organisation"


class OrganisationStore(Store):
    """Implements the OrganisationAdministration port."""

    async def show(self) -> Organisation:
        async with self._connections.transaction() as db:
            return _organisation(await (await db.execute(_SHOW)).fetchone())

    async def update(self, *, name: str | None, time_zone: str | None, by: Administrator) -> Organisation:
        if by.team is not None:
            raise NotGrantedError("organisation", "The organisation is not for a key with a team to change.")
        async with self._change(by) as change:
            before = _organisation(await (await change.db.execute(_SHOW)).fetchone())
            after = Organisation(
                name=before.name if name is None else check_name("name", name),
                time_zone=before.time_zone if time_zone is None else _zone(time_zone),
            )
            if after == before:
                return before
            await self._check_database_knows(change.db, after.time_zone)
            await change.db.execute("UPDATE organisation SET name = %s, time_zone = %s", (after.name, after.time_zone))
            await change.record(
                "organisation.update", ORGANISATION, before=organisation_json(before), after=organisation_json(after)
            )
            return after

    async def _check_database_knows(self, db: psycopg.AsyncConnection[Any], time_zone: str) -> None:
        """Postings are made by the database: a zone that it does not know would stop them."""
        try:
            await db.execute("SELECT now() AT TIME ZONE %s", (time_zone,))
        except psycopg.errors.InvalidParameterValue:
            raise FieldError("time_zone", f"the database does not know the time zone {time_zone!r}.") from None


def _zone(name: str) -> str:
    if name not in available_timezones() or name == "localtime":
        raise FieldError("time_zone", f"{name[:64]!r} is not a time zone such as Europe/Berlin.")
    return name


def _organisation(row: Mapping[str, Any] | None) -> Organisation:
    assert row is not None  # the migration makes it, and it is the only one
    return Organisation(name=row["name"], time_zone=row["time_zone"])
