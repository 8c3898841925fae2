"""A FOCUS export is the ledger and nothing else: clean, equal in sum, and of a closed month the same for ever."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.adapters.postgres.archived import ArchivedMonths
from gateway.adapters.postgres.charges import charges
from gateway.adapters.postgres.connections import Connections
from gateway.cli.root import cli
from gateway.core.exchange import AttemptStatus
from gateway.core.focus import ChargeFact
from gateway.core.ledger import LedgerEntry, PinnedPrice
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from tests.focus.checker import check
from tests.focus.samples import exported
from tests.integration.samples import PRICE, T0, entry
from tests.integration.test_reports import ship

pytestmark = pytest.mark.integration

MONTH = datetime(2025, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WITH_WRITING = Price(
    provider="moonshot",
    model="kimi-k2.6",
    effective_from=datetime(2025, 11, 6, tzinfo=UTC),
    input=UnitPrice.from_usd_per_million("0.95"),
    cached_input=UnitPrice.from_usd_per_million("0.16"),
    output=UnitPrice.from_usd_per_million("4"),
    cache_write={"5m": UnitPrice.from_usd_per_million("1.1875"), "1h": UnitPrice.from_usd_per_million("1.9")},
)


def empty(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db, db.transaction():
        db.execute("SET LOCAL gateway.maintenance = 'on'")
        db.execute("TRUNCATE ledger, spend_rollup, spend_groups, journal_offsets")


def charged(url: str, start: datetime, end: datetime, *, team: str | None = None) -> list[ChargeFact]:
    async def scenario() -> list[ChargeFact]:
        connections = Connections(url)
        try:
            return [fact async for fact in charges(connections, ArchivedMonths(None), start, end, team=team)]
        finally:
            await connections.close()

    return asyncio.run(scenario())


def is_clean(facts: Iterable[ChargeFact], entries: Iterable[LedgerEntry]) -> bool:
    """Whether the rows are right, and add up to what the entries cost."""
    header, lines = exported(facts)
    billed = Money(sum(each.cost_pico for each in entries)).usd()
    found = check(header, lines, version="1.2", billed=billed)
    assert found.problems == []
    return True


@st.composite
def ledger_entries(draw: st.DrawFn) -> list[LedgerEntry]:
    """Attempts of every kind, with and without a written cache, and corrections of some of them."""
    entries: list[LedgerEntry] = []
    for number in range(draw(st.integers(0, 10))):
        source = draw(st.sampled_from(UsageSource))
        prompt, completion = draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31))
        price = draw(st.sampled_from([PRICE, WITH_WRITING]))
        used = Usage.from_wire(
            prompt=prompt,
            completion=completion,
            cached=draw(st.none() | st.integers(0, prompt)),
            cache_write=draw(st.integers(0, prompt)),
            reasoning=draw(st.none() | st.integers(0, completion)),
        )
        made = entry(
            number,
            used=NO_USAGE if source is UsageSource.NONE else used,
            source=source,
            status=draw(st.sampled_from(AttemptStatus)),
            is_final=draw(st.booleans()),
            key_id=draw(st.sampled_from(["k1", "k2"])),
            team=draw(st.sampled_from([None, "blue", "red"])),
            tags=draw(st.sampled_from([{}, {"env": "x"}, {"env": "y", "b": "ü"}])),
            provider=price.provider,
            model=price.model,
            price=PinnedPrice.of(price),
            started_at=T0 + timedelta(microseconds=draw(st.integers(-4 * 10**9, 4 * 10**9))),
        )
        if source is not UsageSource.NONE and draw(st.booleans()):
            made = msgspec.structs.replace(made, fee_pico=7, cost_pico=made.cost_pico + 7)
        entries.append(made)
        if source is not UsageSource.NONE and draw(st.booleans()):
            entries.extend(corrections(made, restates=draw(st.booleans()), amount=draw(st.integers(-(10**9), 10**9))))
    return entries


def corrections(of: LedgerEntry, *, restates: bool, amount: int) -> list[LedgerEntry]:
    """The reversal of an entry, an hour later where it restates what was closed, and an amount besides."""
    common: dict[str, Any] = {"is_final": False, "corrects": of.attempt_id, "correction_id": "cor_1"}
    if restates:
        common |= {"started_at": of.started_at + timedelta(hours=1), "restates": of.started_at}
    negated = {
        name: -(getattr(of, name) or 0)
        for name in (
            *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
            *("input_pico", "cached_pico", "cache_write_pico", "output_pico", "fee_pico", "cost_pico", "list_pico"),
        )
    }
    nothing = dict.fromkeys(negated, 0) | {"fee_pico": amount, "cost_pico": amount, "list_pico": amount}
    return [
        msgspec.structs.replace(of, attempt_id=f"{of.attempt_id}~1-", **negated, **common),
        msgspec.structs.replace(of, attempt_id=f"{of.attempt_id}~2=", **nothing, **common),
    ]


@settings(max_examples=40, deadline=None)
@given(entries=ledger_entries(), begin=st.integers(-5 * 10**9, 5 * 10**9), length=st.sampled_from([10**9, 10**10]))
def test_any_ledger_is_exported_clean_and_whole(
    module_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[LedgerEntry],
    begin: int,
    length: int,
) -> None:
    """L1, L5: for any rows and bounds, ragged or not, the checker finds nothing, and the sums are equal."""
    empty(module_database_url)
    ship(module_database_url, tmp_path_factory.mktemp("journals"), *entries)
    start = T0 + timedelta(microseconds=begin)
    end = start + timedelta(microseconds=length)
    assert is_clean(
        charged(module_database_url, start, end), [each for each in entries if start <= each.started_at < end]
    )


def test_charges_by_hand(database_url: str, tmp_path: Path) -> None:
    """Attempts of one hour are one charge per class; estimated and failed ones are told apart in it."""
    ship(
        database_url,
        tmp_path,
        entry(1),
        entry(2, source=UsageSource.ESTIMATED, status=AttemptStatus.FAILED, is_final=False),
        entry(3, started_at=T0 + timedelta(hours=1)),
        entry(4, used=NO_USAGE, source=UsageSource.NONE, status=AttemptStatus.FAILED),
    )
    found = charged(database_url, MONTH, MONTH + 30 * DAY)
    assert [(each.hour, each.token_class, each.unit_pico, each.tokens) for each in found] == [
        (T0, "input", 556_000, 800),
        (T0, "cached_input", 139_000, 1_200),
        (T0, "output", 2_222_000, 400),
        (T0 + timedelta(hours=1), "input", 556_000, 400),
        (T0 + timedelta(hours=1), "cached_input", 139_000, 600),
        (T0 + timedelta(hours=1), "output", 2_222_000, 200),
    ]
    output = found[2]
    assert (output.requests, output.estimated_tokens, output.reasoning_tokens) == (1, 200, 100)
    assert output.failed_pico == 200 * 2_222_000
    assert output.price_id == PRICE.price_id


def test_of_one_team(database_url: str, tmp_path: Path) -> None:
    """Who may see one team gets its charges alone."""
    ship(database_url, tmp_path, entry(1, team="blue"), entry(2, team="red"), entry(3, team=None))
    assert {each.team for each in charged(database_url, T0 - DAY, T0 + DAY, team="red")} == {"red"}


def test_more_rows_than_one_fetch_in_one_order(database_url: str, tmp_path: Path) -> None:
    """Thousands of charges over several days, each once, by hour, key, provider, model and class."""
    entries = [
        entry(number, key_id=f"key_{number % 700:03}", started_at=T0 + timedelta(minutes=2 * number))
        for number in range(1_500)
    ]
    ship(database_url, tmp_path, *entries)
    found = charged(database_url, MONTH, MONTH + 60 * DAY)
    assert len(found) == 4_500
    assert is_clean(found, entries)
    order = ("input", "cached_input", "cache_write", "output", "fee")
    keys = [(each.hour, each.key_id, order.index(each.token_class)) for each in found]
    assert keys == sorted(keys)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def booked(database_url: str, tmp_path: Path) -> str:
    """A database with some rows of November and one of December."""
    rows = [entry(number, started_at=MONTH + timedelta(hours=13 * number)) for number in range(40)]
    ship(database_url, tmp_path / "journals", *rows, entry(99, started_at=MONTH + 31 * DAY))
    return database_url


def run(url: str, folder: Path, *arguments: str, status: int = 0) -> Result:
    environment = {"GATEWAY_DATABASE_URL": url, "GATEWAY_DATA_DIR": str(folder / "data")}
    done = CliRunner().invoke(cli, ["report", *arguments], env=environment)
    assert done.exit_code == status, done.output
    return done


def november(url: str, folder: Path, *options: str) -> dict[str, Any]:
    """Exports November into a folder; what the command says of it."""
    told = run(url, folder.parent, "focus", "--month", "2025-11", "--output", str(folder), "--json", *options).stdout
    said: dict[str, Any] = json.loads(told)
    return said


def close(url: str, focus_sha256: bytes) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            """
            INSERT INTO ledger_closings
                (month, closed_at, closed_by, reason, organisation_name, rows, cost_pico, ledger_sha256, focus_sha256)
            VALUES ('2025-11-01', '2025-12-02T08:00:00Z', 'finance', 'month end', 'As it was', 40, 0, %s, %s)
            """,
            (bytes(32), focus_sha256),
        )


def renamed(url: str, name: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE organisation SET name = %s", (name,))


def test_a_month_is_exported(booked: str, tmp_path: Path) -> None:
    """Both formats, metadata and checksums under the month's name; what is printed is what is in them."""
    found = november(booked, tmp_path / "out", "--format", "both")
    names = ["focus-1.2-2025-11.csv", "focus-1.2-2025-11.parquet", "focus-1.2-2025-11.metadata.json"]
    assert [Path(each["path"]).name for each in found["files"]] == names
    for each in found["files"]:
        assert each["sha256"] == hashlib.sha256(Path(each["path"]).read_bytes()).hexdigest()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["SHA256SUMS", *sorted(names)]
    assert (found["rows"], found["state"], found["focus_version"]) == (120, "open", "1.2")
    assert Decimal(found["billed_cost"]) == 40 * Decimal("0.0007502")
    assert found["matches_closing"] is None
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / names[0]).read_text(), newline="")))
    assert sum(Decimal(line["BilledCost"]) for line in lines) == Decimal(found["billed_cost"])
    done = run(booked, tmp_path, "focus", "--month", "2025-11", "--output", str(tmp_path / "out"))
    assert "120 rows, BilledCost 0.030008 USD" in done.stdout


def test_a_closed_month_is_exported_as_it_was_closed(booked: str, tmp_path: Path) -> None:
    """Under the name that it was closed with and dated then, byte for byte, whatever has happened since."""
    renamed(booked, "As it was")
    first = november(booked, tmp_path / "a")
    close(booked, bytes.fromhex(first["files"][0]["sha256"]))
    renamed(booked, "As it is now")
    for folder in ("b", "c"):
        again = november(booked, tmp_path / folder)
        assert (again["state"], again["matches_closing"]) == ("closed", True)
    csv_name, metadata_name = "focus-1.2-2025-11.csv", "focus-1.2-2025-11.metadata.json"
    assert (tmp_path / "c" / csv_name).read_bytes() == (tmp_path / "a" / csv_name).read_bytes()
    assert (tmp_path / "c" / metadata_name).read_bytes() == (tmp_path / "b" / metadata_name).read_bytes()
    assert json.loads((tmp_path / "c" / metadata_name).read_text())["CreationDate"] == "2025-12-02T08:00:00Z"
    streamed = run(
        booked, tmp_path, "spend", "--format", "focus", "--from", "2025-11-01", "--to", "2025-12-01"
    ).stdout_bytes
    assert streamed == (tmp_path / "a" / csv_name).read_bytes()


def test_a_closed_month_that_differs_is_told(booked: str, tmp_path: Path) -> None:
    """A file that is not the one that was signed ends with status 1, and says so."""
    close(booked, bytes(32))
    done = run(booked, tmp_path, "focus", "--month", "2025-11", "--output", str(tmp_path / "out"), status=1)
    assert "not the file that the month was closed with" in done.stderr


def test_another_period_has_its_ends_in_its_name(booked: str, tmp_path: Path) -> None:
    """Days by their dates, a ragged period by its moments; the draft by its version, marked as one."""
    options = ("--output", str(tmp_path / "out"), "--focus-version", "1.5")
    days = run(booked, tmp_path, "focus", "--from", "2025-11-01", "--to", "2025-11-08", *options)
    assert "FOCUS 1.5 (draft)" in days.stdout
    run(booked, tmp_path, "focus", "--from", "2025-11-01T00:30:00Z", "--to", "2025-11-08", *options)
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {
        "focus-1.5-2025-11-01_2025-11-08.csv",
        "focus-1.5-2025-11-01T003000Z_2025-11-08T000000Z.csv",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("focus", "--month", "2025-13"),
        ("focus", "--month", "November"),
        ("focus", "--month", "2025-11", "--from", "2025-11-02"),
        ("focus", "--focus-version", "1.1"),
        ("focus", "--format", "xml"),
        ("spend", "--format", "focus", "--focus-version", "2"),
    ],
)
def test_bad_usage(database_url: str, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What is wrong with an option ends with status 2; an unknown version names the known ones."""
    output = ("--output", str(tmp_path)) if arguments[0] == "focus" else ()
    done = run(database_url, tmp_path, *arguments, *output, status=2)
    if "--focus-version" in arguments:
        assert "'1.2', '1.3', '1.4', '1.5'" in done.stderr


def test_a_folder_that_cannot_be_written(booked: str, tmp_path: Path) -> None:
    """It is told in a line, with status 1."""
    (tmp_path / "file").write_text("")
    done = run(booked, tmp_path, "focus", "--month", "2025-11", "--output", str(tmp_path / "file" / "x"), status=1)
    assert "cannot be written" in done.stderr
