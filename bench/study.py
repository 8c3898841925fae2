"""The study is an independent simulator of providers beside the repository; without it nothing can be compared."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

SIMULATOR: Final = Path(__file__).resolve().parents[2] / "shared" / "tools" / "routing_sim.py"


def study() -> ModuleType:
    """The simulator as a module; ends the command with status 1 and the reason where there is none."""
    if not SIMULATOR.is_file():
        sys.exit(
            f"Skipped: {SIMULATOR.name} is not beside this repository (../shared), so there is nothing to compare with."
        )
    if importlib.util.find_spec("numpy") is None:
        sys.exit("Skipped: the study needs numpy, which is among the development packages (make check installs them).")
    spec = importlib.util.spec_from_file_location("routing_sim", SIMULATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["routing_sim"] = module
    spec.loader.exec_module(module)
    return module
