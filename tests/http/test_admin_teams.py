"""Teams, budgets, organisation and audit by the administration: made, changed, listed, and every wrong field named."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import psycopg
import pytest

from tests.http.house import House, chat, eventually
from tests.http.test_bad_input import refused

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

WHOLE: dict[str, Any] = {
    "name": "research",
    "models": ["kimi-k2-thinking", "kimi-k2-thinking-turbo"],
    "providers": ["evolink", "moonshot"],
    "rpm": 600,
    "tpm": 1_000_000,
    "concurrency": 40,
    "key_default_rpm": 60,
    "key_default_tpm": 100_000,
    "key_default_concurrency": 4,
    "key_max_rpm": 120,
    "key_max_tpm": 200_000,
    "key_max_concurrency": 8,
    "budget": "50",
    "period": "month",
    "budget_mode": "clamp",
    "tags": {"cost-center": "4711"},
}


async def put(house: House, **body: Any) -> dict[str, Any]:
    answer = await house.admin("PUT", "/budgets", json={"period": "month", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def actions(house: House, target: str) -> list[dict[str, Any]]:
    """What was done to a target, oldest first."""
    answer = await house.admin("GET", "/audit", params={"target": target, "limit": "1000"})
    return list(reversed(answer.json()["data"]))


# -- teams -------------------------------------------------------------------------------------------------------------


async def test_a_team_with_everything(house: House):
    """Every field that goes in comes out; null clears, and what is left out stays."""
    made = await house.admin("POST", "/teams", json=WHOLE)
    assert made.status_code == 201, made.text
    shown = (await house.admin("GET", "/teams/research")).json()
    assert {name: shown[name] for name in WHOLE} == WHOLE
    assert shown["keys"] == 0
    assert [(each["limit"], each["spent"], each["mode"]) for each in shown["budgets"]] == [("50", "0", "clamp")]
    change = {"rpm": 700, "models": None, "budget": None, "key_max_tpm": None}
    changed = (await house.admin("PATCH", "/teams/research", json=change)).json()
    assert {name: changed[name] for name in WHOLE} == {**WHOLE, **change, "period": None, "budget_mode": None}
    assert changed["budgets"] == []
    refused(await house.admin("POST", "/teams", json={"name": "research"}), 400, "invalid_request_error", "name")


@pytest.mark.parametrize("name", ["a/b", "ünï cødé", "100%", "a?b#c", "key:1"])
async def test_teams_of_any_name(house: House, name: str):
    """What may be a name can also be asked for, changed, and given a budget."""
    assert (await house.admin("POST", "/teams", json={"name": name})).status_code == 201
    path = f"/teams/{name.replace('%', '%25').replace('?', '%3F').replace('#', '%23')}"
    assert (await house.admin("GET", path)).json()["name"] == name
    assert (await house.admin("PATCH", path, json={"rpm": 5})).json()["rpm"] == 5
    assert (await put(house, team=name, limit="1"))["scope"] == f"team:{name}"


async def test_the_list_page_by_page(house: House):
    """The cursor leads through every team exactly once, in order."""
    for number in range(5):
        await house.admin("POST", "/teams", json={"name": f"page {number}"})
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await house.admin("GET", "/teams", params={"limit": "2", **cursor})).json()
        found += [team["name"] for team in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(found) == len(set(found))
    assert [name for name in found if name.startswith("page ")] == [f"page {number}" for number in range(5)]


async def test_ceilings_and_defaults_of_a_team(house: House):
    """Keys get the team's defaults; more than its ceilings is refused to everybody, new and changed."""
    await house.admin("POST", "/teams", json={**WHOLE, "name": "bound", "key_default_rpm": 1})
    made = await house.make_key(team="bound")
    for field, value in (("rpm", 121), ("models", ["kimi-k2.6"]), ("providers", ["cometapi"])):
        for method, path in (("POST", "/keys"), ("PATCH", f"/keys/{made['id']}")):
            named = {"name": "n", "team": "bound"} if method == "POST" else {}
            answer = await house.admin(method, path, json={**named, field: value})
            error = refused(answer, 400, "invalid_request_error", field)
            assert 'the team "bound" allows its keys at most' in error["message"]
    first = await house.ask(chat(), key=made["key"])
    assert (first.status_code, first.headers["x-ratelimit-limit-requests"]) == (200, "1")
    refused(await house.ask(chat(), key=made["key"]), 429, "rate_limit_exceeded")
    assert (await house.admin("PATCH", "/teams/bound", json={"key_default_rpm": 100})).status_code == 200
    again = await house.ask(chat(), key=made["key"])
    assert (again.status_code, again.headers["x-ratelimit-limit-requests"]) == (200, "100")


WRONG_TEAMS: dict[str, tuple[Any, str | None]] = {
    "no name": ({}, "name"), "an empty name": ({"name": " "}, "name"), "a NUL": ({"name": "a\0"}, "name"),
    "an unknown model": ({"name": "n", "models": ["gpt"]}, "models"),
    "no provider at all": ({"name": "n", "providers": []}, "providers"),
    "no requests": ({"name": "n", "rpm": 0}, "rpm"),
    "a ceiling of nothing": ({"name": "n", "key_max_tpm": 0}, "key_max_tpm"),
    "more than a bigint": ({"name": "n", "key_default_tpm": 10**30}, "key_default_tpm"),
    "a default above the ceiling": ({"name": "n", "key_default_rpm": 2, "key_max_rpm": 1}, "key_default_rpm"),
    "half a budget": ({"name": "n", "budget": "1"}, "period"), "an unknown mode": (
        {"name": "n", "budget": "1", "period": "day", "budget_mode": "kind"}, "budget_mode",
    ),
    "a mode without a budget": ({"name": "n", "budget_mode": "soft"}, "budget_mode"),
    "a tag of a strange name": ({"name": "n", "tags": {"a b": ""}}, "tags"),
    "an unknown field": ({"name": "n", "colour": "red"}, "colour"), "a list": ([], None),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TEAMS)
async def test_wrong_teams(house: House, name: str):
    """What is wrong with a new team is 400 that names the field, and nothing was made."""
    body, param = WRONG_TEAMS[name]

    async def teams() -> list[str]:
        found = await house.admin("GET", "/teams", params={"limit": "1000"})
        return [team["name"] for team in found.json()["data"]]

    before = await teams()
    refused(await house.admin("POST", "/teams", json=body), 400, "invalid_request_error", param)
    assert await teams() == before


# -- keys that change --------------------------------------------------------------------------------------------------


async def test_a_key_changes(house: House):
    """What is named changes, null clears, the rest stays, and its team and role are not named at all."""
    whole = {
        "name": "one", "models": ["kimi-k2-thinking"], "providers": ["evolink"], "rpm": 6, "tpm": 7, "concurrency": 8,
        "budget": "5", "period": "week", "budget_mode": "soft", "expires": "2099-01-01", "tags": {"a": "b"},
    }  # fmt: skip
    made = await house.make_key(**whole)

    async def changed(**change: Any) -> dict[str, Any]:
        answer = await house.admin("PATCH", f"/keys/{made['id']}", json=change)
        assert answer.status_code == 200, answer.text
        return answer.json()

    shown = {name: value for name, value in made.items() if name not in ("key", "team_created")}
    assert await changed() == shown
    assert await changed(name="two", rpm=60) == {**shown, "name": "two", "rpm": 60}
    assert (await changed(budget="9"))["budgets"][0]["limit"] == "9"
    assert (await changed(period="day", budget_mode="strict"))["budgets"][0]["mode"] == "strict"
    cleared = await changed(**dict.fromkeys(name for name in whole if name != "name"))
    assert [cleared[name] for name in whole] == ["two", *[None] * 9, {}]
    for body, param in (({"role": "admin"}, "role"), ({"team": "x"}, "team"), ({"name": None}, "name")):
        refused(await house.admin("PATCH", f"/keys/{made['id']}", json=body), 400, "invalid_request_error", param)


HALF = [({"budget": "1"}, "period"), ({"period": "day"}, "budget"), ({"budget_mode": "soft"}, "budget_mode")]


@pytest.mark.parametrize(("body", "param"), HALF)
async def test_half_a_budget(house: House, body: dict[str, str], param: str):
    """A key without a budget does not get half of one."""
    made = await house.make_key()
    refused(await house.admin("PATCH", f"/keys/{made['id']}", json=body), 400, "invalid_request_error", param)


async def test_a_change_reaches_this_worker_at_once(house: House):
    """The next request is under the new limit."""
    made = await house.make_key()
    assert (await house.ask(chat(), key=made["key"])).status_code == 200
    await house.admin("PATCH", f"/keys/{made['id']}", json={"providers": ["cometapi"]})
    answer = await house.ask(chat(), key=made["key"])
    assert answer.headers["x-gateway-provider"] == "cometapi"


# -- budgets -----------------------------------------------------------------------------------------------------------


async def test_the_first_five_minutes(house: House):
    """A team, two keys, a monthly budget: what one key spends is gone for both, and the refusal says so."""
    await house.admin("POST", "/teams", json={"name": "lead"})
    first, second = [await house.make_key(team="lead") for _ in range(2)]
    made = await put(house, team="lead", limit="0.05", alert_at=[50, 100])
    assert (made["team"], made["spent"], made["share"], made["alert_at"]) == ("lead", "0", "0", [50, 100])
    asked = await house.ask(chat(max_tokens=100), key=first["key"])
    (row,) = await house.rows(asked.headers["x-request-id"])
    (shown,) = (await house.admin("GET", "/budgets", params={"team": "lead"})).json()["data"]
    assert shown["spent"] == row["cost"]
    assert shown["resets_at"].endswith("-01T00:00:00+00:00")
    assert (await put(house, team="lead", limit="0.00000001", alert_at=[50, 100]))["spent"] == row["cost"]
    error = refused(await house.ask(chat(max_tokens=100), key=second["key"]), 402, "budget_exceeded")
    assert "lead" in error["message"]
    removed = await house.admin("DELETE", "/budgets", params={"team": "lead", "period": "month"})
    assert (removed.status_code, removed.json()["limit"]) == (200, "0.00000001")
    assert (await house.ask(chat(max_tokens=100), key=second["key"])).status_code == 200


async def test_one_budget_for_each_period(house: House):
    """Setting it again changes it; another period is another budget; a key shows all of its own."""
    key = (await house.make_key(budget="1", period="day"))["id"]
    for limit in ("5", "6"):
        await put(house, key=key, limit=limit, mode="soft", on_outage="admit", alert_at=[])
    shown = (await house.admin("GET", f"/keys/{key}")).json()
    assert (shown["budget"], shown["period"]) == ("1", "day")
    names = ("period", "limit", "mode", "on_outage", "alert_at")
    assert [[each[name] for name in names] for each in shown["budgets"]] == [
        ["day", "1", "strict", "refuse", [80, 100]],
        ["month", "6", "soft", "admit", []],
    ]
    listed = (await house.admin("GET", "/budgets", params={"key": key})).json()["data"]
    assert listed == shown["budgets"]


async def test_budgets_page_by_page(house: House):
    """The cursor leads through every budget exactly once."""
    for period in ("day", "week", "month", "total"):
        await put(house, organisation=True, period=period, limit="1000000")
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await house.admin("GET", "/budgets", params={"limit": "1", **cursor})).json()
        found += [each["id"] for each in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(found) == len(set(found)) >= 4
    for period in ("day", "week", "month", "total"):
        path = f"/budgets?organisation=true&period={period}"
        assert (await house.admin("DELETE", path)).status_code == 200
        refused(await house.admin("DELETE", path), 404, "not_found")


WRONG_BUDGETS: dict[str, tuple[dict[str, Any], str | None]] = {
    "nobody's": ({}, "scope"), "two scopes": ({"team": "a", "organisation": True}, "scope"),
    "no period": ({"team": "a", "period": None}, "period"),
    "an unknown period": ({"team": "a", "period": "year"}, "period"),
    "no limit": ({"team": "a", "limit": None}, "limit"), "a negative limit": ({"team": "a", "limit": "-1"}, "limit"),
    "a limit that is none": ({"team": "a", "limit": "much"}, "limit"), "a number": ({"team": "a", "limit": 5}, "limit"),
    "an unknown mode": ({"team": "a", "mode": "kind"}, "mode"),
    "an unknown outage": ({"team": "a", "on_outage": "wait"}, "on_outage"),
    "a share of nothing": ({"team": "a", "alert_at": [0]}, "alert_at"),
    "a share beyond all": ({"team": "a", "alert_at": [1001]}, "alert_at"),
    "many shares": ({"team": "a", "alert_at": list(range(1, 12))}, "alert_at"),
    "a key with a NUL": ({"key": "a\0"}, "key"), "a team with a NUL": ({"team": "a\0"}, "team"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_BUDGETS)
async def test_wrong_budgets(house: House, name: str):
    """What is wrong with a budget is 400 and names the field."""
    body, param = WRONG_BUDGETS[name]
    answer = await house.admin("PUT", "/budgets", json={"period": "day", "limit": "1", **body})
    refused(answer, 400, "invalid_request_error", param)


async def test_budgets_of_nobody(house: House):
    """A key or a team that does not exist has none and gets none."""
    for scope in ({"key": "key_none"}, {"team": "none at all"}):
        body = {"period": "day", "limit": "1", **scope}
        refused(await house.admin("PUT", "/budgets", json=body), 404, "not_found")
        refused(await house.admin("DELETE", "/budgets", params={"period": "day", **scope}), 404, "not_found")
    refused(await house.admin("DELETE", "/budgets", params={"team": "a"}), 400, "invalid_request_error")
    refused(await house.admin("GET", "/budgets", params={"cursor": "x"}), 400, "invalid_request_error", "cursor")


# -- organisation ------------------------------------------------------------------------------------------------------


async def test_the_organisation(house: House):
    """Its name and zone are shown and changed; budgets begin at its midnight; a zone that is none is refused."""
    assert (await house.admin("GET", "/organisation")).json() == {"name": "organisation", "time_zone": "UTC"}
    body = {"name": "Acme", "time_zone": "Asia/Kolkata"}
    assert (await house.admin("PATCH", "/organisation", json=body)).json() == body
    key = (await house.make_key(budget="1", period="day"))["id"]
    (budget,) = (await house.admin("GET", "/budgets", params={"key": key})).json()["data"]
    assert budget["resets_at"].endswith("T18:30:00+00:00")
    wrong = await house.admin("PATCH", "/organisation", json={"time_zone": "Mars/Base"})
    refused(wrong, 400, "invalid_request_error", "time_zone")
    refused(await house.admin("PATCH", "/organisation", json={"name": ""}), 400, "invalid_request_error", "name")
    back = {"name": "organisation", "time_zone": "UTC"}
    assert (await house.admin("PATCH", "/organisation", json=back)).json() == back


# -- audit -------------------------------------------------------------------------------------------------------------


async def test_what_was_done_is_on_the_record(house: House):
    """Actor, request id, before and after of every write; no secret; a refusal leaves nothing."""
    boss = await house.make_key(name="boss", role="admin")
    made = (await house.admin("POST", "/keys", json={"name": "audited", "rpm": 5}, token=boss["key"])).json()
    target = f"key:{made['id']}"
    changed = await house.admin("PATCH", f"/keys/{made['id']}", json={"rpm": 6}, token=boss["key"])
    rotated = (await house.admin("POST", f"/keys/{made['id']}/rotate")).json()
    refused(await house.admin("PATCH", f"/keys/{made['id']}", json={"rpm": 0}), 400, "invalid_request_error", "rpm")
    await house.admin("DELETE", f"/keys/{made['id']}")
    found = await actions(house, target)
    assert [(each["action"], each["actor"]) for each in found] == [
        ("key.create", boss["id"]), ("key.update", boss["id"]), ("key.rotate", "admin-token"),
        ("key.revoke", "admin-token"),
    ]  # fmt: skip
    assert (found[1]["before"]["rpm"], found[1]["after"]["rpm"]) == (5, 6)
    assert found[1]["request_id"].startswith("req_")
    assert changed.status_code == 200
    text = json.dumps(found)
    assert made["key"] not in text
    assert rotated["key"] not in text
    verdict = await house.gateway.administration.audit.verify()
    assert verdict.broken is None


async def test_a_reload_is_on_the_record(house: House):
    """By whom, and what was in force before and after."""
    assert (await house.admin("POST", "/config/reload")).status_code == 200
    last = (await actions(house, "config"))[-1]
    assert (last["action"], last["actor"], last["before"]) == ("config.reload", "admin-token", last["after"])
    assert len(last["after"]["digest"]) == 64
    os.kill(os.getpid(), signal.SIGHUP)

    async def is_told() -> bool:
        return (await actions(house, "config"))[-1]["actor"] == "signal"

    await eventually(is_told)


async def test_the_audit_page_by_page(house: House):
    """Newest first, filtered, each once."""
    for number in range(3):
        await house.admin("POST", "/teams", json={"name": f"audited {number}"})
    query = {"action": "team.create", "limit": "2"}
    first = (await house.admin("GET", "/audit", params=query)).json()
    second = (await house.admin("GET", "/audit", params={**query, "cursor": first["next_cursor"]})).json()
    targets = [each["target"] for each in (*first["data"], *second["data"])]
    assert targets[:3] == ["team:audited 2", "team:audited 1", "team:audited 0"]
    for cursor in ("0", "x", str(2**63)):
        refused(await house.admin("GET", "/audit", params={"cursor": cursor}), 400, "invalid_request_error", "cursor")


async def test_a_change_made_elsewhere_is_known_within_a_second(house: House):
    """L6: a budget that another process sets binds this one."""
    made = await house.make_key()
    assert (await house.ask(chat(), key=made["key"])).status_code == 200
    with psycopg.connect(house.database_url, autocommit=True) as db:
        db.execute("INSERT INTO budgets (scope, period, limit_pico) VALUES (%s, 'day', 0)", (f"key:{made['id']}",))

    async def is_refused() -> bool:
        return (await house.ask(chat(), key=made["key"])).status_code == 402

    await eventually(is_refused, seconds=2.0)


ODD = ["", " ", "%00", "%FF", "%ED%A0%80", "%F0%9F%98%80", "../../x", "x" * 3_000, "'; DROP TABLE teams; --", "\\u0000"]
PLACES = [
    "/keys?cursor={}", "/keys?team={}", "/keys/{}", "/teams?cursor={}", "/teams/{}", "/budgets?cursor={}",
    "/budgets?cursor={}/month", "/budgets?key={}", "/budgets?team={}", "/budgets?organisation={}", "/audit?cursor={}",
    "/audit?action={}", "/audit?target={}", "/requests/{}",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
async def test_odd_texts_everywhere(house: House, text: str):
    """Whatever is asked for is there, is not, or makes no sense; nothing of it is a defect."""
    for place in PLACES:
        answer = await house.admin("GET", place.format(text))
        assert answer.status_code in (200, 400, 404), (place, answer.text)
    for method, path, body in (
        ("PATCH", f"/keys/{text}", {"rpm": 1}), ("PATCH", f"/teams/{text}", {"rpm": 1}),
        ("DELETE", f"/keys/{text}", None),
        ("DELETE", f"/budgets?period=day&key={text}", None), ("DELETE", f"/budgets?period={text}&team=a", None),
        ("PUT", "/budgets", {"team": text, "period": "day", "limit": "1"}),
        ("PUT", "/budgets", {"key": text, "period": text, "limit": text, "mode": text, "on_outage": text}),
    ):  # fmt: skip
        answer = await house.admin(method, path, json=body)
        assert answer.status_code in (400, 404, 405), (method, path, answer.text)
    answer = await house.admin("PATCH", "/organisation", json={"time_zone": text})
    refused(answer, 400, "invalid_request_error", "time_zone")
