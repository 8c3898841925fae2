"""Every fault that is planted among a million lines of a statement is found under its own name, and nothing else is.

`python -m bench.reconcile [--rows 1000000]` fills a database of its own with attempts of a month, prints the statement
a provider would (amounts rounded to eight decimals), with faults planted in it, and runs `gateway reconcile` on it as a
user would. It ends with 1 when a fault is not found under its own name and with its own amount, or when anything else
is found.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg

from bench.launch import working_folder
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.schema import migrate

MONTH: Final = "2026-10-01T00:00:00Z"
SECONDS: Final = 31 * 86_400
EVERY: Final = {"tokens": 100_000, "price": 140_000, "missing_there": 170_000, "missing_here": 190_000,
                "duplicate": 230_000}  # fmt: skip
"""How many rows there are to one fault of each kind."""
DISCOUNT_MODEL: Final = "kimi-k2.6"
DISCOUNT_SINCE: Final = "2026-10-20T00:00:00Z"
STEP: Final = 10_000
COPY_ROWS: Final = 5_000
_MODELS: Final = {
    "kimi-k2-thinking": ("moonshot/kimi-k2-thinking@2025-11-06T00:00:00Z#1", 600_000, 150_000, 2_500_000),
    DISCOUNT_MODEL: ("moonshot/kimi-k2.6@2026-06-01T00:00:00Z#2", 950_000, 160_000, 4_000_000),
}
_FILL: Final = """
INSERT INTO ledger (
    attempt_id, request_id, attempt, is_final, key_id, key_name, team, tags, surface, model, provider, account,
    upstream_model, upstream_request_id, started_at, finished_at, status, usage_source, input_tokens, cached_tokens,
    cache_write_tokens, output_tokens, reasoning_source, price_id, input_pico, cached_pico, cache_write_pico,
    output_pico, fee_pico, cost_pico, list_pico, flags
)
SELECT
    'att_' || lpad(n::text, 9, '0'), 'req_' || n, 1, true, 'key_' || n %% 1000, 'key ' || n %% 1000, 'team', '{}',
    'chat_completions', model, 'moonshot', 'main', model, md5(n::text), at, at + interval '9 seconds', 'succeeded',
    CASE WHEN n %% 97 = 0 THEN 'estimated' ELSE 'provider' END, fresh + cached, cached, 0, output, 'none', price_id,
    fresh * input_unit, cached * cached_unit, 0, output * output_unit, 0,
    fresh * input_unit + cached * cached_unit + output * output_unit,
    fresh * input_unit + cached * cached_unit + output * output_unit, '{}'
FROM (
    SELECT
        n, %(first)s::timestamptz + n * (%(seconds)s::float8 / %(rows)s) * interval '1 second' AS at,
        CASE WHEN n %% 7 = 0 THEN %(discounted)s ELSE 'kimi-k2-thinking' END AS model,
        200 + (n * 7919::bigint) %% 9000 AS fresh, 64 * ((n * 104729::bigint) %% 60) AS cached,
        20 + (n * 1299709::bigint) %% 4000 AS output
    FROM generate_series(1, %(rows)s) AS n
) AS calls
JOIN (VALUES {prices}) AS prices (model_name, price_id, input_unit, cached_unit, output_unit) ON model_name = model
ORDER BY n
"""
_READ: Final = """
SELECT
    attempt_id, upstream_request_id, started_at, upstream_model, input_tokens, cached_tokens, output_tokens, cost_pico
FROM ledger ORDER BY started_at, attempt_id
"""


def fill(url: str, rows: int) -> None:
    """One month of attempts, each with tokens of its own."""
    prices = ", ".join(
        f"('{model}', '{price_id}', {units[0]}::bigint, {units[1]}::bigint, {units[2]}::bigint)"
        for model, (price_id, *units) in _MODELS.items()
    )
    with psycopg.connect(url) as db:
        db.execute("SELECT ensure_month(%s)", [MONTH])
        values = {"first": MONTH, "seconds": SECONDS, "rows": rows, "discounted": DISCOUNT_MODEL}
        db.execute(_FILL.replace("{prices}", prices), values)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ANALYZE ledger")


def write_statement(url: str, path: Path, *, rows: int, seed: int) -> dict[tuple[str, str], int]:
    """The statement, and what was planted: by class and request id, what it adds to the statement's total."""
    planted: dict[tuple[str, str], int] = {}
    chance = Random(seed)
    chosen = _chosen(rows, chance)
    with psycopg.connect(url) as db, db.cursor(name="rows") as cursor, path.open("w", encoding="utf-8") as file:
        cursor.itersize = COPY_ROWS
        file.write("Request ID,Time,Model,Prompt Tokens,Cached Tokens,Completion Tokens,Amount (USD)\n")
        for number, row in enumerate(cursor.execute(_READ), start=1):
            file.writelines(_lines(row, chosen.get(number), planted, chance))
    return planted


def _chosen(rows: int, chance: Random) -> dict[int, str]:
    """Which row has which fault: each kind at least once."""
    chosen: dict[int, str] = {}
    for kind, every in EVERY.items():
        for _ in range(max(1, rows // every)):
            number = chance.randint(1, rows)
            while number in chosen or number % 7 == 0:
                number = chance.randint(1, rows)
            chosen[number] = kind
    return chosen


def _lines(row: Any, fault: str | None, planted: dict[tuple[str, str], int], chance: Random) -> Iterator[str]:
    _, request_id, at, model, prompt, cached, output, cost = row
    moment = at.isoformat()
    if model == DISCOUNT_MODEL and moment >= DISCOUNT_SINCE.replace("Z", "+00:00"):
        cost = cost * 3 // 5
    if fault == "missing_there":
        planted[fault, request_id] = -cost
        return
    if fault == "tokens":
        extra = chance.randint(1, 3)
        planted[fault, request_id] = extra * _MODELS[model][3]
        output, cost = output + extra, cost + planted[fault, request_id]
    if fault == "price":
        planted[fault, request_id] = chance.choice((-1, 1)) * chance.randint(STEP, 10**9)
        cost += planted[fault, request_id]
    amount = round(Fraction(cost, STEP))
    if fault == "missing_here":
        planted[fault, f"x{request_id}"] = amount * STEP
        yield _line(f"x{request_id}", moment, model, prompt, cached, output, amount)
    if fault == "duplicate":
        planted[fault, request_id] = amount * STEP
        yield _line(request_id, moment, model, prompt, cached, output, amount)
    yield _line(request_id, moment, model, prompt, cached, output, amount)


def _line(request_id: str, moment: str, model: str, prompt: int, cached: int, output: int, amount: int) -> str:
    return f"{request_id},{moment},{model},{prompt},{cached},{output},{amount // 10**8}.{amount % 10**8:08}\n"


def judge(said: dict[str, Any], planted: dict[tuple[str, str], int]) -> list[str]:
    """What is wrong with the answer: faults that were not found, and findings that were not planted."""
    wrong: list[str] = []
    found: dict[tuple[str, str], Decimal] = {}
    explained = 0
    for each in said["findings"]:
        if each["explained_by"] is not None:
            explained += 1
            continue
        found[each["class"], each["request_id"]] = Decimal(each["difference"])
    for place, pico in planted.items():
        difference = found.pop(place, None)
        if difference is None:
            wrong.append(f"not found: {place}")
        elif abs(difference - Decimal(pico).scaleb(-12)) > Decimal(STEP).scaleb(-12):
            wrong.append(f"of another amount: {place}: {difference} instead of {Decimal(pico).scaleb(-12)}")
    wrong += [f"false: {place}" for place in found]
    factors = [(price["model"], price["factor"], price["lines"]) for price in said["prices"]]
    if factors != [(DISCOUNT_MODEL, "0.6", explained)]:
        wrong.append(f"the discount is told as {factors}, and {explained} findings are explained by it")
    if Decimal(said["residual"]):
        wrong.append(f"{said['residual']} USD are not explained")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    with working_folder() as folder, embedded(folder / "data", settings={"fsync": "off"}) as url:
        migrate(url)
        began = time.monotonic()
        fill(url, asked.rows)
        path = folder / "statement.csv"
        planted = write_statement(url, path, rows=asked.rows, seed=asked.seed)
        size, made = path.stat().st_size / 1e6, time.monotonic() - began
        print(f"{asked.rows:,} rows and {size:,.0f} MB of statement in {made:.0f} s", flush=True)
        said, seconds = _reconciled(url, path, folder)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, cpu = used.ru_maxrss / 1024, used.ru_utime + used.ru_stime
    wrong = judge(said, planted)
    price = said["prices"][0] if said["prices"] else {"text": "no price was found"}
    print(f"planted {len(planted)}, found {len(planted) - sum(line.startswith('not found') for line in wrong)}, "
          f"false {sum(line.startswith('false') for line in wrong)}, residual {said['residual']} USD")  # fmt: skip
    print(price["text"])
    print(f"{seconds:.1f} s, {asked.rows / seconds:,.0f} lines a second; own CPU {cpu:.1f} s, peak {peak:.0f} MiB")
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


def _reconciled(url: str, path: Path, folder: Path) -> tuple[dict[str, Any], float]:
    """What `gateway reconcile` says, and how long it took."""
    environment = {**os.environ, "GATEWAY_DATABASE_URL": url, "GATEWAY_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-m", "gateway", "reconcile", "--provider", "moonshot", "--statement", str(path)]
    began = time.monotonic()
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return json.loads(done.stdout), seconds


if __name__ == "__main__":
    main()
