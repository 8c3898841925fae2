"""The admin API: JSON, one rule for who may what, lists by cursor, money as decimal strings and streamed.

``admin`` may everything; ``finance`` may read; nobody else may anything here. Whoever has a team sees that team alone.
"""

from __future__ import annotations

from litestar import Router

from gateway.http.admin.audit import audit_routes
from gateway.http.admin.budgets import budget_routes
from gateway.http.admin.keys import key_routes
from gateway.http.admin.money import money_routes
from gateway.http.admin.operations import operations_routes
from gateway.http.admin.organisation import organisation_routes
from gateway.http.admin.teams import team_routes
from gateway.http.services import Services

GROUPS = (
    key_routes,
    team_routes,
    budget_routes,
    organisation_routes,
    money_routes,
    audit_routes,
    operations_routes,
)


def admin_routes(services: Services) -> list[Router]:
    """Everything below ``/admin``."""
    handlers = [handler for group in GROUPS for handler in group(services)]
    return [Router("/admin", route_handlers=handlers, tags=["administration"])]
