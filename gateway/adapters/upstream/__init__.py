"""The only place that imports the hot path's HTTP client."""
