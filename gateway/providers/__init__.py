"""Upstream wire dialects, pure; every file has the same functions in the same order."""
