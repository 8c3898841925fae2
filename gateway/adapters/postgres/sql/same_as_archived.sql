-- Whether a table has in a period the rows that were read back of its file, no more and no fewer, each the same in every
-- column to the letter. Sums of digests, because nothing has to be sorted for them.
SELECT
    (
        SELECT row(count(*), coalesce(sum(hashtextextended(kept::text, 0)::numeric), 0))
        FROM {kept} AS kept
        WHERE {time} >= %(begins)s AND {time} < %(ends)s
    ) = (
        SELECT row(count(*), coalesce(sum(hashtextextended(back::text, 0)::numeric), 0))
        FROM {read} AS back
    ) AS is_same
