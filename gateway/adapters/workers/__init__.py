"""Several worker processes on one address: one parent starts, watches and stops them, and none outlives it."""

from gateway.adapters.workers.address import Address, AddressError
from gateway.adapters.workers.link import AnswerError, Link, LinkLostError, tell_at_once
from gateway.adapters.workers.siblings import Siblings
from gateway.adapters.workers.supervisor import Counts, Supervisor

__all__ = [
    "Address",
    "AddressError",
    "AnswerError",
    "Counts",
    "Link",
    "LinkLostError",
    "Siblings",
    "Supervisor",
    "tell_at_once",
]
