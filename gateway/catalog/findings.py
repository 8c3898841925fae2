"""A finding names a file, a line, what is wrong there and the mend; it never quotes what may be a secret."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing an operator should know about a file. Errors stop a load, warnings do not."""

    level: Literal["error", "warning"]
    file: str
    line: int
    message: str
    mend: str

    def __str__(self) -> str:
        mark = "warning: " if self.level == "warning" else ""
        return f"{self.file}:{self.line}: {mark}{self.message} Mend: {self.mend}"


class CatalogError(Exception):
    """The files cannot be used as they are. The text has a line for every error, ``findings`` the warnings too."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings if finding.level == "error"))


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By file and line; at one line errors come first."""
    return tuple(sorted(findings, key=lambda each: (each.file, each.line, each.level, each.message)))


def quoted(text: str) -> str:
    """A name of the operator's as it may stand in a one-line message: escaped, and cut when it is very long."""
    return json.dumps(text if len(text) <= 100 else text[:100] + "…", ensure_ascii=False)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant: one that is spelled much the same, or begins with it."""
    words = sorted(known)
    longer = [each for each in words if len(word) > 2 and each.startswith(word)]
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.6) + longer), None)


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """The closest known word as a question, or else the other mend."""
    close = closest(word, known)
    return f"Did you mean {close}?" if close else otherwise
