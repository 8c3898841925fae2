"""Bugs that a gateway may have, each one edit of one function, to see whether the simulation finds it.

An edit is made to the function's source and takes effect through its code object, so that whoever holds the function
has the bug, and only for as long as the plant is in the ground. An edit that no longer fits its function is an error.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any, Final

from tests.simulation.scenario import LIMITS_FROM
from tests.simulation.world import simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """One bug: in the function ``where`` (module:name), ``old`` becomes ``new``. It is looked for from seed ``first``
    on."""

    name: str
    where: str
    old: str
    new: str
    first: int = 1


PLANTS: Final = (
    Plant(
        name="double settle",
        where="gateway.pipeline.conduct:Conductor._settle",
        old="learn(entry, outcome",
        new="self.journal.append(entry); learn(entry, outcome",
    ),
    Plant(
        name="missed usage chunk",
        where="gateway.providers.reading:AnswerReader._take",
        old="if chunk.usage is not None:",
        new="if chunk.usage is not None and not chunk.choices:",
    ),
    Plant(
        name="cached counted twice",
        where="gateway.core.usage:Usage.from_wire",
        old="input=prompt - (cached_clamped or 0) - write_clamped",
        new="input=prompt - write_clamped",
    ),
    Plant(
        name="lost intent",
        where="gateway.pipeline.conduct:Conductor._intend",
        old="position = self.journal.append(intent)",
        new="position = 0",
    ),
    Plant(
        name="settled after the last byte",
        where="gateway.pipeline.conduct:Conductor._attempt_each",
        old="await self._durable(position)",
        new="pass",
    ),
    Plant(
        name="wrong price row",
        where="gateway.core.pricing:PriceTable.in_force",
        old="[index - 1] if index else None",
        new="[0] if index else None",
    ),
    Plant(
        name="usage added up",
        where="gateway.providers.counting:count",
        old="figures = _figures(reports.top_level)\n",
        new="figures = _figures(reports.top_level)\n"
        "    if figures is not None and reports.by_choice:\n"
        "        figures = replace(figures, completion=2 * figures.completion)\n",
    ),
    Plant(
        name="swallowed hang-up",
        where="gateway.pipeline.watch:Watch.hang_up",
        old="self.interrupt(ClientGone.CLIENT_GONE)",
        new="pass",
    ),
    Plant(
        name="retry after the first byte",
        where="gateway.core.failure:advise",
        old="if bytes_relayed:",
        new="if bytes_relayed < 0:",
    ),
    Plant(
        name="aborted costs nothing",
        where="gateway.pipeline.attempt:_usage",
        old="nothing_came = ",
        new="if aborted:\n        return NO_USAGE, UsageSource.NONE\n    nothing_came = ",
    ),
    Plant(
        name="estimate unflagged",
        where="gateway.pipeline.attempt:_usage",
        old="UsageSource.ESTIMATED",
        new="UsageSource.PROVIDER",
    ),
    Plant(
        name="recovered again",
        where="gateway.adapters.journal.recovery:_Scan._settle",
        old="self.open.pop(attempt_id, None)",
        new="pass",
    ),
    Plant(
        name="batch dropped for one row",
        where="gateway.adapters.postgres.shipper:Shipper._ship",
        old="if len(items) == 1:",
        new="if items:",
    ),
    Plant(
        name="roll-up of the batch",
        where="tests.simulation.database:Connection.ship",
        old="roll_up(tables.rollup, added)",
        new="roll_up(tables.rollup, self._staged)",
    ),
    Plant(
        name="final twice",
        where="gateway.pipeline.conduct:Conductor._attempt_each",
        old="is_final=following is None",
        new="is_final=True",
    ),
    Plant(
        name="acknowledged before the sync",
        where="gateway.adapters.journal.writer:JournalWriter.durable",
        old="if position <= self._durable:",
        new="if position <= self._durable + self.backlog_records:",
    ),
    Plant(
        name="offset before the rows",
        where="gateway.adapters.postgres.shipper:Shipper._commit",
        old="async with db.transaction(), db.cursor() as cursor:",
        new="await db.execute(_MOVE, [source.journal_id, *reached])\n"
        "    self._stored[source.journal_id] = reached\n"
        "    async with db.transaction(), db.cursor() as cursor:",
    ),
    Plant(
        name="sync tried again",
        where="gateway.adapters.journal.segments:SegmentFile.sync",
        old="        self._syscalls.fdatasync(self._descriptor)\n",
        new="        try:\n"
        "            self._syscalls.fdatasync(self._descriptor)\n"
        "        except OSError:\n"
        "            self._syscalls.fdatasync(self._descriptor)\n",
    ),
    Plant(
        name="account tried twice",
        where="gateway.pipeline.conduct:Conductor._claimed",
        old="candidates.remove(chosen)",
        new="pass",
    ),
    Plant(
        name="prompt in the log",
        where="gateway.http.chat:_prepare",
        old="return services.conductor.prepare(",
        new="LOGGER.info('request %s', body[:200])\n    return services.conductor.prepare(",
    ),
)


RARE: Final = {
    "clamp knows one budget": 110,
    "windows without the dead": 110,
    "caught up by trying": 110,
    "ends wake nobody": 60,
    "retry costs nothing more": 995,
}
"""What shows itself in few seeds is looked for from shortly before the first that did: tests do not wait for it."""
PLANTS_OF_ALLOWANCES: Final = tuple(
    Plant(name=name, where=where, old=old, new=new, first=LIMITS_FROM + RARE.get(name, 0))
    for name, where, old, new in (
        (
            "hold kept after a hang-up",
            "gateway.pipeline.conduct:Conductor._attempts",
            "self.allowances.release(exchange.request_id, spending.tokens)",
            "watch.client_gone or self.allowances.release(exchange.request_id, spending.tokens)",
        ),
        (
            "failed attempts are not posted",
            "gateway.pipeline.conduct:Conductor._attempt_each",
            "self._post(exchange, charge.cost)",
            "outcome.failure or self._post(exchange, charge.cost)",
        ),
        (
            "window of the settlement",
            "gateway.pipeline.conduct:Conductor._post",
            "day_of(exchange.admitted_at, ",
            "day_of(self.clock.now(), ",
        ),
        (
            "clamp knows one budget",
            "gateway.core.allowance:_affordable",
            "elif claim.budget.mode is BudgetMode.CLAMP:",
            "elif claim.budget.mode is BudgetMode.CLAMP and clamped_by is None:",
        ),
        (
            "minute too short",
            "gateway.core.limits:SlidingMinute.advance",
            "if now_ms < self._due:",
            "now_ms += 5_000\n    if now_ms < self._due:",
        ),
        (
            "windows without the dead",
            "gateway.pipeline.first_word:FirstWord._ask",
            "await self._caught_up()",
            "pass",
        ),
        (
            "caught up by trying",
            "gateway.adapters.postgres.shipper:Shipper.ship",
            "await self._drain(own)",
            "await self._drain(own)\n        self._caught_up.set()",
        ),
        (
            "ends wake nobody",
            "gateway.pipeline.turns:Turns.wake",
            "told: set[frozenset[str]] = set()",
            "return",
        ),
        (
            "holds do not count",
            "gateway.core.allowance:_available",
            " - state.held",
            "",
        ),
        (
            "held for the estimate",
            "gateway.pipeline.reserve:dearest",
            "input_tokens_max(request.input_bytes)",
            "admitted.input_tokens",
        ),
        (
            "postings of the batch",
            "tests.simulation.database:Connection.ship",
            "self._post(tables, added, journal_id)",
            "self._post(tables, self._staged, journal_id)",
        ),
        (
            "account left and not given back",
            "gateway.core.allowance:AllowanceBook.retry",
            "self._scope(hold.account.scope).end(hold.account)",
            "pass",
        ),
        (
            "tokens never trued up",
            "gateway.core.allowance:AllowanceBook.release",
            "caller.tokens.correct(hold.second, tokens - hold.tokens)",
            "pass",
        ),
        (
            "retry takes no room",
            "gateway.core.allowance:AllowanceBook.retry",
            "self._use(hold, demand, account, now_ms)",
            "hold.account = None if account is None else demand.accounts[account]",
        ),
        (
            "retry costs nothing more",
            "gateway.core.allowance:AllowanceBook.retry",
            "if more > available:",
            "if more < 0:",
        ),
        (
            "overrun not flagged",
            "gateway.pipeline.conduct:Conductor._attempt_each",
            "spending.cost > held",
            "spending.cost < held - held",
        ),
        (
            "a refusal takes all the same",
            "gateway.core.allowance:AllowanceBook.take",
            "if isinstance(amount, Exceeded):",
            (
                "if isinstance(amount, Exceeded):\n"
                "        [caller.take(each, 0, now_ms // 1000) for each, caller in zip(demand.limits, callers)]"
            ),
        ),
        (
            "clamped in silence",
            "gateway.pipeline.conduct:Conductor._reserve",
            "exchange.warnings.append(\n",
            "str(\n",
        ),
        (
            "days of another zone",
            "gateway.pipeline.conduct:Conductor._post",
            "principal.time_zone",
            "'UTC'",
        ),
    )
)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """The function has the bug meanwhile."""
    function = _function(plant.where)
    before = function.__code__
    function.__code__ = _edited(plant, function)
    try:
        yield
    finally:
        function.__code__ = before


def hunt(plant: Plant, seeds: int) -> tuple[int | None, str | None]:
    """The first of so many seeds that finds the bug, and what it says; (None, None) if none does."""
    with planted(plant):
        for seed in range(plant.first, plant.first + seeds):
            result = simulate(seed)
            if result.violations:
                return seed, result.violations[0]
    return None, None


def _function(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    function = getattr(found, "__func__", found)
    assert isinstance(function, FunctionType), where
    return function


def _edited(plant: Plant, function: FunctionType) -> Any:
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(plant.old) == 1, f"the plant {plant.name!r} does not fit {plant.where} any more; mend its edit"
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(plant.old, plant.new), f"<planted: {plant.name}>", "exec", flags)
    names: dict[str, Any] = {}
    exec(code, dict(function.__globals__), names)
    made = names[function.__name__]
    edited = getattr(made, "__func__", made).__code__
    assert edited.co_freevars == function.__code__.co_freevars
    return edited
