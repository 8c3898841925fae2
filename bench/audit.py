"""Three books are compared that were kept apart: the providers' bills, the gateway's ledger, and its spend report.

Pure: books in, differences out. Money is whole pico-dollars; no float is ever compared. Where a provider told its usage
the books agree to the token and the pico-dollar; where it did not, the row says so and the difference is stated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

PICO_PER_USD: Final = 10**12
ESTIMATE_SHARE_MAX: Final = Decimal("0.02")
EXAMPLES_MAX: Final = 20
"""So many differences of one kind are listed; the rest are counted."""

Line = Mapping[str, Any]
Group = tuple[str, ...]
CLASSES: Final = ("input", "cached", "cache_write", "output")
_NEVER_SENT: Final = frozenset({"unreachable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Tokens and pico-dollars by class; ``input`` is neither cached nor written."""

    tokens: tuple[int, ...] = (0, 0, 0, 0)
    pico: tuple[int, ...] = (0, 0, 0, 0)
    cost: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            tokens=tuple(a + b for a, b in zip(self.tokens, other.tokens, strict=True)),
            pico=tuple(a + b for a, b in zip(self.pico, other.pico, strict=True)),
            cost=self.cost + other.cost,
        )

    def differences(self, other: Amount) -> list[tuple[str, int, int]]:
        """What differs, by name, here and there."""
        mine, theirs = self.named(), other.named()
        return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]

    def named(self) -> dict[str, int]:
        tokens = {f"{name}_tokens": count for name, count in zip(CLASSES, self.tokens, strict=True)}
        return {
            **tokens,
            **{f"{name}_pico": pico for name, pico in zip(CLASSES, self.pico, strict=True)},
            "cost": self.cost,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that two books, or a book and a client, do not agree on."""

    kind: str
    where: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """A complete answer that a client got, with what it was told. None: it was not told."""

    request_id: str
    input_tokens: int | None
    output_tokens: int | None
    cost: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything that is compared. ``calls`` are upstream calls as the providers saw them, refused ones included."""

    bill: Sequence[Line]
    calls: Sequence[Line]
    ledger: Sequence[Line]
    report: Sequence[Line]
    acknowledged: Sequence[Acknowledged]


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What the comparison found, with the sums it was made of."""

    differences: list[Difference] = field(default_factory=list)
    unlisted: Counter[str] = field(default_factory=Counter)
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, where: str, *, expected: object, found: object) -> None:
        if sum(known.kind == kind for known in self.differences) >= EXAMPLES_MAX:
            self.unlisted[kind] += 1
            return
        self.differences.append(Difference(kind=kind, where=where, expected=str(expected), found=str(found)))

    @property
    def agrees(self) -> bool:
        return not self.differences


def audit(books: Books, *, killed: bool = False) -> Verdict:
    """Compare all books. ``killed``: the gateway was killed on the way, so rows it left open are estimates by right."""
    verdict = Verdict()
    attempts = _once(verdict, "ledger rows of an attempt", books.ledger, "attempt_id")
    bill = _once(verdict, "bill lines of an attempt", books.bill, "attempt_id")
    _compare_calls(verdict, books.calls, attempts, killed=killed)
    _compare_lines(verdict, bill, attempts, killed=killed)
    _compare_sums(verdict, bill, attempts)
    _compare_report(verdict, books.ledger, books.report, killed=killed)
    _compare_acknowledged(verdict, books.acknowledged, books.ledger)
    return verdict


def _once(verdict: Verdict, kind: str, lines: Iterable[Line], name: str) -> dict[str, Line]:
    """Lines by id; a line that corrects another is not an attempt of its own; a second one is a difference."""
    found: dict[str, Line] = {}
    for line in lines:
        if line.get("corrects"):
            continue
        identity = str(line.get(name))
        if identity in found:
            verdict.add(kind, identity, expected=1, found="more")
        found[identity] = line
    return found


# -- every call has its row --------------------------------------------------------------------------------------------


def _compare_calls(verdict: Verdict, calls: Sequence[Line], attempts: Mapping[str, Line], *, killed: bool) -> None:
    seen = Counter(str(call.get("attempt_id")) for call in calls)
    for call in calls:
        if str(call.get("attempt_id")) not in attempts:
            answer = call.get("refused") or call.get("status")
            where = f"{call['provider']} {call.get('request_id')} ({answer})"
            verdict.add("upstream call without a ledger row", where, expected=call.get("attempt_id"), found="nothing")
    for identity, count in seen.items():
        if count > 1:
            verdict.add("upstream calls of one attempt", identity, expected=1, found=count)
    unsent = 0
    for identity, row in attempts.items():
        if identity in seen or row.get("error_type") in _NEVER_SENT:
            continue
        if killed and row["status"] == "abandoned" and row["usage_source"] == "estimated":
            unsent += 1  # the intent was durable, and the kill came before the call
            continue
        where = f"{row['provider']} {identity} ({row['status']}, {row.get('error_type')})"
        verdict.add("ledger row without an upstream call", where, expected="a call", found="none")
    verdict.sums |= {"upstream_calls": len(calls), "ledger_attempts": len(attempts), "killed_before_call": unsent}


# -- line by line ------------------------------------------------------------------------------------------------------


def _compare_lines(verdict: Verdict, bill: Mapping[str, Line], attempts: Mapping[str, Line], *, killed: bool) -> None:
    estimated: list[tuple[Amount, Amount]] = []
    for identity, row in attempts.items():
        line = bill.get(identity)
        billed, booked = (of_bill(line) if line else Amount()), of_ledger(row)
        where = f"{row['provider']}/{row['upstream_model']} {identity} ({row['status']}, {row['usage_source']})"
        _check_parts(verdict, row, booked, where)
        if row["usage_source"] == "estimated":
            estimated.append((billed, booked))
            told = line is not None and line["told"] == "told" and line["ended"] == "complete"
            if told and not killed:
                verdict.add("estimated although usage was told", where, expected="provider", found="estimated")
            continue
        if line is not None and line["told"] != "told" and row["usage_source"] == "provider":
            verdict.add("provider's usage that was never told", where, expected="estimated", found="provider")
        for name, expected, found in billed.differences(booked):
            verdict.add("bill and ledger, one attempt", f"{where}: {name}", expected=expected, found=found)
    _check_estimates(verdict, estimated, killed=killed)


def _check_parts(verdict: Verdict, row: Line, booked: Amount, where: str) -> None:
    parts = sum(booked.pico) + pico(row.get("fee_cost"))
    if parts != booked.cost:
        verdict.add("cost is not the sum of its parts", where, expected=parts, found=booked.cost)
    if row["usage_source"] == "none" and booked.cost:
        verdict.add("a cost without usage", where, expected=0, found=booked.cost)


def _check_estimates(verdict: Verdict, estimated: Sequence[tuple[Amount, Amount]], *, killed: bool) -> None:
    """Estimates are stated; their output tokens stay within two in a hundred in sum, unless a kill cut them."""
    billed = sum((pair[0] for pair in estimated), Amount())
    booked = sum((pair[1] for pair in estimated), Amount())
    output_billed, output_booked = billed.tokens[-1], booked.tokens[-1]
    if not killed and abs(output_booked - output_billed) > ESTIMATE_SHARE_MAX * output_billed:
        where = f"{len(estimated)} estimated attempts: output tokens in sum"
        verdict.add("estimates beyond 2 %", where, expected=output_billed, found=output_booked)
    verdict.sums["estimated"] = {
        "attempts": len(estimated), "billed_pico": billed.cost, "booked_pico": booked.cost,
        "billed_output_tokens": output_billed, "booked_output_tokens": output_booked,
    }  # fmt: skip


# -- sums --------------------------------------------------------------------------------------------------------------


def _compare_sums(verdict: Verdict, bill: Mapping[str, Line], attempts: Mapping[str, Line]) -> None:
    """Σ bills = Σ ledger per provider and model for all usage that was told; what was estimated stands beside it."""
    estimated = {identity for identity, row in attempts.items() if row["usage_source"] == "estimated"}
    billed = _sums((line for each, line in bill.items() if each not in estimated), _by_upstream, of_bill)
    booked = _sums((row for each, row in attempts.items() if each not in estimated), _by_upstream, of_ledger)
    for group in sorted(billed.keys() | booked.keys()):
        for name, expected, found in billed.get(group, Amount()).differences(booked.get(group, Amount())):
            verdict.add("Σ bill and Σ ledger", f"{'/'.join(group)}: {name}", expected=expected, found=found)
    verdict.sums["reported"] = {
        "/".join(group): {"bill": billed.get(group, Amount()).named(), "ledger": booked.get(group, Amount()).named()}
        for group in sorted(billed.keys() | booked.keys())
    }


def _by_upstream(line: Line) -> tuple[str, str]:
    return str(line["provider"]), str(line.get("upstream_model") or line["model"])


def _sums(
    lines: Iterable[Line], group: Callable[[Line], Group], amount: Callable[[Line], Amount]
) -> dict[Group, Amount]:
    sums: defaultdict[Group, Amount] = defaultdict(Amount)
    for line in lines:
        sums[group(line)] += amount(line)
    return dict(sums)


# -- ledger and report -------------------------------------------------------------------------------------------------

_REPORTED: Final = (
    "requests", "attempts", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "cost", "estimated_cost",
)  # fmt: skip


def _compare_report(verdict: Verdict, ledger: Sequence[Line], report: Sequence[Line], *, killed: bool) -> None:
    """The spend report says of every key, provider and model what its ledger rows add up to.

    A request that was killed between two attempts has no last one and is not counted; attempts and money always are.
    """
    booked = _report_of(ledger)
    names = {str(row["key_id"]): str(row["key_name"]) for row in ledger}
    told: dict[Group, dict[str, int]] = {}
    for row in report:
        key = str(row["key"])
        group: Group = (names.get(key, key), str(row["provider"]), str(row["model"]))
        if group in told:
            verdict.add("report row twice", "/".join(group), expected=1, found="more")
        told[group] = {name: pico(row.get(name)) if "cost" in name else int(row.get(name) or 0) for name in _REPORTED}
    nothing = dict.fromkeys(_REPORTED, 0)
    for group in sorted(booked.keys() | told.keys()):
        here, there = booked.get(group, nothing), told.get(group, nothing)
        for name in _REPORTED:
            if here[name] != there[name] and not (killed and name == "requests"):
                where = f"{'/'.join(group)}: {name}"
                verdict.add("Σ ledger and report", where, expected=here[name], found=there[name])
    verdict.sums["ledger_pico"] = sum(row["cost"] for row in booked.values())
    verdict.sums["report_pico"] = sum(row["cost"] for row in told.values())


def _report_of(ledger: Sequence[Line]) -> dict[Group, dict[str, int]]:
    """What the report ought to say. A request counts once, where its last attempt was."""
    sums: dict[Group, dict[str, int]] = {}
    last: dict[str, tuple[int, Group]] = {}
    for row in ledger:
        group: Group = (str(row["key_name"]), str(row["provider"]), str(row["model"]))
        total = sums.setdefault(group, dict.fromkeys(_REPORTED, 0))
        if not row.get("corrects"):
            request = str(row["request_id"])
            last[request] = max(last.get(request, (0, group)), (int(row["attempt"]), group))
        total["attempts"] += not row.get("corrects")
        for name in _REPORTED[2:7]:
            total[name] += int(row.get(name) or 0)
        total["cost"] += pico(row["cost"])
        total["estimated_cost"] += pico(row["cost"]) if row["usage_source"] == "estimated" else 0
    for _, group in last.values():
        sums[group]["requests"] += 1
    return sums


# -- ledger and clients ------------------------------------------------------------------------------------------------


def _compare_acknowledged(verdict: Verdict, acknowledged: Sequence[Acknowledged], ledger: Sequence[Line]) -> None:
    """An answer that a client has completely is in the ledger exactly once, with the figures the client was told."""
    rows: defaultdict[str, list[Line]] = defaultdict(list)
    for row in ledger:
        rows[str(row["request_id"])].append(row)
    for answer in acknowledged:
        succeeded = [row for row in rows[answer.request_id] if row["status"] == "succeeded" and not row.get("corrects")]
        if len(succeeded) != 1:
            kind = "acknowledged answer in the ledger"
            verdict.add(kind, answer.request_id, expected="once succeeded", found=f"{len(succeeded)} times")
            continue
        row = succeeded[0]
        cost = sum(pico(each["cost"]) for each in rows[answer.request_id])
        for name, told, booked in (
            ("input tokens", answer.input_tokens, int(row["input_tokens"])),
            ("output tokens", answer.output_tokens, int(row["output_tokens"])),
            ("cost", answer.cost, cost if answer.cost != pico(row["cost"]) else answer.cost),
        ):
            if told is not None and told != booked:
                verdict.add("client and ledger", f"{answer.request_id}: {name}", expected=told, found=booked)
    verdict.sums["acknowledged"] = len(acknowledged)


# -- lines as amounts --------------------------------------------------------------------------------------------------


def of_bill(line: Line) -> Amount:
    return Amount(
        tokens=tuple(int(line[f"{name}_tokens"]) for name in CLASSES),
        pico=tuple(int(line[f"{name}_pico"]) for name in CLASSES),
        cost=int(line["cost_pico"]),
    )


def of_ledger(row: Line) -> Amount:
    """The ledger's input is all input; here it is what was neither cached nor written."""
    cached, written = int(row["cached_tokens"] or 0), int(row["cache_write_tokens"] or 0)
    return Amount(
        tokens=(int(row["input_tokens"]) - cached - written, cached, written, int(row["output_tokens"])),
        pico=tuple(pico(row[f"{name}_cost"]) for name in CLASSES),
        cost=pico(row["cost"]),
    )


def pico(amount: object) -> int:
    """Pico-dollars of a decimal string of dollars; nothing is nothing. Raises ValueError for a fraction of one."""
    if amount is None:
        return 0
    exact = Decimal(str(amount)) * PICO_PER_USD
    if exact != exact.to_integral_value():
        raise ValueError(f"{amount} USD is not a whole number of pico-dollars.")
    return int(exact)
