"""litellm #35524, otari PR 87: a model without a price was served all the same, and its spend never counted."""

from __future__ import annotations

from gateway.core.exchange import Exclusion
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer, card, catalogue, price


@on_virtual_time
async def test_what_has_no_price_is_no_candidate() -> None:
    """Unpriced is never free: another provider answers."""
    in_force = catalogue(card("evolink"), card("moonshot"), prices=(price("moonshot"),))
    world = World(in_force=in_force).scripted(evolink=answer(), moonshot=answer())
    run = await world.ask()
    assert [call.provider for call in world.upstreams.calls] == ["moonshot"]
    (unpriced,) = [each for each in run.exchange.plan.candidates if each.excluded is not None]
    assert (unpriced.provider, unpriced.exclusion) == ("evolink", Exclusion.UNPRICED)


@on_virtual_time
async def test_without_any_price_nothing_is_bought() -> None:
    """A refusal, before any upstream is called or anything is owed."""
    world = World(in_force=catalogue(card("evolink"), prices=())).scripted(evolink=answer())
    run = await world.ask()
    assert run.reply.status == 503
    assert world.upstreams.calls == []
    assert world.journal.intents() == [] and world.journal.entries() == []
