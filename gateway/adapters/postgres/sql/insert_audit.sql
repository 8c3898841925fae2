-- The next link of the chain; whoever writes it holds the lock of changes.
INSERT INTO audit_entries (
    entry_id, at, actor, action, target, team, before, after, request_id, previous_hash, hash
)
VALUES (
    %(entry_id)s, %(at)s, %(actor)s, %(action)s, %(target)s, %(team)s, %(before)s, %(after)s, %(request_id)s,
    %(previous_hash)s, %(hash)s
)
