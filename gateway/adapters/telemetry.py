"""What operators watch: Prometheus counters and one log line per exchange. Never a key's secret, never content.

Labels are bounded by configuration (provider, account, model, status); a request id or key is in the log only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.core.health import Health, Subject, failure_probability
from gateway.core.ledger import MODEL_MISMATCH_FLAG, LedgerEntry
from gateway.core.quality import CHECKED_FLAG, UNCHECKED_FLAG, gravest
from gateway.core.shedding import Shed
from gateway.pipeline.ports import BalanceTold

LOGGER: Final = logging.getLogger("gateway.exchange")
SECONDS_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class PrometheusTelemetry:
    """Implements the Telemetry and AlertTelemetry ports."""

    METRICS_TYPE: Final = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
        self._histograms: dict[tuple[Histogram, tuple[str, ...]], Histogram] = {}
        self._count_attempts()
        self._count_quality()
        self._count_requests()
        self._gauge_process()
        self._gauge_providers()

    def _count_attempts(self) -> None:
        route = ("provider", "account", "model")
        self._attempts = Counter(
            "gateway_attempts",
            "Upstream attempts by how they ended.",
            (*route, "status", "error_type"),
            registry=self.registry,
        )
        self._tokens = Counter(
            "gateway_tokens",
            "Tokens by class, as metered.",
            (*route, "class", "source"),
            registry=self.registry,
        )
        self._cost = Counter(
            "gateway_cost_picodollars",
            "Cost of settled attempts in 10^-12 USD; exact figures are in the ledger.",
            (*route, "source"),
            registry=self.registry,
        )
        self._first_chunk = Histogram(
            "gateway_time_to_first_chunk_seconds",
            "Upstream call sent to first chunk of its answer.",
            route,
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )

    def _count_quality(self) -> None:
        pair = ("provider", "model")
        self._checked = Counter(
            "gateway_tool_call_answers_checked",
            "Tool-call answers that were checked against their request's tools.",
            pair,
            registry=self.registry,
        )
        self._invalid = Counter(
            "gateway_tool_call_answers_invalid",
            "Checked answers with a fault, each under its gravest one.",
            (*pair, "reason"),
            registry=self.registry,
        )
        self._unchecked = Counter(
            "gateway_tool_call_schemas_unchecked",
            "Checked answers of which some schema was too long or too heavy, or has rules that are not looked at.",
            pair,
            registry=self.registry,
        )
        self._mismatches = Counter(
            "gateway_model_mismatches",
            "Answers that named another model than was asked for.",
            pair,
            registry=self.registry,
        )

    def _count_requests(self) -> None:
        self._exchanges = Counter(
            "gateway_exchanges",
            "Client requests by status, and by the code of the error where the gateway has told one.",
            ("model", "surface", "status", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "gateway_exchange_seconds",
            "Client request to last byte.",
            ("model", "surface"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "gateway_refusals",
            "Requests answered before they became an exchange.",
            ("path", "code", "status"),
            registry=self.registry,
        )
        self._sheds = Counter(
            "gateway_shed",
            "Requests turned away because too many are open: in all (full), or of one key (share).",
            ("reason",),
            registry=self.registry,
        )
        self._defects = Counter("gateway_defects", "Errors in the gateway's own code.", registry=self.registry)
        self._alerts = Counter(
            "gateway_budget_alerts", "Budget alerts raised by this process.", ("share",), registry=self.registry
        )
        self._deliveries = Counter(
            "gateway_budget_alert_deliveries",
            "Tries to tell a budget alert by how they ended.",
            ("by", "outcome"),
            registry=self.registry,
        )

    def _gauge_process(self) -> None:
        self.open_exchanges = Gauge("gateway_open_exchanges", "Exchanges now open.", registry=self.registry)
        self.journal_backlog = Gauge(
            "gateway_journal_backlog_bytes", "Journal bytes not yet in PostgreSQL.", registry=self.registry
        )
        self.journal_lag = Gauge(
            "gateway_journal_lag_seconds", "Age of the oldest record not yet in PostgreSQL.", registry=self.registry
        )
        self.journal_available = Gauge(
            "gateway_journal_available", "1 while the journal takes records.", registry=self.registry
        )
        self._shared_state = Gauge(
            "gateway_shared_state",
            "1 for the state that limits and budgets in Redis are in: ok, rebuilding or away.",
            ("state",),
            registry=self.registry,
        )
        self._generation = Gauge(
            "gateway_shared_state_generation",
            "The generation of the shared state; it grows when Redis has lost what it had.",
            (),
            registry=self.registry,
        )

    def _gauge_providers(self) -> None:
        circuit = ("provider", "account", "model")
        self._out = Gauge(
            "gateway_provider_out",
            "1 while nothing is sent there: an account (no model), a model at a provider (no account), or a circuit.",
            circuit,
            registry=self.registry,
        )
        self._failing = Gauge(
            "gateway_failure_probability",
            "How likely the next attempt fails, by what was seen lately.",
            circuit,
            registry=self.registry,
        )
        self._balance = Gauge(
            "gateway_account_balance",
            "What a provider last said is left on an account, in its own unit.",
            ("provider", "account", "unit"),
            registry=self.registry,
        )
        self._gossip = Counter(
            "gateway_gossip_messages",
            "What replicas tell each other about providers: told, heard, dropped or skipped.",
            ("outcome",),
            registry=self.registry,
        )
        self._gossip_seen: dict[str, int] = {}
        self._gossip_lag = Gauge(
            "gateway_gossip_lag_seconds",
            "How old the last word of another replica was when it was heard.",
            (),
            registry=self.registry,
        )

    def attempt_settled(self, entry: LedgerEntry) -> None:
        route = (entry.provider, entry.account, entry.model)
        self._counter(self._attempts, *route, entry.status, entry.error_type or "").inc()
        if entry.flags:
            self._flagged(entry)
        if entry.usage_source == "none":
            return
        uncached = entry.input_tokens - (entry.cached_tokens or 0) - entry.cache_write_tokens
        for token_class, tokens in (
            ("input", uncached),
            ("cached_input", entry.cached_tokens or 0),
            ("cache_write", entry.cache_write_tokens),
            ("output", entry.output_tokens),
        ):
            if tokens:
                self._counter(self._tokens, *route, token_class, entry.usage_source).inc(tokens)
        self._counter(self._cost, *route, entry.usage_source).inc(entry.cost_pico)
        if entry.ttft_ms is not None:
            self._histogram(self._first_chunk, *route).observe(entry.ttft_ms / 1000)

    def _flagged(self, entry: LedgerEntry) -> None:
        """What the row says of the answer's quality."""
        pair = (entry.provider, entry.model)
        if MODEL_MISMATCH_FLAG in entry.flags:
            self._counter(self._mismatches, *pair).inc()
        if CHECKED_FLAG not in entry.flags:
            return
        self._counter(self._checked, *pair).inc()
        if UNCHECKED_FLAG in entry.flags:
            self._counter(self._unchecked, *pair).inc()
        fault = gravest(entry.flags)
        if fault is not None:
            self._counter(self._invalid, *pair, fault.value).inc()

    def shared_state_is(self, state: str, generation: int, *, states: Iterable[str]) -> None:
        """Which of ``states`` the shared state is in. Nothing is shown where there is none."""
        for each in states:
            self._shared_state.labels(each).set(int(each == state))
        self._generation.set(generation)

    def health_is(self, health: Iterable[tuple[Subject, Health]], now: datetime) -> None:
        """Who is out, and how likely the others fail."""
        for subject, each in health:
            labels = [part or "" for part in subject]
            self._out.labels(*labels).set(int(each.is_out(now)))
            if subject.is_circuit:
                self._failing.labels(*labels).set(failure_probability(each, now))

    def balances_are(self, balances: Iterable[BalanceTold]) -> None:
        for told in balances:
            self._balance.labels(told.provider, told.account, told.unit).set(float(told.available))

    def gossip_is(self, counts: Mapping[str, int], *, lag_seconds: float) -> None:
        """What became of messages since the start."""
        for outcome, count in counts.items():
            self._counter(self._gossip, outcome).inc(count - self._gossip_seen.get(outcome, 0))
            self._gossip_seen[outcome] = count
        self._gossip_lag.set(lag_seconds)

    def _counter(self, parent: Counter, *labels: str) -> Counter:
        """The child for these labels, looked up without the library's lock; as many as configuration has."""
        child = self._counters.get((parent, labels))
        if child is None:
            child = self._counters[(parent, labels)] = parent.labels(*labels)
        return child

    def _histogram(self, parent: Histogram, *labels: str) -> Histogram:
        child = self._histograms.get((parent, labels))
        if child is None:
            child = self._histograms[(parent, labels)] = parent.labels(*labels)
        return child

    def defect(self, error: Exception, *, request_id: str) -> None:
        self._defects.inc()
        LOGGER.error("defect", exc_info=error, extra={"fields": {"request_id": request_id}})

    def refused(self, *, request_id: str, path: str, code: str, status: int) -> None:
        self._counter(self._refusals, path, code, str(status)).inc()
        fields = {"request_id": request_id, "path": path, "code": code, "status": status}
        LOGGER.info("refused", extra={"fields": fields})

    def shed(self, reason: Shed) -> None:
        self._counter(self._sheds, reason.value).inc()

    def exchange_ended(
        self, *, request_id: str, key_id: str, model: str, surface: str, status: int, code: str, seconds: float
    ) -> None:
        self._counter(self._exchanges, model, surface, str(status), code).inc()
        self._histogram(self._seconds, model, surface).observe(seconds)
        LOGGER.info(
            "exchange",
            extra={
                "fields": {
                    "request_id": request_id,
                    "key_id": key_id,
                    "model": model,
                    "surface": surface,
                    "status": status,
                    "code": code,
                    "seconds": round(seconds, 4),
                }
            },
        )

    def alert_raised(self, share: int) -> None:
        self._counter(self._alerts, str(share)).inc()

    def alert_told(self, *, by: str, outcome: str) -> None:
        self._counter(self._deliveries, by, outcome).inc()

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)
