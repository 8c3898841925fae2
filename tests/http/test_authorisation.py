"""Every route × every caller × one's own and another tenant's things: who gets what, and a new route has to say so.

Two teams, blue and red, have keys, budgets, traffic and a history. Whoever belongs to blue never gets to see anything
of red's in any answer, whatever it asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from litestar.routes import ASGIRoute, HTTPRoute

from gateway.core import api_key
from tests.http.house import ADMIN_TOKEN, House, around_now, chat, eventually, exact
from tests.http.test_bad_input import refused

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CALLERS = (
    *("nobody", "unknown key", "inference of blue", "finance of blue", "finance", "admin of blue", "admin"),
    "bootstrap",
)
Statuses = Mapping[str, tuple[int, int]]
"""By caller: for what is blue's, and for what is red's."""
NUMBERS = itertools.count()


def expect(
    *,
    anybody: int | None = None,
    inference: int = 403,
    blue_finance: tuple[int, int],
    finance: int,
    blue_admin: tuple[int, int],
    admin: int,
) -> Statuses:
    """What each caller gets; ``anybody`` also without a key."""
    return {
        "nobody": (anybody or 401,) * 2,
        "unknown key": (anybody or 401,) * 2,
        "inference of blue": (inference,) * 2,
        "finance of blue": blue_finance,
        "finance": (finance,) * 2,
        "admin of blue": blue_admin,
        "admin": (admin,) * 2,
        "bootstrap": (admin,) * 2,
    }


def public(status: int = 200) -> Statuses:
    return expect(
        anybody=status, inference=status, blue_finance=(status,) * 2, finance=status, blue_admin=(status,) * 2,
        admin=status,
    )  # fmt: skip


MODELS = {**public(), **dict.fromkeys(("nobody", "unknown key", "bootstrap"), (401, 401))}
CALL = {**MODELS, **dict.fromkeys(("finance", "finance of blue"), (403, 403))}
READ = expect(blue_finance=(200, 200), finance=200, blue_admin=(200, 200), admin=200)
READ_ONE = expect(blue_finance=(200, 404), finance=200, blue_admin=(200, 404), admin=200)
READ_WHOLE = expect(blue_finance=(403, 403), finance=200, blue_admin=(403, 403), admin=200)
WRITE_ONE = expect(blue_finance=(403, 403), finance=403, blue_admin=(200, 404), admin=200)
CREATE_KEY = expect(blue_finance=(403, 403), finance=403, blue_admin=(201, 403), admin=201)
CREATE_TEAM = expect(blue_finance=(403, 403), finance=403, blue_admin=(403, 403), admin=201)
WRITE_WHOLE = expect(blue_finance=(403, 403), finance=403, blue_admin=(403, 403), admin=200)


@dataclass(frozen=True)
class Ask:
    """A request; ``{team}``, ``{key}``, ``{request}``, ``{fresh}`` (a key made for it) and ``{new}`` are filled in."""

    statuses: Statuses
    path: str = ""
    body: Any = None


TABLE: dict[tuple[str, str], Ask] = {
    ("POST", "/v1/chat/completions"): Ask(CALL, body=chat()),
    ("POST", "/v1/route"): Ask(CALL, body=chat()),
    ("GET", "/v1/models"): Ask(MODELS),
    ("GET", "/v1/models/{name}"): Ask(MODELS, "/v1/models/kimi-k2-thinking"),
    ("GET", "/healthz"): Ask(public()),
    ("GET", "/readyz"): Ask(public()),
    ("GET", "/metrics"): Ask(public()),
    ("GET", "/schema"): Ask(public()),
    ("GET", "/schema/openapi.json"): Ask(public()),
    ("GET", "/schema/{path}"): Ask(public(404), "/schema/nothing"),
    ("GET", "/admin/keys"): Ask(READ, "/admin/keys?team={team}"),
    ("POST", "/admin/keys"): Ask(CREATE_KEY, body={"name": "{new}", "team": "{team}"}),
    ("GET", "/admin/keys/{key_id}"): Ask(READ_ONE, "/admin/keys/{key}"),
    ("PATCH", "/admin/keys/{key_id}"): Ask(WRITE_ONE, "/admin/keys/{fresh}", {"rpm": 5}),
    ("DELETE", "/admin/keys/{key_id}"): Ask(WRITE_ONE, "/admin/keys/{fresh}"),
    ("POST", "/admin/keys/{key_id}/rotate"): Ask(WRITE_ONE, "/admin/keys/{fresh}/rotate"),
    ("GET", "/admin/teams"): Ask(READ),
    ("POST", "/admin/teams"): Ask(CREATE_TEAM, body={"name": "{new}"}),
    ("GET", "/admin/teams/{name}"): Ask(READ_ONE, "/admin/teams/{team}"),
    ("PATCH", "/admin/teams/{name}"): Ask(WRITE_ONE, "/admin/teams/{team}", {"tags": {"a": "{new}"}}),
    ("GET", "/admin/budgets"): Ask(READ, "/admin/budgets?team={team}"),
    ("PUT", "/admin/budgets"): Ask(WRITE_ONE, body={"key": "{fresh}", "period": "week", "limit": "5"}),
    ("DELETE", "/admin/budgets"): Ask(WRITE_ONE, "/admin/budgets?key={fresh}&period=month"),
    ("GET", "/admin/organisation"): Ask(READ_WHOLE),
    ("PATCH", "/admin/organisation"): Ask(WRITE_WHOLE, body={"name": "{new}"}),
    ("GET", "/admin/ledger"): Ask(READ),
    ("GET", "/admin/reports/spend"): Ask(READ, "/admin/reports/spend?group_by=key,team,tag:mark"),
    ("GET", "/admin/reports/savings"): Ask(READ),
    ("GET", "/admin/requests/{request_id}"): Ask(READ_ONE, "/admin/requests/{request}"),
    ("GET", "/admin/audit"): Ask(READ, "/admin/audit?limit=1000"),
    ("GET", "/admin/providers"): Ask(READ_WHOLE),
    ("GET", "/admin/prices"): Ask(READ),
    ("POST", "/admin/config/reload"): Ask(WRITE_WHOLE),
}


@dataclass
class Tenant:
    """A team with a key that has spent something. ``marks`` are what its things are called."""

    team: str
    key: str = ""
    secret: str = ""
    request: str = ""
    marks: set[str] = field(default_factory=set)


@dataclass
class World:
    """Two tenants and every caller's secret."""

    house: House
    blue: Tenant
    red: Tenant
    secrets: dict[str, str | None]

    async def ask(self, caller: str, method: str, ask: Ask, whose: Tenant, path: str) -> httpx.Response:
        """One request of a caller about a tenant's things."""
        values = {
            "team": whose.team, "key": whose.key, "request": whose.request, "new": f"{whose.team} {next(NUMBERS)}",
            "fresh": await self.fresh(whose) if "{fresh}" in f"{ask.path}{ask.body}" else "",
        }  # fmt: skip
        secret = self.secrets[caller]
        return await self.house.client.request(
            method,
            filled(ask.path or path, values),
            headers={} if secret is None else {"authorization": f"Bearer {secret}"},
            json=None if ask.body is None else filled(ask.body, values),
        )

    async def fresh(self, whose: Tenant) -> str:
        """A key that may be changed, and belongs to a tenant."""
        name = f"{whose.team} fresh {next(NUMBERS)}"
        made = await self.house.make_key(name=name, team=whose.team, budget="1", period="month")
        whose.marks |= {made["id"], name, made["key"]}
        return str(made["id"])


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """The value with its places filled in, wherever they are in it."""
    if isinstance(value, dict):
        return {name: filled(each, values) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    for name, text in values.items():
        value = value.replace(f"{{{name}}}", text)
    return value


async def settled(house: House, team: str) -> Tenant:
    """A team with a budget, a key, and a request that is in the ledger."""
    answer = await house.admin("POST", "/teams", json={"name": team, "budget": "50", "period": "month"})
    assert answer.status_code == 201, answer.text
    name, tag = f"{team} key", f"{team} mark"
    made = await house.make_key(name=name, team=team, tags={"mark": tag})
    asked = await house.ask(chat(), key=made["key"])
    request = asked.headers["x-request-id"]
    await eventually(lambda: house.rows(request))
    return Tenant(team, made["id"], made["key"], request, {team, made["id"], name, tag, request, made["key"]})


@pytest.fixture(scope="module")
async def world(module_house: House) -> World:
    """One gateway with two tenants, and a key for every caller."""
    blue, red = await settled(module_house, "blue"), await settled(module_house, "red-secret")
    secrets: dict[str, str | None] = {"nobody": None, "unknown key": api_key.new_secret(bytes(32))}
    secrets |= {"bootstrap": ADMIN_TOKEN, "inference of blue": blue.secret}
    for role in ("finance", "admin"):
        secrets[f"{role} of blue"] = (await module_house.make_key(name=f"{role} b", team="blue", role=role))["key"]
        secrets[role] = (await module_house.make_key(name=role, role=role))["key"]
    return World(module_house, blue, red, secrets)


def routes(house: House) -> Iterator[tuple[str, str]]:
    """Method and path of everything that the application answers."""
    for route in house.server.config.app.routes:  # type: ignore[union-attr]
        if isinstance(route, HTTPRoute):
            yield from ((method, route.path_format) for method in route.methods if method != "OPTIONS")
        else:
            assert isinstance(route, ASGIRoute)
            yield "POST", route.path_format


async def test_every_route_is_in_the_table(world: World):
    """A route that nobody has thought about here fails; so does an entry without a route."""
    assert set(routes(world.house)) == set(TABLE)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("method", "path"), TABLE, ids=lambda part: part)
async def test_who_gets_what(world: World, method: str, path: str, caller: str):
    """The status for one's own things and for another tenant's; and nothing of red's in blue's answers, ever."""
    ask = TABLE[method, path]
    for whose, expected in zip((world.blue, world.red), ask.statuses[caller], strict=True):
        answer = await world.ask(caller, method, ask, whose, path)
        assert answer.status_code == expected, f"{caller}, {whose.team}: {answer.text[:300]}"
        if answer.status_code == 403:
            refused(
                answer, 403, "role_not_allowed", "team" if ask.statuses is CREATE_KEY and "admin" in caller else None
            )
        if "blue" in caller:
            asked = f"{answer.request.url}{answer.request.content!r}"
            leaked = {mark for mark in world.red.marks if mark in answer.text and mark not in asked}
            assert not leaked


# -- what a tenant sees ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["finance of blue", "admin of blue"])
def tenant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def read(world: World, caller: str, path: str) -> Any:
    secret = world.secrets[caller]
    assert secret is not None
    answer = await world.house.admin("GET", path, token=secret)
    assert answer.status_code == 200, answer.text
    return answer


LISTS = ["/keys", "/teams", "/budgets", "/audit"]


@pytest.mark.parametrize("path", LISTS)
async def test_lists_are_the_tenant_s_alone(world: World, tenant: str, path: str):
    """Page by page, everything is blue's, and blue's is there."""
    seen: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await read(world, tenant, f"{path}?limit=2{cursor}")).json()
        seen += page["data"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen
    teams = {row["name"] if path == "/teams" else row["team"] for row in seen}
    assert teams <= ({"blue", None} if path == "/budgets" else {"blue"})
    assert not [mark for mark in world.red.marks if mark in str(seen)]
    for cursor in (world.red.key, world.red.team):
        answer = await read(world, tenant, f"/keys?cursor={cursor}")
        assert all(row["team"] == "blue" for row in answer.json()["data"])


async def test_money_is_the_tenant_s_alone(world: World, tenant: str):
    """Rows and sums are of blue's attempts, and the sums are those of the rows; everything is not less than both."""
    rows = exact((await read(world, tenant, "/ledger?format=json")).text)["data"]
    assert {row["team"] for row in rows} == {"blue"}
    assert world.blue.request in {row["request_id"] for row in rows}
    report = exact((await read(world, tenant, "/reports/spend?group_by=team")).text)
    assert [row["team"] for row in report["rows"]] == ["blue"]
    assert report["total"]["attempts"] == len(rows)
    # Of a period of whole quarter hours, the sums are those of the roll-up.
    query = "&".join(f"{name}={day}" for name, day in around_now().items())
    rolled_up = exact((await read(world, tenant, f"/reports/spend?group_by=team&{query}")).text)
    assert rolled_up["rows"] == report["rows"]
    whole = exact((await read(world, "finance", "/reports/spend?group_by=team")).text)
    assert {row["team"] for row in whole["rows"]} >= {"blue", "red-secret"}
    assert whole["total"]["attempts"] > report["total"]["attempts"]


@pytest.mark.parametrize("path", ["/keys?team=red-secret", "/budgets?team=red-secret", "/audit?target=team:red-secret"])
async def test_asking_for_another_tenant_by_name(world: World, tenant: str, path: str):
    """There is nothing there, as of a team that does not exist."""
    found = (await read(world, tenant, path)).json()
    assert found == {"data": [], "next_cursor": None}
    assert (await read(world, "finance", path)).json()["data"]


async def test_the_organisation_s_budget_is_nobody_s_tenant(world: World):
    """A tenant neither sees nor sets nor removes it."""
    body = {"organisation": True, "period": "total", "limit": "1000000"}
    assert (await world.house.admin("PUT", "/budgets", json=body)).status_code == 200
    secret = world.secrets["admin of blue"] or ""
    putting = await world.house.admin("PUT", "/budgets", json=body, token=secret)
    refused(putting, 403, "role_not_allowed", "organisation")
    path = "/budgets?organisation=true&period=total"
    refused(await world.house.admin("DELETE", path, token=secret), 403, "role_not_allowed", "organisation")
    assert (await read(world, "admin of blue", "/budgets?organisation=true")).json()["data"] == []
    assert (await world.house.admin("DELETE", path)).status_code == 200


async def test_a_tenant_grants_no_more_than_it_has(world: World):
    """Its team's budget and limits are not its to raise; a key of its own is, in its own team."""
    secret = world.secrets["admin of blue"] or ""

    async def ask(method: str, path: str, body: Any) -> httpx.Response:
        return await world.house.admin(method, path, json=body, token=secret)

    raised = {"team": "blue", "period": "month", "limit": "51"}
    error = refused(await ask("PUT", "/budgets", raised), 403, "role_not_allowed", "budget")
    assert "51 USD per month" in error["message"]
    assert "50 USD per month" in error["message"]
    refused(await ask("PATCH", "/teams/blue", {"budget": None}), 403, "role_not_allowed", "budget")
    lowered = await ask("PUT", "/budgets", {**raised, "limit": "49"})
    assert (lowered.status_code, lowered.json()["limit"]) == (200, "49")
    made = await ask("POST", "/keys", {"name": "by a tenant"})
    assert (made.status_code, made.json()["team"]) == (201, "blue")


async def test_a_limited_administrator_grants_within_its_own(world: World):
    """An administrator's key with limits of its own grants no more by creating, changing, setting or rotating."""
    own = {"models": ["kimi-k2-thinking"], "rpm": 60, "budget": "10", "period": "month", "expires": "2099-01-01"}
    secret = (await world.house.make_key(name="limited", role="admin", **own))["key"]
    mighty = (await world.house.make_key(name="mighty"))["id"]

    async def ask(method: str, path: str, body: Any) -> httpx.Response:
        return await world.house.admin(method, path, json=body, token=secret)

    assert (await ask("POST", "/keys", {"name": "same", **own})).status_code == 201
    for name, value in (
        ("models", None), ("models", ["kimi-k2.6"]), ("rpm", 61), ("rpm", None), ("budget", "11"),
        ("period", "day"), ("expires", "2099-01-02"), ("expires", None),
    ):  # fmt: skip
        param = {"period": "budget"}.get(name, name)
        refused(await ask("POST", "/keys", {"name": "more", **own, name: value}), 403, "role_not_allowed", param)
    made = (await ask("POST", "/keys", {"name": "same", **own})).json()["id"]
    refused(await ask("PATCH", f"/keys/{made}", {"rpm": None}), 403, "role_not_allowed", "rpm")
    refused(await ask("PATCH", f"/keys/{made}", {"budget": None}), 403, "role_not_allowed", "budget")
    refused(
        await ask("PUT", "/budgets", {"key": made, "period": "month", "limit": "11"}), 403, "role_not_allowed", "budget"
    )
    refused(await ask("POST", f"/keys/{mighty}/rotate", {}), 403, "role_not_allowed", "models")
