"""One policy over all rows in virtual time: it plans by the live gateway's core and meets a world it knows nothing of.

The order of a request is the live one: plan, room at an account, attempt, and on failure the next candidate while the
retry budget lasts. A client that is refused asks again, so that every policy serves the same requests.
A failed attempt takes a second and is not billed. An account's minute is taken by what a request really reads and
writes: the live gateway holds more and gives it back, and a trace does not say how much more.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from gateway.core.exchange import ATTEMPTS_MAX, Candidate, Exclusion, Plan
from gateway.core.limits import ScopeState
from gateway.core.pricing import Price, rate
from gateway.core.retry_budget import RetryBudget
from gateway.core.routing import retry_after_seconds
from gateway.core.usage import Usage
from gateway.replay.gateway import Gateway, Planned, Timing
from gateway.replay.results import Tally
from gateway.replay.rows import Row
from gateway.replay.scenario import Scenario
from gateway.replay.world import PARTS_PER_MILLION, AccountKey, AccountWorld

ASK_AGAIN_SECONDS: Final = 1.0
ASK_AGAIN_SECONDS_MAX: Final = 60.0
"""A client that is refused asks again after a second, then after twice as long each time."""
FAILURE_SECONDS: Final = 1.0
WAIT_SECONDS_MAX: Final = 1.0
"""A request that waits for room looks again at least this often: somebody may have left."""
FREE_PROBE_SECONDS: Final = 2.0
"""Between two free questions to an account that is out, as the live gateway asks them."""
PROGRESS_ROWS: Final = 200


class _Kind(IntEnum):
    """What happens at a moment, in the order in which it does."""

    READABLE = 0
    ANSWERED = 1
    FAILED = 2
    ASK = 3
    WAKE = 4
    DUE = 5


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """One row on its way."""

    place: int
    row: Row
    attempts: int = 0
    attempts_before: int = 0
    planned: Planned | None = None
    is_new: bool = True
    is_held: bool = False
    refusals: int = 0
    left: list[Candidate] = field(default_factory=list)  # of its plan: those that are not tried yet


@dataclass(slots=True, kw_only=True, eq=False)
class _Attempt:
    """One call under way."""

    request: _Request
    candidate: Candidate
    number: int
    sent_at: float
    cached_tokens: int = 0
    first_token_at: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.request.place}.{self.number}"


Event = tuple[float, _Kind, int, _Request | _Attempt | AccountKey | None]


@dataclass(slots=True, kw_only=True)
class Engine:
    """One run. ``conversations`` numbers the rows'."""

    rows: Sequence[Row]
    conversations: Sequence[int]
    scenario: Scenario
    progress: Callable[[int], None] = lambda _: None

    tally: Tally = field(init=False, default_factory=Tally)
    _events: list[Event] = field(init=False, default_factory=list)
    _number: int = field(init=False, default=0)
    _gateway: Gateway = field(init=False)
    _accounts: dict[AccountKey, AccountWorld] = field(init=False, default_factory=dict)
    _rooms: dict[AccountKey, ScopeState] = field(init=False, default_factory=dict)
    _served_by: dict[int, AccountKey] = field(init=False, default_factory=dict)
    _retries: RetryBudget = field(init=False, default_factory=RetryBudget)
    _waiting: deque[_Request] = field(init=False, default_factory=deque)
    _wakes_at: float = field(init=False, default=-1.0)
    _done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._gateway = Gateway(self.scenario)
        horizon = self.rows[-1].at - self.rows[0].at + 60 if self.rows else 0.0
        for card, _ in self.scenario.catalogue.deployments(self.scenario.model.name):
            for account in card.accounts:
                key = (card.name, account.name)
                self._accounts[key] = AccountWorld(*key, self.scenario.terms_of(card.name), horizon)
                self._rooms[key] = ScopeState()

    def run(self) -> Tally:
        """Every row to its answer."""
        for place, row in enumerate(self.rows):
            self._push(row.at - self.rows[0].at, _Kind.DUE, _Request(place=place, row=row))
        heapq.heapify(self._events)
        while self._done < len(self.rows):
            at, kind, _, what = heapq.heappop(self._events)
            if what is None:
                self._wake(at)
            elif isinstance(what, _Request):
                self._due(what, at)
            elif isinstance(what, tuple):
                self._ask_for_free(what, at)
            elif kind is _Kind.READABLE:
                self._world(what.candidate).cache.use(what.request.row.prompt, what.sent_at)
                self._gateway.answering(what.candidate, self._moment(at), began=self._moment(what.sent_at))
            elif kind is _Kind.ANSWERED:
                self._answered(what, at)
            else:
                self._failed(what, at)
        return self.tally

    def _push(self, at: float, kind: _Kind, what: _Request | _Attempt | AccountKey | None) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, kind, self._number, what))

    def _moment(self, at: float) -> datetime:
        return self.scenario.begins_at + timedelta(seconds=at)

    def _world(self, candidate: Candidate) -> AccountWorld:
        return self._accounts[_key(candidate)]

    def _due(self, request: _Request, at: float) -> None:
        """A request arrives, or asks again. Where others wait for room nobody overtakes them."""
        if request.is_new:
            request.is_new = False
            self._retries = self._retries.earn()
        if self._waiting or not self._is_off(request, at):
            self._waiting.append(request)
            self._wake_in(self._patience(request, at), at)

    def _wake(self, at: float) -> None:
        """Those that wait are looked at in turn, until one still finds no room."""
        while self._waiting and self._is_off(self._waiting[0], at):
            self._waiting.popleft()
        if self._waiting:
            self._wake_in(self._patience(self._waiting[0], at), at)

    def _patience(self, request: _Request, at: float) -> float:
        """Seconds until it is worth looking again."""
        return min((WAIT_SECONDS_MAX, *self._room_in(request, at).values()))

    def _wake_in(self, seconds: float, at: float) -> None:
        if not at < self._wakes_at <= at + seconds:
            self._wakes_at = at + seconds
            self._push(self._wakes_at, _Kind.WAKE, None)

    def _is_off(self, request: _Request, at: float) -> bool:
        """Plans, and sends to the first that has room, unless it is worth waiting for a better one. A request that
        nobody can serve now is refused, one that nobody can ever serve is given up; False = it waits for room."""
        planned = request.planned = self._gateway.plan(request.row, self._moment(at))
        made = planned.plan
        request.left = [each for each in made.routable if self._may_fit(request, each)]
        if not request.left:
            if not made.routable and _may_change(made):
                self._refuse(request, at, retry_after_seconds(made))
            else:
                self._end(is_served=False)
            return True
        room_in = self._room_in(request, at)
        chosen = next((each for each in request.left if _key(each) not in room_in), None)
        if chosen is None:
            return False
        if room_in and self._is_held(request, planned, room_in, at):
            return True
        self._note_move(request, chosen, room_in)
        request.left.remove(chosen)
        self._send(request, chosen, at)
        return True

    def _is_held(self, request: _Request, planned: Planned, room_in: dict[AccountKey, float], at: float) -> bool:
        """Whether it waits for an account that is full, because that is worth more than the time."""
        never = {_key(each): math.inf for each in planned.plan.routable if not self._may_fit(request, each)}
        hold = self._gateway.hold(planned, room_in | never, at - self._arrival(request))
        if hold is None:
            return False
        self.tally.held += not request.is_held
        request.is_held = True
        self.tally.held_seconds += hold.seconds
        self._push(at + hold.seconds, _Kind.DUE, request)
        return True

    def _tokens(self, request: _Request) -> int:
        return request.row.input_tokens + request.row.output_tokens

    def _may_fit(self, request: _Request, candidate: Candidate) -> bool:
        """Whether the account ever has room for a request so large."""
        return candidate.limits.tpm is None or self._tokens(request) <= candidate.limits.tpm

    def _room_in(self, request: _Request, at: float) -> dict[AccountKey, float]:
        """Of those that are left, the full ones, with the seconds until each has room if nobody takes more."""
        tokens, now_ms = self._tokens(request), int(at * 1000)
        full: dict[AccountKey, float] = {}
        for each in request.left:
            if each.limits.are_none:
                continue
            room = self._rooms[_key(each)]
            lacking = room.lacks(each.limits, tokens, now_ms)
            if lacking is not None:
                full[_key(each)] = room.wait_ms(each.limits, lacking, tokens, now_ms) / 1000
        return full

    def _note_move(self, request: _Request, chosen: Candidate, room_in: dict[AccountKey, float]) -> None:
        """Counts a conversation that leaves an account which would have taken it."""
        number = self.conversations[request.place]
        before = self._served_by.get(number)
        self._served_by[number] = after = _key(chosen)
        if before is None or before == after:
            return
        self.tally.moves += before not in room_in and any(_key(each) == before for each in request.left)

    def _send(self, request: _Request, candidate: Candidate, at: float) -> None:
        row, world = request.row, self._world(candidate)
        request.attempts += 1
        self._rooms[_key(candidate)].take(candidate.limits, self._tokens(request), int(at * 1000))
        attempt = _Attempt(
            request=request, candidate=candidate, sent_at=at, number=request.attempts_before + request.attempts
        )
        assert request.planned is not None
        self._gateway.sent(attempt.name, row, candidate, request.planned.turn, self._moment(at))
        if world.is_out(at):
            self._push(at + FAILURE_SECONDS, _Kind.FAILED, attempt)
            return
        believed = world.cache.cached_tokens(row.prompt, at)
        attempt.cached_tokens = 0 if world.ignores_cache(request.place, self.scenario.seed) else believed
        first = world.latency.first(row.input_tokens - attempt.cached_tokens)
        attempt.first_token_at = at + first
        self._bill(attempt, believed, world.ignored_ppm)
        self._push(at + first, _Kind.READABLE, attempt)
        self._push(at + first + world.latency.rest(row.output_tokens), _Kind.ANSWERED, attempt)

    def _bill(self, attempt: _Attempt, believed: int, ignored_ppm: int) -> None:
        """What this answer costs, and what it costs on average over the provider's moods."""
        row, candidate = attempt.request.row, attempt.candidate
        price = candidate.price
        assert price is not None, "an unpriced candidate is not routable"
        cold = _cost(row, 0, price)
        warm = _cost(row, believed, price) if believed else cold
        account = self.tally.of(_key(candidate))
        account.requests += 1
        account.input_tokens += row.input_tokens
        account.cached_tokens += attempt.cached_tokens
        account.billed_pico += warm if attempt.cached_tokens else cold
        account.expected_micropico += warm * (PARTS_PER_MILLION - ignored_ppm) + cold * ignored_ppm
        self.tally.output_tokens += row.output_tokens
        self.tally.waited_seconds.append(attempt.sent_at - self._arrival(attempt.request))
        self.tally.first_token_seconds.append(attempt.first_token_at - self._arrival(attempt.request))

    def _arrival(self, request: _Request) -> float:
        return request.row.at - self.rows[0].at

    def _answered(self, attempt: _Attempt, at: float) -> None:
        candidate = attempt.candidate
        self._rooms[_key(candidate)].end(candidate.limits)
        self._gateway.answered(
            attempt.name,
            attempt.request.row,
            candidate,
            self._moment(at),
            cached_tokens=attempt.cached_tokens,
            timing=Timing(
                self._moment(attempt.sent_at), at - attempt.sent_at, attempt.first_token_at - attempt.sent_at
            ),
        )
        self._end(is_served=True)
        if self._waiting:
            self._wake(at)

    def _failed(self, attempt: _Attempt, at: float) -> None:
        """Nobody was there: the next candidate that is well and has room, or the client is refused."""
        request, candidate = attempt.request, attempt.candidate
        key = _key(candidate)
        self.tally.of(key).failures += 1
        room = self._rooms[key]
        room.end(candidate.limits)
        room.tokens.correct(int(attempt.sent_at), -self._tokens(request))
        now = self._moment(at)
        if self._gateway.failed(attempt.name, candidate, now, began=self._moment(attempt.sent_at)):
            self._push(at + FREE_PROBE_SECONDS, _Kind.ASK, key)
        following = None
        budget = self._retries.spend()
        if request.attempts < ATTEMPTS_MAX and budget is not None:
            full = self._room_in(request, at)
            well = self._gateway.well(request.left, now)
            following = next((each for each in well if _key(each) not in full), None)
        if following is None or budget is None:
            self._refuse(request, at, 0.0)
            return
        self._retries = budget
        request.left.remove(following)
        self._served_by[self.conversations[request.place]] = _key(following)
        self._send(request, following, at)

    def _ask_for_free(self, account: AccountKey, at: float) -> None:
        """While an account is out, whether anything answers there is asked every few seconds."""
        answers = not self._accounts[account].is_out(at)
        if self._gateway.asked_for_free(account, self._moment(at), ok=answers):
            self._push(at + FREE_PROBE_SECONDS, _Kind.ASK, account)

    def _refuse(self, request: _Request, at: float, seconds: float) -> None:
        """The client is told so, and asks again as a request of its own."""
        self.tally.refusals += 1
        patience = min(ASK_AGAIN_SECONDS * 2**request.refusals, ASK_AGAIN_SECONDS_MAX)
        request.refusals += 1
        request.attempts_before += request.attempts
        request.attempts = 0
        self._push(at + max(seconds, patience), _Kind.DUE, request)

    def _end(self, *, is_served: bool) -> None:
        self.tally.unserved += not is_served
        self._done += 1
        if self._done % PROGRESS_ROWS == 0 or self._done == len(self.rows):
            self.progress(self._done)


_MAY_RETURN: Final = frozenset({Exclusion.COOLING, Exclusion.EJECTED, Exclusion.GONE})


def _may_change(made: Plan) -> bool:
    """Whether somebody who is out now could serve it later."""
    return any(each.exclusion in _MAY_RETURN for each in made.candidates)


def _key(candidate: Candidate) -> AccountKey:
    return (candidate.provider, candidate.account)


def _cost(row: Row, cached_tokens: int, price: Price) -> int:
    usage = Usage.from_wire(prompt=row.input_tokens, cached=cached_tokens, completion=row.output_tokens)
    return rate(usage, price).cost.pico
