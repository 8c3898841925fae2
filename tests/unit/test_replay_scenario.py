"""A scenario stands alone or is laid over a configuration; what is wrong with it is told with file, line and mend."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.catalog import CatalogError, load
from gateway.catalog.scenario import configured_scenario, read_scenario
from gateway.core.catalogue import Catalogue
from gateway.replay.scenario import Scenario
from gateway.replay.world import Bursts, CacheTerms

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRICE = 'price = { input = "0.60", cached_input = "0.15", output = "2.50" }'


def nothing_configured() -> Catalogue:
    raise AssertionError("a standalone scenario asks for no configuration")


def shipped() -> Catalogue:
    return load(ROOT / "config", now=NOW).catalogue


def read(tmp_path: Path, text: str, *, alone: bool = True, model: str | None = None) -> Scenario:
    path = tmp_path / "world.toml"
    path.write_text(f"standalone = {str(alone).lower()}\n{text}", encoding="utf-8")
    return read_scenario(path, configured=nothing_configured if alone else shipped, model=model, begins_at=NOW)


def test_the_example_of_the_documents_is_read():
    """Three providers, one with two accounts, limits, an outage and bursts."""
    example = ROOT / "docs" / "examples" / "replay-scenario.toml"
    world = read_scenario(example, configured=nothing_configured, model=None, begins_at=NOW)
    assert world.providers() == ("overflow", "with-discount", "without-discount")
    accounts = world.catalogue.providers["with-discount"].accounts
    assert [(each.name, each.rpm, each.tpm, each.concurrency) for each in accounts] == [
        ("first", 500, 3_000_000, None),
        ("second", None, None, 100),
    ]
    terms = world.terms_of("with-discount")
    assert terms.cache == CacheTerms(ttl_seconds=600, ignored_ppm=50_000, block_tokens=512)
    assert terms.outages == {None: (), "first": (), "second": ((600.0, 660.0),)}
    assert world.terms_of("overflow").outages[None] == Bursts(share=0.1, mean_seconds=60, seed=1)
    assert (world.catalogue.routing.hold_usd_per_second, world.seed) == (0.0005, 3)
    price = world.catalogue.prices.in_force("without-discount", world.model.name, NOW)
    assert price is not None
    assert (str(price.input), price.cached_input, str(price.output)) == ("0.4", None, "1.75")


def test_a_standalone_provider_has_an_account_without_limits_and_the_usual_world(tmp_path: Path):
    """Only its price is needed."""
    world = read(tmp_path, f"[providers.a]\n{PRICE}\n", model="kimi")
    (account,) = world.catalogue.providers["a"].accounts
    assert (account.name, account.rpm, account.tpm, account.concurrency) == ("main", None, None, None)
    assert (world.model.name, world.terms_of("a").cache) == ("kimi", CacheTerms())


def test_a_scenario_over_a_configuration_changes_what_it_names_and_no_more(tmp_path: Path):
    """Moonshot gets another price and other accounts; EvoLink is as it was; a new seller joins."""
    text = f"""
    [providers.moonshot]
    price = {{ input = "0.10", output = "0.20" }}
    [[providers.moonshot.accounts]]
    name = "only"
    [providers.fresh]
    {PRICE}
    """
    before, world = shipped(), read(tmp_path, text, alone=False, model="kimi-thinking")
    name = world.model.name
    assert name == "kimi-k2-thinking", "an alias means its model"
    assert world.providers() == ("cometapi", "evolink", "fresh", "moonshot")
    assert [each.name for each in world.catalogue.providers["moonshot"].accounts] == ["only"]
    assert world.catalogue.providers["evolink"] == before.providers["evolink"]
    changed = world.catalogue.prices.in_force("moonshot", name, NOW)
    assert changed is not None
    assert (str(changed.input), changed.cached_input) == ("0.1", None)
    same = world.catalogue.prices.in_force("evolink", name, NOW)
    assert same == before.prices.in_force("evolink", name, NOW)


def test_without_a_scenario_the_first_model_that_is_served_is_asked_for():
    """The shipped configuration, as it is."""
    world = configured_scenario(shipped(), model=None, begins_at=NOW, where="models.toml")
    assert world.model.name == "kimi-k2-thinking"
    with pytest.raises(CatalogError, match=r'models\.toml:1: "kimi-k9" is no model of this configuration'):
        configured_scenario(shipped(), model="kimi-k9", begins_at=NOW, where="models.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "No provider is described here"),
        ("[providers.a]\n", "[providers.a] is not configured and has no price"),
        (f"[providers.a]\n{PRICE}\ncache = {{ ttl = 5 }}\n", 'world.toml:4: "ttl" is not a key in [providers.a.cache]'),
        (f"[providers.a]\n{PRICE}\ncache = {{ ignored = 1.5 }}\n", "ignored is 1.5; it is a share"),
        (f"[providers.a]\n{PRICE}\noutages = [[5, 3]]\n", "world.toml:4: outages holds what is no span of seconds"),
        (f"[providers.a]\n{PRICE}\noutages = [[5, inf]]\n", "outages holds what is no span of seconds"),
        (f"[providers.a]\n{PRICE}\noutages = {{ part = 0.1 }}\n", '"part" is not a key'),
        ('[providers.a]\nprice = { input = 0.6, output = "1" }\n', "input is a number"),
        ('[providers.a]\nprice = { input = "0.1", cached_input = "0.2", output = "1" }\n', "never dearer than a miss"),
        (f'[providers.a]\n{PRICE}\n[[providers.a.accounts]]\nname = "x"\nrpm = 0\n', "world.toml:6: rpm is 0"),
        (f'[providers."a b"]\n{PRICE}\n', "cannot stand in a report"),
        (f'[routing]\npolicy = "cheap"\n[providers.a]\n{PRICE}\n', "world.toml:3: policy"),
        ("nonsense\n", "This is not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_its_mend(tmp_path: Path, text: str, said: str):
    """Every error names the file and the line and ends with what to write instead."""
    with pytest.raises(CatalogError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "Mend: " in str(caught.value)


def test_every_error_of_a_file_is_told_at_once(tmp_path: Path):
    """Two providers, two errors."""
    with pytest.raises(CatalogError) as caught:
        read(tmp_path, "[providers.a]\n[providers.b]\n")
    assert len(caught.value.findings) == 2


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    """With the reason."""
    with pytest.raises(CatalogError, match="cannot be read: No such file"):
        read_scenario(tmp_path / "none.toml", configured=nothing_configured, model=None, begins_at=NOW)
