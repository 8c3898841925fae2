"""What ships in config/ is real: it loads without an error, and each of its warnings is known and meant."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from gateway.catalog import FILES, Loaded, SecretRef, load, render_demo_config

CONFIG = Path(__file__).resolve().parents[2] / "config"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
THINKING, TURBO = "kimi-k2-thinking", "kimi-k2-thinking-turbo"


@pytest.fixture(scope="module")
def shipped() -> Loaded:
    return load(CONFIG, now=NOW)


def test_its_warnings_are_known(shipped: Loaded) -> None:
    """Six reported retirements, two prices far above the maker's, and one model without a price."""
    k26, fast = "Move callers to kimi-k2.6; ", "Move callers to kimi-k2.7-code-highspeed; "
    retired = "is reported retired since 2026-05-25; it is tried until its first 404."
    found = [(Path(each.file).name, each.message, each.mend.split("once")[0]) for each in shipped.findings]
    dearer, invoice = "Far above what the maker of the model asks: ", "Compare the page with an invoice; "
    invoice += "confirmed = true says that the amounts are right."
    assert found == [
        ("prices.toml", dearer + "input 1.1 (moonshot: 0.6), output 4.4 (moonshot: 2.5).", invoice),
        ("prices.toml", dearer + "input 2.2 (moonshot: 1.15), output 15.95 (moonshot: 8).", invoice),
        ("providers.toml", f"moonshot kimi-k2-thinking {retired}", k26),
        ("providers.toml", f"moonshot kimi-k2-thinking-turbo {retired}", fast),
        ("providers.toml", f"moonshot kimi-k2-0711-preview {retired}", k26),
        ("providers.toml", f"moonshot kimi-k2-0905-preview {retired}", k26),
        ("providers.toml", f"moonshot kimi-k2-turbo-preview {retired}", k26),
        ("providers.toml", f"moonshot kimi-k2.5 {retired.replace('05-25', '08-31')}", k26),
        (
            "providers.toml",
            "evolink kimi-k2-thinking-turbo has no price: it loads, and is not routable.",
            "Add a [[prices]] row with its source, or remove the model here.",
        ),
    ]
    assert {each.level for each in shipped.findings} == {"warning"}


@pytest.mark.parametrize(
    ("provider", "model", "amounts"),
    [
        ("moonshot", THINKING, ("0.6", "0.15", "2.5")),
        ("moonshot", TURBO, ("1.15", "0.15", "8")),
        ("cometapi", THINKING, ("1.1", "None", "4.4")),
        ("cometapi", TURBO, ("2.2", "None", "15.95")),
        ("evolink", THINKING, ("0.556", "0.139", "2.222")),
        ("moonshot", "kimi-k2-0711-preview", ("0.6", "0.15", "2.5")),
        ("moonshot", "kimi-k2-0905-preview", ("0.6", "0.15", "2.5")),
        ("moonshot", "kimi-k2-turbo-preview", ("2.4", "0.6", "10")),
        ("moonshot", "kimi-k2.5", ("0.6", "0.1", "3")),
        ("moonshot", "kimi-k2.6", ("0.95", "0.16", "4")),
        ("moonshot", "kimi-k2.7-code", ("0.95", "0.19", "4")),
        ("moonshot", "kimi-k2.7-code-highspeed", ("1.9", "0.38", "8")),
        ("moonshot", "kimi-k3", ("3", "0.3", "15")),
        ("moonshot", "kimi-k3.1-pro", ("2", "0.2", "10")),
        ("moonshot", "kimi-k3.1-pro-highspeed", ("4", "0.2", "20")),
    ],
)
def test_every_price_in_force(shipped: Loaded, provider: str, model: str, amounts: tuple[str, ...]) -> None:
    """USD per million for input, hit and output, with a source, and served where it is priced."""
    price = shipped.catalogue.prices.in_force(provider, model, NOW)
    assert price is not None
    assert (str(price.input), str(price.cached_input), str(price.output)) == amounts
    assert price.source
    assert price.checked_at is not None
    assert model in shipped.catalogue.providers[provider].deployments
    assert shipped.catalogue.providers[provider].deployments[model].is_available(NOW.date())


def test_nothing_else_is_priced(shipped: Loaded) -> None:
    """Fifteen pairs in force and one superseded row: the first of kimi-k3."""
    assert len(shipped.catalogue.prices.rows()) == 16
    assert shipped.catalogue.prices.in_force("evolink", TURBO, NOW) is None


@pytest.mark.parametrize(
    ("at", "writes"),
    [(datetime(2026, 8, 31, tzinfo=UTC), None), (datetime(2026, 9, 30, tzinfo=UTC), {"5m": "3", "1h": "6"})],
)
def test_kimi_k3_charges_for_cache_writes_since_september(
    shipped: Loaded, at: datetime, writes: dict[str, str] | None
) -> None:
    """Two dated rows of one model."""
    price = shipped.catalogue.prices.in_force("moonshot", "kimi-k3", at)
    assert price is not None
    found = None if price.cache_write is None else {ttl: str(amount) for ttl, amount in price.cache_write.items()}
    assert found == writes


def test_both_thinking_models_are_everywhere(shipped: Loaded) -> None:
    """At all three providers with their exact window; Moonshot's with the report and not with a certain end."""
    for model in (THINKING, TURBO):
        deployments = {card.name: each for card, each in shipped.catalogue.deployments(model)}
        assert sorted(deployments) == ["cometapi", "evolink", "moonshot"]
        assert {(each.context, each.max_output) for each in deployments.values()} == {(262_144, 262_144)}
        assert {each.upstream for each in deployments.values()} == {model}
        assert deployments["moonshot"].retirement_reported == date(2026, 5, 25)
        assert deployments["moonshot"].available_until is None
        assert deployments["cometapi"].retirement_reported is None


def test_addresses_and_credentials(shipped: Loaded) -> None:
    """As documented; an account each, whose key is in the conventional variable, without invented limits."""
    cards = shipped.catalogue.providers
    assert {name: (card.dialect, card.base_url) for name, card in cards.items()} == {
        "moonshot": ("moonshot", "https://api.moonshot.ai/v1"),
        "cometapi": ("cometapi", "https://api.cometapi.com/v1"),
        "evolink": ("evolink", "https://direct.evolink.ai/v1"),
    }
    assert dict(shipped.credentials) == {
        ("moonshot", "main"): SecretRef(env="MOONSHOT_API_KEY"),
        ("cometapi", "main"): SecretRef(env="COMETAPI_KEY"),
        ("evolink", "main"): SecretRef(env="EVOLINK_API_KEY"),
    }
    accounts = [account for card in cards.values() for account in card.accounts]
    assert {(each.rpm, each.tpm, each.concurrency) for each in accounts} == {(None, None, None)}


@pytest.mark.parametrize("alias", ["moonshotai/Kimi-K2-Thinking", "Kimi K2 Thinking", "k2-thinking", "kimi-thinking"])
def test_names_that_pages_use_for_the_thinking_model(shipped: Loaded, alias: str) -> None:
    """Of Hugging Face, a display name, and the name of an announcement."""
    model = shipped.catalogue.resolve(alias)
    assert model is not None
    assert model.name == THINKING
    assert model.default_max_output == 32_768


def test_a_retired_model_has_a_living_successor(shipped: Loaded) -> None:
    """Not itself reported retired, and priced."""
    catalogue = shipped.catalogue
    reported = {
        each.model
        for card in catalogue.providers.values()
        for each in card.deployments.values()
        if each.retirement_reported
    }
    assert len(reported) == 6
    for name in reported:
        successor = catalogue.models[name].successor
        assert successor is not None
        assert successor not in reported
        assert catalogue.prices.in_force("moonshot", successor, NOW) is not None
    assert catalogue.models[THINKING].successor == "kimi-k2.6"


def test_limits_and_policies_in_the_comments_are_ready_to_use(tmp_path: Path) -> None:
    """An operator who uncomments every setting still has a configuration that loads."""
    for name in FILES:
        text = (CONFIG / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(re.sub(r"(?m)^# (?=[a-z_]+ +=)", "", text), encoding="utf-8")
    loaded = load(tmp_path, now=NOW)
    account = loaded.catalogue.providers["moonshot"].accounts[0]
    assert (account.rpm, account.tpm, account.concurrency) == (500, 3_000_000, 100)
    assert loaded.catalogue.providers["cometapi"].balance_url == "https://query.cometapi.com/user/quota"


# --- the demo's copy

ADDRESSES = {
    "moonshot": "http://127.0.0.1:9101/v1",
    "cometapi": "http://127.0.0.1:9102/comet/v1/",
    "evolink": "http://127.0.0.1:9103",
}


def test_the_demo_config_is_the_shipped_one_elsewhere(tmp_path: Path) -> None:
    """Only addresses differ, and it loads with the same warnings."""
    texts = render_demo_config(CONFIG, ADDRESSES)
    assert sorted(texts) == sorted(FILES)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    loaded, shipped = load(tmp_path, now=NOW), load(CONFIG, now=NOW)
    assert {name: card.base_url for name, card in loaded.catalogue.providers.items()} == {
        name: address.rstrip("/") for name, address in ADDRESSES.items()
    }
    assert [each.message for each in loaded.findings] == [each.message for each in shipped.findings]
    balances = {name: card.balance_url for name, card in loaded.catalogue.providers.items()}
    assert balances == {
        "moonshot": "http://127.0.0.1:9101/v1/users/me/balance",
        "cometapi": None,
        "evolink": "http://127.0.0.1:9103/credits",
    }


def test_the_demo_config_keeps_every_other_character() -> None:
    """Comments, blanks and the other two files."""
    texts = render_demo_config(CONFIG, ADDRESSES)
    original = {name: (CONFIG / name).read_text(encoding="utf-8") for name in FILES}
    assert texts["models.toml"] == original["models.toml"]
    assert texts["prices.toml"] == original["prices.toml"]
    pairs = zip(texts["providers.toml"].splitlines(), original["providers.toml"].splitlines(), strict=True)
    changed = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    assert [ours.split()[0] for ours, _ in changed] == [
        "base_url",
        "balance_url",
        "base_url",
        "base_url",
        "balance_url",
    ]
    assert all(ours.partition("#")[2] == theirs.partition("#")[2] for ours, theirs in changed)


def test_a_demo_never_reaches_a_real_provider() -> None:
    """A provider without a simulator is refused; a simulator without a provider is not needed."""
    with pytest.raises(ValueError, match="no simulator for the provider 'evolink'"):
        render_demo_config(CONFIG, {"moonshot": "http://127.0.0.1:1", "cometapi": "http://127.0.0.1:2"})
    render_demo_config(CONFIG, ADDRESSES | {"another": "http://127.0.0.1:4"})


def test_an_address_on_another_host_keeps_its_path(tmp_path: Path) -> None:
    """Where the balance is not below the base address; also with keys written in other ways."""
    (tmp_path / "providers.toml").write_text(
        "providers.x = { base_url = \"https://a.example/api/v1\", balance_url = 'https://b.example/v2/quota' }\n",
        encoding="utf-8",
    )
    for name in FILES[1:]:
        (tmp_path / name).write_text("", encoding="utf-8")
    assert render_demo_config(tmp_path, {"x": "http://127.0.0.1:9/v1"})["providers.toml"] == (
        'providers.x = { base_url = "http://127.0.0.1:9/v1", balance_url = "http://127.0.0.1:9/v2/quota" }\n'
    )
