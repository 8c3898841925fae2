"""The request extensions are the gateway's own words; every surface takes them, and none is left in the fields.

``provider`` as on OpenRouter; ``prompt_cache_key`` or header ``x-session-id`` name the conversation; header
``x-gateway-tags`` adds report tags. ``prompt_cache_key`` and ``prompt_cache_options`` stay in the fields: they are
also Moonshot's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Final

from msgspec import Raw

from gateway.core.exchange import NO_PREFERENCES, NO_TAGS, ProviderPreferences, Sort
from gateway.core.money import UnitPrice
from gateway.core.pricing import DEFAULT_CACHE_TTL
from gateway.surfaces.bodies import BOOLEAN, OBJECT, STRING, STRINGS, Members, is_string, kind_of, present
from gateway.surfaces.errors import invalid, shown

CACHE_TTLS: Final = ("5m", "1h")
CONVERSATION_CHARACTERS_MAX: Final = 512
PROVIDERS_NAMED_MAX: Final = 64
TAGS_MAX: Final = 16
TAG_KEY: Final = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
TAG_VALUE_CHARACTERS_MAX: Final = 128

_PRICE_CHARACTERS_MAX: Final = 40
_PRICE_USD_PER_MILLION_MAX: Final = Decimal(10**9)
_MICRO: Final = Decimal("0.000001")
_PREFERENCES: Final = frozenset({"order", "only", "ignore", "allow_fallbacks", "sort", "max_price"})
_PRICES: Final = frozenset({"prompt", "completion"})
_OTHER_GATEWAYS: Final = {
    "models": "only `model` is tried",
    "route": "routing follows `provider`",
    "transforms": "messages are never changed",
    "plugins": "there are none here",
    "preset": "there are none here",
    "include_reasoning": "reasoning is always passed on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """What a request said to the gateway itself."""

    preferences: ProviderPreferences
    tags: Mapping[str, str]
    conversation: str | None
    cache_ttl: str
    asks_usage: bool
    asks_plan: bool
    warnings: tuple[str, ...]


def take_extensions(members: Members, headers: Mapping[str, str]) -> Extensions:
    """Reads the extensions and removes them from ``members``. Raises RefusedError."""
    warnings: list[str] = []
    preferences = _take_preferences(members, warnings)
    for name, why in _OTHER_GATEWAYS.items():
        if present(members, name) is not None:
            warnings.append(f"`{name}` was ignored: {why}")
        members.pop(name, None)
    return Extensions(
        preferences=preferences,
        tags=read_tags(headers.get("x-gateway-tags", "")),
        conversation=_conversation(members, headers),
        cache_ttl=_cache_ttl(members),
        asks_usage=_take_usage(members),
        asks_plan=_asks_plan(headers),
        warnings=tuple(warnings),
    )


def _take_preferences(members: Members, warnings: list[str]) -> ProviderPreferences:
    wanted = OBJECT.optional(members, "provider")
    members.pop("provider", None)
    if wanted is None:
        return NO_PREFERENCES
    path = "provider."
    warnings += [f"`provider.{_plain(name)}` was ignored" for name in wanted if name not in _PREFERENCES]
    only = _names(wanted, "only")
    max_price = OBJECT.optional(wanted, "max_price", path=path) or {}
    warnings += [f"`provider.max_price.{_plain(name)}` was ignored" for name in max_price if name not in _PRICES]
    fallbacks = BOOLEAN.optional(wanted, "allow_fallbacks", path=path)
    return ProviderPreferences(
        order=tuple(dict.fromkeys(_names(wanted, "order") or ())),
        only=None if only is None else frozenset(only),
        ignore=frozenset(_names(wanted, "ignore") or ()),
        allow_fallbacks=True if fallbacks is None else fallbacks,
        sort=_sort(wanted),
        max_prompt=_price(max_price, "prompt"),
        max_completion=_price(max_price, "completion"),
    )


def _plain(name: str) -> str:
    return shown(name)[1:-1]


def _names(wanted: Members, name: str) -> list[str] | None:
    """Provider names as routing compares them: case does not matter."""
    names = STRINGS.optional(wanted, name, path="provider.")
    if names is None:
        return None
    if len(names) > PROVIDERS_NAMED_MAX:
        raise invalid(f"provider.{name}", f"`provider.{name}` names more than {PROVIDERS_NAMED_MAX} providers.")
    return [each.strip().casefold() for each in names]


def _sort(wanted: Members) -> Sort | None:
    word = STRING.optional(wanted, "sort", path="provider.")
    if word is None:
        return None
    try:
        return Sort(word)
    except ValueError:
        known = ", ".join(f'"{sort.value}"' for sort in Sort)
        raise invalid("provider.sort", f"`provider.sort` must be one of {known}.") from None


def _price(max_price: Members, name: str) -> UnitPrice | None:
    """USD per 1,000,000 tokens, from the text as written. Rounded down to the grain of prices, which admits the same
    ones."""
    value = present(max_price, name)
    if value is None:
        return None
    param = f"provider.max_price.{name}"
    wrong = invalid(param, f'`{param}` must be a price in USD per 1,000,000 tokens, such as 0.6 or "0.6".')
    text = _number_text(value, param).strip()
    if not text or len(text) > _PRICE_CHARACTERS_MAX:
        raise wrong
    try:
        amount = Decimal(text)
        if not amount.is_finite() or amount < 0:
            raise wrong
        return UnitPrice.from_usd_per_million(
            min(amount, _PRICE_USD_PER_MILLION_MAX).quantize(_MICRO, rounding=ROUND_FLOOR)
        )
    except InvalidOperation:
        raise wrong from None


def _number_text(value: Raw, param: str) -> str:
    if is_string(value):
        return STRING.of(value, param)
    if kind_of(value) != "a number":
        raise invalid(param, f"`{param}` must be a number or a string; it is {kind_of(value)}.")
    return bytes(value).decode()


def _conversation(members: Members, headers: Mapping[str, str]) -> str | None:
    """The body's word goes before the header's."""
    for param, named in (
        ("prompt_cache_key", STRING.optional(members, "prompt_cache_key")),
        ("x-session-id", headers.get("x-session-id", "").strip()),
    ):
        if named and len(named) > CONVERSATION_CHARACTERS_MAX:
            raise invalid(param, f"`{param}` is longer than {CONVERSATION_CHARACTERS_MAX} characters.")
        if named:
            return named
    return None


def _cache_ttl(members: Members) -> str:
    options = OBJECT.optional(members, "prompt_cache_options")
    if options is None:
        return DEFAULT_CACHE_TTL
    mode = STRING.optional(options, "mode", path="prompt_cache_options.")
    if mode not in (None, "implicit"):
        raise invalid("prompt_cache_options.mode", '`prompt_cache_options.mode` must be "implicit".')
    ttl = STRING.optional(options, "ttl", path="prompt_cache_options.")
    if ttl is None:
        return DEFAULT_CACHE_TTL
    if ttl not in CACHE_TTLS:
        raise invalid("prompt_cache_options.ttl", '`prompt_cache_options.ttl` must be "5m" or "1h".')
    return ttl


def _take_usage(members: Members) -> bool:
    """OpenRouter's ``usage: {"include": true}`` asks for the closing usage chunk."""
    asked = OBJECT.optional(members, "usage")
    members.pop("usage", None)
    return asked is not None and BOOLEAN.optional(asked, "include", path="usage.") is True


def _asks_plan(headers: Mapping[str, str]) -> bool:
    """Header ``x-gateway-debug: plan`` asks for the plan in the answer's ``x-gateway-plan``."""
    wanted = headers.get("x-gateway-debug", "").strip()
    if wanted not in ("", "plan"):
        raise invalid("x-gateway-debug", f'Header x-gateway-debug is {shown(wanted)}; it may be "plan".')
    return bool(wanted)


def read_tags(header: str) -> Mapping[str, str]:
    """The tags of ``k=v,k2=v2``. Raises RefusedError for too many, too long or unprintable ones."""
    if not header.strip():
        return NO_TAGS
    tags: dict[str, str] = {}
    for part in _as_utf8(header).split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or TAG_KEY.fullmatch(key) is None:
            raise _bad_tags(f"{shown(key)} is no tag: write k=v, with a key of 1 to 64 letters, digits or _.:-")
        if len(value) > TAG_VALUE_CHARACTERS_MAX or not value.isprintable():
            raise _bad_tags(f"the value of {key} must be at most {TAG_VALUE_CHARACTERS_MAX} printable characters")
        if key in tags:
            raise _bad_tags(f"{key} is given twice")
        tags[key] = value
    if len(tags) > TAGS_MAX:
        raise _bad_tags(f"{len(tags)} tags are more than {TAGS_MAX}")
    return MappingProxyType(tags)


def _as_utf8(header: str) -> str:
    """Header bytes are handed on as Latin-1; most clients mean UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _bad_tags(what: str) -> Exception:
    return invalid("x-gateway-tags", f"Header x-gateway-tags: {what}.")
