"""Keys by the administration: made, listed, shown, revoked and rotated, and every wrong field is named."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from tests.http.house import MODEL, House, chat, eventually
from tests.http.test_bad_input import refused

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FIELDS = (
    "id", "name", "team", "role", "models", "providers", "rpm", "tpm", "concurrency", "budget", "period", "expires",
    "tags",
)  # fmt: skip
WHOLE: dict[str, Any] = {
    "name": "nightly",
    "team": "research",
    "role": "inference",
    "models": ["moonshotai/Kimi-K2-Thinking", "kimi-k2-thinking-turbo"],
    "providers": ["moonshot", "evolink"],
    "rpm": 60,
    "tpm": 100_000,
    "concurrency": 4,
    "budget": "25.50",
    "period": "month",
    "expires": "2099-12-31",
    "tags": {"env": "test", "cost-center": "4711"},
}


async def works(house: House, secret: str) -> bool:
    answer = await house.client.post("/v1/route", json=chat(), headers={"authorization": f"Bearer {secret}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


async def test_a_key_with_everything(house: House):
    """Every field that goes in comes out, a model under its public name and the secret once."""
    made = await house.make_key(**WHOLE)
    assert made["key"].startswith("kgw_")
    assert made["team_created"] is True
    shown = (await house.admin("GET", f"/keys/{made['id']}")).json()
    assert set(FIELDS) <= set(shown)
    assert shown["models"] == ["kimi-k2-thinking", "kimi-k2-thinking-turbo"]
    assert shown["providers"] == ["evolink", "moonshot"]
    assert shown["budget"] == "25.5"
    assert shown["expires"].startswith("2099-12-31T00:00:00")
    same = {"name", "team", "role", "rpm", "tpm", "concurrency", "period", "tags"}
    assert {name: shown[name] for name in same} == {name: WHOLE[name] for name in same}
    assert made["key"] not in json.dumps(shown)
    again = await house.make_key(name="other", team="research")
    assert again["team_created"] is False


async def test_only_a_digest_is_kept(house: House):
    """No table of the database holds a secret."""
    secret = (await house.make_key())["key"]

    def holders() -> list[str]:
        with psycopg.connect(house.database_url) as db:
            names = [name for (name,) in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
            query = 'SELECT count(*) FROM "{}" AS t WHERE t::text LIKE %s'
            return [name for name in names if db.execute(query.format(name), (f"%{secret[4:36]}%",)).fetchone() != (0,)]

    assert await asyncio.to_thread(holders) == []


async def test_the_list_page_by_page(house: House):
    """The cursor leads through every key exactly once, in order, and ends."""
    made = [(await house.make_key(name=f"k{number}", team="pages"))["id"] for number in range(5)]
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        query = {"team": "pages", "limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        page = (await house.admin("GET", "/keys", params=query)).json()
        found += [key["id"] for key in page["data"]]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == sorted(made)
    assert pages == 3
    assert all("key" not in key for key in page["data"])


async def test_rotation_with_grace(house: House):
    """Both secrets work during the grace, and the old one is another key's no more."""
    made = await house.make_key()
    answer = await house.admin("POST", f"/keys/{made['id']}/rotate", json={"grace": "24h"})
    assert answer.status_code == 200
    rotated = answer.json()
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert await works(house, rotated["key"])
    assert await works(house, made["key"])


@pytest.mark.parametrize("arguments", [{}, {"json": {}}, {"json": {"grace": "0s"}}, {"json": None}])
async def test_rotation_without_grace(house: House, arguments: dict[str, Any]):
    """Without a grace the old secret ends at once, also when it was in use just now."""
    made = await house.make_key()
    assert await works(house, made["key"])
    rotated = (await house.admin("POST", f"/keys/{made['id']}/rotate", **arguments)).json()
    assert await works(house, rotated["key"])
    assert not await works(house, made["key"])


async def test_the_grace_ends(house: House):
    """When its grace is over the old secret is refused."""
    made = await house.make_key()
    await house.admin("POST", f"/keys/{made['id']}/rotate", json={"grace": "1s"})
    assert await works(house, made["key"])

    async def has_ended() -> bool:
        return not await works(house, made["key"])

    await eventually(has_ended, seconds=3.0)


async def test_a_revoked_key_stays_revoked(house: House):
    """Revoking twice is revoking once; a revoked key is still shown, and cannot be rotated."""
    made = await house.make_key()
    first = (await house.admin("DELETE", f"/keys/{made['id']}")).json()
    second = (await house.admin("DELETE", f"/keys/{made['id']}")).json()
    assert first["revoked_at"] == second["revoked_at"] is not None
    assert (await house.admin("GET", f"/keys/{made['id']}")).json()["revoked_at"] == first["revoked_at"]
    refused(await house.admin("POST", f"/keys/{made['id']}/rotate"), 404, "not_found")
    assert not await works(house, made["key"])


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/rotate")])
@pytest.mark.parametrize("key_id", ["key_none", "%00", "a b", "%F0%9F%98%80", "x" * 3000])
async def test_keys_that_do_not_exist(house: House, method: str, path: str, key_id: str):
    """What is no key is 404, whatever it is called."""
    refused(await house.admin(method, f"/keys/{key_id}{path}"), 404, "not_found")


WRONG: dict[str, tuple[Any, str | None]] = {
    "no name": ({}, "name"),
    "an empty name": ({"name": " "}, "name"),
    "a name with a NUL": ({"name": "a\0b"}, "name"),
    "a long name": ({"name": "n" * 201}, "name"),
    "a name of a wrong type": ({"name": 17}, "name"),
    "a team with a NUL": ({"name": "n", "team": "a\0"}, "team"),
    "an unknown role": ({"name": "n", "role": "boss"}, "role"),
    "an unknown model": ({"name": "n", "models": ["gpt-nothing"]}, "models"),
    "models of a wrong type": ({"name": "n", "models": MODEL}, "models"),
    "no model at all": ({"name": "n", "models": []}, "models"),
    "an unknown provider": ({"name": "n", "providers": ["openai"]}, "providers"),
    "no requests at all": ({"name": "n", "rpm": 0}, "rpm"),
    "more tokens than a bigint": ({"name": "n", "tpm": 10**30}, "tpm"),
    "half a request": ({"name": "n", "concurrency": 1.5}, "concurrency"),
    "a budget that is a number": ({"name": "n", "budget": 25, "period": "day"}, "budget"),
    "a budget that is none": ({"name": "n", "budget": "much", "period": "day"}, "budget"),
    "an endless budget": ({"name": "n", "budget": "Infinity", "period": "day"}, "budget"),
    "a huge budget": ({"name": "n", "budget": "1e999999", "period": "day"}, "budget"),
    "a negative budget": ({"name": "n", "budget": "-1", "period": "day"}, "budget"),
    "a budget too fine": ({"name": "n", "budget": "0.0000000000001", "period": "day"}, "budget"),
    "a budget without a period": ({"name": "n", "budget": "1"}, "period"),
    "a period without a budget": ({"name": "n", "period": "day"}, "budget"),
    "an unknown period": ({"name": "n", "budget": "1", "period": "year"}, "period"),
    "an expiry that is none": ({"name": "n", "expires": "tomorrow"}, "expires"),
    "an expiry before all time": ({"name": "n", "expires": "0001-01-01T00:00:00+10:00"}, "expires"),
    "a tag of a wrong type": ({"name": "n", "tags": {"a": 1}}, "tags"),
    "a tag with a NUL": ({"name": "n", "tags": {"a": "\0"}}, "tags"),
    "a tag with a strange name": ({"name": "n", "tags": {"a b": "x"}}, "tags"),
    "many tags": ({"name": "n", "tags": {f"t{number}": "" for number in range(17)}}, "tags"),
    "an unknown field": ({"name": "n", "colour": "red"}, "colour"),
    "a list": ([], None),
    "null": (None, None),
    "no JSON": (b"{", None),
    "nothing": (b"", None),
    "no UTF-8": (b'{"name": "\xff"}', None),
    "a lone surrogate": (b'{"name": "\\ud800"}', None),
    "deep nesting": (b'{"name": ' + b"[" * 100_000, "name"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_fields(house: House, name: str):
    """What is wrong with a new key is a 400 that names the field, and nothing was made."""
    body, param = WRONG[name]
    before = (await house.admin("GET", "/keys", params={"limit": "1000"})).json()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(await house.admin("POST", "/keys", content=data), 400, "invalid_request_error", param)
    assert (await house.admin("GET", "/keys", params={"limit": "1000"})).json() == before


@pytest.mark.parametrize("grace", ["", "soon", "-1h", "1w", "1.5h", "9999999d", 24, None])
async def test_wrong_grace(house: House, grace: Any):
    """A grace that is none is refused, and the old secret goes on."""
    made = await house.make_key()
    refused(await house.admin("POST", f"/keys/{made['id']}/rotate", json={"grace": grace}), 400,
            "invalid_request_error", "grace")  # fmt: skip
    assert await works(house, made["key"])


async def test_a_very_long_grace(house: House):
    """The longest grace that can be written works, too."""
    made = await house.make_key(expires="9999-12-31T23:59:59Z")
    answer = await house.admin("POST", f"/keys/{made['id']}/rotate", json={"grace": "999999d"})
    assert answer.status_code == 200
    assert await works(house, made["key"])


QUERIES = [("limit", "0"), ("limit", "1001"), ("limit", "many"), ("cursor", "\0"), ("team", "a\0")]


@pytest.mark.parametrize(("name", "value"), QUERIES)
async def test_wrong_queries(house: House, name: str, value: str):
    """A query that makes no sense is 400, and a parameter that is out of its bounds is named."""
    answer = await house.admin("GET", "/keys", params={name: value})
    refused(answer, 400, "invalid_request_error", name if name == "limit" else None)


async def test_tags_and_team_of_a_key_are_in_the_ledger(house: House):
    """What a key says of itself stands in every row, beside the tags of the request, which win."""
    made = await house.make_key(name="tagged", team="blue", tags={"env": "test", "app": "a"})
    answer = await house.ask(chat(), key=made["key"], x_gateway_tags="app=b, run=17", x_session_id="talk")
    (row,) = await house.rows(answer.headers["x-request-id"])
    assert (row["key_id"], row["key_name"], row["team"]) == (made["id"], "tagged", "blue")
    assert row["tags"] == {"env": "test", "app": "b", "run": "17"}


async def test_rights_of_a_key_on_a_dry_run(house: House):
    """A key that may use one provider sees the others excluded."""
    made = await house.make_key(providers=["cometapi"])
    answer = await house.client.post("/v1/route", json=chat(), headers={"authorization": f"Bearer {made['key']}"})
    excluded = {each["provider"]: each["excluded"] for each in answer.json()["candidates"]}
    assert excluded["cometapi"] is None
    assert excluded["moonshot"]
    assert excluded["evolink"]
