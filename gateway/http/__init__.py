"""The face: Litestar routes, the relay that owns a connection, the admin API."""
