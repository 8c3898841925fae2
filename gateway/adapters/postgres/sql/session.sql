-- Before a connection adds entries, and again does no harm: no statement waits for ever, and COPY has a table to put a
-- batch in before the ledger takes what is new of it. The table is empty after a commit and gone with the session.
SET statement_timeout = '60s';
SET idle_in_transaction_session_timeout = '60s';
CREATE TEMPORARY TABLE IF NOT EXISTS ledger_staging (LIKE ledger) ON COMMIT DELETE ROWS;
ALTER TABLE ledger_staging DROP COLUMN IF EXISTS recorded_at;
