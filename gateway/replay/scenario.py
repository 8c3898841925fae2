"""A scenario is the world that rows are replayed against: what is configured, and how each provider would behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from gateway.core.catalogue import Catalogue, Model, Policy
from gateway.replay.world import ProviderTerms

USUAL_TERMS = ProviderTerms(outages={})
"""Of a provider of which nothing is said: a cache of ten minutes that one request in twenty misses, no outages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The catalogue, the one model that is asked for, how providers behave, and the seed of all chance. The first
    request comes at ``begins_at``: prices are those in force from then on. ``stands_alone``: nothing of it is
    configured."""

    catalogue: Catalogue
    model: Model
    begins_at: datetime
    terms: Mapping[str, ProviderTerms] = field(default_factory=dict)
    seed: int = 0
    stands_alone: bool = False

    def terms_of(self, provider: str) -> ProviderTerms:
        return self.terms.get(provider, USUAL_TERMS)

    def providers(self) -> tuple[str, ...]:
        """Those that serve the model, by name."""
        return tuple(card.name for card, _ in self.catalogue.deployments(self.model.name))

    def only(self, provider: str) -> Scenario:
        """The same with one provider."""
        kept = {name: card for name, card in self.catalogue.providers.items() if name == provider}
        return replace(self, catalogue=replace(self.catalogue, providers=kept))

    def under(self, policy: Policy) -> Scenario:
        """The same under another policy."""
        routing = replace(self.catalogue.routing, policy=policy)
        return replace(self, catalogue=replace(self.catalogue, routing=routing))
