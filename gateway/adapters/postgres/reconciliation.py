"""A statement is compared with the ledger within one transaction, which sees both at one moment and leaves nothing.

Both sides are tables there, and every step is one statement over all of them: a million lines take no more memory than
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from gateway.adapters.postgres.sql import statement
from gateway.core.alike import paired
from gateway.core.effective_price import LINES_MIN, Hypothesis, PricedLine, Run, priced, runs
from gateway.core.money import Money
from gateway.core.reconciliation import FINDINGS, ClassTotal, Finding, FindingClass, Tokens, Totals
from gateway.core.statement import StatementLine
from gateway.pipeline.ports import StoreUnavailableError

COPIED_AT_ONCE: Final = 500
FETCH_ROWS: Final = 2_000
MARGIN: Final = timedelta(days=1)
"""So far from the period attempts are looked for that lines of the period may be of."""
EARLY_MAX: Final = timedelta(minutes=5)
"""Clocks differ by no more than this, and a line is written no longer than this after its call has ended."""
LAG_MAX: Final = timedelta(hours=2)
"""No call lasts longer."""
UNKNOWN_MARGIN: Final = timedelta(minutes=1)
"""Where no line has a request id, nothing is known of how times compare before lines are matched by them."""
CONNECT_SECONDS_MAX: Final = 5
_SESSION: Final = "SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '64MB'"
_ARCHIVED: Final = "SELECT nullif(archived_until(), '-infinity') AS archived_until"
_LEDGER: Final = "SELECT coalesce(sum(cost_pico), 0) AS cost_pico FROM ours WHERE is_within"
_COPY: Final = "COPY statement_lines FROM STDIN"
_COPY_PAIRS: Final = "COPY pairs FROM STDIN"
_ALL_TELL_CACHED: Final = "SELECT coalesce(bool_and(cached_tokens IS NOT NULL), false) AS told FROM statement_lines"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountTotal:
    """An account's attempts in the period, and how many of them a line stands for."""

    account: str
    attempts: int
    paired: int
    cost: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A price that may be charged, and what it explains: so many of the drifted lines of its run."""

    model: str
    price_id: str
    run: Run
    hypothesis: Hypothesis
    drifted: int
    lines: int
    difference: Money


class Reconciliation:
    """Take the lines, compare, then ask. One use."""

    def __init__(self, db: psycopg.Connection[dict[str, Any]]) -> None:
        self._db = db
        self._streams = 0
        db.execute(_SESSION)
        db.execute(statement("reconcile_tables"))

    def take(self, lines: Iterable[StatementLine]) -> None:
        """The statement's side."""
        with self._db.cursor() as cursor, cursor.copy(_COPY) as copy:
            rows: list[str] = []
            for line in lines:
                rows.append(_copied(line))
                if len(rows) == COPIED_AT_ONCE:
                    copy.write("".join(rows))
                    rows.clear()
            copy.write("".join(rows))
        self._db.execute("ANALYZE statement_lines")

    def compare(
        self,
        start: datetime,
        end: datetime,
        *,
        provider: str,
        account: str | None,
        quantum_pico: int,
        resolution: timedelta,
    ) -> Totals:
        """Finds for every line its attempt, and what became of each."""
        asked: dict[str, Any] = {"start": start, "end": end, "margin": MARGIN, "provider": provider}
        asked |= {"account": account, "quantum": quantum_pico, "resolution": resolution}
        self._db.execute(statement("reconcile_ours"), asked)
        self._db.execute("ANALYZE ours")
        self._db.execute(statement("reconcile_pair_ids"), asked)
        self._db.execute("ANALYZE pairs")
        likely = self._margins(asked) or {"early": UNKNOWN_MARGIN, "lag": LAG_MAX, "late": UNKNOWN_MARGIN}
        self._pair_alike(asked | likely)
        self._db.execute(statement("reconcile_pair_estimates"), asked | likely)
        self._db.execute("ANALYZE pairs")
        known = self._margins(asked) or dict.fromkeys(likely, timedelta())
        self._db.execute(statement("reconcile_compared"), asked | known)
        self._db.execute("ANALYZE compared")
        return self._totals()

    def _margins(self, asked: Mapping[str, Any]) -> dict[str, timedelta]:
        """How times of the two sides compare, learned from the lines whose attempt is known; nothing without any."""
        row = self._one(statement("reconcile_margins"), asked)
        if not row["pairs"]:
            return {}
        return {
            "early": min(row["early"], EARLY_MAX),
            "lag": min(row["lag"], LAG_MAX),
            "late": min(row["late"], EARLY_MAX),
        }

    def _pair_alike(self, asked: Mapping[str, Any]) -> None:
        """Lines without a request id, then those whose id nobody was told."""
        cached = sql.SQL("cached_tokens" if self._one(_ALL_TELL_CACHED)["told"] else "'-'")
        for is_nameless in (True, False):
            values = {**asked, "is_nameless": is_nameless}
            lines = self._stream(_query("reconcile_alike_lines", cached=cached), values)
            attempts = self._stream(_query("reconcile_alike_ours", cached=cached), values)
            found = paired(
                ((row["likeness"], row["at"], row["number"]) for row in lines),
                ((row["likeness"], row["earliest"], row["latest"], row["attempt_id"]) for row in attempts),
            )
            while pairs := list(islice(found, FETCH_ROWS)):
                with self._db.cursor() as cursor, cursor.copy(_COPY_PAIRS) as copy:
                    for number, attempt_id in pairs:
                        copy.write_row((number, attempt_id, "model, tokens and time"))

    def _totals(self) -> Totals:
        rows = self._db.execute(statement("reconcile_totals")).fetchall()
        classes = {
            FindingClass(row["class"]): ClassTotal(
                count=row["count"],
                amount=Money(int(row["amount_pico"])),
                cost=Money(int(row["cost_pico"])),
                estimates=row["estimates"],
                outside=row["outside"],
                outside_cost=Money(int(row["outside_pico"])),
            )
            for row in rows
        }
        return Totals(classes=classes, ledger=Money(int(self._one(_LEDGER)["cost_pico"])))

    def archived_until(self) -> datetime | None:
        """The end of the last month whose rows are no longer in the database."""
        moment: datetime | None = self._one(_ARCHIVED)["archived_until"]
        return moment

    def accounts(self) -> list[AccountTotal]:
        """The ledger's side by account."""
        return [
            AccountTotal(
                account=row["account"],
                attempts=row["attempts"],
                paired=row["paired"],
                cost=Money(int(row["cost_pico"])),
            )
            for row in self._db.execute(statement("reconcile_accounts")).fetchall()
        ]

    def findings(self, *, classes: Iterable[FindingClass] = FINDINGS) -> Iterator[Finding]:
        """Everything that is off, by class and in order of time, as it is read."""
        asked = {"classes": [kind.value for kind in classes]}
        for row in self._stream(statement("reconcile_findings"), asked):
            yield _finding(row)

    def prices(self, quantum_pico: int) -> list[Priced]:
        """What is really charged, wherever one price explains the drifted lines of a time: solved from a sample, and
        held against every line."""
        found: list[Priced] = []
        asked = {"lines_min": LINES_MIN}
        query = statement("reconcile_priced")
        for (model, price_id), lines in _by_price(self._stream(query, asked)):
            for run in runs(lines, quantum_pico):
                found += [
                    Priced(
                        model=model, price_id=price_id, run=part, hypothesis=hypothesis, drifted=0, lines=0,
                        difference=Money(0),
                    )
                    for part, hypothesis in priced(run, quantum_pico)
                ]  # fmt: skip
        return [] if not found else list(_held(found, self._stream(query, asked), quantum_pico))

    def _one(self, query: bytes | str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        row = self._db.execute(query, asked).fetchone()
        assert row is not None
        return row

    def _stream(self, query: bytes | sql.Composed, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        self._streams += 1  # one that was not read to its end is still open
        with self._db.cursor(name=f"stream_{self._streams}") as cursor:
            cursor.itersize = FETCH_ROWS
            yield from cursor.execute(query, asked)


@contextmanager
def reconciling(database_url: str) -> Iterator[Reconciliation]:
    """A reconciliation, whose tables are gone at the end. Raises StoreUnavailableError."""
    try:
        with psycopg.connect(database_url, row_factory=dict_row, connect_timeout=CONNECT_SECONDS_MAX) as db:
            yield Reconciliation(db)
            db.rollback()
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(type(error).__name__) from error


def _held(found: list[Priced], rows: Iterator[dict[str, Any]], quantum_pico: int) -> Iterator[Priced]:
    """Each price with what it explains of every line of its time."""
    for place, lines in _by_price(rows):
        mine = [each for each in found if (each.model, each.price_id) == place]
        counts = [[0, 0, 0] for _ in mine]
        for line in lines:
            for each, count in zip(mine, counts, strict=True):
                if each.run.covers(line.at) and line.is_drifted(quantum_pico):
                    count[0] += 1
                    if each.hypothesis.explains(line, quantum_pico):
                        count[1] += 1
                        count[2] += line.amount_pico - line.cost_pico
        for each, (drifted, explained, difference) in zip(mine, counts, strict=True):
            yield Priced(
                model=each.model, price_id=each.price_id, run=each.run, hypothesis=each.hypothesis, drifted=drifted,
                lines=explained, difference=Money(difference),
            )  # fmt: skip


def _by_price(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Iterator[PricedLine]]]:
    for place, group in groupby(rows, key=lambda row: (row["model"], row["price_id"])):
        yield place, map(_priced_line, group)


def _priced_line(row: Mapping[str, Any]) -> PricedLine:
    tokens = (row["uncached"], row["cached_tokens"], row["cache_write_tokens"], row["output_tokens"])
    return PricedLine(row["at"], tokens, row["amount_pico"], row["cost_pico"])


def _query(name: str, **parts: sql.Composable) -> sql.Composed:
    return sql.SQL(statement(name).decode()).format(**parts)


def _copied(line: StatementLine) -> str:
    """A line in COPY's text form."""
    cells = (
        str(line.number),
        None if line.request_id is None else line.request_id.translate(_ESCAPES),
        None if line.at is None else line.at.isoformat(),
        None if line.model is None else line.model.translate(_ESCAPES),
        line.input_tokens,
        line.cached_tokens,
        line.cache_write_tokens,
        line.output_tokens,
        line.amount_pico,
    )
    return "\t".join([r"\N" if cell is None else str(cell) for cell in cells]) + "\n"


def _finding(row: Mapping[str, Any]) -> Finding:
    names = ("input", "cached", "cache_write", "output")
    return Finding(
        kind=FindingClass(row["class"]),
        line=row["number"],
        line_name=row["line_name"],
        attempt_id=row["attempt_id"],
        matched_by=row["matched_by"],
        request_id=row["request_id"],
        account=row["account"],
        model=row["model"],
        at=row["at"],
        started_at=row["started_at"],
        status=row["status"],
        usage_source=row["usage_source"],
        price_id=row["price_id"],
        is_unattributed=bool(row["is_unattributed"]),
        revision=row["revision"] or 0,
        theirs=Tokens(**{name: row[f"their_{name}_tokens"] for name in names}),
        ours=Tokens(**{name: row[f"{name}_tokens"] for name in names}),
        amount=None if row["amount_pico"] is None else Money(row["amount_pico"]),
        cost=None if row["cost_pico"] is None else Money(row["cost_pico"]),
    )
