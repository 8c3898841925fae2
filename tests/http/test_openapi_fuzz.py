"""The OpenAPI page is true: whatever is sent to whatever is on it, the answer is one that the page tells.

schemathesis makes the requests, from a seed: every kind of value at every place that the page knows, right and wrong.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from tests.http.house import ADMIN_TOKEN, House, chat, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

EXAMPLES_PER_OPERATION: Final = 15
CALLERS: Final = ("admin of a team", "bootstrap")
"""In this order: what the second may spoil, such as the budget of all, the first may not."""
CONFIG: Final = """
seed = 1
base-url = "{url}"
headers = {{ authorization = "Bearer {token}" }}
continue-on-failure = true
request-timeout = 20
[cache]
enabled = false
[analysis.constants]
enabled = false
[generation]
max-examples = {examples}
no-shrink = true
deterministic = true
database = "none"
with-security-parameters = false
[checks]
not_a_server_error = {{ expected-statuses = ["2xx", "3xx", "4xx", "503"] }}
positive_data_acceptance = {{ enabled = false }}
ignored_auth = {{ enabled = false }}
[phases.examples]
generation = {{ max-examples = {examples} }}
extra-data-sources = {{ responses = false }}
[phases.coverage]
extra-data-sources = {{ responses = false }}
[phases.fuzzing]
generation = {{ max-examples = {examples} }}
extra-data-sources = {{ responses = false }}
[phases.stateful]
enabled = false
[dictionaries]
keys = {{ values = ["{key_id}", "key_nobody"] }}
names = {{ values = ["{team}", "kimi-k2-thinking", "ä/b%2Fc"] }}
requests = {{ values = ["{request_id}", "req_none"] }}
windows = {{ values = ["day", "month", "total"] }}
periods = {{ values = ["2025-01-01", "2099-12-31T23:59:59Z", "0001-01-01", "9999-12-31", "now"] }}
[parameters]
key_id = {{ dictionary = "keys", probability = 0.7 }}
name = {{ dictionary = "names", probability = 0.7 }}
request_id = {{ dictionary = "requests", probability = 0.7 }}
from = {{ dictionary = "periods", probability = 0.5 }}
to = {{ dictionary = "periods", probability = 0.5 }}
key = {{ dictionary = "keys", probability = 0.3 }}
team = {{ dictionary = "names", probability = 0.3 }}
period = {{ dictionary = "windows", probability = 0.7 }}
"""


@dataclass
class Findings:
    """What was asked, and what did not fit."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, event: Any) -> None:
        if isinstance(event, events.NonFatalError | events.FatalError):
            self.failures.append(repr(event))
        if not isinstance(event, events.ScenarioFinished):
            return
        statuses = self.statuses.setdefault(event.recorder.label, Counter())
        for interaction in event.recorder.interactions.values():
            if interaction.response is not None:
                statuses[interaction.response.status_code] += 1
        for checks in event.recorder.checks.values():
            for check in checks:
                if check.failure_info is not None:
                    told = f"{event.recorder.label} {check.name}: {check.failure_info.failure}"
                    self.failures.append(f"{told}\n{check.failure_info.code_sample}")


@schemathesis.check
def error_in_the_envelope(ctx: Any, response: Any, case: Any) -> None:
    """Every refusal is OpenAI's error object, with the request's id in its message and no stack."""
    if response.status_code < 400 or case.path == "/readyz" or response.request.method == "HEAD":
        return
    document = response.json()
    assert set(document) == {"error"}, document
    assert set(document["error"]) == {"message", "type", "param", "code"}, document
    assert response.headers["x-request-id"][0] in document["error"]["message"]
    assert "Traceback" not in document["error"]["message"]


def ask_everything(document: dict[str, Any], values: dict[str, str]) -> Findings:
    """Everything on the page, one after the other.

    Runs in a process of its own: Hypothesis takes any draw from the interpreter's shared chance, such as the gateway's
    jitter in another thread, for one of its own, and calls the example flaky.
    """
    text = CONFIG.format(examples=EXAMPLES_PER_OPERATION, **values)
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_str(text))
    findings = Findings()
    for event in engine.from_schema(schema).execute():
        findings.note(event)
    return findings


def operations(document: dict[str, Any]) -> Iterator[str]:
    for path, item in document["paths"].items():
        yield from (f"{method.upper()} {path}" for method in item)


@pytest.mark.parametrize("caller", CALLERS)
async def test_everything_on_the_page(house: House, caller: str):
    """Every operation answers as the page says: status, kind and form of the body, errors in their envelope; no 500."""
    document = (await house.client.get("/schema/openapi.json")).json()
    team = f"asked by {caller}"
    made = await house.make_key(name="caller", role="admin", team=team)
    victim = await house.make_key(name="victim", team=team)
    asked = await house.ask(chat(), key=victim["key"])
    assert asked.status_code == 200, asked.text
    await eventually(lambda: house.rows(asked.headers["x-request-id"]))
    token = ADMIN_TOKEN if caller == "bootstrap" else made["key"]
    values = {"url": house.url, "token": token, "team": team, "key_id": victim["id"]}
    values["request_id"] = asked.headers["x-request-id"]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        findings = await asyncio.get_running_loop().run_in_executor(process, ask_everything, document, values)
    assert not findings.failures, "\n\n".join(findings.failures[:20])
    assert set(findings.statuses) == set(operations(document))
