"""Durable state: tables, ledger shipping, keys, reports."""
