"""The columns of a provider's statements, as they may be configured, and every mistake in them at its line."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import CatalogError, load
from gateway.cli.statements import mapping_of
from gateway.core.catalogue import ProviderCard
from gateway.core.statement import StatementError, StatementMapping
from gateway.providers import DIALECTS

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CARD = """\
[providers.there]
dialect = "{dialect}"
base_url = "https://there.example/v1"
accounts = [{{ name = "main", api_key = {{ env = "KEY" }} }}]
[providers.there.statement]
{lines}
"""


def card(folder: Path, *lines: str, dialect: str = "evolink") -> ProviderCard:
    (folder / "providers.toml").write_text(CARD.format(dialect=dialect, lines="\n".join(lines)))
    for name in ("models.toml", "prices.toml"):
        (folder / name).write_text("")
    return load(folder, now=NOW).catalogue.providers["there"]


def test_what_is_written_goes_over_what_the_dialect_assumes(tmp_path: Path) -> None:
    """The worth of a credit and a renamed column; everything else stays."""
    written = card(tmp_path, 'usd_per_unit = "0.001"', 'amount = "cost.credits"', "decimals = 0", 'rounding = "any"')
    mapping = mapping_of(written, None)
    assert (mapping.usd_per_unit, mapping.amount, mapping.decimals) == (Decimal("0.001"), "cost.credits", 0)
    assert (mapping.rounding, mapping.request_id) == ("any", "request_id")
    assert mapping_of(written, "0.5").usd_per_unit == Decimal("0.5")


def test_a_generic_provider_has_only_what_is_written(tmp_path: Path) -> None:
    """Every field can be named; without the amount nobody knows what a line costs."""
    fields: dict[str, Any] = {
        "amount": "cost", "request_id": "id", "time": "when", "model": "m", "input_tokens": "in",
        "cached_tokens": "hit", "cache_write_tokens": "put", "output_tokens": "out", "lines": "a.b",
        "time_format": "%d.%m.%Y", "time_zone": "Europe/Berlin",
    }  # fmt: skip
    lines = [f'{name} = "{value}"' for name, value in fields.items()]
    written = card(tmp_path, *lines, "input_includes_cached = false", dialect="openai")
    assert mapping_of(written, None) == StatementMapping(**fields, input_includes_cached=False)
    with pytest.raises(StatementError, match=r"columns of there's statements: name them in \[providers.there"):
        mapping_of(card(tmp_path, 'time = "t"', dialect="openai"), None)


def test_nobody_knows_what_a_credit_is_worth(tmp_path: Path) -> None:
    """The message names both places where it can be said."""
    with pytest.raises(StatementError, match=r"write usd_per_unit in \[providers.there.statement\], or give --usd"):
        mapping_of(card(tmp_path), None)


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_dialect_that_has_columns_needs_no_configuration(tmp_path: Path, name: str) -> None:
    """All but the generic one, and the worth of a credit."""
    usual = DIALECTS[name].statement
    assert (usual is None) == (name == "openai")
    if usual is not None:
        assert mapping_of(card(tmp_path, dialect=name), "1").amount == usual.amount


MISTAKES = [
    ('usd_per_unit = 0.5', "usd_per_unit is a number.", 'Write it as a string: usd_per_unit = "0.5".'),
    ('usd_per_unit = "0.00"', "usd_per_unit is nothing.", 'Write it like usd_per_unit = "0.000002".'),
    ("decimals = 13", "decimals is 13; it is from 0 to 12.", "Write it like decimals = 8."),
    ('rounding = "up"', 'rounding is "up", which is none of any | nearest.', "Write one of any | nearest."),
    ('time_zone = "Mars"', '"Mars" is not a time zone.', "Write it like Asia/Shanghai."),
    ('time_format = "iso"', 'time_format is "iso", which is neither a name nor a pattern.', "Write one of rfc3339"),
    ('time_format = "%Q"', 'time_format is "%Q", which is neither a name nor a pattern.', "or a pattern such as"),
    ('amout = "x"', '"amout" is not a key in [providers.there.statement].', "Did you mean amount?"),
    ("amount = 1", "amount is a whole number, not text.", 'Write it like amount = "Amount (USD)".'),
    ('input_includes_cached = "no"', "input_includes_cached is text, not true or false.", "= true."),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message", "mend"), MISTAKES)
def test_a_mistake_is_found_at_its_line(tmp_path: Path, line: str, message: str, mend: str) -> None:
    """One finding, with its mend, like everywhere else in these files."""
    with pytest.raises(CatalogError) as refused:
        card(tmp_path, line)
    (finding,) = [each for each in refused.value.findings if each.level == "error"]
    assert (finding.line, finding.message) == (6, message)
    assert mend in finding.mend
