"""One exchange from start to finish; all control flow of the request path is here.

``authenticate -> admit -> plan -> reserve -> (attempt -> settle) x n -> answer``. An intent is durable before an
upstream is called, a settlement before the last byte of an answer leaves; a failure moves on freely before the first
byte and is told honestly after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import msgspec

from gateway.core.allowance import Granted, Posting
from gateway.core.budget import day_of
from gateway.core.catalogue import OnClientAbort
from gateway.core.exchange import (
    ATTEMPTS_MAX,
    Admitted,
    Attempt,
    AttemptStatus,
    Candidate,
    Observation,
    Plan,
    Principal,
)
from gateway.core.failure import Advice, Failure, FailureClass, advise
from gateway.core.health import Subject, subject_of
from gateway.core.hold import worth_holding
from gateway.core.ledger import Intent, LedgerEntry, PlanRecord
from gateway.core.money import ZERO, Money
from gateway.core.pricing import Charge, rate
from gateway.core.refusal import INTERNAL, RefusedError
from gateway.core.retry_budget import RetryBudget
from gateway.core.routing import in_reserve, subjects
from gateway.core.usage import NO_USAGE, UsageSource
from gateway.pipeline.admit import admit, for_model, successor
from gateway.pipeline.attempt import Attempting, attempt
from gateway.pipeline.authenticate import authenticate
from gateway.pipeline.exchange import Configuration, Exchange
from gateway.pipeline.experience import Experience
from gateway.pipeline.noting import Noting
from gateway.pipeline.outcome import Outcome
from gateway.pipeline.plan import Planning, is_gone_everywhere, make_plan, no_candidate
from gateway.pipeline.ports import (
    Allowances,
    ApiKeys,
    Clock,
    HealthBook,
    Ids,
    Journal,
    MeteringUnavailableError,
    Reply,
    Telemetry,
    UpstreamCall,
    Upstreams,
)
from gateway.pipeline.reserve import Asking, demand_for, reserve
from gateway.pipeline.settle import learn, settle
from gateway.pipeline.telling import SHUTTING_DOWN, gone, headers_of, refusal_for, refuse, unmetered
from gateway.pipeline.turns import Turns
from gateway.pipeline.watch import Interrupted, Watch
from gateway.providers import DIALECTS
from gateway.providers.reading import AnswerReader
from gateway.surfaces import chat_completions

_OVERRUN: Final = ("budget_overrun",)
WAIT_TOLD_SECONDS: Final = 0.1
CLIENT_CLOSED: Final = 499
"""The status that is logged for a client that hung up; nobody receives it."""


@dataclass(slots=True)
class _Spending:
    """What one exchange has cost so far, and the tokens that were used for it, over all of its attempts."""

    cost: Money = ZERO
    tokens: int = 0

    def add(self, cost: Money, tokens: int) -> None:
        self.cost += cost
        self.tokens += tokens


@dataclass(slots=True, kw_only=True)
class Conductor:
    """Conducts exchanges. Holds the ports and what is in force; keeps nothing of any one exchange."""

    configuration: Configuration
    keys: ApiKeys
    journal: Journal
    upstreams: Upstreams
    health: HealthBook
    experience: Experience
    telemetry: Telemetry
    clock: Clock
    ids: Ids
    allowances: Allowances
    noting: Noting
    fingerprint_seed: int = 0
    turns: Turns = field(default_factory=Turns)
    retry_budget: RetryBudget = field(default_factory=RetryBudget)

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Who asks. Raises RefusedError."""
        return await authenticate(headers, self.keys)

    def prepare(self, request_id: str, principal: Principal, body: bytes, headers: Mapping[str, str]) -> Exchange:
        """Admits a request and plans for it: everything before money may be spent. Raises RefusedError."""
        now = self.clock.now()
        catalogue = self.configuration.catalogue
        beliefs = self.noting.beliefs
        admitted = admit(
            body, headers, principal, catalogue, self.experience, beliefs, today=now.date(), seed=self.fingerprint_seed
        )
        made = make_plan(admitted, principal, self._planning(self.configuration))
        if is_gone_everywhere(made):
            admitted, made = self._follow(admitted, made, principal)
        return Exchange(
            request_id=request_id,
            principal=principal,
            admitted=admitted,
            plan=made,
            configuration=self.configuration,
            started=self.clock.monotonic(),
            admitted_at=now,
        )

    def _follow(self, admitted: Admitted, made: Plan, principal: Principal) -> tuple[Admitted, Plan]:
        """The same for the successor of a model that every provider says is gone, or 404."""
        catalogue, model = self.configuration.catalogue, admitted.model
        follower = successor(model, principal, catalogue)
        if follower is None:
            raise gone(model, catalogue, made)
        warning = f"{model.name} is retired; {follower.name} answers"
        request = replace(admitted.request, warnings=(*admitted.request.warnings, warning))
        followed = for_model(
            request, follower, principal, catalogue, self.experience, self.noting.beliefs, today=made.made_at.date()
        )
        return followed, make_plan(followed, principal, self._planning(self.configuration))

    def _plan_again(self, exchange: Exchange) -> Plan:
        """What the plan would be by what is known now."""
        return make_plan(exchange.admitted, exchange.principal, self._planning(exchange.configuration))

    def _planning(self, configuration: Configuration) -> Planning:
        return Planning(
            catalogue=configuration.catalogue,
            usable_accounts=configuration.usable_accounts,
            health=self.health,
            experience=self.experience,
            beliefs=self.noting.beliefs,
            validity=self.noting.validity,
            now=self.clock.now(),
        )

    async def run(self, exchange: Exchange, reply: Reply, watch: Watch) -> None:
        """Attempts candidates in the plan's order until one answers; tells the client how it ended."""
        self.retry_budget = self.retry_budget.earn()
        status, code = CLIENT_CLOSED, ""
        try:
            status = await self._attempts(exchange, reply, watch)
        except RefusedError as refused:
            status, code = refused.refusal.http_status, refused.refusal.code.value
            await refuse(reply, refused.refusal, request_id=exchange.request_id)
        except Exception as defect:  # noqa: BLE001 - told to the client as ours, and to us with its trace
            status, code = INTERNAL.http_status, INTERNAL.code.value
            self.telemetry.defect(defect, request_id=exchange.request_id)
            await refuse(reply, INTERNAL, request_id=exchange.request_id)
        finally:
            watch.end()
            self.telemetry.exchange_ended(
                request_id=exchange.request_id,
                key_id=exchange.principal.key_id,
                model=exchange.admitted.model.name,
                surface=exchange.admitted.request.surface.value,
                status=status,
                code=code,
                seconds=self.clock.monotonic() - exchange.started,
            )

    async def _attempts(self, exchange: Exchange, reply: Reply, watch: Watch) -> int:
        """Reserves, attempts, settles. Returns the status that was answered. Raises RefusedError."""
        spending = _Spending()
        try:
            exchange, candidate, candidates = await self._reserve(exchange, watch)
            return await self._attempt_each(exchange, candidate, candidates, spending, reply, watch)
        except Interrupted as interrupted:  # while it waited for room
            if isinstance(interrupted.reason, Failure):
                raise RefusedError(SHUTTING_DOWN) from None
            return CLIENT_CLOSED
        finally:
            self.allowances.release(exchange.request_id, spending.tokens)
            self.turns.wake()

    async def _reserve(self, exchange: Exchange, watch: Watch) -> tuple[Exchange, Candidate, list[Candidate]]:
        """The exchange with what is held for it, its first candidate, and the others. Raises RefusedError, or
        Interrupted where the wait for room was cut short."""
        candidates = [*exchange.plan.routable, *in_reserve(exchange.plan, exchange.admitted.request)]
        waited_for: Candidate | None = None

        def asking() -> Asking:
            well = self._well(candidates)
            if not well:
                with contextlib.suppress(MeteringUnavailableError):
                    self.journal.append(_plan_record(exchange))  # a refusal can be explained too
                raise no_candidate(self._plan_again(exchange))
            nonlocal waited_for
            if (worth_waiting := self._worth_waiting(exchange, well)) is not None:
                waited_for = worth_waiting
                return replace(self._asking(exchange, [worth_waiting]), is_choice=True)
            if waited_for in well:  # the plan is from when its quota was scarce
                well = [waited_for, *(each for each in well if each is not waited_for)]
            return self._asking(exchange, well)

        with watch:
            reservation, chosen = await reserve(
                asking,
                exchange.admitted,
                exchange.principal,
                self.allowances,
                self.turns,
            )
        if waited_for is not None and (waited := self.clock.monotonic() - exchange.started) >= WAIT_TOLD_SECONDS:
            exchange.warnings.append(f"waited {waited:.1f} s for room at a cheaper account")
        exchange = replace(exchange, reservation=reservation)
        shortest = reservation.output_limit_max
        if shortest is not None:
            assert reservation.clamped_by is not None
            exchange.warnings.append(
                f"the answer is limited to {shortest} tokens by the budget of the {reservation.clamped_by.name}"
            )
            chosen, candidates = _shortened(chosen, shortest), [_shortened(each, shortest) for each in candidates]
        return exchange, await self._claimed(exchange, chosen, candidates), candidates

    def _worth_waiting(self, exchange: Exchange, well: list[Candidate]) -> Candidate | None:
        """A full account that is worth waiting for, by what is believed of its minute; None = whoever has room."""
        terms = exchange.configuration.catalogue.routing
        wanted = exchange.admitted.request.preferences
        if not terms.hold_usd_per_second or len(well) < 2 or wanted.order or wanted.sort is not None:
            return None  # a caller who has chosen is not second-guessed
        made = exchange.plan
        room_in = {
            (each.provider, each.account): seconds for each in well if (seconds := self._room_in(exchange, each)) > 0
        }
        waited = self.clock.monotonic() - exchange.started
        hold = worth_holding(
            msgspec.structs.replace(made, candidates=tuple(well)), room_in, terms, waited_seconds=waited
        )
        return None if hold is None else hold.candidate

    def _room_in(self, exchange: Exchange, candidate: Candidate) -> float:
        """Seconds until an account's minute is believed to have room; for ever where it never takes so much at once."""
        limits, admitted, made = candidate.limits, exchange.admitted, exchange.plan
        tokens_max = admitted.input_tokens + candidate.output_limit * admitted.request.n
        if limits.tpm is not None and tokens_max > limits.tpm:
            return inf
        tokens, now = made.input_tokens_estimate + made.output_tokens_estimate, self.clock.now().timestamp()
        return self.noting.beliefs.room_in((candidate.provider, candidate.account), limits, tokens, now)

    def _asking(self, exchange: Exchange, candidates: list[Candidate]) -> Asking:
        demand = demand_for(
            exchange.request_id, exchange.principal, exchange.admitted, candidates, exchange.admitted_at
        )
        wants = frozenset(each.scope for each in demand.accounts if each.tpm is None or demand.tokens <= each.tpm)
        return Asking(demand=demand, candidates=tuple(candidates), wants=wants)

    async def _attempt_each(
        self,
        exchange: Exchange,
        candidate: Candidate,
        candidates: list[Candidate],
        spending: _Spending,
        reply: Reply,
        watch: Watch,
    ) -> int:
        """The attempt loop. Returns the status that was answered. Raises RefusedError."""
        failures: list[tuple[Candidate, Failure]] = []
        held = exchange.reservation.amount
        while True:
            number = len(failures) + 1
            this, call, intent = await self._begin(exchange, candidate, number, held)
            self.noting.sent(exchange, this)
            outcome = await self._attempt(exchange, this, call, reply, watch)
            self._teach_health(this, outcome)
            self.noting.over(exchange, this, outcome)
            charge = rate(outcome.usage, this.price, cache_ttl=intent.cache_ttl)
            self._post(exchange, charge.cost)
            spending.add(charge.cost, outcome.usage.input_tokens + outcome.usage.output_tokens)
            overrun = held is not None and spending.cost > held
            following = None
            if self._may_follow(exchange, outcome, candidate, number, watch):
                following, held = await self._following(exchange, candidates, held, spending.cost)
            try:
                entry, position = self._settle(
                    exchange, intent, outcome, charge, is_final=following is None, flags=_OVERRUN if overrun else ()
                )
            except BaseException:
                if following is not None:
                    self.health.release_probe(subjects(following))
                raise
            assert entry.cost_pico == charge.cost.pico
            if outcome.failure is not None:
                failures.append((candidate, outcome.failure))
            if following is not None:
                candidate = following
                continue
            await self._durable(position)
            return await self._answer(exchange, this, outcome, failures, spending.cost, reply)

    def _post(self, exchange: Exchange, cost: Money) -> None:
        """From now on this is spent."""
        principal = exchange.principal
        day = day_of(exchange.admitted_at, principal.time_zone)
        self.allowances.post(Posting(exchange.request_id, principal.scopes, day, cost))

    def _well(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that are still well, best first, or else those whose only trouble is an open circuit: the last one is
        never ejected, but what a provider said of its account or model stands."""
        well = [candidate for candidate in candidates if self._are_well(subjects(candidate))]
        return well or [candidate for candidate in candidates if self._are_well(subjects(candidate)[:2])]

    async def _claimed(self, exchange: Exchange, chosen: Candidate, candidates: list[Candidate]) -> Candidate:
        """The candidate that is tried now, once. A probe goes alone: where another replica's request is seeing whether
        it is well, another candidate takes its place, if one has room."""
        candidates.remove(chosen)
        while not await self.health.claim_probe(subjects(chosen)):
            well = self._well(candidates)
            if not well:
                return chosen  # the last one is tried all the same
            instead = well[0]
            if exchange.reservation.is_held:
                verdict = await self.allowances.retry(self._asking(exchange, well).demand)
                if not isinstance(verdict, Granted):
                    return chosen
                instead = well[verdict.account or 0]
            candidates.remove(instead)
            chosen = instead
        return chosen

    def _are_well(self, involved: Iterable[Subject]) -> bool:
        now = self.clock.now()
        return not any(health.is_out(now) or health.probe_in_flight(now) for health in map(self.health.of, involved))

    async def _begin(
        self, exchange: Exchange, candidate: Candidate, number: int, held: Money | None
    ) -> tuple[Attempt, UpstreamCall, Intent]:
        """The call as it will be sent, and its durable intent; what stands in the way gives the probe back."""
        try:
            this = self._numbered(exchange, candidate, number, held)
            call = _call(exchange, this)  # before the intent: a dialect that breaks over a request buys nothing
            return this, call, await self._intend(exchange, this)
        except BaseException:
            self.health.release_probe(subjects(candidate))
            raise

    def _numbered(self, exchange: Exchange, candidate: Candidate, number: int, held: Money | None) -> Attempt:
        """The attempt at the price that is in force now: a retry may begin under another one than its plan."""
        now = self.clock.now()
        prices = exchange.configuration.catalogue.prices
        price = prices.in_force(candidate.provider, candidate.deployment.model, now)
        assert price is not None, "an unpriced candidate is not routable"
        return Attempt(
            attempt_id=self.ids.attempt_id(),
            request_id=exchange.request_id,
            number=number,
            candidate=candidate,
            price=price,
            started_at=now,
            output_limit=candidate.output_limit,
            input_tokens_estimate=exchange.admitted.input_tokens,
            admitted_at=exchange.admitted_at,
            held=held,
        )

    async def _intend(self, exchange: Exchange, this: Attempt) -> Intent:
        """The durable intent. Raises RefusedError(metering_unavailable) before anything is sent."""
        intent = Intent.of(this, exchange.admitted.request, exchange.principal)
        try:
            if this.number == 1:
                self.journal.append(_plan_record(exchange))
            position = self.journal.append(intent)
        except MeteringUnavailableError as error:
            raise unmetered(error) from None
        try:
            await self.journal.durable(position)
        except MeteringUnavailableError as error:
            self._void(exchange, this, intent, str(error))
            raise unmetered(error) from None
        return intent

    def _void(self, exchange: Exchange, this: Attempt, intent: Intent, why: str) -> None:
        """Settles an intent of which nothing was sent, for it may reach the disk after all."""
        outcome = Outcome(
            status=AttemptStatus.ABANDONED,
            failure=Failure(kind=FailureClass.UNMETERED, message=why),
            usage=NO_USAGE,
            usage_source=UsageSource.NONE,
            seen=Observation(),
            reader=AnswerReader(),
        )
        with contextlib.suppress(MeteringUnavailableError):
            nothing = rate(NO_USAGE, this.price, cache_ttl=intent.cache_ttl)
            self._post(exchange, ZERO)  # balances count rows, and this is one
            entry, _ = settle(intent, nothing, outcome, self.journal, finished_at=self.clock.now(), is_final=True)
            self.telemetry.attempt_settled(entry)

    async def _attempt(
        self, exchange: Exchange, this: Attempt, call: UpstreamCall, reply: Reply, watch: Watch
    ) -> Outcome:
        """Calls the provider under its deadlines and relays its answer."""
        card = exchange.configuration.catalogue.providers[this.candidate.provider]
        is_answering = False

        async def relay(data: bytes) -> None:
            nonlocal is_answering
            if not is_answering:
                is_answering = True
                self.health.answering(subjects(this.candidate), began=this.started_at)
            if not reply.started:
                await reply.start(200, headers_of(exchange, this))
            await reply.write(data)

        needs = Attempting(
            upstreams=self.upstreams,
            journal=self.journal,
            clock=self.clock,
            experience=self.experience,
            pace=self.noting.beliefs.pace,
            telemetry=self.telemetry,
        )
        watch.begin_attempt(card.timeouts, drain=card.on_client_abort is OnClientAbort.DRAIN)
        return await attempt(needs, this, exchange.admitted.request, card, DIALECTS[card.dialect], call, watch, relay)

    def _teach_health(self, this: Attempt, outcome: Outcome) -> None:
        """What this end says about the account, the model there and the circuit of both."""
        candidate, failure = this.candidate, outcome.failure
        involved = subjects(candidate)
        if failure is None and outcome.status is not AttemptStatus.ABORTED:
            self.health.succeeded(involved, began=this.started_at)
            return
        about = None
        if failure is not None:
            names = {"provider": candidate.provider, "account": candidate.account, "model": candidate.deployment.model}
            about = subject_of(failure, **names)
        if failure is not None and about is not None:
            is_billed = outcome.usage_source is not UsageSource.NONE
            self.health.failed(about, failure, began=this.started_at, billed=is_billed)
        self.health.release_probe(subject for subject in involved if subject != about)

    def _may_follow(self, exchange: Exchange, outcome: Outcome, tried: Candidate, number: int, watch: Watch) -> bool:
        """Whether this end allows another attempt at all (law L9)."""
        if outcome.failure is None or outcome.status is AttemptStatus.ABORTED or watch.is_over:
            return False
        if advise(outcome.failure, bytes_relayed=outcome.relayed) is not Advice.NEXT or number >= ATTEMPTS_MAX:
            return False
        timeouts = exchange.configuration.catalogue.providers[tried.provider].timeouts
        return self.clock.monotonic() - exchange.started < timeouts.total

    async def _following(
        self, exchange: Exchange, candidates: list[Candidate], held: Money | None, spent: Money
    ) -> tuple[Candidate | None, Money | None]:
        """The candidate to try next, and what is held in all with it: None where retries are used up, nobody is well,
        or what is held, and can be held in addition, does not bear another attempt."""
        if self.retry_budget.spend() is None or not (well := self._well(candidates)):
            return None, held
        chosen = well[0]
        if exchange.reservation.is_held:
            asking = self._asking(exchange, well)
            verdict = await self.allowances.retry(asking.demand)
            if not isinstance(verdict, Granted):
                return None, held
            self.turns.wake()  # the account that was left has room
            chosen = well[verdict.account or 0]
            held = None if held is None else spent + verdict.amount
        chosen = await self._claimed(exchange, chosen, candidates)
        self.retry_budget = self.retry_budget.spend() or self.retry_budget  # others may have spent it meanwhile
        return chosen, held

    def _settle(
        self,
        exchange: Exchange,
        intent: Intent,
        outcome: Outcome,
        charge: Charge,
        *,
        is_final: bool,
        flags: tuple[str, ...] = (),
    ) -> tuple[LedgerEntry, int]:
        """Writes the entry; if the journal cannot take it, the durable intent is settled by recovery."""
        try:
            entry, position = settle(
                intent, charge, outcome, self.journal, finished_at=self.clock.now(), is_final=is_final, flags=flags
            )
        except MeteringUnavailableError as error:
            raise unmetered(error) from None
        learn(entry, outcome, self.experience, input_bytes=exchange.admitted.request.input_bytes)
        self.telemetry.attempt_settled(entry)
        return entry, position

    async def _durable(self, position: int) -> None:
        try:
            await self.journal.durable(position)
        except MeteringUnavailableError as error:
            raise unmetered(error) from None

    async def _answer(
        self,
        exchange: Exchange,
        this: Attempt,
        outcome: Outcome,
        failures: list[tuple[Candidate, Failure]],
        spent: Money,
        reply: Reply,
    ) -> int:
        """Releases what was held back until the settlement, or says what went wrong. Returns the status."""
        if outcome.status is AttemptStatus.ABORTED:
            return CLIENT_CLOSED
        if outcome.failure is not None:
            if outcome.failure.kind is FailureClass.MODEL_GONE and not outcome.relayed:
                again = self._plan_again(exchange)
                if is_gone_everywhere(again):
                    raise gone(exchange.admitted.model, exchange.configuration.catalogue, again)
            raise RefusedError(refusal_for(exchange, outcome, failures))
        headers = headers_of(exchange, this)
        usage = chat_completions.render_usage(outcome.usage, spent, outcome.reader.reports.top_level)
        if outcome.body is not None:
            headers["content-type"] = "application/json"
            headers["x-gateway-cost-usd"] = str(spent)
            body = chat_completions.render_answer(outcome.body, usage)
            headers["content-length"] = str(len(body))
            await reply.start(200, headers)
            await reply.finish(body)
            return 200
        if not reply.started:
            await reply.start(200, headers)
        closing = b""
        if exchange.admitted.request.include_usage:
            closing = chat_completions.render_closing_chunk(
                outcome.closing,
                upstream_id=outcome.reader.upstream_id,
                model=outcome.reader.served_model or exchange.admitted.model.name,
                created=outcome.reader.created or int(self.clock.now().timestamp()),
                usage_json=usage,
            )
        await reply.finish(outcome.held + closing + outcome.done)
        return 200


def _call(exchange: Exchange, this: Attempt) -> UpstreamCall:
    """The request in the provider's dialect."""
    candidate, request = this.candidate, exchange.admitted.request
    card = exchange.configuration.catalogue.providers[candidate.provider]
    rendered = DIALECTS[card.dialect].render_request(request, candidate.deployment, this.output_limit)
    exchange.warnings.extend(rendered.warnings)
    return UpstreamCall(
        provider=card.name,
        account=candidate.account,
        url=card.base_url + rendered.path,
        body=rendered.body,
        headers={"x-gateway-attempt-id": this.attempt_id},
        timeouts=card.timeouts,
        stream=request.stream,
    )


def _shortened(candidate: Candidate, output_limit_max: int) -> Candidate:
    return msgspec.structs.replace(candidate, output_limit=min(candidate.output_limit, output_limit_max))


def _plan_record(exchange: Exchange) -> PlanRecord:
    return PlanRecord(
        request_id=exchange.request_id,
        made_at=exchange.plan.made_at,
        key_id=exchange.principal.key_id,
        plan=msgspec.Raw(chat_completions.render_route(exchange.plan)),
        prompt=exchange.admitted.prompt,
        tenant=exchange.principal.tenant,
        turn=exchange.plan.turn.number,
    )
