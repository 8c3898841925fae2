"""Verbs, in the order a request meets them; async over ports, no brand and no framework."""
