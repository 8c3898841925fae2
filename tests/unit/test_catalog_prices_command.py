"""`gateway prices` shows prices to the last digit, and says of each what looks wrong."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.catalog import FILES, load
from gateway.catalog.review import compare_with_maker, stale_prices, state
from gateway.cli.prices import prices

CONFIG = Path(__file__).resolve().parents[2] / "config"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(prices, [*arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def copy_of_shipped(folder: Path, *edits: tuple[str, str]) -> Path:
    for name in FILES:
        text = (CONFIG / name).read_text(encoding="utf-8")
        for old, new in edits:
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# --- list


def test_list_in_a_pipe_is_tab_separated() -> None:
    """Names first; what is served without a price is at the end."""
    lines = run("list", "--config", str(CONFIG), "--model", "kimi-thinking").splitlines()
    assert lines[0].split("\t")[:8] == [
        *("provider", "model", "state", "effective_from"),
        *("input", "cached_input", "output", "cache_write"),
    ]
    assert [line.split("\t")[:8] for line in lines[1:]] == [
        ["cometapi", "kimi-k2-thinking", "in force", "2025-11-10T00:00:00Z", "1.1", "", "4.4", ""],
        ["evolink", "kimi-k2-thinking", "in force", "2025-11-06T00:00:00Z", "0.556", "0.139", "2.222", ""],
        ["moonshot", "kimi-k2-thinking", "in force", "2025-11-06T00:00:00Z", "0.6", "0.15", "2.5", ""],
    ]


def test_list_as_json() -> None:
    """Amounts are text, what a row does not have is null, and the unpriced are named."""
    listed = json.loads(run("list", "--config", str(CONFIG), "--model", "kimi-k2-thinking-turbo", "--json"))
    assert [(row["provider"], row["input"], row["cached_input"], row["output"]) for row in listed["prices"]] == [
        ("cometapi", "2.2", None, "15.95"),
        ("moonshot", "1.15", "0.15", "8"),
    ]
    assert listed["unpriced"] == [{"provider": "evolink", "model": "kimi-k2-thinking-turbo"}]
    assert listed["prices"][1]["price_id"] == "moonshot/kimi-k2-thinking-turbo@2025-11-06T00:00:00Z#c84a6af1"


@pytest.mark.parametrize(("flags", "states"), [((), ["superseded", "in force"]), (("--current",), ["in force"])])
def test_list_tells_where_a_row_stands(flags: tuple[str, ...], states: list[str]) -> None:
    """The two rows of kimi-k3, its write prices by lifetime."""
    listed = json.loads(run("list", "--config", str(CONFIG), "--model", "kimi-k3", "--json", *flags))
    assert [row["state"] for row in listed["prices"]] == states
    assert listed["prices"][-1]["cache_write"] == {"1h": "6", "5m": "3"}


def test_list_of_one_provider() -> None:
    """Only its rows."""
    listed = json.loads(run("list", "--config", str(CONFIG), "--provider", "evolink", "--json"))
    assert {row["provider"] for row in listed["prices"]} == {"evolink"}


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GATEWAY_CONFIG_DIR, unless --config says otherwise."""
    monkeypatch.setenv("GATEWAY_CONFIG_DIR", str(copy_of_shipped(tmp_path, ('"0.556"', '"0.557"'))))
    assert "\t0.557\t" in run("list", "--provider", "evolink")
    assert "\t0.556\t" in run("list", "--provider", "evolink", "--config", str(CONFIG))


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tabs, and no figure is cut, however narrow the terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    output = run("list", "--config", str(CONFIG))
    assert "\t" not in output
    assert "15.95" in output
    assert "kimi-k3.1-pro-highspeed" in output


# --- check


def test_check_of_what_ships() -> None:
    """Warnings do not fail; the last line counts them."""
    output = run("check", "--config", str(CONFIG))
    assert "has no price: it loads, and is not routable." in output
    assert output.splitlines()[-1].startswith("0 errors, ")


def test_check_of_a_broken_configuration(tmp_path: Path) -> None:
    """Status 1, every finding in the documented form, in order."""
    copy_of_shipped(tmp_path, ('"0.139"', '"0.556"'), ('dialect     = "evolink"', 'dialect = "evolinc"'))
    output = run("check", "--config", str(tmp_path), status=1)
    errors = [line for line in output.splitlines() if "warning: " not in line]
    assert [line.removeprefix(f"{tmp_path}/").split(":")[0] for line in errors[:-1]] == [
        "prices.toml",
        "providers.toml",
    ]
    assert errors[1].endswith("Mend: Did you mean evolink?")
    found = json.loads(run("check", "--config", str(tmp_path), "--json", status=1))
    assert found["errors"] == 2
    assert set(found["findings"][0]) == {"level", "file", "line", "message", "mend"}


@pytest.mark.parametrize("command", ["list", "diff"])
def test_a_broken_configuration_has_no_prices(tmp_path: Path, command: str) -> None:
    """Status 1 and the errors, nothing half read."""
    copy_of_shipped(tmp_path, ('"0.139"', '"0.556"'))
    assert "prices.toml:" in run(command, "--config", str(tmp_path), status=1)


@pytest.mark.parametrize(
    ("now", "stale"),
    [
        (datetime(2026, 5, 29, 23, tzinfo=UTC), []),
        (datetime(2026, 5, 30, 1, tzinfo=UTC), ["cometapi", "cometapi", "evolink"]),
    ],
)
def test_a_price_is_stale_after_180_days(now: datetime, stale: list[str]) -> None:
    """What was checked on 2025-11-30 is fresh through 2026-05-29."""
    findings = stale_prices(load(CONFIG, now=now), CONFIG, now=now)
    assert [each.message.split()[0] for each in findings] == stale
    assert all("last checked 181 days ago, on 2025-11-30" in each.message for each in findings)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source         = "EvoLink pricing page"\n', "", "the price names no source."),
        (
            'pricing page"\nchecked_at     = 2025-11-30\n',
            'pricing page"\n',
            "the price does not say when it was checked.",
        ),
    ],
)
def test_a_price_without_a_witness(tmp_path: Path, old: str, new: str, message: str) -> None:
    """At the line of its row; rows that a later one superseded are left alone."""
    copy_of_shipped(tmp_path, (old, new))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    loaded = load(tmp_path, now=now)
    (finding,) = stale_prices(loaded, tmp_path, now=now)
    assert finding.message == f"evolink kimi-k2-thinking: {message}"
    lines = (tmp_path / "prices.toml").read_text(encoding="utf-8").splitlines()
    assert lines[finding.line : finding.line + 1] == ['provider       = "evolink"']


def test_a_superseded_row_needs_no_check() -> None:
    """The first row of kimi-k3, in the year after."""
    now = datetime(2028, 1, 1, tzinfo=UTC)
    loaded = load(CONFIG, now=now)
    rows = loaded.catalogue.prices.rows()
    assert [row.checked_at for row in rows if state(loaded.catalogue.prices, row, now=now) == "superseded"] == [
        date(2026, 9, 19)
    ]
    assert len(stale_prices(loaded, CONFIG, now=now)) == len(rows) - 1


# --- diff


def test_diff_beside_the_maker() -> None:
    """The percentages of providers §5.2 and §5.3; a hit without a price is compared with what it costs."""
    found = {
        (each.model, each.provider, each.component): str(each.percent)
        for each in compare_with_maker(load(CONFIG, now=NOW).catalogue, now=NOW)
    }
    assert found == {
        ("kimi-k2-thinking", "cometapi", "input"): "83.3",
        ("kimi-k2-thinking", "cometapi", "cached_input"): "633.3",
        ("kimi-k2-thinking", "cometapi", "output"): "76.0",
        ("kimi-k2-thinking", "evolink", "input"): "-7.3",
        ("kimi-k2-thinking", "evolink", "cached_input"): "-7.3",
        ("kimi-k2-thinking", "evolink", "output"): "-11.1",
        ("kimi-k2-thinking-turbo", "cometapi", "input"): "91.3",
        ("kimi-k2-thinking-turbo", "cometapi", "cached_input"): "1366.7",
        ("kimi-k2-thinking-turbo", "cometapi", "output"): "99.4",
    }


def test_diff_as_text_and_json() -> None:
    """Signed percentages, amounts as text."""
    assert "kimi-k2-thinking\tevolink\toutput\tmoonshot\t2.5\t2.222\t-11.1" in run("diff", "--config", str(CONFIG))
    rows = json.loads(run("diff", "--config", str(CONFIG), "--json"))["rows"]
    assert rows[0] == {
        "model": "kimi-k2-thinking",
        "provider": "cometapi",
        "component": "input",
        "reference": "moonshot",
        "reference_usd": "0.6",
        "usd": "1.1",
        "percent": "+83.3",
    }


def test_diff_against_another_folder(tmp_path: Path) -> None:
    """A changed amount, a moved date as one row less and one more, and no word of a new source."""
    copy_of_shipped(
        tmp_path,
        ('"0.556"', '"0.5556"'),
        ('2026-10-24T00:00:00Z\ninput          = "4.00"', '2026-10-25T00:00:00Z\ninput          = "4.00"'),
        ("CometAPI model page", "another page"),
    )
    arguments = ("diff", "--config", str(CONFIG), "--against", str(tmp_path))
    found = json.loads(run(*arguments, "--json"))["changes"]
    assert [(each["kind"], (each["after"] or each["before"])["provider"]) for each in found] == [
        ("changed", "evolink"),
        ("added", "moonshot"),
        ("removed", "moonshot"),
    ]
    assert (found[0]["before"]["input"], found[0]["after"]["input"]) == ("0.5556", "0.556")
    assert found[1]["before"] is None
    lines = run(*arguments).splitlines()
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["changed", "before"],
        ["changed", "after"],
        ["added", "after"],
        ["removed", "before"],
    ]
    assert json.loads(run("diff", "--config", str(CONFIG), "--against", str(CONFIG), "--json")) == {"changes": []}
