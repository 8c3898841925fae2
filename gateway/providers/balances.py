"""Balances are decimal numbers, never floats; another shape than the documented one is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def decode(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a balance answer, its numbers exact. Raises ValueError."""
    try:
        answer = json.loads(body, parse_float=Decimal)
    except RecursionError:
        raise ValueError("the balance is not a JSON object") from None
    if not isinstance(answer, dict):
        raise ValueError("the balance is not a JSON object")
    return answer


def member(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within it. Raises ValueError."""
    value = members.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"the balance has no object {name}")
    return value


def amount(members: Mapping[str, Any], name: str) -> Decimal:
    """A number within it. Raises ValueError."""
    value = members.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ValueError(f"the balance has no number {name}")
    return Decimal(value)


def reason(answer: Mapping[str, Any]) -> str:
    """Why a balance was refused, in the provider's words."""
    return str(answer.get("message") or answer.get("code") or "no reason given")[:200]
