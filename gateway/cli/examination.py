"""What the doctor found: a status, words and a mend for each thing, and no secret in any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

REDACTED: Final = "[redacted]"
SECRET_CHARACTERS_MIN: Final = 4
"""Clearing away a shorter one would spoil every word that it is a part of."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's: what was looked at, how it is, and the mend where it is not well."""

    name: str
    status: Status
    message: str
    mend: str | None = None


@dataclass(slots=True, kw_only=True)
class Examination:
    """What one run has found so far, and the secrets that must not appear in it."""

    checks: list[Check] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)

    def ok(self, name: str, message: str) -> None:
        self.checks.append(Check(name=name, status="ok", message=message))

    def warn(self, name: str, message: str, mend: str) -> None:
        self.checks.append(Check(name=name, status="warn", message=message, mend=mend))

    def fail(self, name: str, message: str, mend: str) -> None:
        self.checks.append(Check(name=name, status="fail", message=message, mend=mend))

    def keep_out(self, secret: str | None) -> None:
        """Whatever is printed later, this is not."""
        if secret is not None and len(secret) >= SECRET_CHARACTERS_MIN:
            self.secrets.append(secret)

    @property
    def status(self) -> Status:
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    def cleared(self) -> list[Check]:
        """The checks without any secret in them."""
        return [
            Check(
                name=check.name,
                status=check.status,
                message=self._clear(check.message),
                mend=None if check.mend is None else self._clear(check.mend),
            )
            for check in self.checks
        ]

    def _clear(self, text: str) -> str:
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, REDACTED)
        return text
