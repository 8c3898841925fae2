"""``models.toml``: the public names, each meaning exactly one model, and how requests for them are routed."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.catalog.findings import quoted
from gateway.catalog.tables import Table
from gateway.core.catalogue import USUAL_ROUTING, Model, OnRetired, Policy, RoutingTerms

_USUAL = Model(name="")


@dataclass(slots=True, kw_only=True)
class Models:
    """What the file says, with the tables it was read from, for findings that need the other files."""

    models: dict[str, Model] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    routing: RoutingTerms = USUAL_ROUTING


def read_models(root: Table) -> Models:
    found = Models()
    for name, table in root.tables("models"):
        found.tables[name] = table
        found.models[name] = _model(name, table)
    found.routing = read_routing(root)
    root.close()
    for model in found.models.values():
        _take_aliases(model, found)
        _check_successor(model, found)
    return found


def _model(name: str, table: Table) -> Model:
    if not name.strip():
        table.error(None, "A model has an empty name.", 'Name it, as in [models."kimi-k2-thinking"].')
    model = Model(
        name=name,
        aliases=table.words("aliases", like='["kimi-thinking"]'),
        successor=table.text("successor", like="kimi-k2.6"),
        on_retired=OnRetired(table.choice("on_retired", list(OnRetired)) or OnRetired.ERROR),
        default_max_output=table.count("default_max_output", like="32_768") or _USUAL.default_max_output,
    )
    table.close()
    return model


def read_routing(root: Table, usual: RoutingTerms = USUAL_ROUTING) -> RoutingTerms:
    """The table ``[routing]``, over what is usual."""
    table = root.table("routing", like='{ policy = "expected_cost" }')
    if table is None:
        return usual
    terms = RoutingTerms(
        policy=Policy(table.choice("policy", list(Policy)) or usual.policy),
        hold_usd_per_second=table.dollars("hold_usd_per_second", default=usual.hold_usd_per_second, like="0.0005"),
        hold_seconds_max=table.seconds("hold_seconds_max", default=usual.hold_seconds_max),
        failure_usd=table.dollars("failure_usd", default=usual.failure_usd, like="0.001"),
        min_tool_call_validity=table.share("min_tool_call_validity", default=usual.min_tool_call_validity, like="0.95"),
    )
    table.close()
    return terms


def _take_aliases(model: Model, found: Models) -> None:
    table = found.tables[model.name]
    for index, alias in enumerate(model.aliases):
        if alias in found.models:
            message = f"The alias {quoted(alias)} is the name of a model of its own."
            table.error("aliases", message, "Remove the alias, or rename that model.", index=index)
        elif alias in found.aliases:
            message = f"The alias {quoted(alias)} already means {quoted(found.aliases[alias])}."
            table.error("aliases", message, "Keep it at one model, once.", index=index)
        else:
            found.aliases[alias] = model.name


def _check_successor(model: Model, found: Models) -> None:
    """A successor that is routed to must lead somewhere; one that is only named may be a model not sold here."""
    table = found.tables[model.name]
    routes = model.on_retired is OnRetired.SUCCESSOR
    if model.successor is None:
        if routes:
            table.error("on_retired", 'on_retired is "successor", and there is none.', "Add successor = a model.")
        return
    if model.successor == model.name:
        table.error("successor", "The model is its own successor.", "Name another model, or remove the line.")
    elif model.successor not in found.models:
        note = table.error if routes else table.warn
        alias_of = found.aliases.get(model.successor)
        known = f"Write successor = {quoted(alias_of)}, the name behind this alias." if alias_of else None
        mend = known or f"Add [models.{quoted(model.successor)}], or correct the name."
        note("successor", f"The successor {quoted(model.successor)} is not a model of this file.", mend)
    elif routes and _is_on_a_ring(model, found):
        table.error("successor", "The successors lead back to this model.", "Break the ring at one of them.")


def _is_on_a_ring(model: Model, found: Models) -> bool:
    """Whether routing from successor to successor would come back here; at most one step for every model."""
    at = model
    for _ in found.models:
        following = found.models.get(at.successor or "")
        if following is None or at.on_retired is not OnRetired.SUCCESSOR:
            return False
        if following is model:
            return True
        at = following
    return False
