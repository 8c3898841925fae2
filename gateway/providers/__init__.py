"""Upstream wire dialects, pure; every file has the same functions in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gateway.providers import cometapi, evolink, moonshot, openai
from gateway.providers.dialect import Dialect

DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {known.name: known for known in (moonshot.DIALECT, cometapi.DIALECT, evolink.DIALECT, openai.DIALECT)}
)


def dialect(name: str) -> Dialect:
    """The dialect of that name. Raises KeyError; the configuration refuses an unknown one with file and line."""
    return DIALECTS[name]
