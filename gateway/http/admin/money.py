"""`/admin/ledger`, `/admin/reports` and `/admin/requests`: money, exact and after what is durable has been booked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from gateway.core.focus import ChargeFact, FocusRows
from gateway.core.focus_columns import FOCUS_VERSION, UnknownVersionError
from gateway.core.spend import COLUMNS, Selection, SpendQuery, parse_conditions, parse_groups
from gateway.http.admin.answers import FLUSH_SECONDS, checked, found, invalid, stored
from gateway.http.admin.guards import readers, who
from gateway.http.books import MEDIA_TYPES, Form, begun, ledger_pieces, period, report_pieces
from gateway.http.explained import with_prices
from gateway.http.focus import focus_csv
from gateway.http.savings import TooManyRequestsError, counted, rendered
from gateway.http.services import Services

ESTIMATES_AS_NUMBERS: Final = msgspec.json.Encoder(decimal_format="number")
"""A plan's estimates are JSON numbers, as in ``/v1/route``; amounts of the ledger are decimal strings."""
Asked = Request[Any, Any, Any]
_GROUPS: Final = ", ".join((*COLUMNS, "tag:NAME"))
GroupBy = Annotated[str, QueryParameter(description=f"Separated by commas: {_GROUPS}.")]
Where = Annotated[
    list[str] | None,
    QueryParameter(
        description=f"GROUP=VALUE, any number of times; of one group any value, of several groups all. {_GROUPS}. "
        "team= and tag:NAME= are what has none."
    ),
]
Detail = Annotated[
    bool, QueryParameter(description="Adds failures, costs by class, shares and the price per 1,000,000 tokens.")
]


def money_routes(services: Services) -> list[HTTPRouteHandler]:
    """Every route that reads money."""
    return [_ledger(services), _spend(services), _savings(services), _explain(services)]


def _ledger(services: Services) -> HTTPRouteHandler:
    @get("/ledger", summary="Every upstream attempt of a period, one a line", guards=readers(services))
    async def ledger(
        request: Asked,
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        tz: FromQuery[str] = "UTC",
        where: Where = None,
        format_: Annotated[Form, QueryParameter(name="format")] = "jsonl",
    ) -> Stream:
        selected = _selected(services, request, from_, to, tz, where)
        await services.flush(FLUSH_SECONDS)
        rows = await stored(begun(services.reports.ledger(selected)))
        return Stream(ledger_pieces(rows, format_), media_type=MEDIA_TYPES[format_])

    return ledger


SpendForm = Literal["json", "jsonl", "csv", "focus"]


def _spend(services: Services) -> HTTPRouteHandler:
    @get("/reports/spend", summary="Spend by any mix of groups", guards=readers(services))
    async def spend(
        request: Asked,
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        group_by: GroupBy = "key",
        tz: FromQuery[str] = "UTC",
        where: Where = None,
        format_: Annotated[SpendForm, QueryParameter(name="format")] = "json",
        focus_version: FromQuery[str] = FOCUS_VERSION,
        *,
        detail: Detail = False,
    ) -> Stream:
        selected = _selected(services, request, from_, to, tz, where)
        groups = checked(lambda: parse_groups(group_by))
        query = SpendQuery(selection=selected, groups=groups, detail=detail)
        await services.flush(FLUSH_SECONDS)
        if format_ == "focus":
            if where:
                raise invalid("where", "FOCUS files are of everything in a period; leave out where.")
            return await _focus(services, selected.start, selected.end, focus_version, team=selected.team)
        rows = await stored(begun(services.reports.spend(query)))
        return Stream(report_pieces(query, rows, format_), media_type=MEDIA_TYPES[format_])

    return spend


async def _focus(services: Services, start: datetime, end: datetime, version: str, *, team: str | None) -> Stream:
    """The period's charges as FOCUS has them, in CSV."""
    account = await stored(services.reports.billing_account(start, end))
    try:
        rows = FocusRows(account, version=version)
    except UnknownVersionError as error:
        raise invalid("focus_version", f"{error}.") from None
    charges = services.reports.charges(start, end, team=team)
    first = await stored(anext(charges, None))
    return Stream(focus_csv(_with_first(first, charges), rows), media_type=MEDIA_TYPES["csv"])


async def _with_first(first: ChargeFact | None, others: AsyncIterator[ChargeFact]) -> AsyncIterator[ChargeFact]:
    if first is not None:
        yield first
        async for fact in others:
            yield fact


def _savings(services: Services) -> HTTPRouteHandler:
    @get(
        "/reports/savings",
        summary="What routing saved against one choice for everything, and what the providers' caches saved",
        guards=readers(services),
    )
    async def savings(
        request: Asked,
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        tz: FromQuery[str] = "UTC",
        model: FromQuery[str | None] = None,
    ) -> Response[bytes]:
        start, end = checked(lambda: period(from_, to, tz, now=services.conductor.clock.now()))
        await services.flush(FLUSH_SECONDS)
        catalogue = services.conductor.configuration.catalogue
        name = None if model is None else catalogue.aliases.get(model, model)
        past = services.reports.past(start, end, model=name, team=who(request).team)
        try:
            report = await stored(counted(past, catalogue, requests_max=services.savings_requests_max))
        except TooManyRequestsError:
            raise invalid(
                "from",
                f"There are more than {services.savings_requests_max:,} requests in this period, more than "
                "a serving gateway counts. Ask for a shorter one, or run `gateway report savings`.",
            ) from None
        return Response(ESTIMATES_AS_NUMBERS.encode(rendered(report, start, end)), media_type=MEDIA_TYPES["json"])

    return savings


def _explain(services: Services) -> HTTPRouteHandler:
    @get(
        "/requests/{request_id:str}",
        summary="One request explained: candidates, attempts, every line of its cost",
        guards=readers(services),
    )
    async def explain(request: Asked, request_id: FromPath[str]) -> Response[bytes]:
        await services.flush(FLUSH_SECONDS)
        explained = found(await stored(services.reports.explain(request_id, team=who(request).team)), request_id)
        shown = with_prices(explained, services.conductor.configuration.catalogue.prices)
        return Response(ESTIMATES_AS_NUMBERS.encode(shown), media_type=MEDIA_TYPES["json"])

    return explain


def _selected(
    services: Services, request: Asked, start: str | None, end: str | None, tz: str, where: list[str] | None
) -> Selection:
    """What is asked for, as far as the caller may see it. Raises RefusedError naming the parameter."""
    begins, ends = checked(lambda: period(start, end, tz, now=services.conductor.clock.now()))
    conditions = checked(lambda: parse_conditions(where or ()))
    return Selection(start=begins, end=ends, timezone=tz, where=conditions, team=who(request).team)
