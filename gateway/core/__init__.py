"""Nouns: pure values and functions; no I/O, clock, chance, logging or async."""
