-- Both sides of a reconciliation, for as long as its transaction.
CREATE TEMPORARY TABLE statement_lines (
    number             bigint NOT NULL,
    request_id         text,
    at                 timestamptz,
    model              text,
    input_tokens       bigint,
    cached_tokens      bigint,
    cache_write_tokens bigint,
    output_tokens      bigint,
    amount_pico        bigint NOT NULL
) ON COMMIT DROP;

-- What a line is booked as where no attempt stands for it: the same in every statement that has it.
CREATE TEMPORARY VIEW line_names AS
SELECT
    number,
    coalesce(request_id, 'line-' || left(digest, 16) || '-' || row_number() OVER (PARTITION BY digest ORDER BY number))
        AS line_name
FROM (
    SELECT
        number, request_id,
        md5(ROW(extract(epoch FROM at), model, input_tokens, cached_tokens, output_tokens, request_id)::text)
            AS digest
    FROM statement_lines
) AS digested;

-- Attempts as they count now: each with all that corrects it, whenever that was written. What was booked from an earlier
-- statement without an attempt stands here as one.
CREATE TEMPORARY TABLE ours (
    attempt_id         text NOT NULL,
    request_id         text,
    account            text NOT NULL,
    model              text NOT NULL,
    upstream_model     text NOT NULL,
    started_at         timestamptz NOT NULL,
    finished_at        timestamptz NOT NULL,
    status             text NOT NULL,
    usage_source       text NOT NULL,
    price_id           text NOT NULL,
    input_tokens       bigint NOT NULL,
    cached_tokens      bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    output_tokens      bigint NOT NULL,
    cost_pico          bigint NOT NULL,
    is_unattributed    boolean NOT NULL,
    revision           bigint NOT NULL,
    is_within          boolean NOT NULL
) ON COMMIT DROP;

CREATE TEMPORARY TABLE pairs (
    number     bigint NOT NULL,
    attempt_id text NOT NULL,
    matched_by text NOT NULL
) ON COMMIT DROP;

CREATE TEMPORARY TABLE compared (
    class                     text NOT NULL,
    line_name                 text,
    number                    bigint,
    attempt_id                text,
    matched_by                text,
    request_id                text,
    account                   text,
    model                     text,
    at                        timestamptz,
    started_at                timestamptz,
    status                    text,
    usage_source              text,
    price_id                  text,
    is_unattributed           boolean,
    revision                  bigint,
    is_ours_within            boolean,
    their_input_tokens        bigint,
    their_cached_tokens       bigint,
    their_cache_write_tokens  bigint,
    their_output_tokens       bigint,
    input_tokens              bigint,
    cached_tokens             bigint,
    cache_write_tokens        bigint,
    output_tokens             bigint,
    amount_pico               bigint,
    cost_pico                 bigint
) ON COMMIT DROP;
