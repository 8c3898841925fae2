"""A request is explained to people: what each candidate would have cost, why the first was first, what was paid."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table

from gateway.core.money import ZERO, Money

PIPE_COLUMNS: Final = 200
_TERMS: Final = (
    ("request_usd", "this request"),
    ("failure_usd", "if it fails"),
    ("future_usd", "further turns"),
    ("quota_usd", "quota"),
    ("total_usd", "in all"),
)


def print_explained(found: dict[str, Any]) -> None:
    """Candidates in the order they would be tried, the reason for the first, and every attempt, line by line."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    turn = "" if found.get("turn") is None else f", turn {found['turn'] + 1} of its conversation"
    console.print(f"Request {found['request_id']}{turn}, cost {found['cost']} USD", highlight=False)
    console.print(_candidates(found["candidates"]))
    for sentence in _reasons(found):
        console.print(sentence, highlight=False, soft_wrap=True)
    for attempt in found["attempts"]:
        console.print(attempt_title(attempt), style="italic", highlight=False, soft_wrap=True)
        console.print(_attempt(attempt))
    for sentence in _corrected(found["attempts"]):
        console.print(sentence, highlight=False, soft_wrap=True)


def _candidates(candidates: list[dict[str, Any]]) -> Table:
    table = Table(title="Candidates, by what they were expected to cost in USD", title_justify="left")
    for name in ("provider", "account", "upstream_model"):
        table.add_column(name, overflow="fold")
    for name in ("cached tokens", *(title for _, title in _TERMS)):
        table.add_column(name, justify="right")
    table.add_column("state")
    table.add_column("excluded", overflow="fold")
    for each in candidates:
        score = each.get("score") or {}
        table.add_row(
            each["provider"],
            each["account"],
            each["upstream_model"],
            f"{each['expected_cached_tokens']:,}",
            *(_usd(score.get(name)) for name, _ in _TERMS),
            each["state"],
            each["excluded"] or "",
        )
    return table


def _reasons(found: dict[str, Any]) -> list[str]:
    """In words, for a plan that has scores."""
    tried = [each for each in found["candidates"] if each["excluded"] is None and each.get("score")]
    if not tried:
        return []
    first, score = tried[0], tried[0]["score"]
    who = f"{first['provider']} ({first['account']})"
    if found.get("policy", "expected_cost") != "expected_cost":
        return [f"{who} was first by the policy {found['policy']}."]
    sentences = []
    if score["matched_tokens"]:
        of, before = found["input_tokens_estimate"], _seconds(score["matched_age_seconds"])
        sentences.append(
            f"{who} had read the first {score['matched_tokens']:,} of about {of:,} input tokens {before} before; "
            f"{score['hit_probability']:.0%} of such prefixes are still cached there."
        )
    else:
        sentences.append(f"Nothing of this prompt was known to be cached at {who}.")
    sentences.append(f"Another turn was expected with {score['next_turn_probability']:.0%}.")
    if len(tried) > 1:
        other = tried[1]
        more = other["score"]["total_usd"] - score["total_usd"]
        sentences.append(f"The next best, {other['provider']} ({other['account']}), would cost {_usd(more)} USD more.")
    return [" ".join(sentences)]


def _attempt(attempt: dict[str, Any]) -> Table:
    lines = Table()
    for name in ("class", "tokens", "usd_per_million", "cost"):
        lines.add_column(name, justify="left" if name == "class" else "right")
    for line in attempt["lines"]:
        lines.add_row(line["class"], f"{line['tokens']:,}", str(line["usd_per_million"]), str(line["cost"]))
    lines.add_row("total", "", "", str(attempt["cost"]))
    return lines


def _corrected(attempts: list[dict[str, Any]]) -> list[str]:
    """What each attempt that was corrected costs now."""
    costs: dict[int, Money] = {}
    for attempt in attempts:
        before = costs.get(attempt["attempt"], ZERO)
        costs[attempt["attempt"]] = before + Money.from_usd(attempt["cost"])
    corrected = {attempt["attempt"] for attempt in attempts if attempt["corrects"] is not None}
    return [f"Attempt {number} costs {costs[number]} USD now, with its corrections." for number in sorted(corrected)]


def attempt_title(attempt: dict[str, Any]) -> str:
    """Who was asked, how that ended, and what is odd about it; or who has corrected it, and why. On one line."""
    flags = f", flagged {', '.join(attempt['flags'])}" if attempt["flags"] else ""
    rated = f"usage {attempt['usage_source']}, price {attempt['price_id']}{_source(attempt.get('price'))}{flags}"
    correction = attempt["correction"]
    if correction is not None:
        later = "" if correction["restates"] is None else f", counts from {attempt['started_at']}"
        return (
            f"Correction of attempt {attempt['attempt']}: {correction['kind']} by {correction['actor']} on "
            f"{correction['made_at']} ({correction['reason']}){later}, {rated}"
        )
    how = attempt["status"] + (f" ({attempt['error_type']})" if attempt["error_type"] else "")
    served, asked = attempt["served_model"], attempt["upstream_model"]
    by = "" if served in (None, asked) else f", answered by {served}"
    theirs = attempt["upstream_request_id"]
    named = "" if theirs is None else f", there called {theirs}"
    return (
        f"Attempt {attempt['attempt']}: {attempt['provider']} ({attempt['account']}) {how}{by}{named}, started "
        f"{attempt['started_at']}, {rated}"
    )


def _source(price: dict[str, Any] | None) -> str:
    if price is None or price["source"] is None:
        return ""
    checked = "" if price["checked_at"] is None else f", checked {price['checked_at']}"
    return f" ({price['source']}{checked})"


def _seconds(seconds: Any) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def _usd(amount: Any) -> str:
    """To the micro-dollar: it is an expectation."""
    return "–" if amount is None else f"{float(amount):.6f}"
