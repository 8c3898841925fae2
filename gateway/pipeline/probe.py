"""Whether what is out is well again is asked in the background, by one replica, with questions that cost nothing.

The list of models says whether anything answers, whether a credential is taken and whether a model is served; a balance
says whether there is money. Completions cost money, and are never asked for here: what free answers mean for health is
decided in ``core/health.py``. Balances are read now and then all the same, for operators.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.core.catalogue import ProviderCard
from gateway.core.failure import FailureClass
from gateway.core.health import BREAKAGE, Health, Subject, free_pause_seconds
from gateway.pipeline.exchange import Configuration
from gateway.pipeline.ports import (
    BalanceTold,
    Claims,
    Clock,
    FreeAnswer,
    Gossip,
    HealthBook,
    Inquiries,
    Message,
    UpstreamFailedError,
)
from gateway.providers import DIALECTS
from gateway.providers.dialect import Balance

LOOK_SECONDS: Final = 0.25
"""How often it is looked for who went out: the sooner a question fails in an outage, the sooner its end is noticed."""
BALANCE_SECONDS: Final = 300.0
FIRST_BALANCE_SECONDS: Final = 15.0
JITTER: Final = 0.25
"""A pause is up to a quarter shorter or longer, so that replicas and providers do not fall into step."""
ASKED_AT_ONCE_MAX: Final = 32


class Question(StrEnum):
    """What can be asked for free."""

    MODELS = "models"
    BALANCE = "balance"


class Asked(NamedTuple):
    """A question to one account."""

    provider: str
    account: str
    question: Question


class _Listed(msgspec.Struct, gc=False):
    id: str


class _Models(msgspec.Struct, gc=False):
    data: list[_Listed]


_decode_models: Final = msgspec.json.Decoder(_Models).decode


@dataclass(slots=True, kw_only=True)
class Probes:
    """Asks. ``chance`` gives numbers in [0, 1). ``balances`` are the last ones known, whoever has asked."""

    configuration: Callable[[], Configuration]
    health: HealthBook
    inquiries: Inquiries
    gossip: Gossip
    claims: Claims
    clock: Clock
    chance: Callable[[], float]
    balances: dict[tuple[str, str], BalanceTold] = field(default_factory=dict)
    _due: dict[Asked, float] = field(default_factory=dict)
    _asking: dict[Asked, asyncio.Task[None]] = field(default_factory=dict)

    def hear(self, message: Message) -> None:
        """Another replica has read a balance."""
        if isinstance(message, BalanceTold):
            self._keep(message)

    async def run(self, stop: asyncio.Event) -> None:
        """Looks after everybody who is out, until ``stop``."""
        due_balances = self.clock.monotonic() + self._about(FIRST_BALANCE_SECONDS)
        try:
            while not stop.is_set():
                now = self.clock.monotonic()
                out = self._who_is_out()
                if now >= due_balances:
                    due_balances = now + self._about(BALANCE_SECONDS)
                    for asked in self._purses():
                        self._begin(
                            asked, out.get(asked, ()), f"balance:{asked.provider}/{asked.account}", BALANCE_SECONDS
                        )
                for asked, subjects in out.items():
                    if now >= self._due.get(asked, now):
                        pause = min(free_pause_seconds(self.health.of(each), self.clock.now()) for each in subjects)
                        self._due[asked] = now + self._about(pause)
                        self._begin(asked, subjects, "free:" + "/".join(asked), pause)
                self._due = {asked: due for asked, due in self._due.items() if asked in out}
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        finally:
            asking = list(self._asking.values())
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _about(self, seconds: float) -> float:
        return seconds * (1 - JITTER + 2 * JITTER * self.chance())

    # --- whom to ask what ------------------------------------------------------------------------------------------

    def _who_is_out(self) -> dict[Asked, list[Subject]]:
        """The questions that would say something about those who are out."""
        found: dict[Asked, list[Subject]] = {}
        for subject, health in self.health.out():
            question = _question_about(health)
            account = subject.account or self._first_account(subject.provider)
            if question is not None and account is not None and self._is_usable(subject.provider, account):
                found.setdefault(Asked(subject.provider, account, question), []).append(subject)
        return {asked: subjects for asked, subjects in found.items() if self._url(asked) is not None}

    def _purses(self) -> Iterator[Asked]:
        for provider, account in sorted(self.configuration().usable_accounts):
            asked = Asked(provider, account, Question.BALANCE)
            if self._url(asked) is not None:
                yield asked

    def _first_account(self, provider: str) -> str | None:
        """Whom to ask about a provider: rather one that is well, for a refused key is shown no list."""
        names = sorted(name for of, name in self.configuration().usable_accounts if of == provider)
        well = (name for name in names if self.health.of(Subject(provider, name, None)).out_until is None)
        return next(well, names[0] if names else None)

    def _is_usable(self, provider: str, account: str) -> bool:
        return (provider, account) in self.configuration().usable_accounts

    def _card(self, provider: str) -> ProviderCard | None:
        return self.configuration().catalogue.providers.get(provider)

    def _url(self, asked: Asked) -> str | None:
        card = self._card(asked.provider)
        if card is None:
            return None
        if asked.question is Question.MODELS:
            return f"{card.base_url}/models"
        return card.balance_url or DIALECTS[card.dialect].balance_url(card.base_url)

    # --- asking ----------------------------------------------------------------------------------------------------

    def _begin(self, asked: Asked, subjects: Sequence[Subject], claim: str, pause: float) -> None:
        """Asks beside everything else; not twice at once."""
        if asked in self._asking or len(self._asking) >= ASKED_AT_ONCE_MAX:
            return
        task = asyncio.ensure_future(self._ask(asked, subjects, claim, pause))
        self._asking[asked] = task
        task.add_done_callback(lambda _: self._asking.pop(asked, None))

    async def _ask(self, asked: Asked, subjects: Sequence[Subject], claim: str, pause: float) -> None:
        """One question, by one of all replicas, and what it shows."""
        card, url = self._card(asked.provider), self._url(asked)
        if card is None or url is None:
            return
        if not await self.claims.claim(claim, pause * (1 - JITTER)):
            return
        dialect = DIALECTS[card.dialect]
        member = dialect.balance_key_member if asked.question is Question.BALANCE else None
        answer: FreeAnswer | None = None
        with suppress(UpstreamFailedError):
            answer = await self.inquiries.ask(asked.provider, asked.account, url, key_member=member)
        balance = None
        if asked.question is Question.BALANCE:
            balance = _balance(dialect.read_balance, answer)
            if balance is not None:
                told = BalanceTold(
                    asked.provider, asked.account, balance.available, balance.unit, self.clock.now().timestamp()
                )
                self._keep(told)
                self.gossip.tell(told)
        for subject in subjects:
            ok = self._verdict(subject, card, answer, balance)
            if ok is not None:
                self.health.asked_for_free([subject], ok=ok)

    def _verdict(
        self, subject: Subject, card: ProviderCard, answer: FreeAnswer | None, balance: Balance | None
    ) -> bool | None:
        """Whether the answer is what it would be in health; None where it does not say."""
        kind = self.health.of(subject).kind
        if kind is None:
            return None
        if kind in BREAKAGE:
            return answer is not None and answer.status < 500
        if kind is FailureClass.QUOTA:
            return None if balance is None else balance.available > 0
        if answer is None:
            return None
        if kind is FailureClass.CREDENTIAL:
            return {200: True, 401: False, 403: False}.get(answer.status)
        return _is_listed(subject, card, answer)

    def _keep(self, told: BalanceTold) -> None:
        place = (told.provider, told.account)
        before = self.balances.get(place)
        if self._is_usable(*place) and (before is None or before.at < told.at):
            self.balances[place] = told


def _question_about(health: Health) -> Question | None:
    """What to ask about one that is out; a rate limit passes by itself, and no list says which model answers."""
    if health.kind is FailureClass.QUOTA:
        return Question.BALANCE
    if health.kind in (None, FailureClass.RATE_LIMITED, FailureClass.MODEL_MISMATCH):
        return None
    return Question.MODELS


def _balance(read: Callable[[bytes], Balance], answer: FreeAnswer | None) -> Balance | None:
    if answer is None or answer.status != 200:
        return None
    try:
        return read(answer.body)
    except (ValueError, ArithmeticError):
        return None


def _is_listed(subject: Subject, card: ProviderCard, answer: FreeAnswer) -> bool | None:
    """Whether a provider's list has the model under the name that it is asked for; None where that is no list."""
    deployment = None if subject.model is None else card.deployments.get(subject.model)
    if answer.status != 200 or deployment is None:
        return None
    try:
        listed = _decode_models(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return any(each.id.casefold() == deployment.upstream.casefold() for each in listed.data)
