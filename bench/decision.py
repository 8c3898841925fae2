"""`plan` as a whole costs a decision at most 60 µs of processor: five accounts, sixteen boundaries, look-ahead and all.

`python -m bench.decision` times it on a warm set of beliefs, apart from the fingerprint. CPU time, not wall time; the
best of several rounds, for other work on the machine only ever adds.
"""

from __future__ import annotations

import gc
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from gateway.core.beliefs import Beliefs
from gateway.core.catalogue import Account, Catalogue, Deployment, Model, ProviderCard
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import InferenceRequest, Plan, Principal, Surface
from gateway.core.happenings import Answered, Sent
from gateway.core.health import WELL
from gateway.core.money import UnitPrice
from gateway.core.prefix import BOUNDARIES_MAX, Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.core.routing import Circumstances, plan

LIMIT_MICROSECONDS: Final = 60.0
ROUNDS: Final = 25
DECISIONS: Final = 400
MODEL: Final = "kimi-k2-thinking"
BEGINS: Final = datetime(2026, 3, 1, tzinfo=UTC)
PRICES: Final = {
    "evolink": ("0.556", "0.139", "2.222"),
    "moonshot": ("0.6", "0.15", "2.5"),
    "cometapi": ("1.1", None, "4.4"),
}
ACCOUNTS: Final = {"evolink": ("main",), "moonshot": ("a", "b", "c"), "cometapi": ("main",)}
"""Five accounts, the three of one provider with limits."""


def _catalogue() -> Catalogue:
    cards, prices = {}, []
    for name, accounts in ACCOUNTS.items():
        rpm, tpm = (500, 3_000_000) if len(accounts) > 1 else (None, None)
        cards[name] = ProviderCard(
            name=name,
            dialect="openai",
            base_url="",
            accounts=tuple(Account(provider=name, name=each, rpm=rpm, tpm=tpm) for each in accounts),
            deployments={
                MODEL: Deployment(provider=name, model=MODEL, upstream=MODEL, context=262_144, max_output=65_536)
            },
        )
        usd = [None if each is None else UnitPrice.from_usd_per_million(each) for each in PRICES[name]]
        assert usd[0] is not None
        assert usd[2] is not None
        prices.append(
            Price(provider=name, model=MODEL, effective_from=BEGINS, input=usd[0], cached_input=usd[1], output=usd[2])
        )
    models = {MODEL: Model(name=MODEL)}
    return Catalogue(providers=cards, models=models, prices=PriceTable(prices), digest="", loaded_at=BEGINS)


def _sent(number: int, provider: str, account: str, prompt: Prompt, seconds: float, turn: int) -> Sent:
    return Sent(
        attempt_id=str(number),
        provider=provider,
        account=account,
        model=MODEL,
        tenant="team",
        at=BEGINS.timestamp() + seconds,
        digests=prompt.digests,
        tokens=prompt.tokens,
        family=prompt.family,
        turn=turn,
        follows=prompt.digests[-2] if turn else 0,
        output_tokens=500,
        matched_tokens=prompt.tokens[-2] if turn else 0,
        matched_age=20.0 if turn else 0.0,
    )


def main() -> None:
    """Prints the microseconds of a decision beside their limit; the exit status says whether it holds."""
    catalogue, beliefs = _catalogue(), Beliefs()
    count = BOUNDARIES_MAX
    prompt = Prompt(
        digests=tuple(range(100, 100 + count)), tokens=tuple(2_000 * each for each in range(1, count + 1)), family=100
    )
    warm_at = (("moonshot", "a"), ("moonshot", "b"), ("evolink", "main"))
    for number, (provider, account) in enumerate(warm_at):
        before = Prompt(digests=prompt.digests[:-1], tokens=prompt.tokens[:-1], family=100)
        beliefs.apply(_sent(number, provider, account, before, number * 20.0, number))
        beliefs.apply(Answered(str(number), BEGINS.timestamp() + number * 20.0 + 5, 30_000, 28_000, 500, 5.0))
    request = InferenceRequest(surface=Surface.CHAT_COMPLETIONS, model=MODEL, model_asked=MODEL, fields={})
    principal = Principal(key_id="key", key_name="key", team="team")
    usable = frozenset((card.name, each.name) for card in catalogue.providers.values() for each in card.accounts)
    answer_length, model = AnswerLength(), catalogue.models[MODEL]

    def decide(seconds: float) -> Plan:
        now = BEGINS + timedelta(seconds=seconds)
        circumstances = Circumstances(
            catalogue=catalogue,
            health_of=lambda _: WELL,
            usable_accounts=usable,
            answer_length=answer_length,
            now=now,
            beliefs=beliefs,
        )
        turn = beliefs.turn(prompt, tenant="team")
        return plan(
            request, principal, circumstances, model=model, prompt=prompt, turn=turn, output_limit_of=lambda _: 32_768
        )

    made = decide(60.0)
    assert len(made.routable) == sum(map(len, ACCOUNTS.values()))
    assert sum(each.expected_cached_tokens > 0 for each in made.routable) == len(warm_at)
    gc.disable()
    rounds = []
    for each in range(ROUNDS):
        began = time.process_time()
        for step in range(DECISIONS):
            decide(60.0 + (each * DECISIONS + step) * 0.001)
        rounds.append((time.process_time() - began) / DECISIONS * 1e6)
    rounds.sort()
    best, middle = rounds[0], rounds[len(rounds) // 2]
    verdict = "ok" if best <= LIMIT_MICROSECONDS else "over"
    print(f"decision: {best:.1f} µs CPU (median round {middle:.1f}), limit {LIMIT_MICROSECONDS:.0f} µs: {verdict}")
    sys.exit(best > LIMIT_MICROSECONDS)


if __name__ == "__main__":
    main()
