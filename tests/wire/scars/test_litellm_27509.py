"""litellm #27509: a request without max_tokens held all the headroom there was, and shut its team out."""

from __future__ import annotations

from gateway.core.catalogue import Model
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import MODEL, World, answer, card, catalogue, deployment


@on_virtual_time
async def test_an_unnamed_limit_is_the_models_own() -> None:
    """The model's default, and never more than what the deployment can put out."""
    small = card("evolink", deployments={MODEL: deployment("evolink", max_output=4_096)})
    in_force = catalogue(small, card("moonshot"), models=(Model(name=MODEL, default_max_output=32_768),))
    run = await World(in_force=in_force).scripted(evolink=answer(), moonshot=answer()).ask()
    limits = {candidate.provider: candidate.output_limit for candidate in run.exchange.plan.routable}
    assert limits == {"evolink": 4_096, "moonshot": 32_768}


@on_virtual_time
async def test_the_named_limit_counts_where_there_is_one() -> None:
    """A hundred tokens are expected to cost a hundred tokens."""
    run = await World(names=("evolink",)).scripted(evolink=answer()).ask(max_tokens=100)
    assert [candidate.output_limit for candidate in run.exchange.plan.routable] == [100]
