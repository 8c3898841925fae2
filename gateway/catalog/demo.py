"""The demo's configuration is the real one, character for character, except for where its providers are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from gateway.catalog.loading import FILES
from gateway.catalog.places import Places


def render_demo_config(config_dir: Path, addresses: Mapping[str, str]) -> dict[str, str]:
    """The three files as text, each provider's ``base_url`` and ``balance_url`` moved to its address.

    ``addresses`` maps provider names to the base URLs of their simulators; names that are not configured are ignored.
    Raises ValueError for a provider without an address: a demo must never reach a real provider.
    """
    texts = {name: (config_dir / name).read_bytes().decode("utf-8-sig") for name in FILES}
    texts["providers.toml"] = _moved(texts["providers.toml"], addresses)
    return texts


def _moved(text: str, addresses: Mapping[str, str]) -> str:
    places = Places(text)
    edits: list[tuple[int, int, str]] = []
    for name, provider in tomllib.loads(text)["providers"].items():
        if name not in addresses:
            raise ValueError(f"The demo has no simulator for the provider {name!r}; give it an address.")
        base = provider["base_url"].rstrip("/")
        for key in ("base_url", "balance_url"):
            if key in provider:
                place = places["providers", name, key]
                moved = _move(provider[key], base=base, address=addresses[name].rstrip("/"))
                edits.append((place.start, place.end, json.dumps(moved)))
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _move(url: str, *, base: str, address: str) -> str:
    """What follows the base path follows the address; an address elsewhere keeps its path at the new host."""
    base_path, path = urlsplit(base).path, urlsplit(url).path.rstrip("/")
    if path == base_path or path.startswith(base_path + "/"):
        return address + path[len(base_path) :]
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}{path}"
