"""Who may know whom: the contracts of [tool.importlinter] in pyproject.toml hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold():
    """Every import goes down the layers; the linter's own words say which one does not."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"lint-imports:\n{done.stdout[done.stdout.find('====') :]}{done.stderr}"
