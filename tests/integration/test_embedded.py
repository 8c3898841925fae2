"""The embedded PostgreSQL is private, shared, durable and stopped by its last user, as root and as anybody else."""

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from gateway.adapters import embedded as module
from gateway.adapters.embedded import EmbeddedPostgres, EmbeddedPostgresError, discard, embedded

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")

# Starts the server, says so in one line, and leaves when its standard input closes.
USER_PROGRAM = """
import json, os, sys
from pathlib import Path
from gateway.adapters.embedded import embedded
with embedded(Path(sys.argv[1])) as url:
    print(json.dumps({"url": url, "pid": os.getpid(), "uid": os.geteuid()}), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can reach, unlike pytest's own; databases in it are deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="kimi-gateway-embedded-")).resolve()
    folder.chmod(0o755)
    yield folder
    for lock in folder.rglob("postgres.lock"):
        discard(lock.parent)
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(folder: Path) -> Path:
    """A data directory that does not exist yet."""
    return folder / "var"


@pytest.fixture
def unreachable_data_dir(folder: Path) -> Path:
    """A data directory below a folder that only its owner may enter, like /root."""
    (folder / "closed").mkdir(mode=0o700)
    return folder / "closed" / "var"


@pytest.fixture
def users() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that use a server; whatever is still running at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def begin_use(users: list[subprocess.Popen[str]], data_dir: Path) -> subprocess.Popen[str]:
    """Another process that has started or joined the server."""
    command = [sys.executable, "-c", USER_PROGRAM, str(data_dir)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    users.append(process)
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    return process


def end_use(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def server_pid(data_dir: Path) -> int | None:
    pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
    return int(pid_file.read_text().split()[0]) if pid_file.exists() else None


def one(url: str, query: str) -> object:
    with psycopg.connect(url, connect_timeout=5) as db:
        row = db.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_what_was_written_is_there_after_a_restart(data_dir: Path):
    """Two starts of the same data directory see the same database, with durability on and no network."""
    with embedded(data_dir) as url:
        with psycopg.connect(url) as db:
            db.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        settings = {name: one(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "listen_addresses")}
    assert settings == {"fsync": "on", "synchronous_commit": "on", "listen_addresses": ""}
    assert server_pid(data_dir) is None
    with embedded(data_dir) as url:
        assert one(url, "SELECT answer FROM kept") == 42


def test_the_last_user_stops_the_server(data_dir: Path, users: list[subprocess.Popen[str]]):
    """Two processes share one server; it outlives the one that started it and not the last."""
    first = begin_use(users, data_dir)
    pid = server_pid(data_dir)
    assert pid is not None
    with embedded(data_dir) as url:
        end_use(first)
        assert server_pid(data_dir) == pid
        assert one(url, "SELECT 1") == 1
    assert server_pid(data_dir) is None
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_several_uses_in_one_process(data_dir: Path):
    """Uses are counted one by one, also inside a process."""
    outer, inner = EmbeddedPostgres(data_dir), EmbeddedPostgres(data_dir)
    url = outer.start()
    assert inner.start() == url
    inner.stop()
    assert one(url, "SELECT 1") == 1
    outer.stop()
    outer.stop()
    assert server_pid(data_dir) is None


def test_an_orphan_is_adopted(data_dir: Path, users: list[subprocess.Popen[str]]):
    """After kill -9 of its only user the server runs on; the next user takes it over and stops it."""
    owner = begin_use(users, data_dir)
    pid = server_pid(data_dir)
    owner.kill()
    owner.wait()
    with embedded(data_dir) as url:
        assert server_pid(data_dir) == pid
        assert one(url, "SELECT 1") == 1
    assert server_pid(data_dir) is None


def test_a_killed_server_recovers_at_the_next_start(data_dir: Path):
    """kill -9 of PostgreSQL itself loses nothing that was committed, and its stale files stop nobody."""
    with embedded(data_dir) as url:
        with psycopg.connect(url) as db:
            db.execute("CREATE TABLE kept AS SELECT 7 AS answer")
        pid = server_pid(data_dir)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    with embedded(data_dir) as url:
        assert server_pid(data_dir) != pid
        assert one(url, "SELECT answer FROM kept") == 7


def test_a_recycled_process_number_is_not_mistaken_for_the_server(data_dir: Path):
    """In a container the stale pid is soon somebody else's: here our own."""
    with embedded(data_dir):
        pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with embedded(data_dir) as url:
        assert one(url, "SELECT 1") == 1
    assert not pid_file.exists()


def test_a_long_path_gets_a_short_private_socket(folder: Path):
    """Socket paths end at about 100 bytes; then the socket lives among the temporary files, still private."""
    data_dir = folder / ("long-" * 20) / "var"
    with embedded(data_dir) as url:
        sockets = Path(url.partition("host=")[2])
        assert one(url, "SELECT 1") == 1
        assert len(str(sockets)) < 80
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    discard(data_dir)
    assert not sockets.exists()


def test_the_server_survives_a_ctrl_c_in_the_terminal(data_dir: Path):
    """It has a session of its own, so that the gateway can still write while it shuts down."""
    with embedded(data_dir):
        pid = server_pid(data_dir)
        assert pid is not None
        assert os.getsid(pid) == pid != os.getsid(0)


def test_the_server_sees_no_secret(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Provider keys stand in our environment and not in the server's (L13)."""
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-a-provider-key")
    with embedded(data_dir):
        pid = server_pid(data_dir)
        assert pid is not None
        assert "MOONSHOT_API_KEY" not in psutil.Process(pid).environ()


def test_a_server_that_cannot_start_says_why(data_dir: Path):
    """The error carries the end of the server's log, and nothing stays behind."""
    server = EmbeddedPostgres(data_dir, settings={"shared_buffers": "not a size"})
    with pytest.raises(EmbeddedPostgresError, match="shared_buffers"):
        server.start()
    assert server_pid(data_dir) is None
    with embedded(data_dir) as url:
        assert one(url, "SELECT 1") == 1


def test_another_major_version_is_refused(data_dir: Path):
    """PostgreSQL 17's files are not started with 18, and the mend is named."""
    with embedded(data_dir):
        pass
    (data_dir / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedPostgresError, match="Dump it with 17 and restore it with 18"):
        EmbeddedPostgres(data_dir).start()


def test_a_database_in_use_is_not_discarded(data_dir: Path):
    """Deleting is for the last one, too."""
    with embedded(data_dir) as url:
        with pytest.raises(EmbeddedPostgresError, match="in use"):
            discard(data_dir)
        assert one(url, "SELECT 1") == 1


@as_root
def test_root_leaves_everybodys_permissions_alone(data_dir: Path):
    """The home belongs to an account without rights; nothing above it and none of the binaries has changed."""
    binaries = Path(module.__file__).resolve().parents[2] / ".venv"
    data_dir.mkdir()
    watched = [data_dir, *data_dir.parents, *(path for path in (binaries, ROOT) if path.exists())]
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in watched]
    with embedded(data_dir):
        pid = server_pid(data_dir)
        assert pid is not None
        assert psutil.Process(pid).uids().effective != 0
        home = (data_dir / "postgres").stat()
        assert home.st_uid == psutil.Process(pid).uids().effective
        assert stat.S_IMODE(home.st_mode) == 0o700
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in watched] == before


@as_root
def test_root_below_a_closed_folder(unreachable_data_dir: Path):
    """Where the account cannot go, the database lives in a place of our own, and a note says where."""
    closed = unreachable_data_dir.parent
    with embedded(unreachable_data_dir) as url:
        home = Path((unreachable_data_dir / module.LOCATION_FILE).read_text().strip())
        assert home.parent == module.SHARED_FOLDER
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with psycopg.connect(url) as db:
            db.execute("CREATE TABLE kept AS SELECT 3 AS answer")
    with embedded(unreachable_data_dir) as url:
        assert one(url, "SELECT answer FROM kept") == 3
    discard(unreachable_data_dir)
    assert not home.exists()


@as_root
def test_binaries_out_of_reach_are_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A virtual environment below a closed folder is served from a readable copy; the folder stays closed."""
    # The one place where something is replaced: closing the real environment would close it for everybody.
    monkeypatch.setattr(module, "SHARED_FOLDER", folder / "shared")
    monkeypatch.setattr(module, "_everyone_can_reach", lambda _: False)
    with embedded(folder / "var") as url:
        assert one(url, "SELECT 1") == 1
        copies = [path for path in (folder / "shared").iterdir() if path.name.startswith(module.WHEEL)]
        assert len(copies) == 1
        changed = copies[0].stat().st_mtime_ns
    with embedded(folder / "var"):
        assert copies[0].stat().st_mtime_ns == changed


@as_root
def test_no_other_account_can_connect(data_dir: Path):
    """Connections are trusted because the socket's folder lets nobody else in."""
    stranger = pwd.getpwnam("daemon")
    with embedded(data_dir) as url:
        socket_path = Path(url.partition("host=")[2]) / f".s.PGSQL.{module.PORT}"
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(str(socket_path))
        program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", program, str(socket_path)],
            cwd="/", user=stranger.pw_uid, group=stranger.pw_gid, extra_groups=[], env={"PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


@as_root
def test_an_ordinary_user_runs_it_as_himself(folder: Path):
    """Without root there is no other account: data, socket and server belong to the user."""
    user = pwd.getpwnam("nobody")
    home = folder / "home"
    home.mkdir()
    os.chown(home, user.pw_uid, user.pw_gid)
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        command = [python, "-c", USER_PROGRAM, str(home / "var")]
        try:
            done = subprocess.run(
                command, cwd=home, env=environ, user=user.pw_uid, group=user.pw_gid, extra_groups=[],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
        except OSError:
            continue
        if "ModuleNotFoundError" not in done.stderr:
            break
    else:
        pytest.skip("the account `nobody` can run no Python with these packages here")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["uid"] == user.pw_uid
    assert (home / "var" / "postgres").stat().st_uid == user.pw_uid
    assert server_pid(home / "var") is None
