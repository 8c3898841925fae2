"""Every rule finds its one mistake, at its line, with its mend, and nothing else."""

# ruff: noqa: E501 - a table of rules reads best with one to a line

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.catalog import CatalogError, Finding, load

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

GOOD = {
    "providers.toml": """\
[providers.moonshot]
dialect = "moonshot"
base_url = "https://api.moonshot.ai/v1"
timeouts = { connect = 5, idle = 60.5 }
[[providers.moonshot.accounts]]
name = "main"
api_key = { env = "MOONSHOT_API_KEY" }
[[providers.moonshot.accounts]]
name = "other"
api_key = { file = "other.key" }
[providers.moonshot.models.kimi-k2-thinking]
context = 262_144
max_output = 65_536
capabilities = ["tools", "json_object"]
[providers.reseller]
dialect = "openai"
base_url = "https://reseller.example/v1"
accounts = [{ name = "main", api_key = { env = "RESELLER_KEY" } }]
[providers.reseller.models.kimi-k2-thinking]
context = 262_144
[providers.reseller.models."kimi-k2.6"]
context = 262_144
""",
    "models.toml": """\
[models.kimi-k2-thinking]
aliases = ["k2-thinking", "thinking"]
successor = "kimi-k2.6"
[models."kimi-k2.6"]
default_max_output = 16_384
""",
    "prices.toml": """\
[[prices]]
provider = "moonshot"
model = "kimi-k2-thinking"
effective_from = 2025-11-06
input = "0.60"
cached_input = "0.15"
output = "2.50"
[[prices]]
provider = "reseller"
model = "kimi-k2-thinking"
effective_from = 2025-11-07
input = "0.61"
output = "2.60"
[[prices]]
provider = "reseller"
model = "kimi-k2.6"
effective_from = 2026-04-20
input = "0.95"
cached_input = "0.16"
output = "4.00"
""",
}

P, M, R = GOOD


def findings_of(folder: Path, files: dict[str, str]) -> tuple[Finding, ...]:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    try:
        return load(folder, now=NOW).findings
    except CatalogError as error:
        return error.findings


def edited(file: str, old: str, new: str) -> dict[str, str]:
    assert old in GOOD[file], "the example of this rule has lost its subject"
    return GOOD | {file: GOOD[file].replace(old, new, 1)}


def test_the_good_files_have_no_findings(tmp_path: Path) -> None:
    """What every rule below breaks in one place."""
    assert findings_of(tmp_path, GOOD) == ()


ROW = '\n[[prices]]\nprovider = "moonshot"\nmodel = "kimi-k2-thinking"\neffective_from = '
BASE_URL = '"https://api.moonshot.ai/v1"'
CONTEXT = "[providers.moonshot.models.kimi-k2-thinking]\ncontext = 262_144"
MODELS_END = "default_max_output = 16_384\n"

# file, what is replaced, by what, level, line, part of the message, part of the mend
RULES = [
    # --- addresses
    (P, BASE_URL, '"https://a.example/v1/chat/completions"', "error", 3, "ends in /chat/completions", '"https://a.example/v1"'),
    (P, BASE_URL, '"https://a.example/v1/chat/completions/"', "error", 3, "ends in", 'base_url = "https://a.example/v1".'),
    (P, BASE_URL, '"https://a.example/v1/messages"', "error", 3, "ends in /messages", 'base_url = "https://a.example/v1".'),
    (P, BASE_URL, '"http://a.example/v1"', "error", 3, "plain http", "allow_plain_http = true"),
    (P, BASE_URL, '"http://10.0.0.1/v1"', "error", 3, "plain http", "https"),
    (P, BASE_URL, '"http://127.example/v1"', "error", 3, "plain http", "https"),
    (P, BASE_URL, '"https://u:hunter2@a.example/v1"', "error", 3, "credentials", '"https://a.example/v1"'),
    (P, BASE_URL, '"https://a.example/v1?key=hunter2"', "error", 3, "query", '"https://a.example/v1"'),
    (P, BASE_URL, '"https://a.example/v1#hunter2"', "error", 3, "fragment", '"https://a.example/v1"'),
    (P, BASE_URL, '"ftp://a.example/v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '"a.example/v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '"https:///v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '"https://a.example:port/v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '"https://[::1/v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '"https://a.example /v1"', "error", 3, "not an http or https address", "https://host/v1"),
    (P, BASE_URL, '" "', "error", 3, "empty", "base_url ="),
    (P, BASE_URL, "1", "error", 3, "a whole number, not text", "base_url ="),
    (P, f"base_url = {BASE_URL}\n", "", "error", 1, "has no base_url", "Add base_url ="),
    (P, BASE_URL, '"https://api.moonshot.cn/v1"', "warning", 3, "CNY", "https://api.moonshot.ai/v1"),
    (P, "timeouts", 'balance_url = "http://a.example/b"\ntimeouts', "error", 4, "balance_url is plain http", "https"),
    (P, "timeouts", 'balance_url = "https://a.example/b?key=hunter2"\ntimeouts', "error", 4, "query", "api_key"),
    # --- provider
    (P, 'dialect = "moonshot"', 'dialect = "moonshoot"', "error", 2, '"moonshoot"', "Did you mean moonshot?"),
    (P, 'dialect = "moonshot"', 'dialect = "x"', "error", 2, '"x"', "cometapi | evolink | moonshot | openai"),
    (P, 'dialect = "moonshot"\n', "", "error", 1, "has no dialect", "Add dialect ="),
    (P, "timeouts", "timeout", "error", 4, '"timeout" is not a key in [providers.moonshot]', "Did you mean timeouts?"),
    (P, "base_url", "zz = 1\nbase_url", "error", 3, '"zz" is not a key', "write one of: accounts, allow_plain_http"),
    (P, "base_url", 'on_client_abort = "x"\nbase_url', "error", 3, "none of cancel | drain", "Write one of"),
    (P, "base_url", 'on_model_mismatch = "allow"\nbase_url', "error", 3, "none of flag | reject", "Write one of"),
    (P, "base_url", "allow_plain_http = 1\nbase_url", "error", 3, "not true or false", "allow_plain_http = true"),
    (P, "connect = 5", "connect = 0", "error", 4, "more than 0", "connect = 5"),
    (P, "idle = 60.5", "idle = -0.5", "error", 4, "more than 0", "idle = 120"),
    (P, "idle = 60.5", "idle = inf", "error", 4, "more than 0", "idle = 120"),
    (P, "idle = 60.5", 'idle = "60s"', "error", 4, "text, not a number of seconds", "idle = 120"),
    (P, "idle = 60.5", "idle = true", "error", 4, "not a number of seconds", "idle = 120"),
    (P, "idle = 60.5", "first_bite = 1", "error", 4, '"first_bite"', "Did you mean first_byte?"),
    (P, "{ connect = 5, idle = 60.5 }", "60", "error", 4, "not a table", "timeouts = {"),
    (P, "[providers.reseller]", "title = 1\n[providers.reseller]", "error", 15, '"title" is not a key', "write one of"),
    (P, "[providers.moonshot]", "[provider]\n[providers.moonshot]", "error", 1, "at the top of this file", "providers?"),
    # --- accounts
    (P, 'accounts = [{ name = "main", api_key = { env = "RESELLER_KEY" } }]', "", "warning", 15, "no account", "[[prov"),
    (P, 'name = "other"', 'name = "main"', "error", 9, 'two accounts named "main"', "its own name"),
    (P, 'name = "other"', "", "error", 8, "has no name", 'Add name = "main"'),
    (P, 'name = "other"', 'name = "a, b"', "error", 9, "cannot stand in a header", "letters"),
    (P, 'name = "other"', 'name = "o"\nrpm = 0', "error", 10, "at least 1", "rpm = 500"),
    (P, 'name = "other"', 'name = "o"\ntpm = -5', "error", 10, "at least 1", "tpm ="),
    (P, 'name = "other"', 'name = "o"\nconcurrency = 1.5', "error", 10, "decimal number, not a whole", "concurrency ="),
    (P, 'name = "other"', 'name = "o"\nrpm = true', "error", 10, "not a whole number", "rpm = 500"),
    (P, 'name = "other"', 'name = "o"\nrpms = 5', "error", 10, '"rpms"', "Did you mean rpm?"),
    (P, '{ env = "MOONSHOT_API_KEY" }', '"hunter2"', "error", 7, "literal", "env ="),
    (P, '{ env = "MOONSHOT_API_KEY" }', '{ env = "sk-hunter2" }', "error", 7, "environment variable", "env ="),
    (P, '{ env = "MOONSHOT_API_KEY" }', '{ value = "hunter2" }', "error", 7, "neither", "env ="),
    (P, '{ env = "MOONSHOT_API_KEY" }', '{ env = "A", file = "hunter2" }', "error", 7, "both", "env ="),
    (P, '{ env = "MOONSHOT_API_KEY" }', '{ file = "" }', "error", 7, "neither", "env ="),
    (P, '{ env = "MOONSHOT_API_KEY" }', "{}", "error", 7, "neither", "env ="),
    (P, 'api_key = { env = "MOONSHOT_API_KEY" }', "", "warning", 5, "no api_key", "Add api_key ="),
    (P, 'api_key = { env = "MOONSHOT_API_KEY" }', 'apikey = "hunter2"', "error", 7, '"apikey"', "api_key?"),
    (P, "[[providers.moonshot.accounts]]\nname = \"main\"\napi_key = { env = \"MOONSHOT_API_KEY\" }\n[[providers.moonshot.accounts]]\n", "[providers.moonshot.accounts]\n", "error", 5, "one table", "[[providers.moonshot.accounts]]"),
    (P, 'accounts = [{ name = "main", api_key = { env = "RESELLER_KEY" } }]', 'accounts = [{ name = "a", api_key = { env = "A" } }, 5]', "error", 18, "not tables", "[[providers.reseller.accounts]]"),
    # --- deployments
    (P, CONTEXT, "[providers.moonshot.models.kimi-k2-thinking]", "error", 11, "has no context", "Add context = 262_144"),
    (P, CONTEXT, CONTEXT.replace("262_144", "256_000"), "warning", 12, "262144", "context = 262_144"),
    (P, CONTEXT, CONTEXT.replace("262_144", '"256K"'), "error", 12, "text, not a whole number", "context = 262_144"),
    (P, "max_output = 65_536", "max_output = 262_145", "error", 13, "more than the context", "max_output = 262144 or less"),
    (P, "max_output = 65_536", "max_output = 0", "error", 13, "at least 1", "max_output ="),
    (P, "max_output", "max_tokens", "error", 13, '"max_tokens"', "Did you mean max_output?"),
    (P, '"json_object"]', '"json"]', "error", 14, '"json" is not a capability', "Did you mean json_object?"),
    (P, '"json_object"]', '"levitation"]', "error", 14, "not a capability", "Write any of images, json_object"),
    (P, '["tools", "json_object"]', '[\n"tools",\n"jsno_object"]', "error", 16, "not a capability", "json_object?"),
    (P, '["tools", "json_object"]', '["tools", 5]', "error", 14, "holds a whole number", "capabilities ="),
    (P, '["tools", "json_object"]', '"tools"', "error", 14, "text, not a list", "capabilities ="),
    (P, "max_output = 65_536", 'upstream = ""', "error", 13, "empty", "upstream ="),
    (P, "max_output = 65_536", 'sampling = "fix"', "error", 13, "none of fixed | range", "Did you mean fixed?"),
    (P, "max_output = 65_536", 'available_until = "2027-01-01"', "error", 13, "text, not a date", "available_until = 2026"),
    (P, "max_output = 65_536", "available_from = 2028-02-02\navailable_until = 2028-02-01", "error", 14, "not after", "Correct one"),
    (P, "max_output = 65_536", "available_from = 2028-02-02\navailable_until = 2028-02-02", "error", 14, "not after", "Correct one"),
    (P, "max_output = 65_536", "available_until = 2026-11-22", "warning", 13, "not routed since", "Move callers to kimi-k2.6"),
    (P, "max_output = 65_536", "retirement_reported = 2026-11-22", "warning", 13, "first 404", "Move callers to kimi-k2.6"),
    (P, "[providers.moonshot.models.", "models_ = 5\n[providers.moonshot.models.", "error", 11, '"models_"', "write one of"),
    (P, '[providers.reseller.models."kimi-k2.6"]', "[providers.reseller.models.kimi-k2-thinking.5]\nx = 1\n[providers.reseller.models.\"kimi-k2.6\"]", "error", 21, '"5" is not a key', 'Quote a name that has a dot: "kimi-k2-thinking.5"'),
    (P, '[providers.reseller.models."kimi-k2.6"]', '[providers.reseller.models.thinking]\ncontext = 8\n[providers.reseller.models."kimi-k2.6"]', "error", 21, '"thinking" is an alias', '[providers.reseller.models."kimi-k2-thinking"]'),
    # --- models
    (M, '"thinking"]', '"kimi-k2.6"]', "error", 2, "name of a model of its own", "Remove the alias"),
    (M, '"thinking"]', '"k2-thinking"]', "error", 2, 'already means "kimi-k2-thinking"', "at one model"),
    (M, MODELS_END, 'aliases = ["a",\n"thinking"]', "error", 6, 'already means "kimi-k2-thinking"', "at one model"),
    (M, 'successor = "kimi-k2.6"', 'successor = "kimi-k9"', "warning", 3, '"kimi-k9" is not a model', '[models."kimi-k9"]'),
    (M, 'successor = "kimi-k2.6"', 'successor = "kimi-k9"\non_retired = "successor"', "error", 3, "not a model", "Add"),
    (M, 'successor = "kimi-k2.6"', 'on_retired = "successor"', "error", 3, "there is none", "Add successor"),
    (M, 'successor = "kimi-k2.6"', 'on_retired = "warn"', "error", 3, "none of error | successor", "Write one of"),
    (M, 'successor = "kimi-k2.6"', 'successor = "kimi-k2-thinking"', "error", 3, "its own successor", "another"),
    (M, MODELS_END, 'successor = "thinking"', "warning", 5, "not a model", 'successor = "kimi-k2-thinking"'),
    (M, "16_384", "0", "error", 5, "at least 1", "default_max_output = 32_768"),
    (M, "default_max_output", "default_max_tokens", "error", 5, '"default_max_tokens"', "default_max_output?"),
    (M, MODELS_END, MODELS_END + '[models."kimi-k3"]', "warning", 6, 'No provider serves "kimi-k3"', "or remove"),
    (M, "[models.kimi-k2-thinking]", "[model]\n[models.kimi-k2-thinking]", "error", 1, '"model" is not a key at the top', "models?"),
    (M, "[models.kimi-k2-thinking]", "[models]\nx = 1\n[models.kimi-k2-thinking]", "error", 2, "not a table", "[models.NAME]"),
    # --- routing
    (M, MODELS_END, MODELS_END + '[routing]\npolicy = "cheapest"', "error", 7, "none of expected_cost | list_price", "Write one of"),
    (M, MODELS_END, MODELS_END + '[routing]\npolicy = "sticki"', "error", 7, '"sticki"', "Did you mean sticky?"),
    (M, MODELS_END, MODELS_END + "[routing]\nhold_usd_per_second = 0.0005", "error", 7, "is a number", 'hold_usd_per_second = "0.0005"'),
    (M, MODELS_END, MODELS_END + '[routing]\nhold_usd_per_second = "-1"', "error", 7, "negative", "plain decimal dollars, such as"),
    (M, MODELS_END, MODELS_END + '[routing]\nfailure_usd = "1e-3"', "error", 7, "not a plain decimal", 'failure_usd = "0.001"'),
    (M, MODELS_END, MODELS_END + "[routing]\nhold_seconds_max = 0", "error", 7, "more than 0", "hold_seconds_max = 10"),
    (M, MODELS_END, MODELS_END + "[routing]\nmin_tool_call_validity = 95", "error", 7, "below 1", "min_tool_call_validity = 0.95"),
    (M, MODELS_END, MODELS_END + "[routing]\nmin_tool_call_validity = -0.1", "error", 7, "from 0", "min_tool_call_validity = 0.95"),
    (M, MODELS_END, MODELS_END + "[routing]\nmin_tool_call_validity = nan", "error", 7, "below 1", "min_tool_call_validity = 0.95"),
    (M, MODELS_END, MODELS_END + '[routing]\nmin_tool_call_validity = "95 %"', "error", 7, "text, not a share", "= 0.95"),
    (M, MODELS_END, MODELS_END + "[routing]\nmin_validity = 0.9", "error", 7, '"min_validity" is not a key in [routing]', "Did you mean min_tool_call_validity?"),
    (M, MODELS_END, MODELS_END + "[[routing]]\nfailure_usd = '1'", "error", 6, "routing is a list", "routing = {"),
    # --- prices
    (R, 'cached_input = "0.15"', 'cached_input = "0.60"', "error", 6, "not below input 0.6", "Swap"),
    (R, 'cached_input = "0.15"', 'cached_input = "0.600001"', "error", 6, "not below", "Swap"),
    (R, '"2.50"', '"0.599999"', "error", 7, "output 0.599999 is below input 0.6", "confirmed = true"),
    (R, 'input = "0.60"\n', "", "error", 1, "has no input", 'Add input = "0.60"'),
    (R, 'output = "2.50"\n', "", "error", 1, "has no output", "Add output ="),
    (R, '"0.60"', "0.60", "error", 5, "is a number", 'Write it as a string: input = "0.60"'),
    (R, '"0.60"', "1", "error", 5, "is a number", 'Write it as a string: input = "1"'),
    (R, '"0.60"', "6e-1", "error", 5, "is a number", 'Write it as a string: input = "0.6"'),
    (R, '"0.60"', "true", "error", 5, "not an amount", 'input = "0.60"'),
    (R, '"0.60"', '"-0.60"', "error", 5, "negative", "plain decimal"),
    (R, '"0.60"', '"0.0000006"', "error", 5, "more than six decimals", "per 1,000,000 tokens (not per token)"),
    (R, '"0.60"', '"$0.60"', "error", 5, "not a plain decimal", "plain decimal"),
    (R, '"0.60"', '"0,60"', "error", 5, "not a plain decimal", "plain decimal"),
    (R, '"0.60"', '"NaN"', "error", 5, "not a plain decimal", "plain decimal"),
    (R, '"0.60"', '"6E-1"', "error", 5, "not a plain decimal", "plain decimal"),
    (R, '"2.50"', '"2.50"\ncache_write = "0.60"', "error", 8, "text, not a table", 'cache_write = { "5m"'),
    (R, '"2.50"', '"2.50"\ncache_write = { "5min" = "0.60" }', "error", 8, '"5min" is not a cache lifetime', '"5m" or "1h"'),
    (R, '"2.50"', '"2.50"\ncache_write = { "5m" = 0.60 }', "error", 8, "is a number", '5m = "0.60"'),
    (R, '"2.50"', '"2.50"\nouput = "2.50"', "error", 8, '"ouput" is not a key in [prices]', "output?"),
    (R, '"2.50"', '"2.50"\ncache_hit = "0.1"', "error", 8, '"cache_hit"', "Did you mean cached_input?"),
    (R, '"2.50"', '"2.50"\nconfirmed = "yes"', "error", 8, "text, not true or false", "confirmed = true"),
    (R, '"2.50"', '"2.50"\nsource = 5', "error", 8, "a whole number, not text", "source ="),
    (R, '"2.50"', '"2.50"\nchecked_at = 2026', "error", 8, "a whole number, not a date", "checked_at = 2026"),
    (R, "effective_from = 2025-11-06", "effective_from = 2025-11-06T00:00:00.5Z", "error", 4, "fraction", "whole seconds"),
    (R, "effective_from = 2025-11-06", 'effective_from = "2025-11-06"', "error", 4, "text, not a date", "effective_from = 2026"),
    (R, "effective_from = 2025-11-06\n", "", "error", 1, "has no effective_from", "Add effective_from ="),
    (R, '"2.50"\n', '"2.50"' + ROW + '2025-11-06T08:00:00+08:00\ninput = "1"\noutput = "1"\n', "error", 11, "another row from 2025-11-06T00:00:00Z, at line 1", "Remove one"),
    (R, 'provider = "moonshot"', 'provider = "nobody"', "warning", 2, '"nobody" is not a provider', "or remove the row"),
    (R, 'provider = "moonshot"\n', "", "error", 1, "has no provider", "Add provider ="),
    (R, "[[prices]]", "[prices_]\n[[prices]]", "error", 1, '"prices_" is not a key', "prices?"),
    (R, '"2.50"\n', '"2.50"' + ROW.replace("kimi-k2-thinking", "kimi-k2.6") + '2025-11-06\ninput = "0.95"\noutput = "4"\n', "warning", 10, "which it does not serve", "or remove the row"),
    (R, '"2.50"\n', '"2.50"' + ROW.replace("kimi-k2-thinking", "thinking") + '2025-11-06\ninput = "1"\noutput = "1"\n', "error", 10, "is an alias", 'model = "kimi-k2-thinking"'),
    (R, 'input = "0.61"', 'input = "0.15"', "warning", 12, "what moonshot asks for a cache hit", "confirmed = true"),
    (R, 'input = "0.95"\ncached_input = "0.16"', 'input = "0.16"', "warning", 18, "more than 12 times input", "confirmed"),
    (R, 'input = "0.61"', 'input = "0.900001"', "warning", 8, "input 0.900001 (moonshot: 0.6)", "invoice"),
    (R, 'output = "2.60"', 'output = "3.750001"', "warning", 8, "output 3.750001 (moonshot: 2.5)", "invoice"),
    (R, 'output = "2.60"', 'output = "0.833333"', "warning", 8, "Far below what the maker of the model asks: output 0.833333 (", "1,000,000 tokens"),
    (R, 'cached_input = "0.15"', 'cached_input = "0.550001"', "warning", 6, "is 91.7% of input 0.6", "confirmed = true"),
    (R, 'cached_input = "0.15"', 'cached_input = "0.011999"', "warning", 6, "is 2.0% of input 0.6", "confirmed = true"),
]  # fmt: skip


UNPRICED = "has no price: it loads, and is not routable."


@pytest.mark.parametrize(("file", "old", "new", "level", "line", "message", "mend"), RULES)
def test_a_rule_finds_its_one_mistake(
    tmp_path: Path, file: str, old: str, new: str, level: str, line: int, message: str, mend: str
) -> None:
    """One finding, and never a value that may be a secret. A pair whose row was taken away is told so besides."""
    (finding,) = [each for each in findings_of(tmp_path, edited(file, old, new)) if not each.message.endswith(UNPRICED)]
    assert (Path(finding.file).name, finding.line, finding.level) == (file, line, level)
    assert message in finding.message
    assert mend in finding.mend
    assert "hunter2" not in str(finding)


def test_rows_of_a_mistyped_provider_are_refused(tmp_path: Path) -> None:
    """A name close to one that is configured is a slip, not history; the pair has lost its price meanwhile."""
    findings = findings_of(tmp_path, edited(R, 'provider = "moonshot"', 'provider = "moonshoot"'))
    assert [(each.level, Path(each.file).name, each.line) for each in findings] == [
        ("error", R, 2),
        ("warning", P, 11),
    ]
    assert findings[0].mend == "Did you mean moonshot?"


def test_a_pair_without_a_price_loads(tmp_path: Path) -> None:
    """With a warning at its table: it is not routable."""
    text = GOOD[R][: GOOD[R].rindex("[[prices]]")]
    (finding,) = findings_of(tmp_path, GOOD | {R: text})
    assert (finding.level, Path(finding.file).name, finding.line) == ("warning", P, 21)
    assert finding.message == "reseller kimi-k2.6 has no price: it loads, and is not routable."


def test_a_pair_whose_price_is_yet_to_come_loads(tmp_path: Path) -> None:
    """A row from tomorrow on is fine, and does not price today."""
    (finding,) = findings_of(tmp_path, edited(R, "2026-04-20", "2026-11-22T12:00:01Z"))
    assert finding.message == "reseller kimi-k2.6 has no price before 2026-11-22T12:00:01Z: not routable until then."
    assert findings_of(tmp_path, edited(R, "2026-04-20", "2026-11-22T12:00:00Z")) == ()


def test_a_deployment_nobody_can_ask_for(tmp_path: Path) -> None:
    """Served, and not named in models.toml: a warning with the name that was probably meant."""
    text = GOOD[P].replace('[providers.reseller.models."kimi-k2.6"]', '[providers.reseller.models."kimi-k2.8"]')
    findings = findings_of(tmp_path, GOOD | {P: text})
    assert {each.level for each in findings} == {"warning"}
    (finding,) = [each for each in findings if "nobody can ask for it" in each.message]
    assert (finding.line, finding.mend) == (21, "Did you mean kimi-k2.6?")


def test_a_model_has_a_name(tmp_path: Path) -> None:
    """Blanks are none."""
    findings = findings_of(tmp_path, GOOD | {M: GOOD[M] + '[models." "]\n'})
    assert [(each.level, each.line) for each in findings] == [("error", 6), ("warning", 6)]
    assert findings[0].message == "A model has an empty name."


def test_successors_in_a_ring_are_refused(tmp_path: Path) -> None:
    """Routing from one to the next would never end."""
    ring = GOOD[M].replace('"kimi-k2.6"\n[', '"kimi-k2.6"\non_retired = "successor"\n[')
    ring += 'successor = "kimi-k2-thinking"\n'
    assert findings_of(tmp_path, GOOD | {M: ring}) == ()
    findings = findings_of(tmp_path, GOOD | {M: ring + 'on_retired = "successor"\n'})
    assert [(each.level, each.line) for each in findings] == [("error", 3), ("error", 7)]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (P, BASE_URL, '"http://localhost:9000/v1"'),
        (P, BASE_URL, '"http://127.8.9.1:9000"'),
        (P, BASE_URL, '"http://[::1]:9000/v1/"'),
        (P, BASE_URL, '"http://vllm.internal/v1"\nallow_plain_http = true'),
        (P, '[{ name = "main", api_key = { env = "RESELLER_KEY" } }]', '[{ name = "main" }]'),
        (P, "max_output = 65_536", "max_output = 262_144"),
        (P, "max_output = 65_536", "available_until = 2026-11-23"),
        (P, "max_output = 65_536", "retirement_reported = 2026-11-23"),
        (P, "max_output = 65_536", 'sampling = "range"'),
        (
            M,
            MODELS_END,
            MODELS_END + '[routing]\npolicy = "list_price"\nhold_seconds_max = 2.5\nmin_tool_call_validity = 0',
        ),
        (R, '"2.50"', '"0.50"\nconfirmed = true'),
        (R, '"2.50"', '"2.500000"'),
        (R, 'output = "4.00"', 'output = "0.95"'),
        (R, "effective_from = 2025-11-06", "effective_from = 2025-11-06 00:00:00"),
        (R, 'input = "0.61"', 'input = "0.15"\nconfirmed = true'),
        (R, 'input = "0.61"', 'input = "0.90"'),
        (R, 'output = "4.00"', 'output = "4.00"\ncache_write = { "1h" = "1.90" }'),
        (R, '"2.50"\n', '"2.50"' + ROW + '2027-01-01\ninput = "0.7"\noutput = "3"\n'),
    ],
)
def test_what_users_reasonably_write_is_accepted(tmp_path: Path, file: str, old: str, new: str) -> None:
    """No finding at all."""
    assert findings_of(tmp_path, edited(file, old, new)) == ()


@pytest.mark.parametrize("name", ['"a b"', '"a,b"', '"a/b"', '"é"', '""', '"-a"', f'"{"x" * 65}"'])
def test_a_provider_name_fits_headers_and_reports(tmp_path: Path, name: str) -> None:
    """No blanks, commas, slashes or letters that a header cannot carry."""
    text = f'[providers.{name}]\ndialect = "openai"\nbase_url = "http://127.0.0.1/v1"\naccounts = [{{ name = "a" }}]\n'
    (finding,) = findings_of(tmp_path, {P: text, M: "", R: ""})
    assert (finding.level, finding.line) == ("error", 1)
    assert "\n" not in finding.message
