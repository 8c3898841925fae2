"""However a client leaves, its attempt has one row: the bill's own figures where drained, else a flagged estimate.

Six ways to leave, providers that stop billing then and providers that do not, ``on_client_abort`` cancel and drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from bench.audit import Amount, of_bill, of_ledger
from bench.process import LOOPBACK
from tests.prove.client import Client
from tests.prove.proof import Ground, Proven, told
from tests.prove.stage import Stage, staged
from tests.prove.traffic import paced

TOKENS: Final = 120
CHUNK_MS: Final = 25.0
MANNERS: Final = {
    "before headers": 0,
    "after the first chunk": 1,
    "in the middle": TOKENS // 2,
    "before usage": TOKENS - 4,
    "while not reading": TOKENS // 3,
    "half closed": TOKENS // 2,
}
"""How a client leaves, and after how many chunks with content."""
BILLING: Final = {"moonshot": "stop", "cometapi": "full"}
MODES: Final = ("cancel", "drain")
AT_ONCE_MAX: Final = 24
"""Few enough that what a provider has sent is what the gateway has read."""
SHARE_MAX: Final = 0.02
UNREAD_BYTES: Final = 4_096
UNREAD_SECONDS: Final = 0.6
LEAVE_SECONDS_MAX: Final = 30.0
WARMING: Final = 24
WARMING_TOKENS: Final = 500
HEAD_MS: Final = 800.0
PACE: Final = {"chunk_ms": CHUNK_MS, "first_byte_ms": HEAD_MS}


@dataclass(slots=True)
class Cell:
    """One way to leave one kind of provider in one mode: who left like that, and what the books say of them."""

    left: int = 0
    rows: int = 0
    exact: int = 0
    billed: Amount = field(default_factory=Amount)
    booked: Amount = field(default_factory=Amount)


Cells = dict[tuple[str, str, str], Cell]


def prove(size: int, ground: Ground) -> Proven:
    """``size`` streams in each cell of the matrix."""
    violations: list[str] = []
    cells: Cells = defaultdict(Cell)
    with staged(ground.folder, seed=6, simulator={}) as stage:
        asyncio.run(_warm(stage))
        for provider, billing in BILLING.items():
            _order(stage, provider, {**PACE, "abort_billing": billing})
        for mode in MODES:
            _set_mode(stage, mode)
            violations += asyncio.run(_leave(stage, mode, size, cells, ground))
    violations += _wrong(cells)
    stopping = [cell for (mode, provider, _), cell in cells.items() if (mode, BILLING[provider]) == ("cancel", "stop")]
    going_on = [cell for (mode, provider, _), cell in cells.items() if (mode, BILLING[provider]) == ("cancel", "full")]
    drained = sum(cell.exact for (mode, _, _), cell in cells.items() if mode == "drain")
    share = _share(stopping)
    if abs(share) > SHARE_MAX:
        violations.append(f"cancelled where billing stops: {share:+.2%} of the billed output tokens in sum")
    figure = (
        f"{len(cells)} cells × {size}: {drained} drained and equal to the bill; cancelled, flagged: output tokens "
        f"{share:+.2%} in sum where the provider stops billing, {_share(going_on):+.0%} where it does not"
    )
    return Proven(figure=figure, violations=told(violations))


def _share(cells: list[Cell]) -> float:
    """How far the booked output tokens are from the billed ones."""
    billed = sum(cell.billed.tokens[-1] for cell in cells)
    return sum(cell.booked.tokens[-1] - cell.billed.tokens[-1] for cell in cells) / max(1, billed)


def _wrong(cells: Cells) -> list[str]:
    wrong = []
    for (mode, provider, manner), cell in cells.items():
        where = f"{mode}, {provider}, {manner}"
        if cell.rows > cell.left:
            wrong.append(f"{where}: {cell.left} clients left, {cell.rows} rows")
        if cell.rows == 0:
            wrong.append(f"{where}: nobody's request had come to the provider, so nothing was proven")
        if mode == "drain" and cell.exact != cell.rows:
            wrong.append(f"{where}: {cell.rows - cell.exact} of {cell.rows} drained rows differ from the bill")
    return wrong


# -- the gateway and its providers -------------------------------------------------------------------------------------


def _order(stage: Stage, provider: str, settings: dict[str, Any]) -> None:
    url = f"{stage.simulators.addresses[provider]}/__sim/settings"
    httpx.post(url, json=settings, timeout=LEAVE_SECONDS_MAX, trust_env=False).raise_for_status()


def _set_mode(stage: Stage, mode: str) -> None:
    """Another line on every provider's card, and a reload."""
    path = stage.ours.folder / "config" / "providers.toml"
    text = re.sub(r"^on_client_abort = .*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path.write_text(
        re.sub(r"^(dialect *=.*\n)", rf'\1on_client_abort = "{mode}"\n', text, flags=re.MULTILINE), encoding="utf-8"
    )
    headers = {"authorization": f"Bearer {stage.admin.token}"}
    url = f"{stage.ours.url}/admin/config/reload"
    httpx.post(url, headers=headers, timeout=LEAVE_SECONDS_MAX, trust_env=False).raise_for_status()


# -- leaving -----------------------------------------------------------------------------------------------------------


async def _warm(stage: Stage) -> None:
    """Finished answers, from which the gateway learns to count tokens."""
    async with stage.client:
        asking = (stage.client.ask(paced(number, output_tokens=WARMING_TOKENS)) for number in range(WARMING))
        answers = await asyncio.gather(*asking)
    assert all(answer.complete for answer in answers)


async def _leave(stage: Stage, mode: str, size: int, cells: Cells, ground: Ground) -> list[str]:
    """Everybody of one mode leaves, and their rows are laid beside the bill."""
    places = asyncio.Semaphore(AT_ONCE_MAX)
    stage.mark = stage.simulators.mark()

    async def one(provider: str, manner: str, number: int) -> None:
        body = paced(number, output_tokens=TOKENS, provider={"only": [provider]})
        async with places, asyncio.timeout(LEAVE_SECONDS_MAX):
            await leave(stage.client, body, manner, tag=f"cell={provider}/{manner.replace(' ', '-')}")
        ground.tick(1)
        cells[mode, provider, manner].left += 1

    async with asyncio.TaskGroup() as group:
        for provider in BILLING:
            for manner in MANNERS:
                for number in range(size):
                    group.create_task(one(provider, manner, number))
    return await _compare(stage, mode, cells)


async def _compare(stage: Stage, mode: str, cells: Cells) -> list[str]:
    books = await stage.read([])
    bill = {str(line["attempt_id"]): line for line in books.bill}
    calls = {str(call["attempt_id"]) for call in books.calls}
    unwritten = calls - {str(row["attempt_id"]) for row in books.ledger}
    wrong = [f"{mode}: a call without a row: {attempt_id}" for attempt_id in sorted(unwritten)]
    for row in books.ledger:
        line, tag = bill.get(str(row["attempt_id"])), row["tags"].get("cell")
        if tag is None or str(row["attempt_id"]) not in calls:
            continue
        provider, _, manner = str(tag).partition("/")
        cell = cells[mode, provider, manner.replace("-", " ")]
        billed, booked = of_bill(line) if line else Amount(), of_ledger(row)
        cell.rows += 1
        cell.exact += row["usage_source"] == "provider" and not billed.differences(booked)
        cell.billed, cell.booked = cell.billed + billed, cell.booked + booked
        if row["usage_source"] == "estimated" and row["status"] != "aborted":
            wrong.append(f"{mode}, {tag}: an estimate with status {row['status']} ({row['error_type']})")
        if row["usage_source"] == "none" or (row["usage_source"] == "provider" and billed.differences(booked)):
            wrong.append(f"{mode}, {tag}: neither the bill nor flagged as an estimate: {row['usage_source']}")
    return wrong


async def leave(client: Client, body: dict[str, Any], manner: str, *, tag: str) -> None:
    """Asks over a connection of its own and leaves in that manner; returns when the connection is gone."""
    with _socket(small=manner == "while not reading") as line:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(line, (LOOPBACK, httpx.URL(client.url).port))
        await loop.sock_sendall(line, _request(client, body, tag))
        if manner == "before headers":
            await asyncio.sleep(HEAD_MS / 2000)  # the provider has the request by now, and says nothing yet
        await _read_chunks(line, MANNERS[manner])
        if manner == "while not reading":
            await asyncio.sleep(UNREAD_SECONDS)
        if manner == "half closed":
            line.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(line, 65_536):
                pass


def _request(client: Client, body: dict[str, Any], tag: str) -> bytes:
    content = json.dumps(body).encode()
    head = [f"{name}: {value}" for name, value in client.headers.items()]
    head += [f"host: {LOOPBACK}", f"x-gateway-tags: {tag}", f"content-length: {len(content)}"]
    return ("POST /v1/chat/completions HTTP/1.1\r\n" + "\r\n".join(head) + "\r\n\r\n").encode() + content


async def _read_chunks(line: socket.socket, chunks: int) -> None:
    """Reads until so many pieces of the answer have come."""
    loop, seen, last = asyncio.get_running_loop(), 0, b""
    while seen < chunks:
        data = await loop.sock_recv(line, 65_536)
        assert data, f"the gateway ended the stream after {seen} pieces"
        joined = last + data
        seen += joined.count(b'content":"') - last.count(b'content":"')
        last = joined[-16:]


@contextlib.contextmanager
def _socket(*, small: bool) -> Iterator[socket.socket]:
    """A socket that takes little when nobody reads it. Closing it with something unread resets the connection."""
    with socket.socket() as line:
        line.setblocking(False)
        if small:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES)
        yield line
