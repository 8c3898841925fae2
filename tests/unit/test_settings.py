"""Settings: the documented defaults, secrets from files, refusals that name the mend and never the value."""

import os
import stat
import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.settings import (
    ADMIN_TOKEN_FILE,
    Settings,
    SettingsError,
    admin_token,
    load_settings,
    read_secret,
    refuse_weak_admin_token,
    unknown_variables,
)

STRONG = "k7Qz-2mvXw9_pLrT5yBn"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a developer's `.env`."""
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_the_documented_ones():
    """An empty environment gives one local worker with an embedded database."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert (settings.log_level, settings.log_format) == ("info", "json")
    assert (settings.data_dir, settings.config_dir) == (Path("var"), Path("config"))
    assert (settings.database_url, settings.redis_url, settings.admin_token) == (None, None, None)
    assert settings.is_embedded
    assert settings.migrates_at_start


def test_only_an_embedded_database_migrates_by_itself(monkeypatch: pytest.MonkeyPatch):
    """Somebody else's database is migrated when its owner says so."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgresql://u:pw@db/gateway")
    assert not load_settings().migrates_at_start
    monkeypatch.setenv("GATEWAY_AUTO_MIGRATE", "true")
    assert load_settings().migrates_at_start


def test_the_environment_wins_over_dotenv_and_an_option_over_both(monkeypatch: pytest.MonkeyPatch):
    """`.env` is the weakest, the command line the strongest."""
    Path(".env").write_text("GATEWAY_PORT=1000\nGATEWAY_HOST=10.0.0.1\n")
    monkeypatch.setenv("GATEWAY_PORT", "2000")
    assert (load_settings().port, load_settings().host) == (2000, "10.0.0.1")
    assert load_settings(port=3000).port == 3000


def test_archived_months_are_in_the_data_directory_unless_told(monkeypatch: pytest.MonkeyPatch):
    """A folder of its own, which an empty variable does not name."""
    monkeypatch.setenv("GATEWAY_DATA_DIR", "/data")
    monkeypatch.setenv("GATEWAY_ARCHIVE_DIR", "")
    assert load_settings().archive_folder == Path("/data/archive")
    monkeypatch.setenv("GATEWAY_ARCHIVE_DIR", "/kept")
    assert load_settings().archive_folder == Path("/kept")


def test_an_empty_url_is_an_unset_one(monkeypatch: pytest.MonkeyPatch):
    """Compose passes an unset variable on as an empty one."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "")
    monkeypatch.setenv("GATEWAY_REDIS_URL", "")
    assert load_settings().is_embedded


@pytest.mark.parametrize("where", ["environment", "dotenv"])
def test_secrets_come_from_files_too(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`…_FILE` names a file, whose closing line break does not count."""
    secret = tmp_path / "token"
    secret.write_text(STRONG + "\n")
    if where == "environment":
        monkeypatch.setenv("GATEWAY_ADMIN_TOKEN_FILE", str(secret))
    else:
        Path(".env").write_text(f"GATEWAY_ADMIN_TOKEN_FILE={secret}\n")
    settings = load_settings()
    assert settings.admin_token == SecretStr(STRONG)
    assert STRONG not in repr(settings)


def test_a_secret_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which of the two holds would be a guess."""
    (tmp_path / "token").write_text(STRONG)
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", STRONG)
    with pytest.raises(SettingsError, match="GATEWAY_ADMIN_TOKEN and GATEWAY_ADMIN_TOKEN_FILE are both set"):
        load_settings()


def test_a_missing_secret_file_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A file that was promised and is not there must not become a generated token."""
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN_FILE", "/nonexistent/token")
    with pytest.raises(SettingsError, match=r"named by GATEWAY_ADMIN_TOKEN_FILE, cannot be read: No such file"):
        load_settings()


@pytest.mark.parametrize(
    "token",
    [
        *("", " " * 20, "admin", "changeme", "password", "sk-1234", "Fifteen-chars-x", "a" * 40, "abab" * 5),
        *("changemechangeme", "sk-1234567890abcdef", "your-secret-token-here", "administrator123456"),
        "ADMIN_PASSWORD_1234",
    ],
)
def test_a_weak_admin_token_refuses_to_start(token: str, monkeypatch: pytest.MonkeyPatch):
    """Empty, short and well known ones; the message names the variable and not the token."""
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", token)
    with pytest.raises(SettingsError, match="GATEWAY_ADMIN_TOKEN") as raised:
        load_settings()
    assert not token.strip() or token not in str(raised.value)


def test_a_random_token_is_never_taken_for_a_well_known_one():
    """What the README tells people to generate must be accepted."""
    for length in (8, 12, 16, 32):
        for _ in range(500):
            refuse_weak_admin_token(SecretStr("x9" + os.urandom(length).hex()))


def test_several_workers_need_redis(monkeypatch: pytest.MonkeyPatch):
    """Each worker would keep limits and budgets of its own."""
    monkeypatch.setenv("GATEWAY_WORKERS", "2")
    with pytest.raises(SettingsError, match="Set GATEWAY_REDIS_URL, or GATEWAY_WORKERS=1"):
        load_settings()
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://127.0.0.1/0")
    assert load_settings().workers == 2


def test_every_mistake_is_named_at_once_and_no_value_is_quoted(monkeypatch: pytest.MonkeyPatch):
    """One start tells all that is wrong; a URL with a password in it is not repeated."""
    monkeypatch.setenv("GATEWAY_PORT", "80a")
    monkeypatch.setenv("GATEWAY_LOG_FORMAT", "xml")
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "mysql://user:hidden-word@db/gateway")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    message = str(raised.value)
    assert "GATEWAY_PORT cannot be used. Set it to a port number from 0 to 65535, or unset it." in message
    assert "GATEWAY_LOG_FORMAT cannot be used. Set it to json or console, or unset it." in message
    assert "GATEWAY_DATABASE_URL cannot be used. Set it to a PostgreSQL URL" in message
    assert "hidden-word" not in message


def test_the_generated_token_is_private_and_stays(tmp_path: Path):
    """Mode 0600 from the start, the same at every later start, nothing left lying about."""
    settings = Settings(data_dir=tmp_path / "data")
    token, path = admin_token(settings)
    assert path == (tmp_path / "data" / ADMIN_TOKEN_FILE).resolve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token.get_secret_value()) >= 43
    assert admin_token(settings) == (token, path)
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_start_together_agree_on_the_token(tmp_path: Path):
    """The first one's token holds for all."""
    settings = Settings(data_dir=tmp_path / "data")
    tokens: list[str] = []
    threads = [
        threading.Thread(target=lambda: tokens.append(admin_token(settings)[0].get_secret_value())) for _ in "12345678"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert len(set(tokens)) == 1


def test_a_token_that_is_set_is_not_written_down(tmp_path: Path):
    """The environment's token needs no file."""
    settings = Settings(data_dir=tmp_path / "data", admin_token=SecretStr(STRONG))
    assert admin_token(settings) == (SecretStr(STRONG), None)
    assert not (tmp_path / "data").exists()


def test_a_credential_is_looked_up_where_the_file_says(tmp_path: Path):
    """By variable or by file; absent or empty is None, so that the account is not routable."""
    (tmp_path / "key").write_text("sk-upstream\n")
    environ = {"MOONSHOT_API_KEY": "sk-upstream\n", "EMPTY": ""}
    assert read_secret({"env": "MOONSHOT_API_KEY"}, environ) == SecretStr("sk-upstream")
    assert read_secret({"file": "key"}, environ, base=tmp_path) == SecretStr("sk-upstream")
    assert read_secret({"env": "EMPTY"}, environ) is None
    assert read_secret({"env": "ABSENT"}, environ) is None
    assert read_secret({"file": "absent"}, environ, base=tmp_path) is None


@pytest.mark.parametrize("reference", [{}, {"env": "A", "file": "b"}, {"value": "sk-literal"}])
def test_a_literal_credential_is_refused(reference: dict[str, str]):
    """The message says what it should look like, and does not repeat what it is."""
    with pytest.raises(SettingsError, match=r"env = \"NAME\"") as raised:
        read_secret(reference, {})
    assert "sk-literal" not in str(raised.value)


def test_unknown_variables_are_told_with_the_name_that_was_meant():
    """A misspelt variable is silently without effect otherwise."""
    warnings = unknown_variables({"GATEWAY_DATABSE_URL": "x", "GATEWAY_PORT": "1", "HOME": "/", "GATEWAY_XYZZY": ""})
    assert warnings == [
        "GATEWAY_DATABSE_URL is not a setting of the gateway and has no effect. Did you mean GATEWAY_DATABASE_URL?",
        (
            "GATEWAY_XYZZY is not a setting of the gateway and has no effect. "
            "Remove it, or look up the settings in the README."
        ),
    ]


@pytest.mark.parametrize("url", ["postgresql://u:p%zz-secret@h/db", "postgresql://u:p-secret@h:port/db"])
def test_a_database_url_that_cannot_be_read_is_refused_without_a_word_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a driver says of a URL may quote the password; the setting is named instead."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    with pytest.raises(SettingsError, match="GATEWAY_DATABASE_URL cannot be used") as refused:
        load_settings()
    assert "secret" not in str(refused.value)
