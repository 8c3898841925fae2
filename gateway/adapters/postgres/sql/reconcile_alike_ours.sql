-- Attempts that may be such a line's: any for one without a request id, those without an id for one that has one.
SELECT
    md5(concat_ws('|', lower(upstream_model), input_tokens, output_tokens, {cached})) COLLATE "C" AS likeness,
    started_at - %(early)s::interval AS earliest,
    least(started_at + %(lag)s::interval, finished_at + %(late)s::interval) AS latest,
    attempt_id
FROM ours
WHERE NOT is_unattributed
  AND usage_source <> 'none'
  AND (%(is_nameless)s OR request_id IS NULL)
  AND NOT EXISTS (SELECT FROM pairs WHERE pairs.attempt_id = ours.attempt_id)
ORDER BY likeness, earliest, attempt_id
