-- How many rows of a period are not in both the table and what was read back of its file, in every column.
SELECT
    (SELECT count(*) FROM {kept} WHERE {time} >= %(begins)s AND {time} < %(ends)s)
    - (SELECT count(*) FROM {read}) AS missing,
    (SELECT count(*) FROM (
        SELECT * FROM {kept} WHERE {time} >= %(begins)s AND {time} < %(ends)s
        EXCEPT ALL
        SELECT * FROM {read}
    ) AS rest) AS unlike
