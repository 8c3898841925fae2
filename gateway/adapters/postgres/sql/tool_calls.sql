-- Checked tool-call answers since a moment, by what their rows are flagged with.
SELECT provider, model, flags, count(*) AS answers
FROM ledger
WHERE started_at >= %(since)s AND %(checked)s = ANY (flags) AND corrects IS NULL
GROUP BY provider, model, flags
ORDER BY provider, model
