"""The auditor knows the bills, what clients saw and the final books, and shares no code with the product but Money.

Each check names the law it stands for (DESIGN §5). What is not known for certain, after a kill, is bounded.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Final

import msgspec

from gateway.core.money import Money
from tests.simulation.audit_budgets import BUDGET_CHECKS
from tests.simulation.audit_limits import LIMIT_CHECKS
from tests.simulation.clients import PROMPT_MARK, Connection
from tests.simulation.disk import frames
from tests.simulation.evidence import Auditor, Evidence, Row
from tests.simulation.providers import COMPLETION_MARK, CREDENTIAL_MARK, DONE, Call, Told
from tests.simulation.scenario import PriceRow, Scenario

HEARTBEAT: Final = b": keep-alive\n\n"
SILENCE_SECONDS_MAX: Final = 15.0
ATTEMPTS_MAX: Final = 4
PROGRESS_SECONDS: Final = 1.0
DISK_SECONDS_MAX: Final = 6.0
"""What an intent may wait for its sync."""


def audit(evidence: Evidence) -> list[str]:
    """Every law that was broken, in words."""
    auditor = Auditor(evidence)
    return [violation for check in CHECKS for violation in check(auditor)]


# --- the ledger against the bills ------------------------------------------------------------------------------------


def every_call_has_its_row(auditor: Auditor) -> Iterator[str]:
    if len(auditor.calls) != len(auditor.evidence.calls):
        yield "L2: an attempt was dispatched twice"
    for call in auditor.evidence.calls:
        if call.attempt_id not in auditor.rows:
            yield f"L2: call {call.number} ({call.attempt_id}, {call.behaviour}) has no row"
    ledger = auditor.evidence.tables.ledger
    if len({row["attempt_id"] for row in ledger.values()}) != len(ledger):
        yield "L4: an attempt has two rows"
    for attempt_id, row in auditor.rows.items():
        if attempt_id not in auditor.calls and not _is_undispatched(row):
            yield f"L2: row {attempt_id} ({row['status']}) is of no call that any provider knows"


def _is_undispatched(row: Row) -> bool:
    is_void = row["status"] in ("aborted", "abandoned") and row["usage_source"] == "none" and row["cost_pico"] == 0
    return is_void or "recovered" in row["flags"]


def told_usage_is_the_bill(auditor: Auditor) -> Iterator[str]:
    for call in auditor.evidence.calls:
        row = auditor.rows.get(call.attempt_id)
        if row is None or "recovered" in row["flags"]:
            continue
        if call.told is not None:
            yield from _told_differences(call, call.told, row)
        elif row["usage_source"] == "provider":
            yield f"L14: row {call.attempt_id} ({call.behaviour}) says the provider told what it never told"


def _told_differences(call: Call, told: Told, row: Row) -> Iterator[str]:
    name = f"row {call.attempt_id} ({call.provider}, {call.behaviour})"
    if row["usage_source"] != "provider":
        yield f"L1: {name} is {row['usage_source']} though the provider told its usage"
        return
    expected = {
        "input_tokens": told.prompt,
        "cached_tokens": told.cached,
        "cache_write_tokens": told.written,
        "output_tokens": told.completion,
    }
    for column, tokens in expected.items():
        if row[column] != tokens:
            yield f"L1: {name} has {column} {row[column]}, told were {tokens}"
    if told.reasoning is not None and (row["reasoning_tokens"], row["reasoning_source"]) != (
        told.reasoning,
        "provider",
    ):
        yield f"L1: {name} has reasoning {row['reasoning_tokens']}, told were {told.reasoning}"
    if call.finished and told.completion != call.output_billed and not call.billed_in_full:
        yield f"L1: {name} was told {told.completion} and billed {call.output_billed}"


def estimates_are_flagged_and_bounded(auditor: Auditor) -> Iterator[str]:
    for call in auditor.evidence.calls:
        row = auditor.rows.get(call.attempt_id)
        if row is None:
            continue
        name = f"row {call.attempt_id} ({call.behaviour}, {row['status']}, {row['error_type']})"
        if row["usage_source"] == "none" and call.is_billed and "recovered" not in row["flags"]:
            yield f"L14: {name} says nothing is owed; the provider bills {call.prompt} + {call.output_billed}"
        if (
            not call.is_billed
            and row["usage_source"] != "none"
            and _was_refused(call)
            and "recovered" not in row["flags"]
        ):
            yield f"L1: {name} is charged, and the provider bills nothing"
        if row["usage_source"] == "estimated":
            yield from _estimate_differences(auditor.evidence.scenario, call, row, name)


def _was_refused(call: Call) -> bool:
    """Whether the refusal itself reached the gateway, before anybody gave up."""
    if call.behaviour == "early_error" and call.has_content:
        return False
    return call.finished


def _power_goes_after(scenario: Scenario, call: Call) -> bool:
    return any(plan.end == "power" for plan in scenario.lives[call.life.number - 1 :])


def _estimate_differences(scenario: Scenario, call: Call, row: Row, name: str) -> Iterator[str]:
    if not call.prompt // 3 - 20 <= row["input_tokens"] <= call.prompt * 3 + 20:
        yield f"L1: {name} estimates {row['input_tokens']} input tokens; the provider counts {call.prompt}"
    seen = max((tokens for _, tokens in call.delivered), default=0)
    if row["output_tokens"] > max(seen * 1.7 + 12, 0 if call.stream else call.limit * call.n):
        yield f"L1: {name} estimates {row['output_tokens']} output tokens; {seen} were delivered"
    least = seen if call.stream else 0
    if "recovered" in row["flags"]:
        least = 0 if _power_goes_after(scenario, call) else _certainly_seen(call)
    if row["output_tokens"] < least * 0.5 - 12:
        yield f"L1: {name} estimates {row['output_tokens']} output tokens; {least} were certainly delivered"


def _certainly_seen(call: Call) -> int:
    """What a progress mark must have kept of a stream whose process was killed and left its page cache behind."""
    if call.life.end != "kill" or call.life.disk_failed or not call.stream or not call.delivered or call.slow_reader:
        return 0
    last = call.delivered[-1][0]
    return max((tokens for at, tokens in call.delivered if at <= last - PROGRESS_SECONDS), default=0)


def money_is_tokens_times_price(auditor: Auditor) -> Iterator[str]:
    for row in auditor.rows.values():
        price = _price(auditor.evidence.scenario.prices, row["provider"], row["started_at"])
        cached, written = row["cached_tokens"] or 0, row["cache_write_tokens"]
        parts = {
            "input_pico": (row["input_tokens"] - cached - written, price.input),
            "cached_pico": (cached, price.cached or price.input),
            "cache_write_pico": (written, price.write or price.input),
            "output_pico": (row["output_tokens"], price.output),
        }
        total = Money(row["fee_pico"])
        for column, (tokens, usd) in parts.items():
            amount = Money.from_usd(Decimal(usd) * tokens / 10**6)
            total += amount
            if row[column] != amount.pico:
                yield f"L1: row {row['attempt_id']} has {column} {row[column]}; {tokens} x {usd} are {amount.pico}"
        if row["cost_pico"] != total.pico or row["fee_pico"]:
            yield f"L1: row {row['attempt_id']} costs {row['cost_pico']}; its parts are {total.pico}"
        if row["usage_source"] == "none" and row["cost_pico"]:
            yield f"L14: row {row['attempt_id']} is not billed and costs {row['cost_pico']}"


def _price(prices: Sequence[PriceRow], provider: str, at: datetime) -> PriceRow:
    return max((row for row in prices if row.provider == provider and row.since <= at), key=lambda row: row.since)


def recovery_is_only_for_the_killed(auditor: Auditor) -> Iterator[str]:
    for row in auditor.rows.values():
        call = auditor.calls.get(row["attempt_id"])
        if "recovered" not in row["flags"]:
            continue
        if (row["status"], row["error_type"], row["usage_source"]) != ("abandoned", "crashed", "estimated"):
            told = (row["status"], row["error_type"], row["usage_source"])
            yield f"L2: recovered row {row['attempt_id']} says {told}"
        if call is not None and call.life.is_certain:
            yield f"L2: row {row['attempt_id']} was recovered though its process ended in order"


# --- requests --------------------------------------------------------------------------------------------------------


def attempts_of_a_request_are_in_order(auditor: Auditor) -> Iterator[str]:
    for request_id, rows in auditor.by_request.items():
        rows = sorted(rows, key=lambda row: row["attempt"])
        if [row["attempt"] for row in rows] != list(range(1, len(rows) + 1)):
            yield f"L9: {request_id} has attempts {[row['attempt'] for row in rows]}"
        if len(rows) > ATTEMPTS_MAX or len({(row["provider"], row["account"]) for row in rows}) != len(rows):
            yield f"L9: {request_id} went to {[(row['provider'], row['account']) for row in rows]}"
        finals = [row["attempt"] for row in rows if row["is_final"]]
        calls = [auditor.calls[row["attempt_id"]] for row in rows if row["attempt_id"] in auditor.calls]
        is_certain = len(calls) == len(rows) and not any(
            call.life.died_early or call.life.disk_failed for call in calls
        )
        if finals != [len(rows)] and (is_certain or finals):
            yield f"L2: {request_id} has final attempts {finals} of {len(rows)}"
        if calls and request_id not in auditor.evidence.tables.exchanges:
            yield f"L2: {request_id} has no plan"


def no_attempt_comes_too_late(auditor: Auditor) -> Iterator[str]:
    total = auditor.evidence.scenario.timeouts.total
    patience = DISK_SECONDS_MAX if auditor.evidence.scenario.disk else 1.0
    for connection in auditor.evidence.connections:
        for call in auditor.by_connection[connection.number]:
            if connection.first_content_order is not None and call.order > connection.first_content_order:
                yield f"L9: call {call.number} was made after connection {connection.number} had its first byte"
            if connection.left_at is not None and call.opened_at > connection.left_at + 0.01:
                yield f"L9: call {call.number} was made for a client that had left"
            if call.opened_at > connection.opened_at + total + patience:
                yield f"L9: call {call.number} was made after the deadline"
        is_late = connection.life.is_stopping(connection.opened_at)
        if is_late and (auditor.by_connection[connection.number] or connection.status == 200):
            yield f"shutdown: connection {connection.number} came after the signal and was served"


def hang_ups_reach_the_provider(auditor: Auditor) -> Iterator[str]:
    drains = auditor.evidence.scenario.drains
    for connection in auditor.evidence.connections:
        for call in auditor.by_connection[connection.number]:
            left = connection.left_at
            if left is None or call.released_at is None or call.provider in drains or not call.life.is_certain:
                continue
            if call.released_at > left + 0.01:
                yield f"hang-up: call {call.number} went on for {call.released_at - left:.1f} s without a client"
            row = auditor.rows.get(call.attempt_id)
            is_cut = call.interrupted and call.opened_at <= left <= call.released_at and call.ending == "end"
            if row is not None and is_cut and call.behaviour == "whole" and row["status"] != "aborted":
                yield f"hang-up: row {call.attempt_id} is {row['status']}, and its client had left"


def drains_run_to_the_end(auditor: Auditor) -> Iterator[str]:
    """Where an abort is billed in full, a client's leaving does not end the call."""
    evidence = auditor.evidence
    timeouts = evidence.scenario.timeouts
    for connection in evidence.connections:
        for call in auditor.by_connection[connection.number]:
            if call.provider not in evidence.scenario.drains or call.released_at is None or connection.left_at is None:
                continue
            is_ours = call.life.is_certain and not call.life.is_stopping(call.released_at - 20) and not call.slow_reader
            is_whole = call.behaviour == "whole" and not call.tells_another_model
            patience = timeouts.idle if call.delivered else timeouts.first_byte
            in_time = call.released_at < min(call.opened_at + timeouts.total, call.heard_at + patience) - 0.1
            if is_ours and is_whole and in_time and call.interrupted:
                yield f"hang-up: call {call.number} was cut, and {call.provider} bills it in full"


def silence_has_an_end(auditor: Auditor) -> Iterator[str]:
    timeouts = auditor.evidence.scenario.timeouts
    patience = max(timeouts.first_byte, timeouts.idle) + 0.1
    for call in auditor.evidence.calls:
        if call.released_at is None or call.slow_reader or not call.stream:
            continue
        if call.released_at > call.heard_at + patience:
            yield f"deadline: call {call.number} was waited for {call.released_at - call.heard_at:.0f} s in silence"


def aborted_means_the_client_left(auditor: Auditor) -> Iterator[str]:
    connections = {each.number: each for each in auditor.evidence.connections}
    for call in auditor.evidence.calls:
        row, connection = auditor.rows.get(call.attempt_id), connections[call.connection]
        if row is not None and row["status"] == "aborted" and connection.stayed:
            yield f"hang-up: row {call.attempt_id} is aborted, and its client stayed"


# --- what clients saw ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class View:
    """A client's answer against the script of the call that gave it."""

    connection: Connection
    call: Call
    rest: bytes = field(init=False)
    relayed: int = field(init=False)

    def __post_init__(self) -> None:
        """``rest`` is what follows the provider's own events; ``relayed`` how many of those came."""
        self.rest, self.relayed = self.connection.bytes, 0
        if not self.connection.is_stream:
            return
        expected = [piece for piece in self.call.pieces if piece.kind not in ("closing", "done")]
        while True:
            if self.rest.startswith(HEARTBEAT):
                self.rest = self.rest[len(HEARTBEAT) :]
            elif expected and self.rest.startswith(expected[0].raw):
                self.rest = self.rest[len(expected[0].raw) :]
                self.relayed += expected.pop(0).kind == "delta"
            elif expected and expected[0].kind == "comment":
                expected.pop(0)
            else:
                return

    @property
    def is_acknowledged(self) -> bool:
        """Whether the client holds a whole answer, and knows it."""
        if not self.connection.finished:
            return False
        return not self.connection.is_stream or self.rest.endswith((DONE, DONE.replace(b"\n", b"\r\n")))

    @property
    def is_told_of_an_error(self) -> bool:
        return self.rest.startswith(b'data: {"error":') and self.rest.count(b"\n\n") == 1


def _view(auditor: Auditor, connection: Connection) -> View | None:
    calls = auditor.by_connection[connection.number]
    return View(connection, calls[-1]) if calls and connection.status == 200 else None


def bytes_pass_through(auditor: Auditor) -> Iterator[str]:
    for connection in auditor.evidence.connections:
        view = _view(auditor, connection)
        if view is None:
            continue
        if connection.is_stream:
            yield from _stream_differences(view)
        elif connection.finished:
            yield from _whole_differences(view)


def _stream_differences(view: View) -> Iterator[str]:
    name = f"L7: the answer to connection {view.connection.number} ({view.call.behaviour})"
    asked = view.connection.asked or {}
    if not view.connection.finished:
        if view.rest:
            yield f"{name} has bytes that the provider did not send: {view.rest[:80]!r}"
        return
    if view.is_told_of_an_error:
        return
    if not view.is_acknowledged:
        yield f"{name} ends with {view.rest[-80:]!r}"
        return
    deltas = sum(piece.kind == "delta" for piece in view.call.pieces)
    if view.relayed != deltas:
        yield f"{name} has {view.relayed} events of {deltas}; then {view.rest[:80]!r}"
    added = view.rest.replace(b"\r", b"").removesuffix(DONE)
    if bool(added) != bool(asked.get("stream_options")):
        yield f"{name} has this before its end: {added[:80]!r}"


def _whole_differences(view: View) -> Iterator[str]:
    ours, theirs = json.loads(view.rest, parse_float=Decimal), json.loads(view.call.body or b"{}")
    ours.pop("usage", None)
    theirs.pop("usage", None)
    if ours != theirs:
        yield f"L7: the answer to connection {view.connection.number} is not the provider's"


def acknowledged_is_in_the_ledger(auditor: Auditor) -> Iterator[str]:
    for connection in auditor.evidence.connections:
        view = _view(auditor, connection)
        if view is None or not view.is_acknowledged:
            continue
        row = auditor.rows.get(view.call.attempt_id)
        if row is None or row["status"] != "succeeded" or row["request_id"] != connection.request_id:
            yield f"L3: connection {connection.number} was answered; its row is {row and row['status']}"
        for call in auditor.by_connection[connection.number]:
            if call.attempt_id not in connection.durable_at_end:
                yield f"L3: connection {connection.number} was answered before {call.attempt_id} was durable"
        if row is not None:
            yield from _told_to_the_client(auditor, view, row)


def _told_to_the_client(auditor: Auditor, view: View, row: Row) -> Iterator[str]:
    """Usage and cost in the answer are those of the ledger."""
    connection = view.connection
    text = view.rest
    if connection.is_stream:
        text = text.replace(b"\r", b"").removesuffix(DONE).strip().removeprefix(b"data: ")
        if not text or b"\n" in text:
            return  # none was asked for, or it is not one event, which is a violation already
    try:
        usage = json.loads(text, parse_float=Decimal).get("usage") or {}
        Decimal(str(usage["cost"]))
    except (ValueError, KeyError, ArithmeticError):
        yield f"L8: connection {connection.number} was told no usage and cost where they belong: {text[:80]!r}"
        return
    cost = Money.total(Money(each["cost_pico"]) for each in auditor.by_request[row["request_id"]])
    if (usage.get("prompt_tokens"), usage.get("completion_tokens")) != (row["input_tokens"], row["output_tokens"]):
        yield f"L8: connection {connection.number} was told {usage}; its row says otherwise"
    told = [usage.get("cost"), connection.answer_headers.get("x-gateway-cost-usd", usage.get("cost"))]
    if any(Money.from_usd(Decimal(str(amount))) != cost for amount in told):
        yield f"L1: connection {connection.number} was told a cost of {told}; its rows cost {cost}"


def nobody_is_left_without_a_word(auditor: Auditor) -> Iterator[str]:
    for connection in auditor.evidence.connections:
        if connection.life.died_early or not connection.stayed:
            continue
        if not connection.finished:
            yield f"L9: connection {connection.number} ended without a word (status {connection.status})"
        if connection.asked is not None and connection.asked["stream"] and connection.is_stream:
            moments = [connection.opened_at, *(at for at, _ in connection.received)]
            longest = max((later - earlier for earlier, later in pairwise(moments)), default=0.0)
            if longest > SILENCE_SECONDS_MAX and not connection.manners.read_seconds:
                yield f"silence: connection {connection.number} heard nothing for {longest:.1f} s"


# --- the books among themselves --------------------------------------------------------------------------------------


def roll_ups_equal_rows(auditor: Auditor) -> Iterator[str]:
    sums: dict[tuple[object, ...], Counter[str]] = defaultdict(Counter)
    for row in auditor.evidence.tables.ledger.values():
        quarter = row["started_at"].replace(second=0, microsecond=0)
        quarter -= timedelta(minutes=quarter.minute % 15)
        group = (row["key_id"], row["key_name"], row["team"], row["model"], row["provider"], row["account"])
        mine = sums[(quarter, *group, tuple(sorted(row["tags"].items())))]
        mine["attempts"] += 1
        mine["requests"] += row["is_final"]
        for column in ("input_tokens", "output_tokens", "cost_pico"):
            mine[column] += row[column]
        mine["estimated_cost_pico"] += row["cost_pico"] if row["usage_source"] == "estimated" else 0
    kept = auditor.evidence.tables.rollup
    if set(sums) != set(kept):
        yield "L5: the roll-ups have other groups than the rows"
        return
    for key, expected in sums.items():
        for column, amount in expected.items():
            if kept[key][column] != amount:
                yield f"L5: the roll-up has {column} {kept[key][column]}; its rows sum up to {amount}"


def journals_settle_once(auditor: Auditor) -> Iterator[str]:
    payloads: dict[str, set[str]] = defaultdict(set)
    may_repeat = any(trouble.kind != "slow" for trouble in auditor.evidence.scenario.disk)
    seen: Counter[str] = Counter()
    for _, content in auditor.evidence.segments:
        here: Counter[str] = Counter()
        for record in frames(content):
            if record.get("t") == "settle":
                payloads[record["attempt_id"]].add(repr(sorted(record.items())))
                here[record["attempt_id"]] += 1
        seen += here if may_repeat else here + Counter()
        for attempt_id, count in here.items():
            if count > 1 or (seen[attempt_id] > 1 and not may_repeat):
                yield f"L4: {attempt_id} was settled {max(count, seen[attempt_id])} times"
    for attempt_id, different in payloads.items():
        if len(different) > 1:
            yield f"L4: {attempt_id} was settled in {len(different)} ways"
        if attempt_id not in auditor.rows:
            yield f"L3: the settlement of {attempt_id} is in a journal and not in the ledger"
    for payload, why in auditor.evidence.tables.dead_letters.values():
        attempt_id = msgspec.msgpack.decode(payload).get("attempt_id")
        if attempt_id not in auditor.evidence.refused:
            yield f"L3: {attempt_id} was set aside ({why}), and nothing is wrong with it"


def nothing_private_is_told(auditor: Auditor) -> Iterator[str]:
    evidence = auditor.evidence
    marks = (PROMPT_MARK, COMPLETION_MARK, CREDENTIAL_MARK, *evidence.secrets)
    for line in evidence.logs:
        for mark in marks:
            if mark in line:
                yield f"L13: a log line carries {mark[:12]}…: {line[:160]}"
        if '"event":"defect"' in line:
            yield f"defect: {line[:2000]}"
    books = repr(list(evidence.tables.ledger.values())) + repr(list(evidence.tables.exchanges.values()))
    yield from (f"L13: the books carry {mark[:12]}…" for mark in marks if mark in books)
    for connection in evidence.connections:
        if connection.status is not None and connection.status != 200:
            text = connection.bytes.decode(errors="replace")
            yield from (f"L13: an error carries {mark[:12]}…: {text[:200]}" for mark in marks if mark in text)


CHECKS: Final = (
    every_call_has_its_row,
    told_usage_is_the_bill,
    estimates_are_flagged_and_bounded,
    money_is_tokens_times_price,
    recovery_is_only_for_the_killed,
    attempts_of_a_request_are_in_order,
    no_attempt_comes_too_late,
    hang_ups_reach_the_provider,
    aborted_means_the_client_left,
    drains_run_to_the_end,
    silence_has_an_end,
    bytes_pass_through,
    acknowledged_is_in_the_ledger,
    nobody_is_left_without_a_word,
    roll_ups_equal_rows,
    journals_settle_once,
    nothing_private_is_told,
    *BUDGET_CHECKS,
    *LIMIT_CHECKS,
)
__all__ = ["Auditor", "Evidence", "audit"]
