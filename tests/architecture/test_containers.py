"""What an operator deploys: pinned images, health checks, no secret in a file, and never root."""

import re
from pathlib import Path

import pytest
import yaml

from gateway.settings import SECRET_FIELDS, Settings, unknown_variables

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction, with continued lines joined."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_compose_has_the_three_services():
    """The gateway, the database and the shared state; nothing else."""
    assert set(COMPOSE["services"]) == {"gateway", "postgres", "valkey"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_pinned_watched_and_restarted(name: str):
    """No `latest`, a health check with bounds, and a restart after a crash."""
    service = COMPOSE["services"][name]
    tag = service["image"].rpartition(":")[2]
    assert re.match(r"\d", tag), f"{service['image']} is not pinned to a version"
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"


def test_the_gateway_waits_for_healthy_servers():
    """A container that has started is not a server that answers."""
    conditions = {name: wait["condition"] for name, wait in COMPOSE["services"]["gateway"]["depends_on"].items()}
    assert conditions == {"postgres": "service_healthy", "valkey": "service_healthy"}


def test_compose_sets_only_settings_that_exist():
    """A misspelt variable would be silently without effect."""
    environment = COMPOSE["services"]["gateway"]["environment"]
    assert unknown_variables(environment) == []
    assert {"GATEWAY_DATABASE_URL", "GATEWAY_REDIS_URL", "GATEWAY_ADMIN_TOKEN", "MOONSHOT_API_KEY"} <= set(environment)


def test_no_secret_stands_in_the_compose_file():
    """Passwords come from the operator's environment, and compose refuses to start without them."""
    environment = COMPOSE["services"]["gateway"]["environment"] | COMPOSE["services"]["postgres"]["environment"]
    assert "${GATEWAY_ADMIN_TOKEN:?" in environment["GATEWAY_ADMIN_TOKEN"]
    assert "${POSTGRES_PASSWORD:?" in environment["POSTGRES_PASSWORD"]
    assert "gateway:${POSTGRES_PASSWORD:?" in environment["GATEWAY_DATABASE_URL"]
    assert set(SECRET_FIELDS) <= set(Settings.model_fields)


def test_ports_are_open_on_this_machine_only():
    """Whoever wants the world in puts a proxy with TLS in front."""
    assert COMPOSE["services"]["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    assert all("ports" not in COMPOSE["services"][name] for name in ("postgres", "valkey"))


def test_every_volume_is_declared():
    """A named volume outlives its container; a forgotten one does not."""
    used = {mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", ())}
    assert used == set(COMPOSE["volumes"])


def test_the_image_is_pinned_unprivileged_and_watched():
    """Same Python as the checkout promises, no root, a health check, the data in a volume."""
    assert all(re.match(r"python:3\.\d+-slim", image) for image in instructions("FROM"))
    assert instructions("USER") == ["10001:10001"]
    assert "/healthz" in instructions("HEALTHCHECK")[0]
    assert instructions("EXPOSE") == ["8080"]
    assert instructions("VOLUME") == ["/var/lib/kimi-gateway"]
    assert any("--require-hashes -r requirements.lock" in command for command in instructions("RUN"))
    assert not any("--editable" in command or " -e " in command for command in instructions("RUN"))


def test_everything_that_the_image_copies_exists_and_is_not_ignored():
    """A path that .dockerignore keeps out breaks the build on somebody else's machine."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [words.split()[:-1] for words in instructions("COPY") if not words.startswith("--from")]
    for path in (path for paths in copied for path in paths):
        assert (ROOT / path).exists(), f"COPY {path}: no such file"
        assert f"!{path.removeprefix('./')}" in ignored, f"COPY {path}: kept out by .dockerignore"
