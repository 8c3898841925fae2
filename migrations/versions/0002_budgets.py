"""Money is promised by budgets and counted by day: what a scope has posted on a day, journal by journal.

A budget belongs to a scope (`key:ID`, `team:NAME`, `organisation`) and a period; a scope has at most one of each
period. Postings are kept for every scope, with a budget or without, so that a budget that is set today knows what was
spent yesterday. Changes of keys, teams and budgets are written to a chain of audit entries that nobody can edit unseen.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Days are counted in the organisation's time zone by whoever ships the ledger: a zone that is none must not get in.
ORGANISATION = """
CREATE TABLE organisation (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    name      text NOT NULL DEFAULT 'organisation' CHECK (name <> ''),
    time_zone text NOT NULL DEFAULT 'UTC' CHECK (timestamptz '2000-01-01 00:00Z' AT TIME ZONE time_zone IS NOT NULL)
);
INSERT INTO organisation DEFAULT VALUES;
CREATE TRIGGER organisation_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON organisation
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();
"""

# What a team's keys share (rpm, tpm, concurrency), what each of them has unless it says otherwise (key_default_…), and
# what none of them may be granted more of (key_max_…). Models and providers are the most that its keys may use.
TEAMS = """
ALTER TABLE teams
    ADD COLUMN models text[],
    ADD COLUMN providers text[],
    ADD COLUMN rpm bigint CHECK (rpm > 0),
    ADD COLUMN tpm bigint CHECK (tpm > 0),
    ADD COLUMN concurrency bigint CHECK (concurrency > 0),
    ADD COLUMN key_default_rpm bigint CHECK (key_default_rpm > 0),
    ADD COLUMN key_default_tpm bigint CHECK (key_default_tpm > 0),
    ADD COLUMN key_default_concurrency bigint CHECK (key_default_concurrency > 0),
    ADD COLUMN key_max_rpm bigint CHECK (key_max_rpm > 0),
    ADD COLUMN key_max_tpm bigint CHECK (key_max_tpm > 0),
    ADD COLUMN key_max_concurrency bigint CHECK (key_max_concurrency > 0),
    ADD COLUMN tags jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tags) = 'object');
"""

BUDGETS = """
CREATE TABLE budgets (
    budget_id  text PRIMARY KEY DEFAULT 'budget_' || replace(gen_random_uuid()::text, '-', ''),
    scope      text NOT NULL CHECK (scope = 'organisation' OR scope ~ '^(key|team):.'),
    period     text NOT NULL CHECK (period IN ('day', 'week', 'month', 'total')),
    limit_pico numeric NOT NULL CHECK (limit_pico >= 0 AND limit_pico = trunc(limit_pico)),
    mode       text NOT NULL DEFAULT 'strict' CHECK (mode IN ('strict', 'clamp', 'soft')),
    on_outage  text NOT NULL DEFAULT 'refuse' CHECK (on_outage IN ('refuse', 'admit')),
    alert_at   integer[] NOT NULL DEFAULT '{80,100}',
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (scope, period)
);
CREATE INDEX budgets_changed ON budgets (changed_at);
CREATE FUNCTION note_budget_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER budget_changed BEFORE UPDATE ON budgets FOR EACH ROW EXECUTE FUNCTION note_budget_change();
CREATE TRIGGER budgets_change AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON budgets
    FOR EACH STATEMENT EXECUTE FUNCTION count_key_change();

INSERT INTO budgets (scope, period, limit_pico)
    SELECT 'key:' || key_id, budget_period, budget_pico FROM api_keys WHERE budget_pico IS NOT NULL
    UNION ALL SELECT 'team:' || name, budget_period, budget_pico FROM teams WHERE budget_pico IS NOT NULL;
ALTER TABLE api_keys DROP COLUMN budget_pico, DROP COLUMN budget_period;
ALTER TABLE teams DROP COLUMN budget_pico, DROP COLUMN budget_period;
"""

# `moved_at` is the clock's, not the transaction's: whoever looks for what has moved lately looks back for longer than
# a transaction may take.
POSTINGS = """
ALTER TABLE ledger ADD COLUMN admitted_at timestamptz, ADD COLUMN held_pico bigint CHECK (held_pico >= 0);

CREATE TABLE budget_postings (
    scope       text NOT NULL,
    day         date NOT NULL,
    journal_id  text NOT NULL,
    posted_pico numeric NOT NULL,
    rows        bigint NOT NULL,
    moved_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, day, journal_id)
);
CREATE INDEX budget_postings_moved ON budget_postings (moved_at);

INSERT INTO budget_postings (scope, day, journal_id, posted_pico, rows)
    SELECT scope, (started_at AT TIME ZONE 'UTC')::date, '', sum(cost_pico), count(*)
    FROM ledger, LATERAL (VALUES ('key:' || key_id), ('team:' || team), ('organisation')) AS scopes (scope)
    WHERE scope IS NOT NULL
    GROUP BY 1, 2;
"""

# An alert is raised once for each share of a budget in a window, by whoever sees it first, and told until it arrives or
# a day is over. It keeps what it says: the budget may be changed or gone by then. A limit that was raised since is
# another promise, so its shares may be passed again. `next_try_at` is also the lease of whoever is telling it.
ALERTS = """
CREATE TABLE budget_alerts (
    alert_id     text PRIMARY KEY DEFAULT 'alert_' || replace(gen_random_uuid()::text, '-', ''),
    budget_id    text NOT NULL,
    scope        text NOT NULL,
    name         text NOT NULL,
    period       text NOT NULL,
    mode         text NOT NULL,
    limit_pico   numeric NOT NULL,
    first_day    date,
    time_zone    text NOT NULL,
    share        integer NOT NULL CHECK (share > 0),
    spent_pico   numeric NOT NULL,
    raised_at    timestamptz NOT NULL DEFAULT now(),
    tries        integer NOT NULL DEFAULT 0,
    next_try_at  timestamptz NOT NULL DEFAULT now(),
    last_error   text,
    delivered_at timestamptz,
    delivered_by text,
    given_up_at  timestamptz,
    CHECK ((delivered_at IS NULL) = (delivered_by IS NULL))
);
CREATE UNIQUE INDEX budget_alerts_once
    ON budget_alerts (budget_id, coalesce(first_day, '-infinity'), share, limit_pico);
CREATE INDEX budget_alerts_open ON budget_alerts (next_try_at) WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX budget_alerts_raised ON budget_alerts (raised_at, alert_id);
"""

# Each entry's hash covers its content and the hash before it: an entry that was changed or removed breaks the chain.
AUDIT = """
CREATE TABLE audit_entries (
    entry_id      bigint PRIMARY KEY,
    at            timestamptz NOT NULL,
    actor         text NOT NULL,
    action        text NOT NULL,
    target        text NOT NULL,
    team          text,
    before        jsonb,
    after         jsonb,
    request_id    text,
    previous_hash bytea NOT NULL,
    hash          bytea NOT NULL UNIQUE
);
CREATE INDEX audit_entries_team ON audit_entries (team, entry_id);
CREATE INDEX audit_entries_target ON audit_entries (target, entry_id);
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are never changed (% refused)', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
"""

# Shared state in Redis belongs to a generation; an emptied Redis has none, and gets the next one. A worker that was
# seen lately is waited for before a generation admits anybody.
SHARED_STATE = """
CREATE TABLE shared_state (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation bigint NOT NULL
);
INSERT INTO shared_state (generation) VALUES (0);

CREATE TABLE workers (
    worker_id  text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
);
"""

DOWN = """
DROP TABLE workers, shared_state, audit_entries, budget_alerts, budget_postings;
DROP FUNCTION refuse_audit_change;
ALTER TABLE ledger DROP COLUMN admitted_at, DROP COLUMN held_pico;
ALTER TABLE api_keys
    ADD COLUMN budget_pico numeric CHECK (budget_pico >= 0 AND budget_pico = trunc(budget_pico)),
    ADD COLUMN budget_period text CHECK (budget_period IN ('day', 'week', 'month', 'total')),
    ADD CHECK ((budget_pico IS NULL) = (budget_period IS NULL));
ALTER TABLE teams
    ADD COLUMN budget_pico numeric CHECK (budget_pico >= 0 AND budget_pico = trunc(budget_pico)),
    ADD COLUMN budget_period text CHECK (budget_period IN ('day', 'week', 'month', 'total')),
    ADD CHECK ((budget_pico IS NULL) = (budget_period IS NULL));
UPDATE api_keys k SET budget_pico = b.limit_pico, budget_period = b.period
    FROM (SELECT DISTINCT ON (scope) * FROM budgets ORDER BY scope, created_at) b WHERE b.scope = 'key:' || k.key_id;
UPDATE teams t SET budget_pico = b.limit_pico, budget_period = b.period
    FROM (SELECT DISTINCT ON (scope) * FROM budgets ORDER BY scope, created_at) b WHERE b.scope = 'team:' || t.name;
ALTER TABLE teams
    DROP COLUMN models, DROP COLUMN providers, DROP COLUMN rpm, DROP COLUMN tpm, DROP COLUMN concurrency,
    DROP COLUMN key_default_rpm, DROP COLUMN key_default_tpm, DROP COLUMN key_default_concurrency,
    DROP COLUMN key_max_rpm, DROP COLUMN key_max_tpm, DROP COLUMN key_max_concurrency, DROP COLUMN tags;
DROP TABLE budgets, organisation;
DROP FUNCTION note_budget_change;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statements in (ORGANISATION, TEAMS, BUDGETS, POSTINGS, ALERTS, AUDIT, SHARED_STATE):
        op.execute(statements)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(DOWN)
