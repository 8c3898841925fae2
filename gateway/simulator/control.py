"""The control plane: what the provider knows and the client must not; it is never billed, limited or struck by faults.

``GET /__sim/bill`` (``?lines=0`` totals alone, ``?since=N`` lines after N), ``GET /__sim/bill.jsonl``,
``GET /__sim/requests``, ``GET /__sim/stats``, ``GET|POST|DELETE /__sim/faults``,
``GET|POST /__sim/settings``, ``POST /__sim/reset``.

``GET /__sim/statement`` (:mod:`gateway.simulator.statement`), ``POST|DELETE /__sim/statement`` plants and clears drift,
``GET /__sim/statement/planted`` (same parameters) tells as JSON Lines what the statement has otherwise than the bill,
``POST /__sim/topup`` puts money on an account: ``{"credential": "main", "usd": "50"}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec

from gateway.simulator.connection import Receive, Scope, Send, read_body, respond
from gateway.simulator.drift import Drift, ratio_of
from gateway.simulator.faults import KINDS, Fault
from gateway.simulator.settings import Settings
from gateway.simulator.statement import Order

if TYPE_CHECKING:
    from gateway.simulator.app import Simulator

BODY_BYTES_MAX: Final = 1024 * 1024
LINES_PER_WRITE: Final = 500
JSON: Final = (b"content-type", b"application/json")
JSONL: Final = b"application/jsonl"

_encode = msgspec.json.encode


class FaultOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clear`` first (true: all; a list: these kinds), then ``set``."""

    clear: bool | list[str] = False
    set: list[Fault] = []


class DriftOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clear`` first, then ``set``."""

    clear: bool = False
    set: list[Drift] = []


class TopUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decimal dollars for an account, by its name on the bill."""

    credential: str
    usd: str


async def control(simulator: Simulator, scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(receive, BODY_BYTES_MAX) or b""
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    try:
        streamed = _streamed(simulator, scope["method"], scope["path"], query)
        if streamed is not None:
            sending = _send_parts(send, *streamed)
        else:
            status, document = _answer(simulator, scope["method"], scope["path"], query, body)
            sending = respond(send, status, [JSON], _encode(document))
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        sending = respond(send, 400, [JSON], _encode({"error": str(error)}))
    await sending


def _streamed(
    simulator: Simulator, method: str, path: str, query: dict[str, str]
) -> tuple[bytes, Iterator[bytes]] | None:
    """Content type and parts of what may be long; None for every other path."""
    match (method, path.removeprefix("/__sim/")):
        case ("GET", "bill.jsonl"):
            return JSONL, _bill_lines(simulator, since=int(query.get("since", "0")))
        case ("GET", "statement"):
            return simulator.statements().written(Order.of(query))
        case ("GET", "statement/planted"):
            return JSONL, simulator.statements().planted(Order.of(query))
        case _:
            return None


def _answer(simulator: Simulator, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
    match (method, path.removeprefix("/__sim/")):
        case ("GET", "bill"):
            since = None if query.get("lines") in ("0", "false") else int(query.get("since", "0"))
            return 200, simulator.bill.as_json(lines_since=since)
        case ("GET", "requests"):
            since = int(query.get("since", "0"))
            return 200, {"requests": [line for line in simulator.requests if line.request > since]}
        case ("GET", "stats"):
            return 200, stats(simulator)
        case ("GET", "faults"):
            return 200, {"faults": simulator.faults.as_json(), "kinds": KINDS}
        case ("POST", "faults"):
            return 200, _order_faults(simulator, body)
        case ("DELETE", "faults"):
            simulator.faults.clear()
            return 200, {"faults": []}
        case ("POST", "statement"):
            return 200, _order_drifts(simulator, body)
        case ("DELETE", "statement"):
            simulator.drifts.clear()
            return 200, {"drifts": []}
        case ("POST", "topup"):
            return 200, _top_up(simulator, msgspec.json.decode(body, type=TopUp))
        case ("GET", "settings"):
            return 200, _settings_json(simulator.settings)
        case ("POST", "settings"):
            changed = msgspec.json.decode(body, type=dict[str, Any])
            simulator.configure(msgspec.convert(msgspec.to_builtins(simulator.settings) | changed, Settings))
            return 200, _settings_json(simulator.settings)
        case ("POST", "reset"):
            simulator.reset()
            return 200, {"reset": True}
        case _:
            return 404, {"error": f"{method} {path} is no control endpoint."}


def _order_faults(simulator: Simulator, body: bytes) -> dict[str, Any]:
    """One fault, a list of faults, or a :class:`FaultOrder`."""
    raw = msgspec.json.decode(body)
    if isinstance(raw, dict) and "kind" in raw:
        raw = [raw]
    order = (
        FaultOrder(set=msgspec.convert(raw, list[Fault])) if isinstance(raw, list) else msgspec.convert(raw, FaultOrder)
    )
    if order.clear:
        simulator.faults.clear(None if order.clear is True else frozenset(order.clear))
    for fault in order.set:
        simulator.faults.add(fault, now=simulator.clock())
    return {"faults": simulator.faults.as_json()}


def _order_drifts(simulator: Simulator, body: bytes) -> dict[str, Any]:
    """One drift, a list of drifts, or a :class:`DriftOrder`."""
    raw = msgspec.json.decode(body)
    if isinstance(raw, dict) and "kind" in raw:
        raw = [raw]
    order = (
        DriftOrder(set=msgspec.convert(raw, list[Drift])) if isinstance(raw, list) else msgspec.convert(raw, DriftOrder)
    )
    if order.clear:
        simulator.drifts.clear()
    simulator.drifts.plant(order.set, lines=simulator.bill.lines)
    return {"drifts": simulator.drifts.as_json()}


def _top_up(simulator: Simulator, order: TopUp) -> dict[str, Any]:
    accounts = simulator.settings.accounts
    if accounts is not None and order.credential not in accounts.values():
        raise ValueError(f"No account {order.credential!r}. Known: {', '.join(sorted(set(accounts.values())))}.")
    numerator, denominator = ratio_of(order.usd)
    pico, rest = divmod(numerator * 10**12, denominator)
    if rest or not pico:
        raise ValueError(f"{order.usd!r} is no amount above 0 of at most 12 decimals.")
    simulator.top_up(order.credential, pico)
    return {"credential": order.credential, "left_pico": simulator.left_pico(order.credential)}


def _settings_json(settings: Settings) -> dict[str, Any]:
    """The settings, with the account names but without the keys that lead to them."""
    document: dict[str, Any] = msgspec.to_builtins(settings)
    if settings.accounts is not None:
        document["accounts"] = sorted(set(settings.accounts.values()))
    return document


def stats(simulator: Simulator) -> dict[str, Any]:
    """Counts since the last reset, and what is held now."""
    lines, prompted = simulator.requests, simulator.tokens_prompted
    return {
        "provider": simulator.provider,
        "requests": len(lines),
        "answered": sum(line.ended is not None for line in lines),
        "refused": sum(line.refused is not None for line in lines),
        "aborted": sum(line.ended == "aborted" for line in lines),
        "broken": sum(line.ended == "broken" for line in lines),
        "prompt_tokens": prompted,
        "cached_tokens": simulator.tokens_read,
        "cache_hit_rate": simulator.tokens_read / prompted if prompted else 0.0,
        "accounts": {
            name: {
                "in_flight": account.limiter.in_flight,
                "in_flight_max": account.limiter.in_flight_max,
                "cache_entries": len(account.cache),
                "spent_pico": simulator.spent_pico(name),
                "left_pico": simulator.left_pico(name),
            }
            for name, account in sorted(simulator.accounts.items())
        },
    }


def _bill_lines(simulator: Simulator, *, since: int) -> Iterator[bytes]:
    bill = simulator.bill
    for after in range(max(since, bill.dropped), bill.numbered, LINES_PER_WRITE):
        yield b"".join(_encode(line) + b"\n" for line in bill.between(after, after + LINES_PER_WRITE))


async def _send_parts(send: Send, content_type: bytes, parts: Iterator[bytes]) -> None:
    """Part by part, and everything else has its turn in between."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})
