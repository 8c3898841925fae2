"""The composition root: the only file that knows everyone. Settings and catalogue in, a running gateway out.

Start order: files, then the journal, then connections; stop order the other way round, so that what was bought is
written down before anything that could write it goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Final

import uvicorn
from litestar import Litestar
from pydantic import SecretStr

from gateway import __version__
from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.archive.folder import ArchiveFolder
from gateway.adapters.clock import SystemClock, TimeOrderedIds
from gateway.adapters.exposition import Snapshot, snapshot
from gateway.adapters.gossip import NoGossip
from gateway.adapters.health import MemoryHealthBook
from gateway.adapters.journal import JournalWriter, journal_id
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.postgres.administration import PostgresAdministration
from gateway.adapters.postgres.alerts import AlertBook
from gateway.adapters.postgres.balances import PostgresBalances
from gateway.adapters.postgres.keys import PostgresApiKeys
from gateway.adapters.postgres.reports import Reports
from gateway.adapters.postgres.schema import DatabaseAwayError, migrate, require_current
from gateway.adapters.postgres.shared_state import PostgresSharedState
from gateway.adapters.postgres.shipper import Shipper
from gateway.adapters.redis.allowances import RedisAllowances
from gateway.adapters.redis.gossip import RedisGossip
from gateway.adapters.redis.membership import State
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.adapters.upstream.aiohttp_client import AiohttpUpstreams
from gateway.adapters.webhook import LogTeller, WebhookTeller
from gateway.adapters.workers import AnswerError, LinkLostError, Siblings
from gateway.catalog import CatalogError, Loaded, load
from gateway.core.failure import Failure, FailureClass
from gateway.core.grants import SIGNAL, Administrator
from gateway.core.health import HealthChanged
from gateway.core.refusal import Refusal, RefusalCode, RefusedError
from gateway.http.admin import admin_routes
from gateway.http.admin.provider_states import provider_states
from gateway.http.application import create_application
from gateway.http.protocol import BoundedHttpProtocol
from gateway.http.relay import OpenExchanges
from gateway.http.services import BadConfigurationError, Readiness, Services
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.exchange import Configuration
from gateway.pipeline.experience import Experience
from gateway.pipeline.noting import Noting
from gateway.pipeline.ports import AlertTeller, BalanceTold, Clock, Message, StoreUnavailableError
from gateway.pipeline.probe import Probes
from gateway.settings import Settings, SettingsError, admin_token, environment, read_secret

LOGGER: Final = logging.getLogger("gateway")
SHUTDOWN_SECONDS: Final = 25.0
"""Open streams may run on for so long after SIGTERM; then they end with an error of their own."""
CLOSE_SECONDS_MAX: Final = 10.0
GARBAGE_THRESHOLD: Final = 20_000
RESTART_SECONDS: Final = 1.0
KEEPALIVE_SECONDS: Final = 75


class Gateway:
    """One worker: everything it is made of, and its life."""

    siblings: Siblings | None = None

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        *,
        environ: Mapping[str, str] | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        """Reads the configuration and opens the journal. Raises SettingsError, CatalogError or OSError.

        ``environ`` is where credentials are looked up, the process environment without it; ``siblings`` are the other
        workers where this is not the only one.
        """
        self.settings = settings
        self.siblings = siblings
        self._environ = environment() if environ is None else environ
        self._stop = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.deadline: asyncio.TimerHandle | None = None
        clock = SystemClock()
        loaded = load(settings.config_dir, now=clock.now())
        tell_findings(loaded)
        token, token_file = admin_token(settings)
        if token_file is not None:
            LOGGER.info("the admin token is kept in a file", extra={"fields": {"path": str(token_file)}})
        configuration, credentials = configure(settings, loaded, self._environ)
        journal_name = journal_id(clock.now(), os.urandom(8))
        self.journal = JournalWriter.open(settings.data_dir, journal_name)
        outbox = Outbox(settings.data_dir, self.journal)
        self.shipper = Shipper(database_url, outbox, clock=clock, chance=random.random)
        self.keys = PostgresApiKeys(database_url, clock=clock)
        self.administration = PostgresAdministration(database_url, clock=clock)
        self.reports = Reports(database_url, ArchiveFolder(settings.archive_folder))
        self.balances = PostgresBalances(database_url)
        self.shared_state = PostgresSharedState(database_url)
        self.allowances = self._allowances(journal_name, clock)
        self.telemetry = PrometheusTelemetry()
        teller = alert_teller(settings, clock)
        self.alerts = AlertBook(database_url, teller, self.telemetry, clock=clock, chance=random.random)
        self.gossip = self._gossip(journal_name, clock)
        self.noting = Noting(gossip=self.gossip, clock=clock)
        self.health = MemoryHealthBook(clock, random.random, tell=self.gossip.tell, claims=self.gossip)
        self.gossip.on_heard(self.hear)
        self.upstreams = AiohttpUpstreams(credentials, user_agent=f"kimi-gateway/{__version__}")
        self.clock = clock
        self.conductor = Conductor(
            configuration=configuration,
            keys=self.keys,
            journal=self.journal,
            upstreams=self.upstreams,
            health=self.health,
            experience=Experience(),
            telemetry=self.telemetry,
            clock=clock,
            ids=TimeOrderedIds(),
            allowances=self.allowances,
            noting=self.noting,
            fingerprint_seed=fingerprint_seed(token),
        )
        self.probes = Probes(
            configuration=lambda: self.conductor.configuration,
            health=self.health,
            inquiries=self.upstreams,
            gossip=self.gossip,
            claims=self.gossip,
            clock=clock,
            chance=random.random,
        )
        self.services = self._services(token)

    def _services(self, token: SecretStr) -> Services:
        """What the face needs."""
        return Services(
            conductor=self.conductor,
            admin_token=token,
            administration=self.administration,
            keys_changed=self.keys.refresh,
            reports=self.reports,
            readiness=self.readiness,
            metrics=self.metrics,
            metrics_type=self.telemetry.METRICS_TYPE,
            provider_states=self.provider_states,
            reload=self.reload_all,
            flush=self.shipper.flush if self.siblings is None else self.siblings.flush,
            exchanges=OpenExchanges(limit=self.settings.concurrency_max),
        )

    def _allowances(self, journal_name: str, clock: SystemClock) -> LocalAllowances | RedisAllowances:
        """Shared with other workers where there is a Redis."""
        caught_up = self.shipper.caught_up
        if self.settings.redis_url is None:
            return LocalAllowances(journal_name, self.balances, clock=clock, caught_up=caught_up)
        url = self.settings.redis_url.get_secret_value()
        return RedisAllowances(url, journal_name, self.balances, self.shared_state, clock=clock, caught_up=caught_up)

    def _gossip(self, journal_name: str, clock: SystemClock) -> NoGossip | RedisGossip:
        """With the other replicas where there is a Redis."""
        if self.settings.redis_url is None:
            return NoGossip()
        return RedisGossip(self.settings.redis_url.get_secret_value(), journal_name, clock=clock)

    def hear(self, message: Message) -> None:
        """What another replica tells."""
        if isinstance(message, HealthChanged):
            self.health.hear(message)
        elif isinstance(message, BalanceTold):
            self.probes.hear(message)
        else:
            self.noting.heard(message)

    def application(self) -> Litestar:
        """The ASGI application, whose lifespan is this gateway's life."""
        return create_application(self.services, admin=admin_routes(self.services), lifespan=[self.lifespan])

    def serve(self) -> None:
        """Serves until a signal says otherwise."""
        GatewayServer(self.uvicorn_config(), self).run()

    def uvicorn_config(self) -> uvicorn.Config:
        """How uvicorn serves this application."""
        return uvicorn.Config(
            self.application(),
            host=self.settings.host,
            port=self.settings.port,
            loop="uvloop",
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEPALIVE_SECONDS,
            timeout_graceful_shutdown=int(SHUTDOWN_SECONDS + CLOSE_SECONDS_MAX),
        )

    @asynccontextmanager
    async def lifespan(self, _: Litestar) -> AsyncIterator[None]:
        """Everything that runs beside the requests."""
        self.loop = asyncio.get_running_loop()
        spare_the_collector()
        self.loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(self._reload_told()))
        async with AsyncExitStack() as stack:
            stack.callback(self.journal.close)
            for closing in (self.upstreams.close, self.administration.close, self.reports.close, self.balances.close):
                stack.push_async_callback(closing)
            stack.push_async_callback(self.shared_state.close)
            self.journal.on_durable(self.shipper.wake)
            background = [
                asyncio.create_task(self._keep_up(self.shipper.run), name="shipper"),
                asyncio.create_task(self._keep_up(self.keys.run), name="keys"),
                asyncio.create_task(self._keep_up(self.allowances.run), name="allowances"),
                asyncio.create_task(self._keep_up(self.alerts.run), name="alerts"),
                asyncio.create_task(self._keep_up(self.gossip.run), name="gossip"),
                asyncio.create_task(self._keep_up(self.probes.run), name="probes"),
            ]
            try:
                yield
            finally:
                await self._end(background)

    async def _keep_up(self, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Runs a service until the gateway stops; a defect that ends it is told, and it starts again."""
        while not self._stop.is_set():
            try:
                await run(self._stop)
            except Exception as defect:  # noqa: BLE001 - what moves money to the ledger must not end silently
                self.telemetry.defect(defect, request_id="-")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), RESTART_SECONDS)

    async def _end(self, background: list[asyncio.Task[None]]) -> None:
        self.begin_shutdown()
        if not await self.services.exchanges.wait(SHUTDOWN_SECONDS):
            self.interrupt_exchanges()
            await self.services.exchanges.wait(CLOSE_SECONDS_MAX)
        if self.deadline is not None:
            self.deadline.cancel()
        await self.shipper.flush(CLOSE_SECONDS_MAX)
        self._stop.set()
        _, late = await asyncio.wait(background, timeout=CLOSE_SECONDS_MAX)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def begin_shutdown(self) -> None:
        """Readiness goes off at once; open streams run on until the deadline."""
        if self.services.stopping:
            return
        self.services.stopping = True
        LOGGER.info("shutting down", extra={"fields": {"open_exchanges": len(self.services.exchanges)}})
        if self.loop is not None:
            self.deadline = self.loop.call_later(SHUTDOWN_SECONDS, self.interrupt_exchanges)

    def interrupt_exchanges(self) -> None:
        """Ends every open exchange with an honest error and a settlement."""
        failure = Failure(kind=FailureClass.SHUTDOWN, message="the gateway is shutting down")
        for watch in self.services.exchanges.watches():
            watch.interrupt(failure)

    async def reload(self) -> dict[str, object]:
        """Reads the configuration again; a bad one raises BadConfigurationError and leaves the running one in force."""
        try:
            loaded = await asyncio.to_thread(load, self.settings.config_dir, now=self.clock.now())
            configuration, credentials = configure(self.settings, loaded, self._environ)
        except (CatalogError, SettingsError, OSError) as error:
            raise BadConfigurationError(str(error)) from None
        self.upstreams.credentials = credentials
        self.conductor.configuration = configuration
        self.health.reconsider()
        tell_findings(loaded)
        LOGGER.info("configuration reloaded", extra={"fields": {"digest": loaded.catalogue.digest}})
        warnings = [str(finding) for finding in loaded.findings]
        return {"digest": loaded.catalogue.digest, "warnings": warnings}

    async def reload_all(self, by: Administrator) -> dict[str, object]:
        """The same in every worker, and how many there are; the audit has it if the database is there. Raises
        BadConfigurationError, RefusedError."""
        before = {"digest": self.conductor.configuration.catalogue.digest}
        if self.siblings is None:
            answer = {**await self.reload(), "workers": 1, "reloaded": 1}
        else:
            try:
                answer = await self.siblings.reload()
            except AnswerError as error:
                raise BadConfigurationError(str(error)) from None
            except LinkLostError as error:
                raise _out_of_touch(error) from None
        with contextlib.suppress(StoreUnavailableError):
            after = {"digest": answer["digest"]}
            await self.administration.audit.record("config.reload", "config", before=before, after=after, by=by)
        return answer

    async def _reload_told(self) -> None:
        try:
            await self.reload_all(SIGNAL)
        except (BadConfigurationError, RefusedError) as error:
            LOGGER.error("configuration not reloaded; the running one stays in force: %s", error)  # noqa: TRY400

    async def readiness(self) -> Readiness:
        """Ready = not stopping, and the journal takes records. A database that is away only delays reports."""
        shipped = self.shipper.state()
        problems = []
        if self.services.stopping:
            problems.append("shutting down")
        if not self.journal.available:
            problems.append(f"the journal takes no records: {self.journal.fault}")
        details: dict[str, object] = {
            "version": __version__,
            "config_digest": self.conductor.configuration.catalogue.digest,
            "journal": {"available": self.journal.available, "backlog_bytes": shipped.backlog_bytes},
            "database": {
                "reachable": shipped.last_error is None,
                "error": None if shipped.last_error is None else shipped.last_error.partition(":")[0],
                "lag_seconds": round(shipped.lag_seconds, 3),
                "records_set_aside": shipped.records_set_aside,
            },
            "open_exchanges": len(self.services.exchanges),
            "worker": 0 if self.siblings is None else self.siblings.number,
            "workers": 1 if self.siblings is None else self.siblings.count,
        }
        if isinstance(self.allowances, RedisAllowances):
            details["shared_state"] = {"state": self.allowances.state.value, "generation": self.allowances.generation}
        return Readiness(ready=not problems, problems=tuple(problems), details=details)

    async def metrics(self) -> bytes:
        """The text exposition of all workers. Raises RefusedError."""
        if self.siblings is None:
            self._gauge()
            return self.telemetry.render()
        try:
            return await self.siblings.metrics()
        except (LinkLostError, AnswerError) as error:
            raise _out_of_touch(error) from None

    def snapshot(self) -> Snapshot:
        """This worker's own figures."""
        self._gauge()
        return snapshot(self.telemetry.registry)

    def _gauge(self) -> None:
        """Sets the gauges to what is now."""
        shipped = self.shipper.state()
        self.telemetry.open_exchanges.set(len(self.services.exchanges))
        self.telemetry.journal_available.set(int(self.journal.available))
        self.telemetry.journal_backlog.set(shipped.backlog_bytes)
        self.telemetry.journal_lag.set(shipped.lag_seconds)
        if isinstance(self.allowances, RedisAllowances):
            self.telemetry.shared_state_is(self.allowances.state, self.allowances.generation, states=State)
        if isinstance(self.gossip, RedisGossip):
            self.telemetry.gossip_is(self.gossip.counts.by_outcome, lag_seconds=self.gossip.counts.lag_seconds)
        self.telemetry.health_is(self.health, self.clock.now())
        self.telemetry.balances_are(self.probes.balances.values())

    def provider_states(self) -> list[dict[str, object]]:
        """Every account with its limits, credential and health, for ``/admin/providers``."""
        return provider_states(
            self.conductor.configuration,
            self.clock.now(),
            health=self.health,
            validity=self.noting.validity,
            balances=self.probes.balances,
            beliefs=self.noting.beliefs,
        )


class GatewayServer(uvicorn.Server):
    """uvicorn, telling the gateway of a signal before it acts on it itself."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway
        self._cutting: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """A stop by signal is an ordinary end, with status 0: uvicorn would raise the signal again, which kills the
        process before whoever runs the server, and a database beside it, could put that away."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - any of them means the same
        self.end()

    def end(self) -> None:
        """Stops: asked once, open streams run on for a while; asked again, they end now, each with an error of its own
        and a settlement. uvicorn's own second time would leave out the end of the gateway."""
        loop = self.gateway.loop
        if loop is not None:
            loop.call_soon_threadsafe(self._cut_short if self.should_exit else self.gateway.begin_shutdown)
        self.should_exit = True

    def _cut_short(self) -> None:
        self.gateway.interrupt_exchanges()
        if self._cutting is None:
            self._cutting = asyncio.ensure_future(self._cut_connections())

    async def _cut_connections(self) -> None:
        """Once what was open has ended, or would not, nobody is waited for."""
        have_ended = await self.gateway.services.exchanges.wait(CLOSE_SECONDS_MAX)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close() if have_ended else connection.transport.abort()


def fingerprint_seed(token: SecretStr) -> int:
    """The key of the digests by which conversations are known: replicas with one admin token share what they know."""
    return int.from_bytes(
        hashlib.blake2b(token.get_secret_value().encode(), digest_size=8, person=b"fingerprint").digest()
    )


def configure(
    settings: Settings, loaded: Loaded, environ: Mapping[str, str]
) -> tuple[Configuration, dict[tuple[str, str], SecretStr | None]]:
    """Resolves every account's credential; an account that names one which is not there is not usable."""
    credentials: dict[tuple[str, str], SecretStr | None] = {}
    usable: set[tuple[str, str]] = set()
    for card in loaded.catalogue.providers.values():
        for account in card.accounts:
            pair = (card.name, account.name)
            reference = loaded.credentials.get(pair)
            if reference is None:
                credentials[pair] = None
                usable.add(pair)
                continue
            secret = read_secret(reference.as_mapping(), environ, base=settings.config_dir)
            credentials[pair] = secret
            if secret is not None:
                usable.add(pair)
            else:
                where = f"set {reference.env}" if reference.env is not None else f"write it to {reference.file}"
                LOGGER.warning("%s (%s) has no credential and is not routable: %s", card.name, account.name, where)
    return Configuration(catalogue=loaded.catalogue, usable_accounts=frozenset(usable)), credentials


def alert_teller(settings: Settings, clock: Clock) -> AlertTeller:
    """Whoever is told of budget alerts: the address in the settings, else the log."""
    url, secret = settings.alert_webhook_url, settings.alert_webhook_secret
    if url is None or secret is None:
        return LogTeller()
    return WebhookTeller(url, secret, clock=clock, user_agent=f"kimi-gateway/{__version__}")


def _out_of_touch(error: Exception) -> RefusedError:
    return RefusedError(
        Refusal(
            code=RefusalCode.OVERLOADED,
            message=f"The other workers cannot be asked just now ({error}). Send the request again shortly.",
            retry_after=1,
        )
    )


def spare_the_collector() -> None:
    """What was imported lives as long as the process: the garbage collector need not walk it again and again, and a
    request's own objects are freed by their counts long before it would look at them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)


def tell_findings(loaded: Loaded) -> None:
    """Logs the warnings about a configuration that loads."""
    for finding in loaded.findings:
        LOGGER.warning(str(finding))


def prepare_database(settings: Settings, url: str) -> None:
    """Migrates, or insists on the right schema. A database of others that is away may come back later: a gateway that
    restarts meanwhile serves, and its journal keeps the rows. Raises SchemaError."""
    if settings.migrates_at_start:
        migrate(url)
        return
    try:
        require_current(url)
    except DatabaseAwayError as away:
        LOGGER.warning("starting without the database: %s", away)
