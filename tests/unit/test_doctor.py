"""`gateway doctor` says of each thing whether it is well, how to mend it, and never a secret."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest
import redis
from click.testing import CliRunner

from gateway.adapters.postgres.schema import downgrade
from gateway.catalog import FILES, load
from gateway.cli.doctor import check_clock, doctor
from gateway.cli.examination import Check, Examination
from gateway.cli.model_checks import check_models
from gateway.cli.root import cli

CONFIG = Path(__file__).resolve().parents[2] / "config"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
STRONG = "k7Qz-2mvXw9_pLrT5yBn"
CREDENTIALS = {
    "MOONSHOT_API_KEY": "sk-very-private-m",
    "COMETAPI_KEY": "sk-private-c",
    "EVOLINK_API_KEY": "sk-private-e",
}
NOTHING = dict.fromkeys(("MOONSHOT_API_KEY", "COMETAPI_KEY", "EVOLINK_API_KEY"), "")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a developer's `.env`."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, status: int, config: Path = CONFIG, **variables: str) -> list[Check]:
    """The checks of one run, of which the status is expected."""
    command = ["doctor", "--json", "--config", str(config), *arguments]
    result = CliRunner().invoke(cli, command, env={**NOTHING, **variables}, catch_exceptions=False)
    assert result.exit_code == status, result.output
    document = json.loads(result.stdout)
    assert set(document) == {"checks", "status"}
    checks = [Check(**check) for check in document["checks"]]
    worst = {check.status for check in checks}
    assert document["status"] == ("fail" if "fail" in worst else "warn" if "warn" in worst else "ok")
    assert all((check.mend is None) == (check.status == "ok") for check in checks)
    return checks


def of(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def only(checks: list[Check], name: str) -> Check:
    found = of(checks, name)
    assert len(found) == 1, found
    return found[0]


def edited(folder: Path, *edits: tuple[str, str]) -> Path:
    """The shipped configuration with some texts replaced."""
    target = folder / "edited"
    target.mkdir(exist_ok=True)
    for name in FILES:
        text = (CONFIG / name).read_text(encoding="utf-8")
        for old, new in edits:
            text = text.replace(old, new)
        (target / name).write_text(text, encoding="utf-8")
    return target


# --- a healthy house


def test_a_migrated_database_and_all_credentials_have_no_failure(database_url: str) -> None:
    """The shipped configuration warns of old prices and reported retirements; nothing fails."""
    checks = run(status=0, GATEWAY_DATABASE_URL=database_url, GATEWAY_ADMIN_TOKEN=STRONG, **CREDENTIALS)
    assert {check.name for check in checks if check.status == "ok"} >= {
        *("settings", "admin_token", "data_dir", "database", "schema", "ledger", "journal", "clock", "redis"),
        *("credential", "budgets", "alerts"),
    }
    assert {check.name for check in checks if check.status == "warn"} <= {"config", "prices", "models"}


def test_it_creates_nothing(tmp_path: Path) -> None:
    """A look at a fresh checkout leaves neither a database nor a token behind."""
    checks = run(status=0, **CREDENTIALS)
    assert list(tmp_path.iterdir()) == []
    assert "embedded" in only(checks, "database").message
    assert only(checks, "admin_token").status == "ok"


def test_plain_text_has_a_line_for_each_check_and_its_mend() -> None:
    """Without --json: status, name, message; the mend below; a count at the end."""
    result = CliRunner().invoke(doctor, ["--config", str(CONFIG)], env={**NOTHING, "MOONSHOT_API_KEY": "sk-only-m"})
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "warn  credential   evolink (main) has none: EVOLINK_API_KEY is not set, or empty." in result.output
    assert "Mend: Set EVOLINK_API_KEY" in result.output
    assert result.output.splitlines()[-1].startswith("ok: ")


# --- settings, configuration, token, disk


def test_a_weak_admin_token_fails_and_the_rest_is_looked_at() -> None:
    """The variable is named, its value is not."""
    checks = run(status=1, GATEWAY_ADMIN_TOKEN="changeme", **CREDENTIALS)
    assert only(checks, "admin_token").status == "fail"
    assert "GATEWAY_ADMIN_TOKEN" in only(checks, "admin_token").message
    assert of(checks, "credential")
    assert "changeme" not in repr(checks)


def test_settings_that_cannot_be_used_are_all_there_is_to_say() -> None:
    """Without settings nobody knows what to look at."""
    checks = run(status=1, GATEWAY_PORT="http", **CREDENTIALS)
    assert [(check.name, check.status) for check in checks] == [("settings", "fail")]
    assert "GATEWAY_PORT" in checks[0].message


def test_a_variable_that_means_nothing_is_a_warning() -> None:
    """A slip of the pen is seen, with the name that was meant."""
    check = only(run(status=0, GATEWAY_RPORT="80", **CREDENTIALS), "settings")
    assert check.status == "warn"
    assert "GATEWAY_PORT" in check.message


def test_every_error_of_the_configuration_is_told(tmp_path: Path) -> None:
    """Two mistakes in two files are two lines, each with file, line and mend."""
    config = edited(
        tmp_path, ('dialect     = "moonshot"', 'dialect     = "moon"'), ('output         = "2.222"', 'output = "-1"')
    )
    checks = run(status=1, config=config, **CREDENTIALS)
    failed = [check for check in of(checks, "config") if check.status == "fail"]
    assert {check.message.split(":")[0].rpartition("/")[2] for check in failed} == {"providers.toml", "prices.toml"}
    assert all(check.mend for check in failed)
    assert not of(checks, "credential"), "nothing is known of credentials without a configuration"


@pytest.mark.parametrize(
    ("content", "mode", "status"),
    [(STRONG, 0o600, "ok"), (STRONG, 0o644, "warn"), ("password1234567890", 0o600, "fail"), ("", 0o600, "fail")],
)
def test_the_token_file_is_strong_and_private(tmp_path: Path, content: str, mode: int, status: str) -> None:
    """What the first start wrote is looked at as hard as the variable."""
    path = tmp_path / "var" / "admin-token"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    checks = run(status=int(status == "fail"), **CREDENTIALS)
    assert only(checks, "admin_token").status == status
    assert not content or content not in repr(checks)


@pytest.mark.parametrize(
    ("token", "said"), [(STRONG, "with this GATEWAY_ADMIN_TOKEN"), ("", "once GATEWAY_ADMIN_TOKEN")]
)
def test_what_replicas_share_depends_on_the_token(token: str, said: str) -> None:
    """With Redis it is said whether other hosts know the same conversations; without, there are none."""
    checks = run(status=1, GATEWAY_REDIS_URL="redis://127.0.0.1:1/0", GATEWAY_ADMIN_TOKEN=token, **CREDENTIALS)
    assert said in only(checks, "replicas").message
    assert not of(run(status=0, **CREDENTIALS), "replicas")


def test_a_data_directory_that_takes_no_files_fails(tmp_path: Path) -> None:
    """A file where the folder should be stops the journal, and so does it here."""
    (tmp_path / "occupied").write_text("", encoding="utf-8")
    checks = run(status=1, GATEWAY_DATA_DIR="occupied", **CREDENTIALS)
    assert only(checks, "data_dir").status == "fail"
    assert "GATEWAY_DATA_DIR" in (only(checks, "data_dir").mend or "")


# --- database and Redis


def test_a_database_that_is_away_fails_without_its_password() -> None:
    """The reason is told; the URL is not."""
    url = "postgresql://gateway:very-private-word@127.0.0.1:1/gateway"
    checks = run(status=1, GATEWAY_DATABASE_URL=url, **CREDENTIALS)
    assert only(checks, "database").status == "fail"
    assert "cannot be reached" in only(checks, "database").message
    assert "very-private-word" not in repr(checks)


@pytest.mark.parametrize(
    "url", ["postgresql://g:very-private-word@h:port/g", "postgresql://g:%zzvery-private-word@[::1/g"]
)
def test_a_database_url_that_is_none_fails_without_a_trace(url: str) -> None:
    """What a parser says of it may quote it, so only its kind is told."""
    checks = run(status=1, GATEWAY_DATABASE_URL=url, **CREDENTIALS)
    assert only(checks, "settings").status == "fail"
    assert "very-private-word" not in repr(checks)


def test_an_older_schema_fails_where_nobody_migrates_it(postgres_url: str) -> None:
    """`gateway migrate` is the mend, or the next start where that is allowed to."""
    downgrade(postgres_url, "base")
    checks = run(status=1, GATEWAY_DATABASE_URL=postgres_url, **CREDENTIALS)
    assert only(checks, "schema").status == "fail"
    assert "gateway migrate" in (only(checks, "schema").mend or "")
    allowed = run(status=0, GATEWAY_DATABASE_URL=postgres_url, GATEWAY_AUTO_MIGRATE="true", **CREDENTIALS)
    assert only(allowed, "schema").status == "warn"


def add_alert(db: psycopg.Connection, *, age: str, delivered: bool = False, error: str | None = None) -> None:
    db.execute(
        """
        INSERT INTO budget_alerts (budget_id, scope, name, period, mode, limit_pico, first_day, time_zone, share,
            spent_pico, raised_at, last_error, delivered_at, delivered_by)
        SELECT gen_random_uuid(), 'organisation', 'organisation', 'day', 'soft', 1, current_date, 'UTC', 80, 1,
            now() - %(age)s::interval, %(error)s, now_or_never, 'log' || now_or_never::text
        FROM (SELECT CASE WHEN %(delivered)s THEN now() END AS now_or_never) AS moments
        """,
        {"age": age, "error": error, "delivered": delivered},
    )


def test_alerts_that_nobody_got_are_a_warning(database_url: str) -> None:
    """One that waits for a few seconds is on its way; one of last month is history."""
    with psycopg.connect(database_url, autocommit=True) as db:
        add_alert(db, age="1 minute")
        add_alert(db, age="1 hour", delivered=True)
        add_alert(db, age="30 days")
        assert only(run(status=0, GATEWAY_DATABASE_URL=database_url, **CREDENTIALS), "alerts").status == "ok"
        add_alert(db, age="2 hours", error="HTTP 500")
        add_alert(db, age="1 hour", error="HTTP 502")
    check = only(run(status=0, GATEWAY_DATABASE_URL=database_url, **CREDENTIALS), "alerts")
    assert (check.status, check.message) == (
        "warn",
        "2 budget alerts were not delivered within 5 minutes (HTTP 502).",
    )
    assert "GATEWAY_ALERT_WEBHOOK_URL" in (check.mend or "")


def test_a_budget_that_is_used_up_is_a_warning(database_url: str) -> None:
    """In its present window, by the organisation's days; what was spent before does not count."""
    today = datetime.now(ZoneInfo("Pacific/Auckland")).date()
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("UPDATE organisation SET time_zone = 'Pacific/Auckland'")
        add = "INSERT INTO budgets (scope, period, limit_pico) VALUES (%s, 'day', 1000000000000)"
        spend = (
            "INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows) "
            "VALUES (%s, %s, 'j1', 999999999999, 1)"
        )
        for scope, day in (("team:old", today - timedelta(days=1)), ("team:blue", today)):
            db.execute(add, [scope])
            db.execute(spend, [scope, day])
        check = only(run(status=0, GATEWAY_DATABASE_URL=database_url, **CREDENTIALS), "budgets")
        assert (check.status, check.message) == ("ok", "None of 2 budgets is used up.")
        db.execute("UPDATE budget_postings SET posted_pico = 1500000000000")
    check = only(run(status=0, GATEWAY_DATABASE_URL=database_url, **CREDENTIALS), "budgets")
    assert (check.status, check.message) == ("warn", "Used up: team:blue ($1.5 of $1 today).")


def test_a_webhook_is_kept_out_of_what_is_said(database_url: str) -> None:
    """An address may be a secret as much as the secret is, also where the database repeats it."""
    url, secret = "https://hooks.example/T0/very-private", "k7Qz-2mvXw9_pLrT5yBn"
    with psycopg.connect(database_url, autocommit=True) as db:
        add_alert(db, age="1 hour", error=f"{url} {secret}")
    webhook = {"GATEWAY_ALERT_WEBHOOK_URL": url, "GATEWAY_ALERT_WEBHOOK_SECRET": secret}
    checks = run(status=0, GATEWAY_DATABASE_URL=database_url, **webhook, **CREDENTIALS)
    assert only(checks, "alerts").message.endswith("([redacted] [redacted]).")


def test_records_that_were_set_aside_fail(database_url: str) -> None:
    """Money may be in them, so nobody may overlook them."""
    with psycopg.connect(database_url) as db:
        db.execute(
            "INSERT INTO ledger_dead_letters (journal_id, segment, byte_offset, payload, reason) "
            "VALUES ('j', 1, 0, 'x', 'unreadable')"
        )
    checks = run(status=1, GATEWAY_DATABASE_URL=database_url, **CREDENTIALS)
    assert "1 records were set aside" in only(checks, "ledger").message


def test_redis_answers_or_fails(redis_url: str) -> None:
    """One that is configured has to answer; the password of one that does not is not told."""
    assert only(run(status=0, GATEWAY_REDIS_URL=redis_url, **CREDENTIALS), "redis").message == "Redis answers."
    checks = run(status=1, GATEWAY_REDIS_URL="redis://:very-private-word@127.0.0.1:1/0", **CREDENTIALS)
    assert only(checks, "redis").status == "fail"
    assert "very-private-word" not in repr(checks)


def test_a_redis_that_throws_things_away_is_a_warning(redis_url: str) -> None:
    """What is held must not be evicted: a full Redis refuses, or has no bound."""
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 100_000_000)
        try:
            assert only(run(status=0, GATEWAY_REDIS_URL=redis_url, **CREDENTIALS), "redis").status == "ok"
            client.config_set("maxmemory-policy", "volatile-lru")
            told = only(run(status=0, GATEWAY_REDIS_URL=redis_url, **CREDENTIALS), "redis")
            assert told.status == "warn"
            assert "noeviction" in told.mend
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(("ahead", "status"), [(0.4, "ok"), (-3.0, "warn"), (75.0, "fail"), (None, "ok")])
def test_the_clock_is_compared_with_the_databases(ahead: float | None, status: str) -> None:
    """Seconds do not matter, minutes do."""
    found = Examination()
    check_clock(found, now=NOW, ahead_seconds=ahead)
    assert [check.status for check in found.checks] == [status]


def test_a_year_that_cannot_be_fails() -> None:
    """A machine without a battery wakes up in 1970."""
    found = Examination()
    check_clock(found, now=datetime(1970, 1, 1, tzinfo=UTC), ahead_seconds=0.0)
    assert found.status == "fail"


# --- credentials, prices, models


def test_no_credential_at_all_fails() -> None:
    """One provider without its key is a warning; none with one routes nothing."""
    checks = run(status=1)
    assert [check.status for check in of(checks, "credential")] == ["warn", "warn", "warn", "fail"]


def test_a_credential_may_come_from_a_file_and_must_fit_a_header(tmp_path: Path) -> None:
    """A relative file starts from the configuration's folder; a key with a blank in it was copied badly."""
    config = edited(tmp_path, ('{ env = "MOONSHOT_API_KEY" }', '{ file = "moonshot.key" }'))
    (config / "moonshot.key").write_text("sk-from a file\n", encoding="utf-8")
    checks = run(status=1, config=config, COMETAPI_KEY="sk-private-c")
    assert {check.status for check in of(checks, "credential") if "moonshot" in check.message} == {"fail"}
    (config / "moonshot.key").write_text("sk-from-a-file\n", encoding="utf-8")
    checks = run(status=0, config=config, COMETAPI_KEY="sk-private-c")
    assert {check.status for check in of(checks, "credential") if "moonshot" in check.message} == {"ok"}
    assert "sk-from-a-file" not in repr(checks)


def test_a_stale_price_is_a_warning_with_file_and_line() -> None:
    """The shipped aggregator prices are older than half a year."""
    stale = of(run(status=0, **CREDENTIALS), "prices")
    assert {check.status for check in stale} == {"warn"}
    assert any("cometapi kimi-k2-thinking: the price was last checked" in check.message for check in stale)


def test_a_retired_model_names_its_successor_and_the_difference() -> None:
    """What moving on costs is a part of the warning, and the configuration's own words are not repeated."""
    found = Examination()
    check_models(found, load(CONFIG, now=NOW).catalogue, now=NOW)
    said = next(check.message for check in found.checks if "moonshot kimi-k2-thinking is" in check.message)
    assert "reported retired since 2026-05-25" in said
    assert "kimi-k2.6 at moonshot costs, per 1M tokens, input $0.95 instead of $0.6 (+58.3 %)" in said
    assert "output $4 instead of $2.5 (+60.0 %)" in said
    checks = run(status=0, **CREDENTIALS)
    assert not any("retired" in check.message for check in of(checks, "config"))


def test_a_model_that_is_certainly_gone_says_so(tmp_path: Path) -> None:
    """A date that has passed is not a report any more."""
    config = edited(tmp_path, ("retirement_reported = 2026-05-25", "available_until = 2026-05-25"))
    found = Examination()
    check_models(found, load(config, now=NOW).catalogue, now=NOW)
    said = next(check for check in found.checks if "moonshot kimi-k2-thinking " in check.message)
    assert "not routed since 2026-05-25" in said.message
    assert said.mend == "Move callers to kimi-k2.6, then take the model out of providers.toml."


# --- online


class Provider(BaseHTTPRequestHandler):
    """Answers every request with what the test has put into its server."""

    def do_GET(self) -> None:
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.server.seen.append((self.path, self.headers.get("authorization")))  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@contextlib.contextmanager
def provider(status: int, body: bytes = b"", **headers: str) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Provider)
    server.answer = (status, headers, body)  # type: ignore[attr-defined]
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def moonshot_alone(tmp_path: Path) -> Callable[[int], Path]:
    """A configuration whose only provider is on that port, with two models."""

    def at(port: int) -> Path:
        folder = tmp_path / "one"
        folder.mkdir(exist_ok=True)
        (folder / "providers.toml").write_text(
            f"""
[providers.moonshot]
dialect = "moonshot"
base_url = "http://127.0.0.1:{port}/v1"
[[providers.moonshot.accounts]]
name = "main"
api_key = {{ env = "MOONSHOT_API_KEY" }}
[providers.moonshot.models.kimi-k2-thinking]
context = 262_144
[providers.moonshot.models."kimi-k2.6"]
context = 262_144
""",
            encoding="utf-8",
        )
        (folder / "models.toml").write_text('[models.kimi-k2-thinking]\n[models."kimi-k2.6"]\n', encoding="utf-8")
        (folder / "prices.toml").write_text("", encoding="utf-8")
        return folder

    return at


LIST = b'{"object":"list","data":[{"id":"kimi-k2.6"},{"id":"kimi-k2-thinking"}]}'
WITHOUT = b'{"object":"list","data":[{"id":"kimi-k2.6"}]}'


@pytest.mark.parametrize(
    ("answer", "headers", "status", "words"),
    [
        ((200, LIST), {}, "ok", "lists every model"),
        ((200, WITHOUT), {}, "warn", "does not list kimi-k2-thinking"),
        ((200, b"<html>"), {}, "warn", "not a list of models"),
        ((404, b""), {}, "warn", "HTTP 404"),
        ((401, b'{"error":{"message":"sk-very-private-m is wrong"}}'), {}, "fail", "refuses the credential"),
        ((302, b""), {"location": "http://127.0.0.1:1/elsewhere"}, "fail", "redirect"),
    ],
)
def test_online_asks_each_provider_once(
    moonshot_alone: Callable[[int], Path],
    answer: tuple[int, bytes],
    headers: dict[str, str],
    status: str,
    words: str,
) -> None:
    """One free call with the credential; a redirect is not followed and the answer's words are not shown."""
    with provider(*answer, **headers) as server:
        config = moonshot_alone(server.server_port)
        checks = run(
            "--online", status=int(status == "fail"), config=config, MOONSHOT_API_KEY=CREDENTIALS["MOONSHOT_API_KEY"]
        )
        assert server.seen == [("/v1/models", "Bearer sk-very-private-m")]  # type: ignore[attr-defined]
    assert only(checks, "online").status == status
    assert words in only(checks, "online").message
    assert "sk-very-private-m" not in repr(checks)


def test_online_an_unreachable_provider_fails(moonshot_alone: Callable[[int], Path]) -> None:
    """Nobody listens there; without --online nobody would have asked."""
    config = moonshot_alone(1)
    assert not of(run(status=0, config=config, MOONSHOT_API_KEY="sk-very-private-m"), "online")
    checks = run("--online", status=1, config=config, MOONSHOT_API_KEY="sk-very-private-m")
    assert "cannot be reached" in only(checks, "online").message


def test_whatever_is_said_no_secret_is_in_it() -> None:
    """The last guard: a secret that was read is cleared from every text."""
    found = Examination()
    found.keep_out("very-private-word")
    found.fail("redis", "no such host very-private-word@h", "try very-private-word")
    assert "very-private-word" not in repr(found.cleared())
