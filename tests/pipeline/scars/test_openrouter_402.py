"""OpenRouter: "requested up to 65536 tokens, but can only afford 30104" for answers that would have been short."""

from __future__ import annotations

from gateway.core.budget import BudgetMode
from tests.pipeline.reservations import INPUT, budget, limited
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import World, answer


@on_virtual_time
async def test_a_budget_may_clamp_instead_of_refusing():
    """The same request is refused by a strict budget, which says what would do, and answered by a clamping one."""
    affordable = INPUT * 1_100_000 + 30_104 * 4_400_000
    for mode, status in ((BudgetMode.STRICT, 402), (BudgetMode.CLAMP, 200)):
        world = World().scripted(evolink=answer())
        run = await world.ask(principal=limited(budget(affordable, mode=mode)), max_tokens=65_536)
        assert run.reply.status == status
        if mode is BudgetMode.CLAMP:
            assert "limited to 30104 tokens" in run.reply.headers["x-gateway-warnings"]
        else:
            assert "Lower max_tokens" in run.reply.error["message"]
