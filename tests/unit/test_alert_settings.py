"""Where alerts go is https or this machine, and nothing goes there unsigned."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.adapters.clock import SystemClock
from gateway.adapters.webhook import LogTeller, WebhookTeller
from gateway.app import alert_teller
from gateway.settings import Settings, SettingsError, load_settings, unknown_variables

STRONG = "k7Qz-2mvXw9_pLrT5yBn"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a developer's `.env`."""
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"GATEWAY_ALERT_WEBHOOK_{name}", value)
    return load_settings()


@pytest.mark.parametrize(
    "url",
    [
        *("https://hooks.example/T0/B0?sig=x", "https://10.0.0.7:8443/", "http://127.0.0.1:9000/a"),
        *("http://localhost/a", "http://alerts.localhost/", "http://[::1]:9000/"),
    ],
)
def test_an_address_that_alerts_may_go_to(url: str, monkeypatch: pytest.MonkeyPatch):
    """https anywhere, http on this machine; and it is as secret as its path may be."""
    settings = load(monkeypatch, URL=url, SECRET=STRONG)
    assert settings.alert_webhook_url == SecretStr(url)
    assert url not in repr(settings)
    assert isinstance(alert_teller(settings, SystemClock()), WebhookTeller)


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example/private", "http://10.0.0.7/private", "http://127.0.0.1.example/private"),
        *("ftp://hooks.example/private", "hooks.example/private", "https:///private", "https://h:port/private"),
        *("https://user:private@hooks.example/", "https://hooks.example/#private", "https://hooks.example/pri vate"),
        "http://localhost@hooks.example/private",
    ],
)
def test_an_address_that_alerts_may_not_go_to(url: str, monkeypatch: pytest.MonkeyPatch):
    """The variable is named, its value is not quoted."""
    with pytest.raises(SettingsError, match="GATEWAY_ALERT_WEBHOOK_URL cannot be used") as raised:
        load(monkeypatch, URL=url, SECRET=STRONG)
    assert "private" not in str(raised.value)


@pytest.mark.parametrize("secret", [None, "", "sh0rt", "changemechangeme", "a" * 40])
def test_an_address_without_a_good_secret_refuses_to_start(secret: str | None, monkeypatch: pytest.MonkeyPatch):
    """An empty secret would let anybody sign."""
    variables = {} if secret is None else {"SECRET": secret}
    with pytest.raises(SettingsError, match="GATEWAY_ALERT_WEBHOOK_SECRET is") as raised:
        load(monkeypatch, URL="https://hooks.example/", **variables)
    assert not secret or secret not in str(raised.value)


def test_both_come_from_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`…_FILE` names them, and is a setting that is known."""
    (tmp_path / "url").write_text("https://hooks.example/x\n")
    (tmp_path / "secret").write_text(STRONG + "\n")
    files = {"URL_FILE": str(tmp_path / "url"), "SECRET_FILE": str(tmp_path / "secret")}
    settings = load(monkeypatch, **files)
    assert settings.alert_webhook_url == SecretStr("https://hooks.example/x")
    assert settings.alert_webhook_secret == SecretStr(STRONG)
    assert unknown_variables({f"GATEWAY_ALERT_WEBHOOK_{name}": value for name, value in files.items()}) == []


def test_without_an_address_alerts_go_to_the_log(monkeypatch: pytest.MonkeyPatch):
    """Empty is unset, as Compose passes it on."""
    settings = load(monkeypatch, URL="", SECRET="")
    assert (settings.alert_webhook_url, settings.alert_webhook_secret) == (None, None)
    assert isinstance(alert_teller(settings, SystemClock()), LogTeller)
