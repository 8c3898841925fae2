"""What an operator sees and may change while the gateway runs: providers, prices, configuration, health, API."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli.explaining import attempt_title
from gateway.simulator import Fault
from tests.http.house import House, chat, eventually
from tests.http.test_bad_input import refused

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


async def test_the_providers(house: House):
    """Every account is listed with what it may do and how it is; no credential is."""
    answer = await house.admin("GET", "/providers")
    states = {state["provider"]: state for state in answer.json()["data"]}
    assert set(states) == {"moonshot", "cometapi", "evolink"}
    assert states["moonshot"]["account"] == "main"
    assert states["moonshot"]["usable"] is True
    assert states["moonshot"]["out"] == []
    assert "kimi-k2-thinking" in states["moonshot"]["models"]
    assert "sk-test" not in answer.text


async def test_an_account_that_is_out(house: House):
    """An account whose key is refused is out, until a moment that is told, and so is its circuit's reason."""
    house.simulators["evolink"].faults.add(Fault(kind="invalid_key"), now=0.0)
    answer = await house.ask(chat())
    assert answer.headers["x-gateway-attempts"] == "2"
    states = (await house.admin("GET", "/providers")).json()["data"]
    (evolink,) = [state for state in states if state["provider"] == "evolink"]
    assert evolink["out"][0]["state"] == "out"
    assert evolink["out"][0]["until"]
    assert "credential" in evolink["out"][0]["reason"]


EVOLINK = {"only": ["evolink"]}
"""Whatever other tests have made of its health."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


async def tool_calls_of(house: House, provider: str) -> tuple[float, dict[str, float]]:
    """How many answers of a provider were checked, and their faults."""
    states = {state["provider"]: state for state in (await house.admin("GET", "/providers")).json()["data"]}
    found = states[provider]["tool_calls"].get("kimi-k2-thinking", {"checked": 0.0, "valid_share": 1.0, "faults": {}})
    assert found["valid_share"] == pytest.approx(
        1 - sum(found["faults"].values()) / max(1.0, found["checked"]), abs=0.05
    )
    return found["checked"], found["faults"]


async def counted(house: House, name: str, labels: str) -> float:
    """The value of one sample, 0 where it is not there yet."""
    sample = f"{name}{{{labels}}} "
    lines = (await house.client.get("/metrics")).text.splitlines()
    return next((float(line.removeprefix(sample)) for line in lines if line.startswith(sample)), 0.0)


async def test_tool_calls_that_are_wrong(house: House):
    """What each provider answers wrong is told by model, counted by reason, and flagged in its row; no content is."""
    pair = 'model="kimi-k2-thinking",provider="evolink"'
    checked, invalid = "gateway_tool_call_answers_checked_total", "gateway_tool_call_answers_invalid_total"
    reason = f'{pair},reason="schema_violated"'
    before = [await counted(house, checked, pair), await counted(house, invalid, reason)]
    seen, faults = await tool_calls_of(house, "evolink")
    house.simulators["evolink"].faults.add(Fault(kind="invalid_tool_arguments", mode="schema", count=1), now=0.0)
    wrong = await house.ask(chat("Weather?", provider=EVOLINK, tools=TOOLS))
    right = await house.ask(chat("Weather?", provider=EVOLINK, tools=TOOLS, stream=True))
    assert (wrong.status_code, right.status_code) == (200, 200)
    after, now_faulty = await tool_calls_of(house, "evolink")
    assert after - seen == pytest.approx(2, abs=0.2)
    assert now_faulty["schema_violated"] - faults.get("schema_violated", 0) == pytest.approx(1, abs=0.2)
    assert [await counted(house, checked, pair), await counted(house, invalid, reason)] == [
        before[0] + 2,
        before[1] + 1,
    ]
    assert "get_weather" not in (await house.client.get("/metrics")).text

    async def explained():
        answer = await house.admin("GET", f"/requests/{wrong.headers['x-request-id']}")
        return answer.json()["attempts"] if answer.status_code == 200 else None

    (attempt,) = await eventually(explained)
    assert attempt["flags"] == ["tool_calls_checked", "schema_violated"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(kind="unknown_function", count=1), "unknown_function"),
        (Fault(kind="false_finish", count=1), "finish_reason_false"),
        (Fault(kind="special_tokens", count=1), "special_tokens_leaked"),
        (Fault(kind="invalid_tool_arguments", mode="truncated", count=1), "arguments_not_json"),
    ],
)
async def test_every_fault_of_a_tool_call_has_its_reason(house: House, fault: Fault, reason: str):
    """As the simulated provider makes it, so it is counted."""
    _, before = await tool_calls_of(house, "evolink")
    house.simulators["evolink"].faults.add(fault, now=0.0)
    await house.ask(chat("Weather?", provider=EVOLINK, tools=TOOLS, stream=True))
    _, after = await tool_calls_of(house, "evolink")
    new = {name: round(weight - before.get(name, 0.0)) for name, weight in after.items()}
    assert {name: weight for name, weight in new.items() if weight} == {reason: 1}


async def test_an_answer_of_another_model(house: House):
    """The metric counts it, and the explanation says which model answered."""
    house.simulators["evolink"].faults.add(Fault(kind="served_model", served="kimi-k9", count=1), now=0.0)
    answer = await house.ask(chat(provider=EVOLINK))
    metrics = (await house.client.get("/metrics")).text
    assert 'gateway_model_mismatches_total{model="kimi-k2-thinking",provider="evolink"} 1.0' in metrics

    async def explained():
        told = await house.admin("GET", f"/requests/{answer.headers['x-request-id']}")
        return told.json()["attempts"] if told.status_code == 200 else None

    (attempt,) = await eventually(explained)
    title = attempt_title(attempt)
    assert "succeeded, answered by kimi-k9, there called " in title
    assert title.endswith(", flagged model_mismatch")
    assert (attempt["served_model"], attempt["flags"]) == ("kimi-k9", ["model_mismatch"])


async def test_the_prices(house: House):
    """Every price row is listed, as it was written, with source and date."""
    rows = (await house.admin("GET", "/prices")).json()["data"]
    row = next(row for row in rows if (row["provider"], row["model"]) == ("evolink", "kimi-k2-thinking"))
    assert (row["input"], row["cached_input"], row["output"]) == ("0.556", "0.139", "2.222")
    assert row["effective_from"].startswith("2025-11-06T00:00:00")
    assert row["source"]


async def test_health_and_readiness(house: House):
    """The process answers, is ready, and says how far its books are."""
    assert (await house.client.get("/healthz")).json() == {"status": "ok"}
    answer = await house.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert answer.json()["database"]["reachable"] is True


async def test_metrics(house: House):
    """Prometheus reads the metrics; no key and no credential is in them."""
    await house.ask(chat())
    answer = await house.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-type"].count("charset") == 1
    assert "# TYPE" in answer.text
    assert house.key not in answer.text
    assert "sk-test" not in answer.text


async def test_the_api_description(house: House):
    """The OpenAPI document lists every route of the administration with its parameters and bodies."""
    document = (await house.client.get("/schema/openapi.json")).json()
    paths = document["paths"]
    for path in (
        "/admin/keys", "/admin/keys/{key_id}", "/admin/keys/{key_id}/rotate", "/admin/ledger", "/admin/reports/spend",
        "/admin/requests/{request_id}", "/admin/providers", "/admin/prices", "/admin/config/reload", "/v1/models",
        "/admin/teams", "/admin/teams/{name}", "/admin/budgets", "/admin/organisation", "/admin/audit",
        "/v1/chat/completions", "/v1/route",
    ):  # fmt: skip
        assert path in paths, path
    query = {each["name"] for each in paths["/admin/reports/spend"]["get"]["parameters"]}
    assert query == {"from", "to", "group_by", "where", "tz", "detail", "format", "focus_version"}
    body = paths["/admin/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].rpartition("/")[2]
    assert {"name", "budget", "expires", "tags"} <= set(document["components"]["schemas"][name]["properties"])


async def test_every_error_is_described_as_it_is_sent(house: House):
    """On each route of the API description every error is our envelope, and every reference leads somewhere."""
    text = (await house.client.get("/schema/openapi.json")).text
    document = json.loads(text)
    for path, item in document["paths"].items():
        for operation in item.values():
            errors = {code: each for code, each in operation["responses"].items() if code >= "400"}
            assert errors, path
            for code, each in errors.items():
                schema = each["content"]["application/json"]["schema"]
                if (path, code) == ("/readyz", "503"):
                    assert "problems" in schema["properties"]  # it says the same as when it is ready
                    continue
                assert schema == {"$ref": "#/components/schemas/Error"}, (path, code)
    for reference in set(re.findall(r'"\$ref":\s*"#/components/schemas/([^"]+)"', text)):
        assert reference in document["components"]["schemas"]
    chat_body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert set(chat_body["required"]) == {"model", "messages"}


class PriceFile:
    """The gateway's price file, to be spoiled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()

    def write(self, text: str) -> None:
        self.path.write_bytes(text.encode("utf-8", "surrogateescape"))

    def remove(self) -> None:
        self.path.unlink()


@pytest.fixture
async def prices(house: House) -> AsyncIterator[PriceFile]:
    """The price file; as it was before, and in force again, after the test."""
    file = PriceFile(house.settings.config_dir / "prices.toml")
    yield file
    file.write(file.text)
    assert (await house.admin("POST", "/config/reload")).status_code == 200


async def test_a_reload(house: House, prices: PriceFile):
    """A changed price is in force after the reload, and the old one for what was charged before."""
    before = await house.ask(chat(provider=EVOLINK))
    digest = (await house.client.get("/readyz")).json()["config_digest"]
    prices.write(prices.text.replace('"0.556"', '"0.557"'))
    answer = await house.admin("POST", "/config/reload")
    assert answer.status_code == 200, answer.text
    assert answer.json()["digest"] != digest
    after = await house.ask(chat(provider=EVOLINK))
    rows = [(await house.rows(each.headers["x-request-id"]))[0] for each in (before, after)]
    assert rows[0]["price_id"] != rows[1]["price_id"]


BAD = {
    "no TOML": lambda text: text + "\n[[prices]\n",
    "an unknown key": lambda text: text + "\ncolour = 1\n",
    "a hit dearer than a miss": lambda text: text.replace('"0.139"', '"5.0"'),
    "no UTF-8": lambda text: text + "\udcff",
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_reload(house: House, prices: PriceFile, name: str):
    """A bad file is 400, names file and line, and changes nothing."""
    before = (await house.admin("GET", "/prices")).json()
    prices.write(BAD[name](prices.text))
    error = refused(await house.admin("POST", "/config/reload"), 400, "invalid_request_error")
    assert "prices.toml" in error["message"]
    assert (await house.admin("GET", "/prices")).json() == before
    assert (await house.ask(chat())).status_code == 200


async def test_a_file_that_is_gone(house: House, prices: PriceFile):
    """A file that is not there is a bad configuration like any other."""
    prices.remove()
    error = refused(await house.admin("POST", "/config/reload"), 400, "invalid_request_error")
    assert "prices.toml" in error["message"]


async def test_a_reload_by_signal(house: House, prices: PriceFile):
    """SIGHUP reloads as well; a bad file leaves the running configuration in force."""
    digest = house.gateway.conductor.configuration.catalogue.digest
    prices.write(prices.text.replace('"0.556"', '"0.558"'))
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: house.gateway.conductor.configuration.catalogue.digest != digest)
    prices.write("[[prices]")
    changed = house.gateway.conductor.configuration.catalogue.digest
    os.kill(os.getpid(), signal.SIGHUP)
    assert (await house.ask(chat())).status_code == 200
    assert house.gateway.conductor.configuration.catalogue.digest == changed
