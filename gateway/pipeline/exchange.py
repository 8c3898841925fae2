"""An exchange under way keeps the configuration it began with: who asks, for what, and where it may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from gateway.core.catalogue import Catalogue
from gateway.core.exchange import NOTHING_RESERVED, Admitted, Plan, Principal, Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a reload replaces as one: the catalogue, and which accounts have a usable credential."""

    catalogue: Catalogue
    usable_accounts: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One client request on its way: who asks, for what, and where it may go, under the configuration it began with."""

    request_id: str
    principal: Principal
    admitted: Admitted
    plan: Plan
    configuration: Configuration
    started: float
    admitted_at: datetime
    reservation: Reservation = NOTHING_RESERVED
    warnings: list[str] = field(default_factory=list)
