"""Limits and room, audited from outside: never more than allowed in any sixty seconds, nobody refused without need.

What was certainly admitted is counted against limits, what may have been against refusals; a minute ends with its
process, and what was taken within one second comes back with the last of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.simulation.evidence import Auditor
from tests.simulation.providers import Call
from tests.simulation.requests import ROUNDING_SECONDS, Request, highest, is_calm, requests

MINUTE: Final = 60.0
MINUTE_LATE: Final = 62.0
"""When the last of a minute is certainly back: it is counted in whole seconds."""
CHANGE_SECONDS: Final = 40.0
WAIT_SECONDS_MAX: Final = 8.0
FIRST_WORD_SECONDS_MAX: Final = 10.0
"""What the database's first word on a window is waited for."""
DISK_SECONDS_MAX: Final = 6.0
ROOM_SECONDS: Final = 3.0
"""Room that is there for so long is seen by somebody who waits."""
KINDS: Final = {"requests per minute": "rpm", "tokens per minute": "tpm", "requests under way": "concurrency"}


# --- never more than the limit ---------------------------------------------------------------------------------------


def limits_hold(auditor: Auditor) -> Iterator[str]:
    """Requests and tokens of any sixty seconds, and requests at once, of every key, team and the organisation."""
    known = [request for request in requests(auditor) if request.calls]
    for request in known:
        first = request.calls[0]
        policies = request.scenario.rights.policies_between(request.opened - CHANGE_SECONDS, first.opened_at)
        for scope in request.holder.scopes:
            together = [other for other in known if other.life == request.life and scope in other.holder.scopes]
            admitted = [other for other in together if other.calls[0].order <= first.order]
            recent = [other for other in admitted if other.opened > first.opened_at - MINUTE + ROUNDING_SECONDS]
            counts = {
                "rpm": sum(other.policy.rates_of(scope).rpm is not None for other in recent),
                "tpm": sum(_tokens(other, request) for other in recent if other.policy.rates_of(scope).tpm is not None),
                "concurrency": sum(
                    _is_under_way(other, first)
                    for other in admitted
                    if other.policy.rates_of(scope).concurrency is not None
                ),
            }
            for kind, count in counts.items():
                limit = highest(policies, kind, scope)
                if limit is not None and count > limit:
                    yield f"limits: call {first.number} takes {scope} to {count} of {limit} {kind}"


def _tokens(other: Request, request: Request) -> int:
    """What another request counted at the least when this one was admitted."""
    asked, used = other.tokens_least(other.calls[0]), other.tokens_used
    if used is None:
        return asked if other.ended > request.began else 0
    return used if other.ended < request.opened - ROUNDING_SECONDS else min(asked, used) if _has_ended(other) else asked


def _has_ended(other: Request) -> bool:
    return other.ended < float("inf")


def _is_under_way(other: Request, call: Call) -> bool:
    return any(
        each.order <= call.order
        and (each.released_at is None or each.released_at > call.opened_at + ROUNDING_SECONDS or each is call)
        for each in other.calls
    )


def accounts_hold(auditor: Auditor) -> Iterator[str]:
    """The same of every provider account, for every call."""
    known = requests(auditor)
    asked_by = {call.number: request for request in known for call in request.calls}
    for (provider, account), rates in auditor.evidence.scenario.rights.accounts.items():
        at_account = [
            call
            for call in auditor.evidence.calls
            if (call.provider, call.account) == (provider, account) and call.number in asked_by
        ]
        for call in at_account:
            before = [each for each in at_account if each.order <= call.order and each.life is call.life]
            recent = [
                each for each in before if _taken_after(asked_by[each.number], each) > call.opened_at - MINUTE + 0.001
            ]
            under_way = [each for each in before if each is call or _is_open(each, call.opened_at)]
            tokens = sum(asked_by[each.number].tokens_least(each) for each in recent)
            for kind, count in (("rpm", len(recent)), ("tpm", tokens), ("concurrency", len(under_way))):
                limit = getattr(rates, kind)
                if limit is not None and count > limit:
                    yield f"limits: call {call.number} takes {provider}/{account} to {count} of {limit} {kind}"


def _taken_after(request: Request, call: Call) -> float:
    """The earliest moment at which room for this call can have been taken."""
    place = request.calls.index(call)
    released = request.calls[place - 1].released_at if place else None
    return request.opened if released is None else released


def _is_open(call: Call, at: float) -> bool:
    return call.released_at is None or call.released_at > at + ROUNDING_SECONDS


# --- no phantom refusals ---------------------------------------------------------------------------------------------


def limit_refusals_are_justified(auditor: Auditor) -> Iterator[str]:
    known = requests(auditor)
    for request in known:
        if request.code != "rate_limit_exceeded" or request.calls:
            continue
        kind = next((kind for words, kind in KINDS.items() if words in request.message.replace(",", "")), None)
        if kind is None:
            yield f"limits: connection {request.number} was refused in unknown words: {request.message}"
        elif not any(_may_be_full(known, request, scope, kind) for scope in request.holder.scopes):
            yield f"limits: connection {request.number} was refused, and there was room: {request.message}"


def _may_be_full(known: Sequence[Request], request: Request, scope: str, kind: str) -> bool:
    """By the largest figures that the product could rightly have."""
    limit = getattr(request.policy.rates_of(scope), kind)
    if limit is None:
        return False
    needed = request.tokens_most if kind == "tpm" else 1
    return needed + sum(_may_count(other, request, kind) for other in known if scope in other.holder.scopes) > limit


def _may_count(other: Request, request: Request, kind: str) -> int:
    if other is request or other.life != request.life or other.opened > request.ended or other.was_refused:
        return 0
    if kind == "concurrency":
        return int(other.ended >= request.opened)
    if other.began <= request.opened - MINUTE_LATE:
        return 0
    if kind == "rpm":
        return 1
    used = other.tokens_used if other.ended < request.opened - ROUNDING_SECONDS else None
    return other.tokens_most if used is None else used


def overload_is_justified(auditor: Auditor) -> Iterator[str]:
    known = requests(auditor)
    for request in known:
        if request.code != "overloaded" or request.calls:
            continue
        name = f"connection {request.number}"
        if "shutting down" in request.message:
            if not request.connection.life.is_stopping(request.ended + ROUNDING_SECONDS):
                yield f"waiting: {name} was told of a shutdown that was none"
        elif "wait for a provider account already" in request.message:
            yield from _queue_differences(known, request, name)
        else:
            waited = request.ended - request.opened
            if waited < WAIT_SECONDS_MAX - 0.01:
                yield f"waiting: {name} was given up after {waited:.2f} s"
            yield from _room_differences(known, request, name)


def _queue_differences(known: Sequence[Request], request: Request, name: str) -> Iterator[str]:
    allowed = request.scenario.rights
    waiting = [
        other
        for other in known
        if other is not request
        and other.life == request.life
        and other.opened <= request.ended
        and other.began >= request.opened
    ]
    of_key = [other for other in waiting if other.holder is request.holder]
    if len(waiting) < allowed.waiting_max and len(of_key) < allowed.waiting_of_key_max:
        yield f"waiting: {name} found no place among {len(waiting)} others"


def _room_differences(known: Sequence[Request], request: Request, name: str) -> Iterator[str]:
    """No account that never failed had room, for whoever waited for it, all the time before the end of the wait."""
    end, begin = request.ended, request.ended - ROOM_SECONDS
    life = request.connection.life
    by_number = {other.number: other for other in known}
    calls = [call for call in request.auditor.evidence.calls if call.life is life and call.connection in by_number]
    meanwhile = [other for other in known if other.life == life.number and other.opened <= end and other.began >= begin]
    silent = [other for other in meanwhile if not other.calls and not other.was_refused]
    for (provider, account), rates in request.scenario.rights.accounts.items():
        if any(_may_be_out(call) for call in calls if call.provider == provider and call.opened_at <= end):
            continue  # it may be cooling down, or tried by a probe
        here = [call for call in calls if (call.provider, call.account) == (provider, account)]
        here = [call for call in here if call.opened_at <= end or by_number[call.connection].opened <= end]
        takers = [by_number[call.connection] for call in here if call.opened_at > begin - MINUTE_LATE] + silent
        open_then = [call for call in here if by_number[call.connection].ended >= begin]
        wanting = [other for other in meanwhile if rates.tpm is None or other.limit * other.n <= rates.tpm]
        if request not in wanting:
            continue
        counts = {
            "rpm": len(takers) + 1,
            "tpm": sum(other.tokens_most for other in takers) + max(other.tokens_most for other in wanting),
            "concurrency": len(open_then) + len(silent) + 1,
        }
        limits = {kind: getattr(rates, kind) for kind in counts}
        if all(limit is None or counts[kind] <= limit for kind, limit in limits.items()):
            yield f"waiting: {name} was given up, and {provider}/{account} had room for it: {counts} of {limits}"


def _may_be_out(call: Call) -> bool:
    return call.behaviour != "whole" or call.interrupted or call.tells_another_model


# --- fairness --------------------------------------------------------------------------------------------------------


def waiting_has_an_end(auditor: Auditor) -> Iterator[str]:
    """Whoever waits for room is served or refused in time."""
    scenario = auditor.evidence.scenario
    patience = WAIT_SECONDS_MAX + 1.0 + (DISK_SECONDS_MAX if scenario.disk else 0.0)
    patience += 0.0 if is_calm(scenario) else FIRST_WORD_SECONDS_MAX
    for request in requests(auditor):
        connection = request.connection
        if connection.life.died_early or not connection.stayed or connection.manners.leaves_in_upload:
            continue
        waited = request.began - request.opened
        if waited > patience and not connection.manners.read_seconds:
            yield f"waiting: connection {request.number} waited for {waited:.1f} s"


LIMIT_CHECKS: Final = (
    limits_hold,
    accounts_hold,
    limit_refusals_are_justified,
    overload_is_justified,
    waiting_has_an_end,
)
