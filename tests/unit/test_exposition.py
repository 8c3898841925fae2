"""The figures of several processes as one: sums that never fall, and gauges by what they mean."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from gateway.adapters.exposition import Totals, snapshot
from gateway.adapters.telemetry import PrometheusTelemetry


def worker(*, refused: int = 0, seconds: tuple[float, ...] = (), open_: int = 0, lag: float = 0, journal: int = 1):
    """A worker that has counted this."""
    telemetry = PrometheusTelemetry()
    for _ in range(refused):
        telemetry.refused(request_id="r", path="/p", code="overloaded", status=503)
    for each in seconds:
        telemetry.exchange_ended(
            request_id="r", key_id="k", model="m", surface="chat_completions", status=200, code="", seconds=each
        )
    telemetry.open_exchanges.set(open_)
    telemetry.journal_lag.set(lag)
    telemetry.journal_available.set(journal)
    return telemetry.registry


def told(registry: CollectorRegistry) -> bytes:
    return msgspec.json.encode(snapshot(registry))


def figures(totals: Totals) -> dict[str, float]:
    lines = [line for line in totals.render().splitlines() if not line.startswith("#") and "_created" not in line]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


REFUSALS = 'gateway_refusals_total{code="overloaded",path="/p",status="503"}'
EXCHANGES = 'gateway_exchanges_total{code="",model="m",status="200",surface="chat_completions"}'


def test_one_worker_reads_as_it_would_alone():
    """What one worker tells comes out to the byte as the library writes it."""
    registry = worker(refused=2, seconds=(0.2, 3), open_=4, lag=1.5)
    totals = Totals(CollectorRegistry())
    totals.update(0, told(registry))
    assert totals.render() == generate_latest(registry).decode()


def test_counters_add_up_and_gauges_mean_what_they_say():
    """Counters, histograms and amounts are summed; the lag is the worst of all, and so is the journal's state."""
    totals = Totals(CollectorRegistry())
    totals.update(0, told(worker(refused=2, seconds=(0.2, 3), open_=4, lag=1.5)))
    totals.update(1, told(worker(refused=3, seconds=(0.02,), open_=5, lag=9, journal=0)))
    found = figures(totals)
    assert (found[REFUSALS], found[EXCHANGES]) == (5, 3)
    labels = 'model="m",surface="chat_completions"'
    assert found[f'gateway_exchange_seconds_bucket{{le="0.05",{labels}}}'] == 1
    assert found[f'gateway_exchange_seconds_bucket{{le="+Inf",{labels}}}'] == 3
    assert abs(found[f"gateway_exchange_seconds_sum{{{labels}}}"] - 3.22) < 1e-9
    assert found["gateway_open_exchanges"] == 9
    assert found["gateway_journal_lag_seconds"] == 9
    assert found["gateway_journal_available"] == 0


def test_what_an_ended_worker_counted_stays():
    """A death takes the gauges of a worker and none of its counts; its successor counts from there."""
    totals = Totals(CollectorRegistry())
    totals.update(0, told(worker(refused=2, open_=4)))
    totals.update(1, told(worker(refused=3, open_=5)))
    totals.ended(1)
    assert (figures(totals)[REFUSALS], figures(totals)["gateway_open_exchanges"]) == (5, 4)
    totals.update(1, told(worker(refused=1, open_=1)))
    assert (figures(totals)[REFUSALS], figures(totals)["gateway_open_exchanges"]) == (6, 5)
    totals.ended(1)
    totals.ended(1)
    totals.ended(0)
    assert figures(totals)[REFUSALS] == 6
    assert "gateway_open_exchanges" not in figures(totals)
