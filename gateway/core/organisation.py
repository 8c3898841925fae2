"""The organisation that everything belongs to: its name, and the time zone of its days."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """``time_zone`` is an IANA name; days and budget windows begin at midnight there."""

    name: str
    time_zone: str


def organisation_json(organisation: Organisation) -> dict[str, object]:
    """The organisation under its public names."""
    return {"name": organisation.name, "time_zone": organisation.time_zone}
