"""The simulation, small: found seeds stay mended, a seed is one story, and planted bugs are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import PLANTS, PLANTS_OF_ALLOWANCES, Plant, hunt
from tests.simulation.running import SPEED_MIN, found_seeds, repeat_command, run
from tests.simulation.scenario import LIMITS_FROM
from tests.simulation.world import simulate

ROOT = Path(__file__).resolve().parents[2]
NEW_SEEDS = [*range(1, 41), *range(LIMITS_FROM, LIMITS_FROM + 120)]
PLANT_SEEDS = 60
PLANT_SEEDS_OF_ALLOWANCES = 60


def test_found_seeds_stay_mended():
    for seed in found_seeds():
        assert simulate(seed).violations == (), repeat_command(seed)


def test_no_seed_breaks_a_law():
    outcome = run(NEW_SEEDS)
    assert [(repeat_command(each.seed), each.violations[:3]) for each in outcome.failed] == []
    assert outcome.speed >= SPEED_MIN, outcome.figure


@pytest.mark.parametrize("seed", [3, 21, 92, LIMITS_FROM + 6])
def test_a_seed_is_one_story(seed: int):
    assert simulate(seed).trace == simulate(seed).trace


def test_a_seed_is_the_same_story_in_any_process():
    """However the interpreter orders its sets."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(LIMITS_FROM + 16)]
    told = set()
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        told.add(done.stdout)
    assert len(told) == 1


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_bug_is_found(plant: Plant):
    _, violation = hunt(plant, PLANT_SEEDS)
    assert violation is not None, f"{PLANT_SEEDS} seeds do not find it"


@pytest.mark.parametrize("plant", PLANTS_OF_ALLOWANCES, ids=lambda plant: plant.name)
def test_a_planted_bug_of_allowances_is_found(plant: Plant):
    _, violation = hunt(plant, PLANT_SEEDS_OF_ALLOWANCES)
    assert violation is not None, f"{PLANT_SEEDS_OF_ALLOWANCES} seeds do not find it"
