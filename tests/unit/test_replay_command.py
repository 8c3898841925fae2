"""`gateway replay`: a table for eyes, JSON for programs, the same bytes for the same files, errors with a mend."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.replay import replay

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "replay-scenario.toml"
RECORDED = ROOT.parent / "shared" / "data" / "agentic" / "agentic_trace.jsonl"
CROSSING = """
standalone = true
[providers.cheap-miss]
price = { input = "0.40", output = "1.75" }
[providers.cheap-hit]
price = { input = "0.60", cached_input = "0.15", output = "2.50" }
[providers.dear]
price = { input = "1.10", output = "4.40" }
"""


def run(*arguments: object, status: int = 0) -> Result:
    done = CliRunner().invoke(replay, [str(each) for each in arguments])
    assert done.exit_code == status, done.output
    return done


def figures(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", "--at", "2026-01-01").stdout)
    return found


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Sixty conversations of a dozen turns each: 8,192 tokens at first, 512 more every twenty seconds or so."""
    chance = random.Random(7)
    lines = []
    for conversation in range(60):
        at, blocks = chance.random() * 1_200_000, [conversation * 1_000 + place for place in range(16)]
        for turn in range(12):
            lines.append({"timestamp": int(at), "input_length": 512 * len(blocks) + 100, "output_length": 200})
            lines[-1]["hash_ids"] = list(blocks)
            blocks.append(conversation * 1_000 + 16 + turn)
            at += 10_000 + chance.random() * 20_000
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def crossing(tmp_path: Path) -> Path:
    path = tmp_path / "crossing.toml"
    path.write_text(CROSSING, encoding="utf-8")
    return path


def test_where_prices_cross_knowing_the_cache_is_worth_a_third(trace: Path, crossing: Path):
    """List price pays the one without a discount for every turn; ours is near the best provider alone, and moves no
    conversation without need; taking turns among all is the dearest of the four."""
    found = figures("--trace", trace, "--scenario", crossing)
    spend = {each["policy"]: float(each["spend_usd"]) for each in found["policies"]}
    alone = {each["provider"]: float(each["spend_usd"]) for each in found["providers_alone"]}
    assert list(spend) == ["expected_cost", "list_price", "round_robin", "sticky"]
    assert spend["list_price"] == pytest.approx(alone["cheap-miss"])
    assert found["best_alone"]["provider"] == "cheap-hit"
    assert alone["cheap-hit"] <= spend["expected_cost"] < 1.1 * alone["cheap-hit"] < 0.7 * spend["list_price"]
    assert max(spend, key=spend.__getitem__) == "round_robin"


def test_the_shape_of_the_json(trace: Path, crossing: Path):
    """Amounts are decimal strings and add up; every request is served once; ratios are to the best provider alone."""
    found = figures("--trace", trace, "--scenario", crossing, "--policy", "sticky", "--policy", "list_price")
    assert set(found) == {"source", "model", "at", "policies", "providers_alone", "actual", "best_alone"}
    assert found["source"]["requests"] == 720
    assert found["source"]["conversations"] == 60
    assert (found["actual"], found["at"]) == (None, "2026-01-01T00:00:00Z")
    assert [each["policy"] for each in found["policies"]] == ["sticky", "list_price"]
    for each in (*found["policies"], *found["providers_alone"]):
        assert set(each) - {"policy", "provider"} == {
            *("spend_usd", "billed_usd", "ratio_to_best_alone", "requests", "unserved", "refusals", "failed_attempts"),
            *("input_tokens", "cached_share", "output_tokens", "moves", "holds", "held_seconds", "waited_seconds"),
            *("ttft_seconds_p50", "ttft_seconds_p95", "accounts"),
        }
        assert each["requests"] == sum(account["requests"] for account in each["accounts"]) == 720
        assert float(each["billed_usd"]) == pytest.approx(sum(float(one["billed_usd"]) for one in each["accounts"]))
        assert each["ratio_to_best_alone"] == pytest.approx(
            float(each["spend_usd"]) / float(found["best_alone"]["spend_usd"]), abs=1e-6
        )


def test_the_same_files_give_the_same_bytes(trace: Path):
    """Outages, ignored caches and limits included: all chance is seeded."""
    arguments = ("--trace", trace, "--scenario", EXAMPLE, "--json", "--at", "2026-01-01")
    assert run(*arguments).stdout == run(*arguments).stdout


def test_a_pipe_gets_a_whole_table_and_no_progress(trace: Path, crossing: Path):
    """One line for each policy and each provider; nothing on standard error."""
    done = run("--trace", trace, "--scenario", crossing)
    for line in ("expected_cost", "list_price", "round_robin", "sticky", "all to cheap-hit", "all to dear"):
        assert line in done.stdout
    assert "Best provider alone, in hindsight: cheap-hit" in done.stdout
    assert "…" not in done.stdout
    assert done.stderr == ""


def test_without_a_scenario_providers_are_as_configured(trace: Path):
    """The shipped three, at the prices of that day, under an alias of the model's name."""
    found = figures("--trace", trace, "--config", ROOT / "config", "--model", "kimi-thinking", "--policy", "list_price")
    assert found["model"] == "kimi-k2-thinking"
    assert [each["provider"] for each in found["providers_alone"]] == ["cometapi", "evolink", "moonshot"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "either --trace FILE or --from and --to"),
        (("--trace", "{trace}", "--from", "2026-01-01"), 2, "either --trace FILE or --from and --to"),
        (("--trace", "{trace}", "--policy", "cheapest"), 2, "'cheapest' is not one of"),
        (("--trace", "{trace}", "--at", "tomorrow"), 2, "not a date"),
        (("--trace", "{folder}/none.jsonl"), 2, "does not exist"),
        (("--from", "2026-02-01", "--to", "2026-01-01", "--scenario", "{crossing}"), 2, "ends"),
        (("--trace", "{crossing}", "--scenario", "{crossing}"), 1, "crossing.toml:2: This is not a request of a trace"),
        (("--trace", "{trace}", "--scenario", "{folder}/none.toml"), 1, "none.toml:1: The file cannot be read"),
        (("--trace", "{trace}", "--config", "{folder}"), 1, "providers.toml:1: The file does not exist"),
        (("--trace", "{trace}", "--config", "{config}", "--model", "kimi-k9"), 1, "is no model of this configuration"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    trace: Path, crossing: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
):
    """Bad usage ends with 2, what could not be done with 1, and each says what to mend."""
    places = {"trace": trace, "crossing": crossing, "folder": tmp_path, "config": ROOT / "config"}
    assert said in run(*(each.format(**places) for each in arguments), status=status).output


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded traces are not beside this checkout")
def test_a_recorded_trace_is_replayed(crossing: Path, tmp_path: Path):
    """The beginning of some agentic conversations: list price pays far more than ours, which is near the best alone."""
    part = tmp_path / "part.jsonl"
    part.write_bytes(b"".join(RECORDED.read_bytes().splitlines(keepends=True)[:1_000]))
    found = figures("--trace", part, "--scenario", crossing, "--policy", "expected_cost", "--policy", "list_price")
    ours, listed = (float(each["spend_usd"]) for each in found["policies"])
    assert listed > 1.5 * ours
    assert found["policies"][0]["ratio_to_best_alone"] < 1.1
