"""`gateway demo --once` shows the whole product on an empty data directory, and leaves nothing behind that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.adapters.embedded import discard
from tests.http.house import CONFIG

pytestmark = pytest.mark.integration


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"GATEWAY_DATA_DIR": str(folder), "GATEWAY_CONFIG_DIR": str(CONFIG)}
    command = [sys.executable, "-m", "gateway", "demo", "--once", "--port", "0", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_demo(tmp_path: Path):
    """It ends with status 0 after a report in which every provider and key has a part; a second run works as well."""
    try:
        first = demo(tmp_path)
        assert first.returncode == 0, first.stderr
        assert re.search(r"Spend from .* to ", first.stdout)
        for word in ("moonshot", "evolink", "assistant", "nightly-agent", "playground", "total", "kgw_"):
            assert word in first.stdout
        assert first.stderr == ""
        second = demo(tmp_path)
        assert second.returncode == 0, second.stderr
    finally:
        discard(tmp_path / "demo")
    assert not list(tmp_path.rglob("postmaster.pid"))
