"""The three providers, faithful to their public behaviour, with their own caches, limits, faults and bill.

It imports nothing else of the gateway, so that its bill is evidence against the gateway's ledger. What a console would
hand out is a statement in each provider's own columns, units and rounding (:mod:`gateway.simulator.statement` describes
the three forms, :mod:`gateway.simulator.drift` how one is made wrong on command).
"""

from __future__ import annotations

from gateway.simulator.app import Simulator
from gateway.simulator.bill import PRICES, BillLine, Price, credential_label
from gateway.simulator.call import RequestLine
from gateway.simulator.drift import DRIFTS, Deviation, Drift
from gateway.simulator.faults import KINDS, Fault
from gateway.simulator.limits import Limits
from gateway.simulator.model import filler
from gateway.simulator.server import PORT_BASE, running, serve
from gateway.simulator.settings import Settings
from gateway.simulator.statement import Order, Statements
from gateway.simulator.tokens import BYTES_PER_TOKEN, MESSAGE_TOKENS, count_text, count_tokens
from gateway.simulator.wire import PROVIDERS

__all__ = [
    "BYTES_PER_TOKEN",
    "DRIFTS",
    "KINDS",
    "MESSAGE_TOKENS",
    "PORT_BASE",
    "PRICES",
    "PROVIDERS",
    "BillLine",
    "Deviation",
    "Drift",
    "Fault",
    "Limits",
    "Order",
    "Price",
    "RequestLine",
    "Settings",
    "Simulator",
    "Statements",
    "count_text",
    "count_tokens",
    "credential_label",
    "filler",
    "running",
    "serve",
]
