"""The books are read over the same HTTP as anybody's; money stays text until it is an exact number."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import httpx

LEDGER_SECONDS_MAX: Final = 60.0
REQUEST_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.5
STILL_POLLS: Final = 20
"""A ledger that lacks rows is given up when it has said the same so many times in a row."""


class BooksError(Exception):
    """A book cannot be read; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far the simulators' books had been written when a run began."""

    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulators:
    """The control planes of the simulators, by provider."""

    addresses: Mapping[str, str]

    def mark(self) -> Mark:
        return Mark(
            requests={
                name: max((call["request"] for call in self._calls(name, 0)), default=0) for name in self.addresses
            }
        )

    def calls(self, since: Mark) -> list[dict[str, Any]]:
        """Every upstream call after a mark, refused ones included."""
        return [
            {**call, "provider": name} for name in self.addresses for call in self._calls(name, since.requests[name])
        ]

    def bill(self, of: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The bill lines of these calls. A provider that dropped lines cannot be audited."""
        wanted = {(call["provider"], call["request_id"]) for call in of}
        lines: list[dict[str, Any]] = []
        for name in self.addresses:
            bill = self._get(name, "bill")
            if bill["lines_dropped"]:
                raise BooksError(f"The bill of {name} is not complete: {bill['lines_dropped']} lines were dropped.")
            lines += [line for line in bill["lines"] if (name, line["request_id"]) in wanted]
        return lines

    def in_flight(self) -> int:
        return sum(
            account["in_flight"] for name in self.addresses for account in self._get(name, "stats")["accounts"].values()
        )

    def set_fault(self, provider: str, fault: Mapping[str, Any]) -> None:
        if provider not in self.addresses:
            raise BooksError(f"There is no simulator of {provider!r}. Known: {', '.join(self.addresses)}.")
        url = f"{self.addresses[provider]}/__sim/faults"
        answer = httpx.post(url, json=dict(fault), timeout=REQUEST_SECONDS_MAX, trust_env=False)
        if answer.status_code != 200:
            raise BooksError(f"{provider} does not take the fault: {answer.text[:300]}")

    def _calls(self, name: str, since: int) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = self._get(name, f"requests?since={since}")["requests"]
        return [call for call in calls if call["model"] is not None]  # the others asked for balances and lists

    def _get(self, name: str, what: str) -> Any:
        answer = httpx.get(f"{self.addresses[name]}/__sim/{what}", timeout=REQUEST_SECONDS_MAX, trust_env=False)
        if answer.status_code != 200:
            raise BooksError(f"{name} does not show its {what}: status {answer.status_code}.")
        return answer.json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """The gateway's administration."""

    url: str
    token: str

    def create_key(self, name: str, **fields: object) -> tuple[str, str]:
        """A key, without limits unless the fields say so: its id and its secret."""
        answer = self._request("POST", "/admin/keys", json={"name": name, **fields}).json()
        return str(answer["id"]), str(answer["key"])

    def set_budget(self, key_id: str, limit: str, *, period: str, **fields: object) -> None:
        """In USD; it is in force when this returns."""
        self._request("PUT", "/admin/budgets", json={"key": key_id, "period": period, "limit": limit, **fields})

    def ledger(self, *, since: datetime) -> list[dict[str, Any]]:
        query = {**_days(since), "format": "jsonl"}
        lines = self._request("GET", "/admin/ledger", params=query).text.splitlines()
        return [json.loads(line, parse_float=Decimal) for line in lines if line]

    def explained(self, request_id: str) -> dict[str, Any]:
        """A request's candidates and attempts, once it has reached the ledger."""
        deadline = time.monotonic() + LEDGER_SECONDS_MAX
        while True:
            answer = httpx.get(
                f"{self.url}/admin/requests/{request_id}",
                headers={"authorization": f"Bearer {self.token}"},
                timeout=REQUEST_SECONDS_MAX,
                trust_env=False,
            )
            if answer.status_code == 200 and answer.json()["attempts"]:
                told: dict[str, Any] = answer.json()
                return told
            if time.monotonic() > deadline:
                raise BooksError(f"{request_id} is not in the ledger: status {answer.status_code}.")
            time.sleep(POLL_SECONDS)

    def report(self, *, since: datetime, tag: str | None) -> list[dict[str, Any]]:
        """Rows by key, provider and model; with ``tag`` only what requests of that run cost."""
        groups = "key,provider,model" + (",tag:run" if tag else "")
        query = {**_days(since), "group_by": groups, "format": "json"}
        text = self._request("GET", "/admin/reports/spend", params=query).text
        rows: list[dict[str, Any]] = json.loads(text, parse_float=Decimal)["rows"]
        return [row for row in rows if tag is None or row["tag:run"] == tag]

    def settled_ledger(self, *, since: datetime, expected: frozenset[str]) -> list[dict[str, Any]]:
        """The ledger once it has every expected attempt, or once it has stopped growing; bounded in time."""
        deadline, same, count = time.monotonic() + LEDGER_SECONDS_MAX, 0, -1
        while True:
            rows = self.ledger(since=since)
            same = same + 1 if len(rows) == count else 0
            count = len(rows)
            complete = expected <= {row["attempt_id"] for row in rows}
            if (complete and same) or same >= STILL_POLLS or time.monotonic() > deadline:
                return rows
            time.sleep(POLL_SECONDS)

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"}
        answer = httpx.request(
            method, f"{self.url}{path}", headers=headers, timeout=REQUEST_SECONDS_MAX, trust_env=False, **arguments
        )
        if answer.status_code >= 300:
            raise BooksError(f"{method} {path} was answered with {answer.status_code}: {answer.text[:500]}")
        return answer


def _days(since: datetime) -> dict[str, str]:
    """Whole days, so that the report and the ledger mean the same rows whatever they round to."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    return {"from": since.date().isoformat(), "to": tomorrow.date().isoformat()}
