"""What goes to the scripts and what comes back, packed: money as whole dollars and the pico-dollars beyond them.

Lua's numbers are doubles, exact to 2^53; pico-dollars are more than that from $9,007 on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.allowance import (
    AccountsFull,
    Balance,
    BudgetClaim,
    Demand,
    Exceeded,
    Granted,
    Limited,
    Verdict,
)
from gateway.core.budget import BudgetMode, BudgetWindow
from gateway.core.limits import NO_RATES, LimitKind, RateLimits, RateState, RateStates
from gateway.core.money import PICO_PER_USD, ZERO, Money

TOLD_BALANCES, TOLD_COST, TOLD_END, TOLD_HOLD, TOLD_OPEN = range(1, 6)
_MODES: Final = {BudgetMode.STRICT: 0, BudgetMode.CLAMP: 1, BudgetMode.SOFT: 2}
_KINDS: Final = (LimitKind.REQUESTS, LimitKind.TOKENS, LimitKind.CONCURRENCY)

pack: Final = msgspec.msgpack.Encoder().encode
unpack: Final = msgspec.msgpack.Decoder().decode


class _Said:
    """The first number of an answer, as take.lua and common.lua have them."""

    GRANTED: Final = 0
    LIMITED: Final = 1
    EXCEEDED: Final = 2
    FULL: Final = 3
    UNOPENED: Final = 4
    CLOSED: Final = 5
    REFUSED: Final = 6
    KNOWN: Final = 7
    AGAIN: Final = 8


class RefusedByRedisError(Exception):
    """The scripts do not know this worker: it is of another generation, or of none."""


@dataclass(slots=True)
class OpenHold:
    """One of this worker's holds, as it would be told again: ``amount`` is what of it is not posted yet."""

    amount: int
    tokens: int
    second: int
    limits: tuple[RateLimits, ...]
    windows: tuple[BudgetWindow, ...]
    account: RateLimits | None
    clamped_by: str = ""


class Held(NamedTuple):
    """A demand is granted; in which second it counts, None for one more attempt."""

    verdict: Granted
    second: int | None


class Unopened(NamedTuple):
    """Nobody has told yet what is spent in these claims' windows. Nothing was taken."""

    claims: tuple[BudgetClaim, ...]


class Closed(NamedTuple):
    """The generation is not open yet: not everybody has told what is spent. Nothing was taken."""


class WindowFigures(NamedTuple):
    """A window as Redis has it, in pico-dollars."""

    is_open: bool
    spent: int
    held: int
    balances: Mapping[str, Balance]


def ends_ms(window: BudgetWindow) -> int:
    """0 for one that does not end."""
    return 0 if window.ends_at is None else int(window.ends_at.timestamp() * 1000)


def packed_demand(demand: Demand, *, is_retry: bool) -> bytes:
    return pack(
        (
            int(is_retry),
            demand.hold_id,
            demand.tokens,
            *divmod(demand.amount.pico, PICO_PER_USD),
            *divmod(demand.amount_min.pico, PICO_PER_USD),
            [_limits(limits) for limits in demand.limits],
            [
                (window.key, _MODES[budget.mode], *divmod(budget.limit.pico, PICO_PER_USD), budget.budget_id)
                for budget, window in demand.budgets
            ],
            [_limits(limits) for limits in demand.accounts],
        )
    )


def verdict_of(packed: bytes, demand: Demand) -> Verdict | Held | Unopened | Closed:
    """What the script said of a demand. Raises RefusedByRedisError."""
    answer = unpack(packed)
    match answer[0]:
        case _Said.GRANTED | _Said.KNOWN:
            amount, account, clamped_by = _money(answer, 1), answer[3], answer[4]
            granted = Granted(
                amount=amount,
                account=None if account < 0 else account,
                rates=_rates(answer, 6),
                clamped_by=None if clamped_by < 0 else demand.budgets[clamped_by].budget,
            )
            return Held(granted, answer[5])
        case _Said.LIMITED:
            _, place, kind, limit, needed, wait, *_ = answer
            return Limited(
                limits=demand.limits[place],
                kind=_KINDS[kind],
                limit=limit,
                needed=needed,
                retry_after_ms=wait,
                rates=_rates(answer, 6),
            )
        case _Said.EXCEEDED:
            claim = demand.budgets[answer[1]]
            return Exceeded(claim=claim, needed=_money(answer, 2), available=max(ZERO, _money(answer, 4)))
        case _Said.FULL:
            return AccountsFull(kinds=tuple(_KINDS[kind] for kind in answer[2:]), retry_after_ms=answer[1])
        case _Said.UNOPENED:
            return Unopened(tuple(demand.budgets[place] for place in answer[1:]))
        case _Said.CLOSED:
            return Closed()
        case _Said.AGAIN:
            account = answer[3]
            return Held(Granted(amount=_money(answer, 1), account=None if account < 0 else account), None)
        case _:
            raise RefusedByRedisError


def accepted(packed: bytes) -> list[Any]:
    """A script's answer to anything else. Raises RefusedByRedisError."""
    answer: list[Any] = unpack(packed)
    if answer[0] == _Said.REFUSED and len(answer) == 1:
        raise RefusedByRedisError
    return answer


def told_balances(window: BudgetWindow, balances: Mapping[str, Balance], *, opens: bool = False) -> tuple[Any, ...]:
    """What journals have posted in a window; ``opens``: all that is known, so that it can be claimed from now on."""
    told = [
        (journal, *divmod(balance.posted, PICO_PER_USD), balance.rows) for journal, balance in sorted(balances.items())
    ]
    return (TOLD_OPEN if opens else TOLD_BALANCES, window.key, ends_ms(window), told)


def told_cost(hold_id: str, cost: int) -> tuple[Any, ...]:
    return (TOLD_COST, hold_id, *divmod(cost, PICO_PER_USD))


def told_end(hold_id: str, tokens: int) -> tuple[Any, ...]:
    return (TOLD_END, hold_id, tokens)


def told_hold(hold_id: str, hold: OpenHold) -> tuple[Any, ...]:
    return (
        TOLD_HOLD,
        hold_id,
        *divmod(hold.amount, PICO_PER_USD),
        hold.tokens,
        hold.second,
        [_limits(limits) for limits in hold.limits],
        [(window.key, ends_ms(window)) for window in hold.windows],
        [] if hold.account is None else _limits(hold.account),
        hold.clamped_by,
    )


def figures_of(answer: Sequence[Any], windows: Iterable[BudgetWindow]) -> dict[str, WindowFigures]:
    """By the window's key, from the answer of ``read``."""
    return {
        window.key: WindowFigures(
            is_open=found[0] == 1,
            spent=_pico(found, 1),
            held=_pico(found, 3),
            balances={
                journal: Balance(dollars * PICO_PER_USD + pico, rows) for journal, dollars, pico, rows in found[5]
            },
        )
        for window, found in zip(windows, answer[1:], strict=True)
    }


def _limits(limits: RateLimits) -> tuple[str, int, int, int]:
    rpm, tpm, concurrency = limits.rpm, limits.tpm, limits.concurrency
    return (
        limits.scope,
        -1 if rpm is None else rpm,
        -1 if tpm is None else tpm,
        -1 if concurrency is None else concurrency,
    )


def _pico(numbers: Sequence[int], at: int) -> int:
    return numbers[at] * PICO_PER_USD + numbers[at + 1]


def _money(numbers: Sequence[int], at: int) -> Money:
    return Money(_pico(numbers, at))


def _rates(numbers: Sequence[int], at: int) -> RateStates:
    requests, tokens = _rate(numbers, at), _rate(numbers, at + 3)
    return NO_RATES if requests is None and tokens is None else RateStates(requests=requests, tokens=tokens)


def _rate(numbers: Sequence[int], at: int) -> RateState | None:
    limit, remaining, reset_ms = numbers[at : at + 3]
    return None if limit < 0 else RateState(limit=limit, remaining=remaining, reset_ms=reset_ms)
