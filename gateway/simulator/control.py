"""The control plane: what the provider knows and the client must not; it is never billed, limited or struck by faults.

``GET /__sim/bill`` (``?lines=0`` totals alone, ``?since=N`` lines after N), ``GET /__sim/bill.jsonl``,
``GET /__sim/requests``, ``GET /__sim/stats``, ``GET|POST|DELETE /__sim/faults``,
``GET|POST /__sim/settings``, ``POST /__sim/reset``.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec

from gateway.simulator.connection import Receive, Scope, Send, read_body, respond
from gateway.simulator.faults import KINDS, Fault
from gateway.simulator.settings import Settings

if TYPE_CHECKING:
    from gateway.simulator.app import Simulator

BODY_BYTES_MAX: Final = 1024 * 1024
LINES_PER_WRITE: Final = 500

_encode = msgspec.json.encode


class FaultOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clear`` first (true: all; a list: these kinds), then ``set``."""

    clear: bool | list[str] = False
    set: list[Fault] = []


async def control(simulator: Simulator, scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(receive, BODY_BYTES_MAX) or b""
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/__sim/bill.jsonl":
        await _send_lines(simulator, send, since=int(query.get("since", "0")))
        return
    try:
        status, document = _answer(simulator, scope["method"], scope["path"], query, body)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        status, document = 400, {"error": str(error)}
    await respond(send, status, [(b"content-type", b"application/json")], _encode(document))


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
                "spent_pico": simulator.bill.spent_pico.get(name, 0),
            }
            for name, account in sorted(simulator.accounts.items())
        },
    }


async def _send_lines(simulator: Simulator, send: Send, *, since: int) -> None:
    headers = [(b"content-type", b"application/jsonl")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    lines = iter(tuple(simulator.bill.since(since)))
    while part := list(islice(lines, LINES_PER_WRITE)):
        data = b"".join(_encode(line) + b"\n" for line in part)
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
