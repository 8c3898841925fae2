"""House rules as tests: what a reader may rely on in every file, with the mend in the message.

The limits on length are a ratchet. What is longer today stands in `LONGER` with its length, and that number may only
go down; once a thing is within the limit, its line has to leave the list.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

# "path" or "path::function" → lines. Only ever shorter.
LONGER: dict[str, int] = {}

MONEY_FILES = ("money", "pricing", "usage", "ledger", "estimate", "budget", "focus")
PURE_FOLDERS = ("gateway/core", "gateway/providers", "gateway/replay", "gateway/surfaces")

# (what the code says, what to do instead)
IMPURE_CALLS = {
    "datetime.now": "take the moment as an argument",
    "datetime.utcnow": "take the moment as an argument",
    "datetime.datetime.now": "take the moment as an argument",
    "datetime.today": "take the moment as an argument",
    "date.today": "take the day as an argument",
    "datetime.date.today": "take the day as an argument",
    "time.time": "take the moment as an argument",
    "time.monotonic": "take the moment as an argument",
    "time.perf_counter": "take the moment as an argument",
    "random.random": "take the choice as an argument",
    "uuid4": "take the id as an argument",
    "uuid.uuid4": "take the id as an argument",
    "open": "take the content as an argument",
}
REGISTRY_HOSTS = ("pypi." + "org", "pythonhosted." + "org", "npmjs." + "org", "proxy.golang." + "org", "crates." + "io")
BINARY_SUFFIXES = {".png", ".ico", ".woff2", ".gz", ".jpg"}


@cache
def committed_files() -> tuple[str, ...]:
    """What belongs to the project: git's list, or in an unpacked archive everything that is not generated."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        return tuple(name for name in done.stdout.splitlines() if (ROOT / name).is_file())
    generated = re.compile(r"(^|/)(\.venv|var|build|dist|__pycache__|\.[a-z_]+_cache|\.hypothesis|[^/]*\.egg-info)/")
    names = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return tuple(name for name in names if not generated.search(name))


def python_files(*folders: str) -> list[str]:
    wanted = tuple(f"{folder}/" for folder in folders)
    return sorted(name for name in committed_files() if name.endswith(".py") and name.startswith(wanted))


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), filename=name)


def calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node.func)


def refuse(found: list[str], mend: str) -> None:
    __tracebackhide__ = True
    if found:
        pytest.fail("\n".join([mend, *found]), pytrace=False)


def test_every_module_begins_with_its_law():
    """The first line of a module's docstring is one sentence: what is always true here."""
    found = []
    for name in python_files("gateway", "bench", "migrations", "tests"):
        text = (ROOT / name).read_text(encoding="utf-8")
        docstring = ast.get_docstring(tree_of(name))
        if text.strip() and (docstring is None or not docstring.splitlines()[0].endswith(".")):
            found.append(f"{name}:1")
    refuse(found, "Begin the module with a docstring whose first line is a sentence that ends with a full stop.")


def test_only_the_command_line_prints():
    """Everything else logs, returns or raises."""
    found = [
        f"{name}:{line}"
        for name in python_files("gateway")
        if not name.startswith("gateway/cli/")
        for line, call in calls(tree_of(name))
        if call == "print"
    ]
    refuse(found, "Log it, return it or raise it; only gateway/cli prints.")


def test_nothing_sleeps():
    """A sleep is a guess: wait for the event, with a deadline."""
    found = [
        f"{name}:{line}"
        for name in python_files("gateway", "tests")
        for line, call in calls(tree_of(name))
        if call == "time.sleep"
    ]
    found += [
        f"{name}:{node.lineno}"
        for name in python_files("gateway", "tests")
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ImportFrom) and node.module == "time" and any(n.name == "sleep" for n in node.names)
    ]
    refuse(found, "Wait for the event itself, with a deadline.")


def test_money_knows_no_float():
    """0.1 + 0.2 is not 0.3; whole pico-dollars and exact decimals are (L1)."""
    found = []
    for name in (f"gateway/core/{stem}.py" for stem in MONEY_FILES):
        if name not in committed_files():
            continue
        for node in ast.walk(tree_of(name)):
            is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
            is_name = isinstance(node, ast.Name) and node.id == "float"
            is_quotient = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            if is_literal or is_name or is_quotient:
                found.append(f"{name}:{node.lineno}")
    refuse(found, "Use Money, int, Fraction or Decimal, and divide with // and a stated rounding.")


def test_no_bare_except():
    """A bare except also swallows the cancellation and the Ctrl-C."""
    found = [
        f"{name}:{node.lineno}"
        for name in python_files("gateway", "tests", "bench", "migrations")
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    refuse(found, "Name the exceptions that are expected here.")


def test_nouns_dialects_and_surfaces_are_pure():
    """Time, chance, ids and content come in as arguments, so that a test or a replay can choose them."""
    found = [
        f"{name}:{line} {call}: {IMPURE_CALLS[call]}"
        for name in python_files(*PURE_FOLDERS)
        for line, call in calls(tree_of(name))
        if call in IMPURE_CALLS
    ]
    refuse(found, "Core, providers and surfaces decide; somebody else looks at the clock.")


def lengths() -> Iterator[tuple[str, int, int]]:
    """Name, lines and limit of every file and function of the product."""
    for name in python_files("gateway", "bench", "migrations"):
        yield name, len((ROOT / name).read_text(encoding="utf-8").splitlines()), FILE_LINES_MAX
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{name}::{node.name}", node.end_lineno - node.lineno + 1, FUNCTION_LINES_MAX


def test_functions_fit_on_a_screen_and_files_on_a_few():
    """Parents branch, leaves compute; what is long already may only get shorter."""
    found = []
    longest: dict[str, int] = {}
    for name, lines, limit in lengths():
        longest[name] = max(lines, longest.get(name, 0))
        allowed = LONGER.get(name, limit)
        if lines > allowed:
            found.append(f"{name}: {lines} lines, at most {allowed}")
    for name, allowed in LONGER.items():
        actual = longest.get(name, 0)
        limit = FUNCTION_LINES_MAX if "::" in name else FILE_LINES_MAX
        if actual <= limit:
            found.append(f"{name}: within the limit now; take it off the list LONGER")
        elif actual < allowed:
            found.append(f"{name}: {actual} lines now; say so in the list LONGER")
    refuse(found, "Split it where its purpose changes.")


def test_no_file_names_a_registry_host():
    """Where packages come from is the installer's configuration, so that a mirror works without an edit."""
    found = []
    for name in committed_files():
        if Path(name).suffix in BINARY_SUFFIXES:
            continue
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace").lower()
        found += [f"{name}: {host}" for host in REGISTRY_HOSTS if host in text]
    refuse(found, "Name the package, not the server that hands it out.")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_package_has_a_hash(lock: str):
    """One line without a hash would switch the check off for everything."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    refuse([line[:60] for line in lines if "--hash=sha256:" not in line], "Run: make lock")
    assert lines


def test_the_two_locks_agree():
    """Tests run with the very versions that are shipped."""
    pins = {}
    for lock in ("requirements.lock", "requirements-dev.lock"):
        pins[lock] = set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))
    refuse(sorted(pins["requirements.lock"] - pins["requirements-dev.lock"]), "Run: make lock")
