-- Until the end of the transaction `ledger` and `exchanges` are what is in the database and what is brought here out of
-- archived months: a view of the session's own hides the table, and no other statement has to know of archives. Plans
-- that were made for statements before are made again.
CREATE TEMPORARY TABLE archived_ledger (LIKE ledger INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE TEMPORARY TABLE archived_exchanges (LIKE exchanges INCLUDING DEFAULTS) ON COMMIT DROP;
CREATE INDEX ON archived_ledger (request_id);
CREATE INDEX ON archived_exchanges (request_id);
CREATE TEMPORARY VIEW ledger AS SELECT * FROM ledger UNION ALL SELECT * FROM archived_ledger;
CREATE TEMPORARY VIEW exchanges AS SELECT * FROM exchanges UNION ALL SELECT * FROM archived_exchanges;
DISCARD PLANS;
