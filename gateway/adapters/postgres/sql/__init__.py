"""Every statement longer than a line is a file beside this one, read once, by its name."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def statement(name: str) -> bytes:
    """The text of ``<name>.sql``; bytes, because that is what psycopg takes from a file."""
    return resources.files(__name__).joinpath(f"{name}.sql").read_bytes()
