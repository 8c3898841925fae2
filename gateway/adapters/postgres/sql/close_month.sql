-- The month is closed. Whoever runs this holds the lock of closing, alone.
INSERT INTO ledger_closings (
    month, closed_at, closed_by, reason, organisation_name, rows, cost_pico, ledger_sha256, focus_sha256, days
)
VALUES (
    %(month)s, %(closed_at)s, %(closed_by)s, %(reason)s, %(organisation_name)s, %(rows)s, %(cost_pico)s,
    %(ledger_sha256)s, %(focus_sha256)s, %(days)s
)
