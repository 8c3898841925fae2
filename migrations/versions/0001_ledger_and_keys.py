"""The ledger is written once and by month; everything that is summed can be summed again from its rows.

Money is a bigint of pico-dollars, which holds 9.2 million dollars per attempt; sums are numeric, which never overflow.

Whoever has to change or remove ledger rows does so in a transaction that begins with
`SET LOCAL gateway.maintenance = 'on'`; a whole month leaves with `ALTER TABLE ledger DETACH PARTITION ledger_2025_11`.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

KEYS = """
CREATE TABLE teams (
    name          text PRIMARY KEY CHECK (name <> ''),
    budget_pico   numeric CHECK (budget_pico >= 0 AND budget_pico = trunc(budget_pico)),
    budget_period text CHECK (budget_period IN ('day', 'week', 'month', 'total')),
    created_at    timestamptz NOT NULL,
    CHECK ((budget_pico IS NULL) = (budget_period IS NULL))
);

CREATE TABLE api_keys (
    key_id        text PRIMARY KEY,
    name          text NOT NULL CHECK (name <> ''),
    team          text REFERENCES teams (name),
    role          text NOT NULL CHECK (role IN ('inference', 'finance', 'admin')),
    models        text[],
    providers     text[],
    rpm           bigint CHECK (rpm > 0),
    tpm           bigint CHECK (tpm > 0),
    concurrency   bigint CHECK (concurrency > 0),
    budget_pico   numeric CHECK (budget_pico >= 0 AND budget_pico = trunc(budget_pico)),
    budget_period text CHECK (budget_period IN ('day', 'week', 'month', 'total')),
    tags          jsonb NOT NULL CHECK (jsonb_typeof(tags) = 'object'),
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    revoked_at    timestamptz,
    CHECK ((budget_pico IS NULL) = (budget_period IS NULL))
);
CREATE INDEX api_keys_team ON api_keys (team);

-- A key has one secret, and a second one during the grace of a rotation.
CREATE TABLE api_key_secrets (
    digest     bytea PRIMARY KEY CHECK (length(digest) = 32),
    key_id     text NOT NULL REFERENCES api_keys (key_id),
    hint       text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz
);
CREATE INDEX api_key_secrets_key ON api_key_secrets (key_id);

-- Workers look at this number twice a second and forget what they know of keys when it has moved.
CREATE TABLE key_changes (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL
);
INSERT INTO key_changes (version) VALUES (1);

CREATE FUNCTION count_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE key_changes SET version = version + 1;
    RETURN NULL;
END $$;

CREATE TRIGGER teams_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON teams
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();
CREATE TRIGGER api_keys_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();
CREATE TRIGGER api_key_secrets_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON api_key_secrets
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();
"""

# The primary key leads with the time: it serves reports by period, and rows arrive nearly in its order. Every number
# is a bigint, because a binary COPY cuts a number that is too large for an integer without a word.
LEDGER = """
CREATE TABLE ledger (
    attempt_id          text NOT NULL,
    request_id          text NOT NULL,
    attempt             bigint NOT NULL,
    is_final            boolean NOT NULL,
    key_id              text NOT NULL,
    key_name            text NOT NULL,
    team                text,
    tags                jsonb NOT NULL CHECK (jsonb_typeof(tags) = 'object'),
    surface             text NOT NULL,
    model               text NOT NULL,
    provider            text NOT NULL,
    account             text NOT NULL,
    upstream_model      text NOT NULL,
    served_model        text,
    upstream_request_id text,
    started_at          timestamptz NOT NULL,
    finished_at         timestamptz NOT NULL,
    ttft_ms             bigint,
    status              text NOT NULL CHECK (status IN ('succeeded', 'failed', 'aborted', 'abandoned')),
    http_status         bigint,
    error_type          text,
    usage_source        text NOT NULL CHECK (usage_source IN ('provider', 'estimated', 'none')),
    input_tokens        bigint NOT NULL,
    cached_tokens       bigint,
    cache_write_tokens  bigint NOT NULL,
    output_tokens       bigint NOT NULL,
    reasoning_tokens    bigint,
    reasoning_source    text NOT NULL CHECK (reasoning_source IN ('provider', 'estimated', 'none')),
    price_id            text NOT NULL,
    input_pico          bigint NOT NULL,
    cached_pico         bigint NOT NULL,
    cache_write_pico    bigint NOT NULL,
    output_pico         bigint NOT NULL,
    fee_pico            bigint NOT NULL,
    cost_pico           bigint NOT NULL,
    list_pico           bigint NOT NULL,
    flags               text[] NOT NULL,
    corrects            text,
    recorded_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (started_at, attempt_id),
    CONSTRAINT cost_is_the_sum_of_its_parts CHECK (
        cost_pico = input_pico + cached_pico + cache_write_pico + output_pico + fee_pico
    ),
    CONSTRAINT what_is_not_billed_costs_nothing CHECK (usage_source <> 'none' OR cost_pico = 0),
    CONSTRAINT only_a_correction_is_negative CHECK (
        corrects IS NOT NULL
        OR (least(input_pico, cached_pico, cache_write_pico, output_pico, fee_pico, list_pico) >= 0
            AND least(input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens) >= 0)
    )
) PARTITION BY RANGE (started_at);
CREATE INDEX ledger_request ON ledger (request_id);
CREATE INDEX ledger_key ON ledger (key_id, started_at);

CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('gateway.maintenance', true) = 'on' THEN
        RETURN CASE TG_OP WHEN 'UPDATE' THEN NEW ELSE OLD END;
    END IF;
    RAISE EXCEPTION 'ledger rows are never changed: write a correction (% refused)', TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'See docs/ledger.md about gateway.maintenance.';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change();

-- What was decided for a request, and why.
CREATE TABLE exchanges (
    request_id text NOT NULL,
    made_at    timestamptz NOT NULL,
    key_id     text NOT NULL,
    plan       jsonb NOT NULL,
    PRIMARY KEY (request_id, made_at)
) PARTITION BY RANGE (made_at);
"""

# ATTACH, unlike CREATE … PARTITION OF, lets readers and writers of the parent go on.
PARTITIONS = """
CREATE FUNCTION ensure_month(moment timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    begins timestamptz := date_trunc('month', moment, 'UTC');
    ends   timestamptz := (begins AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    suffix text := to_char(begins AT TIME ZONE 'UTC', 'YYYY_MM');
    here   oid := current_schema::regnamespace;
    parent text;
    child  text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['ledger', 'exchanges'] LOOP
        child := parent || '_' || suffix;
        CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = child AND relnamespace = here);
        PERFORM pg_advisory_xact_lock(hashtextextended('gateway.partitions', 0));
        -- Not to_regclass: it would answer from this session's cache, which has not heard of the table made meanwhile.
        CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = child AND relnamespace = here);
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
        IF parent = 'ledger' THEN
            EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I '
                           'FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()', child);
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child, begins, ends);
    END LOOP;
END $$;

-- The month of that moment and the two that follow.
CREATE FUNCTION ensure_months_ahead(moment timestamptz) RETURNS void LANGUAGE sql AS $$
    SELECT ensure_month((moment AT TIME ZONE 'UTC' + months * interval '1 month') AT TIME ZONE 'UTC')
    FROM generate_series(0, 2) AS months;
$$;

SELECT ensure_months_ahead(now());
"""

# `group_digest` stands for the seven columns: tags may be longer than an index entry, and a team may be NULL.
ROLLUP = """
CREATE TABLE spend_rollup (
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
"""

JOURNAL = """
CREATE TABLE journal_offsets (
    journal_id  text PRIMARY KEY,
    segment     integer NOT NULL CHECK (segment >= 0),
    byte_offset bigint NOT NULL CHECK (byte_offset >= 0),
    shipped_at  timestamptz NOT NULL DEFAULT now()
);

-- Records that the ledger refused, whole, with the reason. Money may be in here: nothing but a person empties it.
CREATE TABLE ledger_dead_letters (
    journal_id   text NOT NULL,
    segment      integer NOT NULL,
    byte_offset  bigint NOT NULL,
    payload      bytea NOT NULL,
    reason       text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (journal_id, segment, byte_offset)
);
"""

DOWN = """
DROP TABLE ledger_dead_letters, journal_offsets, spend_rollup, exchanges, ledger, api_key_secrets, api_keys, teams,
    key_changes;
DROP FUNCTION ensure_months_ahead, ensure_month, refuse_ledger_change, count_key_change;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statements in (KEYS, LEDGER, PARTITIONS, ROLLUP, JOURNAL):
        op.execute(statements)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(DOWN)
