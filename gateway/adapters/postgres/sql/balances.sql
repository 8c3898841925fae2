-- What each journal has posted in each of these windows; a window with no first or no last day is open on that side.
SELECT w.key, p.journal_id, sum(p.posted_pico)::text AS posted_pico, sum(p.rows)::bigint AS rows
FROM unnest(%(keys)s::text[], %(scopes)s::text[], %(first_days)s::date[], %(until_days)s::date[])
    AS w (key, scope, first_day, until_day)
JOIN budget_postings AS p
    ON p.scope = w.scope
    AND p.day >= coalesce(w.first_day, '-infinity')
    AND p.day < coalesce(w.until_day, 'infinity')
GROUP BY w.key, p.journal_id
