"""Everything a run needs is started here as a user would start it, on free loopback ports, and is gone afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.process import LOOPBACK, LaunchError, Running, accepts, free_ports, start, wait_until

GATEWAY_READY_SECONDS_MAX: Final = 60.0
READY_SECONDS_MAX: Final = 15.0
REQUEST_SECONDS_MAX: Final = 30.0
PROVIDERS: Final = ("moonshot", "cometapi", "evolink")
CREDENTIALS: Final = {
    "MOONSHOT_API_KEY": "sk-bench-moonshot",
    "COMETAPI_KEY": "sk-bench-cometapi",
    "EVOLINK_API_KEY": "sk-bench-evolink",
}
CONFIG: Final = Path(__file__).parent.parent / "config"

_WORKERS_READY: Final = re.compile(r"^gateway_workers_ready (\S+)$", re.MULTILINE)
_LIMIT_LINE: Final = re.compile(r"^[ \t]*(rpm|tpm|tpd|concurrency)[ \t]*=.*$", re.MULTILINE)


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder of this run's own that the embedded database's account can pass through; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="kimi-gateway-bench-")).resolve()
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- simulators --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def simulators(
    folder: Path, *, seed: int, settings: Mapping[str, Any], cpu: int | None = None
) -> Iterator[dict[str, str]]:
    """The three providers in a process of their own; yields their addresses by name."""
    base = free_ports(len(PROVIDERS))
    arguments = json.dumps({**settings, "seed": seed, "port_base": base})
    code = "import json, sys; from gateway.simulator import serve; serve(**json.loads(sys.argv[1]))"
    running = start("the simulators", [sys.executable, "-c", code, arguments], log=folder / "simulators.log", cpu=cpu)
    try:
        ports = [base + step for step in range(len(PROVIDERS))]
        wait_until(lambda: all(map(accepts, ports)), of=running, seconds_max=READY_SECONDS_MAX)
        yield {name: f"http://{LOOPBACK}:{port}" for name, port in zip(PROVIDERS, ports, strict=True)}
    finally:
        running.stop()


def demo_config(addresses: Mapping[str, str], *, keep_limits: bool) -> dict[str, str]:
    """The configuration that ships, its providers moved to the simulators.

    Unless ``keep_limits``, the accounts' limits are taken out: an hour of traffic in a minute would only meet them.
    """
    from gateway.catalog import render_demo_config  # needed by no other command

    files = render_demo_config(CONFIG, {name: f"{address}/v1" for name, address in addresses.items()})
    if not keep_limits:
        files["providers.toml"] = _LIMIT_LINE.sub("", files["providers.toml"])
    return files


# -- the gateway -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One gateway with its embedded database, in folders of its own; may be killed and started again."""

    folder: Path
    config: Mapping[str, str]
    cpu: int | None = None
    workers: int = 1
    redis_url: str = ""
    port: int = field(default_factory=free_ports)
    admin_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    running: Running | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start and wait for /readyz. Raises LaunchError."""
        config_dir = self.folder / "config"
        config_dir.mkdir(exist_ok=True)
        for name, text in self.config.items():
            (config_dir / name).write_text(text, encoding="utf-8")
        self.data_dir.mkdir(mode=0o711, exist_ok=True)
        environment = {
            **CREDENTIALS,
            "GATEWAY_DATA_DIR": str(self.data_dir),
            "GATEWAY_CONFIG_DIR": str(config_dir),
            "GATEWAY_HOST": LOOPBACK,
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_ADMIN_TOKEN": self.admin_token,
            "GATEWAY_LOG_LEVEL": "warning",
            "GATEWAY_DATABASE_URL": "",  # ours alone, whatever the caller's environment or .env says
            "GATEWAY_REDIS_URL": self.redis_url,
            "GATEWAY_AUTO_MIGRATE": "",
            "GATEWAY_WORKERS": str(self.workers),
        }
        command = [sys.executable, "-m", "gateway", "serve"]
        log = self.folder / "gateway.log"
        self.running = start("the gateway", command, log=log, environment=environment, cpu=self.cpu)
        self.running.also = self._database_pids
        wait_until(self._ready, of=self.running, seconds_max=GATEWAY_READY_SECONDS_MAX)

    def kill(self) -> None:
        """SIGKILL to the gateway alone; its database lives on, as it would."""
        assert self.running is not None
        self.running.kill()

    def stop(self) -> None:
        """Stop the gateway, and a database that a killed one left behind."""
        from gateway.adapters.embedded import discard

        if self.running is not None:
            self.running.stop()
        if self.data_dir.exists():
            discard(self.data_dir)

    def create_key(self, name: str) -> tuple[str, str]:
        """A key without limits: its id and its secret."""
        answer = self._admin("POST", "/admin/keys", json={"name": name})
        return str(answer["id"]), str(answer["key"])

    def _admin(self, method: str, path: str, **arguments: Any) -> Any:
        headers = {"authorization": f"Bearer {self.admin_token}"}
        with httpx.Client(base_url=self.url, timeout=REQUEST_SECONDS_MAX, headers=headers, trust_env=False) as client:
            answer = client.request(method, path, **arguments)
        if answer.status_code >= 300:
            raise LaunchError(f"{method} {path} was answered with {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return self.workers == 1 or self.workers_ready() == self.workers
        return False

    def workers_ready(self) -> int:
        """How many of several workers serve. Raises httpx.HTTPError."""
        text = httpx.get(f"{self.url}/metrics", timeout=5, trust_env=False).text
        found = _WORKERS_READY.search(text)
        return 0 if found is None else int(float(found[1]))

    def _database_pids(self) -> Iterable[int]:
        """The database server detaches itself; its pid is where PostgreSQL writes it."""
        home = self.data_dir / "postgres"
        with contextlib.suppress(OSError):
            home = Path((self.data_dir / "postgres.location").read_text(encoding="utf-8").strip())
        with contextlib.suppress(OSError, ValueError, IndexError):
            return (int((home / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]),)
        return ()


@contextlib.contextmanager
def gateway(
    folder: Path, config: Mapping[str, str], *, cpu: int | None = None, workers: int = 1, redis_url: str = ""
) -> Iterator[Gateway]:
    """A gateway that is ready; stopped at the end whatever happened."""
    launched = Gateway(folder=folder, config=config, cpu=cpu, workers=workers, redis_url=redis_url)
    try:
        launched.start()
        yield launched
    finally:
        launched.stop()


# -- one fake provider -------------------------------------------------------------------------------------------------

_ONE_PROVIDER: Final = """
[providers.moonshot]
dialect = "moonshot"
base_url = "{url}/v1"

[[providers.moonshot.accounts]]
name = "main"
api_key = {{ env = "MOONSHOT_API_KEY" }}

[providers.moonshot.models.kimi-k2-thinking]
upstream = "kimi-k2-thinking"
context = 1_048_576
max_output = 262_144
capabilities = ["tools", "json_object", "json_schema", "partial"]
"""
_ONE_MODEL: Final = """
[models."kimi-k2-thinking"]
default_max_output = 32_768
"""
_ONE_PRICE: Final = """
[[prices]]
provider = "moonshot"
model = "kimi-k2-thinking"
effective_from = 2025-11-06T00:00:00Z
input = "0.60"
cached_input = "0.15"
output = "2.50"
source = "bench"
checked_at = 2026-11-22
"""


def one_provider_config(url: str) -> dict[str, str]:
    """A configuration with one provider and one model, for the measurements."""
    return {
        "providers.toml": _ONE_PROVIDER.format(url=url),
        "models.toml": _ONE_MODEL,
        "prices.toml": _ONE_PRICE,
    }
