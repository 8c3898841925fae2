"""Every script in Redis is a file beside this one, preceded by what it shares with others, and known by its digest."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

_NEEDS: Final = {
    "take": ("common", "minutes"),
    "tell": ("common", "minutes"),
    "renew": ("common",),
    "sweep": ("common",),
    "enter": ("common",),
    "finish": ("common",),
    "found": ("common",),
    "open": ("common",),
    "read": ("common",),
}


class Script(NamedTuple):
    """One script: its text, and the digest by which the server calls it."""

    text: str
    digest: str


@cache
def script(name: str) -> Script:
    """The script of this name with what it needs before it."""
    folder = resources.files(__package__).joinpath("lua")
    text = "\n".join(folder.joinpath(f"{each}.lua").read_text(encoding="utf-8") for each in (*_NEEDS[name], name))
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - the digest that EVALSHA names


def all_scripts() -> tuple[Script, ...]:
    """Every script that a worker may call."""
    return tuple(script(name) for name in _NEEDS)
