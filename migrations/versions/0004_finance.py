"""Spend is rolled up by quarter hour, day and month; months are closed, corrected and archived.

Roll-ups are narrow: `spend_groups` has who and what, once; `spend_rollup` has the sums of a group in a bucket, by
grain. A group of a quarter hour also has status, source of usage, whether it restates a closed month, and what a token
written to a cache cost, so that every class of tokens times one price is its cost, in any sum of groups. Groups of days
and months are what people look at: they are of who, what and price alone, and have what failed, what callers left, what
is estimated and what is restated in sums of their own. That makes them a quarter as many.

A database with many ledger rows takes minutes here: everything is summed again.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# `restates` is when that happened which a row of an open month puts right in a closed one.
LEDGER = """
ALTER TABLE ledger ADD COLUMN correction_id text, ADD COLUMN restates timestamptz;
CREATE INDEX ledger_corrects ON ledger (corrects) WHERE corrects IS NOT NULL;

CREATE TABLE corrections (
    correction_id text PRIMARY KEY,
    kind          text NOT NULL CHECK (kind IN ('reprice', 'restatement', 'refund', 'reconciliation')),
    actor         text NOT NULL,
    reason        text NOT NULL CHECK (reason <> ''),
    made_at       timestamptz NOT NULL,
    facts         jsonb NOT NULL
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON corrections
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON corrections
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
"""

# A month is closed once, in order, and stays so. Checksums are of what it exports; `days` has them day by day, so that
# a difference is found soon.
CLOSINGS = """
CREATE TABLE ledger_closings (
    month             date PRIMARY KEY CHECK (month = date_trunc('month', month)),
    closed_at         timestamptz NOT NULL,
    closed_by         text NOT NULL,
    reason            text NOT NULL,
    organisation_name text NOT NULL,
    rows              bigint NOT NULL,
    cost_pico         numeric NOT NULL,
    ledger_sha256     bytea NOT NULL CHECK (length(ledger_sha256) = 32),
    focus_sha256      bytea NOT NULL CHECK (length(focus_sha256) = 32),
    days              jsonb NOT NULL DEFAULT '{}',
    archived_at       timestamptz,
    archive           jsonb,
    CHECK ((archived_at IS NULL) = (archive IS NULL))
);

CREATE FUNCTION closed_until() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce((max(month) + interval '1 month') AT TIME ZONE 'UTC', '-infinity') FROM ledger_closings
$$;

CREATE FUNCTION archived_until() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce((max(month) + interval '1 month') AT TIME ZONE 'UTC', '-infinity') FROM ledger_closings
    WHERE archived_at IS NOT NULL
$$;

-- Stands on the partitions of closed months.
CREATE FUNCTION refuse_closed_month() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the month of % is closed: write a correction into an open one', NEW.started_at
        USING ERRCODE = 'restrict_violation';
END $$;

-- Attempts that arrived after their month was closed, and when they count instead: each once, however often it arrives.
CREATE TABLE late_attempts (
    attempt_id  text PRIMARY KEY,
    started_at  timestamptz NOT NULL,
    counted_at  timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
"""

ORGANISATION = """
ALTER TABLE organisation
    ADD COLUMN organisation_id text NOT NULL DEFAULT 'org_' || replace(gen_random_uuid()::text, '-', '');
"""

# What providers said was left and used, in their own unit, when somebody asked.
BALANCES = """
CREATE TABLE provider_balances (
    provider  text NOT NULL,
    account   text NOT NULL,
    at        timestamptz NOT NULL,
    available numeric NOT NULL,
    used      numeric,
    unit      text NOT NULL,
    PRIMARY KEY (provider, account, at)
);
"""

# Day and month rows are written again with every batch: room in their pages keeps that cheap.
ROLLUP = """
CREATE TABLE spend_groups (
    group_id         uuid PRIMARY KEY,
    key_id           text NOT NULL,
    key_name         text NOT NULL,
    team             text,
    tags             jsonb NOT NULL,
    model            text NOT NULL,
    provider         text NOT NULL,
    account          text NOT NULL,
    price_id         text NOT NULL,
    status           text,
    usage_source     text,
    is_restated      boolean,
    cache_write_unit bigint,
    CHECK (num_nulls(status, usage_source, is_restated) IN (0, 3))
);

-- A record as text is told from any other: it quotes, and what is null is not what is empty.
CREATE FUNCTION spend_group_id(
    key_id text, key_name text, team text, tags jsonb, model text, provider text, account text, price_id text,
    status text, usage_source text, is_restated boolean, cache_write_unit bigint
) RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT encode(substring(sha256(convert_to(ROW(
        key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, is_restated,
        cache_write_unit
    )::text, 'UTF8')) FROM 1 FOR 16), 'hex')::uuid
$$;

-- What a token of these cost, where they cost one price.
CREATE FUNCTION cache_write_unit(tokens bigint, pico bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN tokens <> 0 AND pico % tokens = 0 THEN pico / tokens END
$$;

CREATE TABLE spend_rollup (
    grain              text NOT NULL,
    bucket             timestamptz NOT NULL,
    group_id           uuid NOT NULL,
    requests           bigint NOT NULL,
    attempts           bigint NOT NULL,
    failed_attempts    bigint NOT NULL,
    aborted_attempts   bigint NOT NULL,
    input_tokens       bigint NOT NULL,
    cached_tokens      bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    output_tokens      bigint NOT NULL,
    reasoning_tokens   bigint NOT NULL,
    input_pico         numeric NOT NULL,
    cached_pico        numeric NOT NULL,
    cache_write_pico   numeric NOT NULL,
    output_pico        numeric NOT NULL,
    fee_pico           numeric NOT NULL,
    cost_pico          numeric NOT NULL,
    list_pico          numeric NOT NULL,
    failed_pico        numeric NOT NULL,
    aborted_pico       numeric NOT NULL,
    estimated_pico     numeric NOT NULL,
    restated_pico      numeric NOT NULL,
    PRIMARY KEY (grain, bucket, group_id)
) PARTITION BY LIST (grain);
CREATE TABLE spend_rollup_quarter PARTITION OF spend_rollup FOR VALUES IN ('quarter') WITH (fillfactor = 80);
CREATE TABLE spend_rollup_day PARTITION OF spend_rollup FOR VALUES IN ('day') WITH (fillfactor = 60);
CREATE TABLE spend_rollup_month PARTITION OF spend_rollup FOR VALUES IN ('month') WITH (fillfactor = 50);
"""

_WHO = "key_id, key_name, team, tags, model, provider, account, price_id"
_GROUP = f"{_WHO}, status, usage_source, is_restated, cache_write_unit"
_WHOLE = f"{_WHO}, NULL, NULL, NULL, NULL"
_COUNTS = (
    "requests, attempts, failed_attempts, aborted_attempts, input_tokens, cached_tokens, cache_write_tokens, "
    "output_tokens, reasoning_tokens"
)
_MEASURES = (
    f"{_COUNTS}, input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico, list_pico, failed_pico, "
    "aborted_pico, estimated_pico, restated_pico"
)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in _MEASURES.split(", "))

# What left the ledger before (a detached month) has its old sums only: one price that nobody knows, all of its cost in
# the fee.
REFILL = f"""
CREATE TEMPORARY TABLE refilled ON COMMIT DROP AS
WITH facts AS (
    SELECT
        date_bin('15 minutes', started_at, 'epoch') AS bucket,
        key_id, key_name, team, tags, model, provider, account, price_id, status, usage_source, false AS is_restated,
        cache_write_unit(cache_write_tokens, cache_write_pico) AS cache_write_unit,
        (is_final AND corrects IS NULL)::int AS requests, (corrects IS NULL)::int AS attempts,
        (corrects IS NULL AND status IN ('failed', 'abandoned'))::int AS failed_attempts,
        (corrects IS NULL AND status = 'aborted')::int AS aborted_attempts,
        input_tokens, coalesce(cached_tokens, 0) AS cached_tokens, cache_write_tokens, output_tokens,
        coalesce(reasoning_tokens, 0) AS reasoning_tokens,
        input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, cost_pico, list_pico,
        CASE WHEN status IN ('failed', 'abandoned') THEN cost_pico ELSE 0 END AS failed_pico,
        CASE status WHEN 'aborted' THEN cost_pico ELSE 0 END AS aborted_pico,
        CASE usage_source WHEN 'estimated' THEN cost_pico ELSE 0 END AS estimated_pico,
        0 AS restated_pico
    FROM ledger
    UNION ALL
    SELECT
        bucket, key_id, key_name, team, tags, model, provider, account, '', 'succeeded', 'provider', false, NULL,
        requests, attempts, failed_attempts, 0, input_tokens, cached_tokens, cache_write_tokens, output_tokens,
        reasoning_tokens, 0, 0, 0, 0, cost_pico, cost_pico, cost_pico, failed_cost_pico, 0, estimated_cost_pico, 0
    FROM old_rollup
    WHERE NOT EXISTS (
        SELECT FROM ledger
        WHERE started_at >= date_trunc('month', bucket, 'UTC')
          AND started_at < (date_trunc('month', bucket, 'UTC') AT TIME ZONE 'UTC' + interval '1 month')
              AT TIME ZONE 'UTC'
    )
)
SELECT spend_group_id({_GROUP}) AS group_id, spend_group_id({_WHOLE}) AS whole_id, *
FROM (SELECT bucket, {_GROUP}, {_SUMS} FROM facts GROUP BY bucket, {_GROUP}) AS summed;

INSERT INTO spend_groups (group_id, {_GROUP})
    SELECT DISTINCT ON (group_id) group_id, {_GROUP} FROM refilled
    UNION ALL
    SELECT DISTINCT ON (whole_id) whole_id, {_WHOLE} FROM refilled;
INSERT INTO spend_rollup (grain, bucket, group_id, {_MEASURES})
    SELECT 'quarter', bucket, group_id, {_MEASURES} FROM refilled
    UNION ALL
    SELECT 'day', date_trunc('day', bucket, 'UTC') AS day, whole_id, {_SUMS} FROM refilled GROUP BY day, whole_id
    UNION ALL
    SELECT 'month', date_trunc('month', bucket, 'UTC') AS month, whole_id, {_SUMS} FROM refilled
    GROUP BY month, whole_id;
DROP TABLE refilled;
"""

OLD_ROLLUP = """
CREATE TABLE {table} (
    bucket              timestamptz NOT NULL,
    group_digest        bytea NOT NULL,
    key_id              text NOT NULL,
    key_name            text NOT NULL,
    team                text,
    model               text NOT NULL,
    provider            text NOT NULL,
    account             text NOT NULL,
    tags                jsonb NOT NULL,
    requests            bigint NOT NULL,
    attempts            bigint NOT NULL,
    failed_attempts     bigint NOT NULL,
    input_tokens        numeric NOT NULL,
    cached_tokens       numeric NOT NULL,
    cache_write_tokens  numeric NOT NULL,
    output_tokens       numeric NOT NULL,
    reasoning_tokens    numeric NOT NULL,
    cost_pico           numeric NOT NULL,
    estimated_cost_pico numeric NOT NULL,
    failed_cost_pico    numeric NOT NULL,
    PRIMARY KEY (bucket, group_digest)
);
INSERT INTO {table}
    SELECT
        bucket,
        sha256(convert_to(jsonb_build_array(key_id, key_name, team, model, provider, account, tags)::text, 'UTF8')),
        key_id, key_name, team, model, provider, account, tags, sum(requests), sum(attempts), sum(failed_attempts),
        sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens), sum(reasoning_tokens),
        sum(cost_pico), sum(estimated_pico), sum(failed_pico)
    FROM spend_rollup JOIN spend_groups USING (group_id)
    WHERE grain = 'quarter'
    GROUP BY 1, 2, key_id, key_name, team, model, provider, account, tags;
"""

DOWN = """
DROP TABLE spend_rollup, spend_groups;
ALTER TABLE old_rollup RENAME TO spend_rollup;
ALTER INDEX old_rollup_pkey RENAME TO spend_rollup_pkey;
DROP FUNCTION spend_group_id, cache_write_unit;
DROP TABLE provider_balances, late_attempts;
DROP FUNCTION closed_until, archived_until;
DROP FUNCTION refuse_closed_month CASCADE;
DROP TABLE ledger_closings, corrections;
ALTER TABLE organisation DROP COLUMN organisation_id;
DROP INDEX ledger_corrects;
ALTER TABLE ledger DROP COLUMN correction_id, DROP COLUMN restates;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("ALTER TABLE spend_rollup RENAME TO old_rollup")
    op.execute("ALTER INDEX spend_rollup_pkey RENAME TO old_rollup_pkey")
    for statements in (LEDGER, CLOSINGS, ORGANISATION, BALANCES, ROLLUP, REFILL):
        op.execute(statements)
    op.execute("DROP TABLE old_rollup")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(OLD_ROLLUP.format(table="old_rollup"))
    op.execute(DOWN)
