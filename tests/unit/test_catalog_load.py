"""A configuration loads to exactly the values its files say, or to errors that say where they do not."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from gateway.catalog import FILES, CatalogError, SecretRef, load
from gateway.core.catalogue import (
    Account,
    Deployment,
    Model,
    OnClientAbort,
    OnModelMismatch,
    OnRetired,
    Policy,
    ProviderCard,
    RoutingTerms,
    Timeouts,
)
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

PROVIDERS = """
[providers.moonshot]
dialect  = "moonshot"
base_url = "https://api.moonshot.ai/v1/"
timeouts = { connect = 2.5, total = 600 }
balance_url = "https://api.moonshot.ai/v1/users/me/balance"
on_client_abort   = "drain"
on_model_mismatch = "reject"

[[providers.moonshot.accounts]]
name    = "main"
api_key = { env = "MOONSHOT_API_KEY" }
rpm = 500
tpm = 3_000_000
concurrency = 100

[[providers.moonshot.accounts]]
name    = "second"
api_key = { file = "secrets/second" }

[providers.moonshot.models.kimi-k2-thinking]
upstream = "kimi-k2-thinking-0"
context = 262_144
max_output = 131_072
retirement_reported = 2027-05-25
available_from = 2025-11-06
available_until = 2027-06-01T02:00:00+08:00
capabilities = ["tools", "json_object"]
sampling = "fixed"

[providers.vllm]
dialect = "openai"
base_url = "http://127.0.0.1:8000/v1"
accounts = [{ name = "local" }]
models = { "kimi-k2.6" = { context = 65_536 } }
"""

MODELS = """
[models."kimi-k2-thinking"]
aliases    = ["moonshotai/Kimi-K2-Thinking", "kimi-thinking"]
successor  = "kimi-k2.6"
on_retired = "successor"
default_max_output = 16_384

[models."kimi-k2.6"]
"""

PRICES = """
[[prices]]
provider = "moonshot"
model    = "kimi-k2-thinking"
effective_from = 2025-11-06
input        = "0.60"
cached_input = "0.15"
output       = "2.50"
cache_write  = { "5m" = "0.60", "1h" = "1.20" }
source     = "a page"
checked_at = 2026-11-01

[[prices]]
provider = "moonshot"
model    = "kimi-k2-thinking"
effective_from = 2026-01-01T08:00:00+08:00
input  = "0.5"
output = "0.4"
confirmed = true

[[prices]]
provider = "vllm"
model = "kimi-k2.6"
effective_from = 2026-04-20T10:30:00
input = "0"
output = "0"
"""


def write(folder: Path, *, providers: str = PROVIDERS, models: str = MODELS, prices: str = PRICES) -> Path:
    for name, text in zip(FILES, (providers, models, prices), strict=True):
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def failure(folder: Path) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        load(folder, now=NOW)
    return caught.value


def test_providers_are_what_the_file_says(tmp_path: Path) -> None:
    """Every key of INTERFACE §2, and what absent ones mean."""
    providers = load(write(tmp_path), now=NOW).catalogue.providers
    assert dict(providers) == {
        "moonshot": ProviderCard(
            name="moonshot",
            dialect="moonshot",
            base_url="https://api.moonshot.ai/v1",
            timeouts=Timeouts(connect=2.5, first_byte=120, idle=120, total=600),
            balance_url="https://api.moonshot.ai/v1/users/me/balance",
            on_client_abort=OnClientAbort.DRAIN,
            on_model_mismatch=OnModelMismatch.REJECT,
            accounts=(
                Account(provider="moonshot", name="main", rpm=500, tpm=3_000_000, concurrency=100),
                Account(provider="moonshot", name="second"),
            ),
            deployments={
                "kimi-k2-thinking": Deployment(
                    provider="moonshot",
                    model="kimi-k2-thinking",
                    upstream="kimi-k2-thinking-0",
                    context=262_144,
                    max_output=131_072,
                    capabilities=frozenset({"tools", "json_object"}),
                    available_from=date(2025, 11, 6),
                    available_until=date(2027, 5, 31),
                    retirement_reported=date(2027, 5, 25),
                    sampling_fixed=True,
                )
            },
        ),
        "vllm": ProviderCard(
            name="vllm",
            dialect="openai",
            base_url="http://127.0.0.1:8000/v1",
            accounts=(Account(provider="vllm", name="local"),),
            deployments={
                "kimi-k2.6": Deployment(
                    provider="vllm", model="kimi-k2.6", upstream="kimi-k2.6", context=65_536, max_output=65_536
                )
            },
        ),
    }


def test_models_and_aliases_are_what_the_file_says(tmp_path: Path) -> None:
    """A model resolves by its name and by each alias."""
    catalogue = load(write(tmp_path), now=NOW).catalogue
    thinking = Model(
        name="kimi-k2-thinking",
        aliases=("moonshotai/Kimi-K2-Thinking", "kimi-thinking"),
        successor="kimi-k2.6",
        on_retired=OnRetired.SUCCESSOR,
        default_max_output=16_384,
    )
    assert dict(catalogue.models) == {"kimi-k2-thinking": thinking, "kimi-k2.6": Model(name="kimi-k2.6")}
    assert catalogue.resolve("kimi-thinking") == catalogue.resolve("kimi-k2-thinking") == thinking
    assert catalogue.resolve("kimi-k2") is None


def test_routing_is_what_the_file_says(tmp_path: Path) -> None:
    """Every line of the table may be left out, and so may the table."""
    assert load(write(tmp_path), now=NOW).catalogue.routing == RoutingTerms()
    table = """
    [routing]
    policy                 = "sticky"
    hold_usd_per_second    = "0.0005"
    hold_seconds_max       = 2.5
    failure_usd            = "0.01"
    min_tool_call_validity = 0.95
    """
    assert load(write(tmp_path, models=MODELS + table), now=NOW).catalogue.routing == RoutingTerms(
        policy=Policy.STICKY,
        hold_usd_per_second=0.0005,
        hold_seconds_max=2.5,
        failure_usd=0.01,
        min_tool_call_validity=0.95,
    )


def test_prices_are_what_the_file_says(tmp_path: Path) -> None:
    """To the last digit; a date is its midnight UTC, and a time without a zone is UTC."""
    loaded = load(write(tmp_path), now=NOW)
    first, second, free = loaded.catalogue.prices.rows()
    assert first == Price(
        provider="moonshot",
        model="kimi-k2-thinking",
        effective_from=datetime(2025, 11, 6, tzinfo=UTC),
        input=UnitPrice(600_000),
        cached_input=UnitPrice(150_000),
        output=UnitPrice(2_500_000),
        cache_write={"5m": UnitPrice(600_000), "1h": UnitPrice(1_200_000)},
        source="a page",
        checked_at=date(2026, 11, 1),
    )
    assert (second.effective_from, second.effective_from.tzinfo) == (datetime(2026, 1, 1, tzinfo=UTC), UTC)
    assert (second.cached_input, second.cache_write, second.checked_at) == (None, None, None)
    assert free.effective_from == datetime(2026, 4, 20, 10, 30, tzinfo=UTC)
    assert free.input == UnitPrice(0)
    assert [loaded.price_lines[row.price_id] for row in (first, second, free)] == [2, 13, 21]


def test_credentials_are_references(tmp_path: Path) -> None:
    """Keyed by provider and account; what needs no key is not among them."""
    loaded = load(write(tmp_path), now=NOW)
    assert dict(loaded.credentials) == {
        ("moonshot", "main"): SecretRef(env="MOONSHOT_API_KEY"),
        ("moonshot", "second"): SecretRef(file="secrets/second"),
    }
    assert loaded.credentials["moonshot", "main"].as_mapping() == {"env": "MOONSHOT_API_KEY"}
    assert loaded.credentials["moonshot", "second"].as_mapping() == {"file": "secrets/second"}
    assert loaded.findings == ()


@pytest.mark.parametrize("wrong", [{}, {"env": "A", "file": "b"}])
def test_a_reference_is_one_thing(wrong: dict[str, str]) -> None:
    """Neither nothing nor both."""
    with pytest.raises(AssertionError):
        SecretRef(**wrong)


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    """The same as `cat providers.toml models.toml prices.toml | sha256sum`; a comment changes it."""
    first = load(write(tmp_path), now=NOW).catalogue
    assert first.digest == hashlib.sha256((PROVIDERS + MODELS + PRICES).encode()).hexdigest()
    assert first.loaded_at == NOW
    assert load(write(tmp_path, models=MODELS + "# more"), now=NOW).catalogue.digest != first.digest


def test_a_load_cannot_be_edited(tmp_path: Path) -> None:
    """What is in force changes by another load only."""
    catalogue = load(write(tmp_path), now=NOW).catalogue
    for mapping in (catalogue.providers, catalogue.models, catalogue.aliases):
        with pytest.raises(TypeError):
            mapping["x"] = None  # type: ignore[index]


def test_empty_files_load(tmp_path: Path) -> None:
    """Nothing is served, and nothing is wrong."""
    loaded = load(write(tmp_path, providers="", models="", prices=""), now=NOW)
    assert (len(loaded.catalogue.providers), len(loaded.catalogue.models), loaded.findings) == (0, 0, ())


def test_windows_files_load(tmp_path: Path) -> None:
    """With a byte order mark and carriage returns, and errors still at the right line."""
    text = "\ufeff" + PROVIDERS.replace("\n", "\r\n")
    assert load(write(tmp_path, providers=text), now=NOW).catalogue.providers["vllm"].dialect == "openai"
    error = failure(write(tmp_path, providers=text.replace("rpm = 500", "rpm = 0")))
    assert [finding.line for finding in error.findings] == [13]


def test_missing_files_are_named(tmp_path: Path) -> None:
    """All of them at once; names that stand in a missing file are not reported on top."""
    write(tmp_path)
    (tmp_path / "models.toml").unlink()
    (tmp_path / "prices.toml").unlink()
    error = failure(tmp_path)
    assert [(each.file, each.line, each.message) for each in error.findings] == [
        (str(tmp_path / "models.toml"), 1, "The file does not exist."),
        (str(tmp_path / "prices.toml"), 1, "The file does not exist."),
    ]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A folder in a file's place, for example."""
    write(tmp_path)
    (tmp_path / "prices.toml").unlink()
    (tmp_path / "prices.toml").mkdir()
    assert str(failure(tmp_path)).startswith(f"{tmp_path / 'prices.toml'}:1: The file cannot be read: Is a ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[[prices]]\nprovider = "a"\nmodel = kimi\n', 3),
        ('[[prices]]\nprovider = "a\nmodel = 1\n', 2),
        ("[[prices]]\n\nprovider =", 3),
        ("a = 1\nb = 2\na = 3\n", 3),
        ("a = [1,\n2\n", 2),
        ("a = " + "[" * 5000, 1),
    ],
)
def test_what_is_not_toml_is_located(tmp_path: Path, text: str, line: int) -> None:
    """By line, without a traceback, and together with the findings of the other files."""
    error = failure(write(tmp_path, prices=text, models=MODELS.replace("16_384", "0")))
    assert [(Path(each.file).name, each.line) for each in error.findings] == [("models.toml", 6), ("prices.toml", line)]


def test_what_is_not_toml_is_explained(tmp_path: Path) -> None:
    """In tomllib's words, with the position in front."""
    error = failure(write(tmp_path, prices="a = 1\na = 2\n"))
    assert str(error) == (
        f"{tmp_path}/prices.toml:2: This is not TOML: cannot overwrite a value. "
        "Mend: Correct the line, or the one before it."
    )


def test_a_file_of_other_bytes_is_located(tmp_path: Path) -> None:
    """The line of the first byte that is not UTF-8."""
    write(tmp_path)
    (tmp_path / "models.toml").write_bytes(b"# one\n# two\n# caf\xe9\n")
    assert str(failure(tmp_path)).startswith(f"{tmp_path / 'models.toml'}:3: This is not UTF-8 text. Mend: ")


def test_everything_wrong_is_told_at_once_and_in_order(tmp_path: Path) -> None:
    """By file and line; the text has one line for each error, in the documented form."""
    error = failure(
        write(
            tmp_path,
            providers=PROVIDERS.replace("rpm = 500", "rpm = -1").replace('"drain"', '"drian"'),
            models=MODELS.replace('["moon', '["", "moon'),
            prices=PRICES.replace('"0.15"', '"0.60"').replace('"2.50"', "2.50"),
        )
    )
    assert str(error).splitlines() == [
        f'{tmp_path}/models.toml:3: aliases holds text. Mend: Write it like aliases = ["kimi-thinking"].',
        (
            f"{tmp_path}/prices.toml:7: cached_input 0.6 is not below input 0.6; a cache hit is never dearer than a "
            "miss. Mend: Swap the two if they are in each other's place, or remove cached_input if hits have no "
            "discount."
        ),
        f'{tmp_path}/prices.toml:8: output is a number. Mend: Write it as a string: output = "2.50".',
        (
            f'{tmp_path}/providers.toml:7: on_client_abort is "drian", which is none of cancel | drain. '
            "Mend: Did you mean drain?"
        ),
        f"{tmp_path}/providers.toml:13: rpm is -1; it must be at least 1. Mend: Write it like rpm = 500.",
    ]


def test_a_bad_reload_leaves_the_loaded_one_alone(tmp_path: Path) -> None:
    """A load is a function of the files; the older value stays as it was."""
    loaded = load(write(tmp_path), now=NOW)
    before = (loaded.catalogue.digest, loaded.catalogue.prices.rows())
    failure(write(tmp_path, prices=PRICES.replace('"0.15"', '"9"')))
    assert (loaded.catalogue.digest, loaded.catalogue.prices.rows()) == before
