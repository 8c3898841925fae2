"""What two processes say to each other: every question ends, by an answer, a reason, a deadline or the other's end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.adapters.workers import AnswerError, Link, LinkLostError, tell_at_once

pytestmark = pytest.mark.anyio


async def answers(what: str, content: Any) -> object:
    """A process that knows three questions."""
    match what:
        case "large":
            return "x" * 1_000_000
        case "never":
            await asyncio.Event().wait()
        case "cannot":
            raise AnswerError("the file is broken")
        case "breaks":
            raise ZeroDivisionError
    return {"asked": what, "with": content}


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, asyncio.Task[None], Link, asyncio.Task[None]]]:
    one, other = socket.socketpair()
    ours, theirs = await Link.open(one, answers), await Link.open(other, answers)
    running = [asyncio.create_task(link.run()) for link in (ours, theirs)]
    try:
        yield ours, running[0], theirs, running[1]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_questions_in_both_directions(anyio_backend: str):
    """Answers find their questions, whoever asks and however large they are."""
    async with linked() as (ours, _, theirs, _):
        assert await ours.ask("one", [1, "ü"], answer=dict[str, Any], seconds_max=5) == {
            "asked": "one",
            "with": [1, "ü"],
        }
        asked = [link.ask(f"q{number}", answer=dict[str, Any], seconds_max=5) for number in range(20)
                 for link in (ours, theirs)]  # fmt: skip
        assert [answer["asked"] for answer in await asyncio.gather(*asked)] == [
            f"q{n}" for n in range(20) for _ in "ab"
        ]
        assert len(await theirs.ask("large", answer=str, seconds_max=5)) == 1_000_000


async def test_a_reason_why_not(anyio_backend: str):
    """What the other cannot do is told in its words; a defect of the other is not told in detail."""
    async with linked() as (ours, _, _, _):
        with pytest.raises(AnswerError, match="the file is broken"):
            await ours.ask("cannot", answer=str, seconds_max=5)
        with pytest.raises(AnswerError, match="ZeroDivisionError, see the log"):
            await ours.ask("breaks", answer=str, seconds_max=5)


async def test_no_answer(anyio_backend: str):
    """A question has a deadline, and ends at once with the process that was asked."""
    async with linked() as (ours, hearing, _, theirs):
        async with asyncio.timeout(5):
            with pytest.raises(LinkLostError, match="within"):
                await ours.ask("never", answer=str, seconds_max=0.05)
        waiting = asyncio.create_task(ours.ask("never", answer=str, seconds_max=60))
        await ours.ask("known", answer=dict[str, Any], seconds_max=5)
        theirs.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(LinkLostError, match="has ended"):
                await waiting
            await hearing
        with pytest.raises(LinkLostError, match="has ended"):
            await ours.ask("known", answer=str, seconds_max=60)


async def test_last_words(anyio_backend: str):
    """What a process says right before its end is heard."""
    heard: list[tuple[str, Any]] = []

    async def hear(what: str, content: Any) -> None:
        heard.append((what, content))

    ours, theirs = socket.socketpair()
    link = await Link.open(ours, hear)
    tell_at_once(theirs, "refused", "because")
    theirs.close()
    tell_at_once(theirs, "refused", "nobody hears this")
    async with asyncio.timeout(5):
        await link.run()
    assert heard == [("refused", "because")]
