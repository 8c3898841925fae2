"""A load gives a whole catalogue or raises with every finding; nothing of a file with errors is ever in force."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gateway.catalog.findings import CatalogError, Finding, ordered
from gateway.catalog.lint import lint
from gateway.catalog.models import Models, read_models
from gateway.catalog.places import Places
from gateway.catalog.prices import PriceRow, read_prices
from gateway.catalog.providers import Providers, SecretRef, read_providers
from gateway.catalog.tables import Document
from gateway.core.catalogue import Catalogue
from gateway.core.pricing import PriceTable

FILES: Final = ("providers.toml", "models.toml", "prices.toml")
"""The files of a configuration, in the order in which their bytes make the digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A catalogue without errors, the warnings about it, and where its credentials are kept.

    ``credentials`` is keyed by provider and account; an account that is not in it sends no Authorization. A relative
    file in it starts from the configuration's folder. ``price_lines`` tells the line of each price row, by its id.
    """

    catalogue: Catalogue
    findings: tuple[Finding, ...]
    credentials: Mapping[tuple[str, str], SecretRef]
    price_lines: Mapping[str, int] = field(default_factory=dict)


def load(config_dir: Path, *, now: datetime) -> Loaded:
    """Reads ``config_dir``; raises CatalogError with all findings if any is an error. ``now`` needs a zone."""
    assert now.tzinfo is not None
    contents = _contents(config_dir)
    documents, broken = _documents(contents)
    root = {name: document.root() for name, document in documents.items()}
    providers = read_providers(root["providers.toml"])
    models = read_models(root["models.toml"])
    rows = read_prices(root["prices.toml"])
    if not broken:  # names that stand in a file nobody could read are not missing
        lint(providers, models, rows, now=now)
    findings = ordered(broken + [each for document in documents.values() for each in document.findings])
    if any(finding.level == "error" for finding in findings):
        raise CatalogError(findings)
    digest = hashlib.sha256(b"".join(content for content in contents.values() if isinstance(content, bytes)))
    return _loaded(providers, models, rows, findings, digest=digest.hexdigest(), now=now)


def _contents(config_dir: Path) -> dict[str, bytes | Finding]:
    """Each file by its path as given: its bytes, or the finding that says why there are none."""
    contents: dict[str, bytes | Finding] = {}
    for name in FILES:
        path = config_dir / name
        try:
            contents[str(path)] = path.read_bytes()
        except FileNotFoundError:
            mend = "Create it (it may be empty), or name another folder with GATEWAY_CONFIG_DIR or --config."
            contents[str(path)] = _error(path, "The file does not exist.", mend)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            contents[str(path)] = _error(path, f"The file cannot be read: {reason}.", "Make it a readable file.")
    return contents


def _documents(contents: Mapping[str, bytes | Finding]) -> tuple[dict[str, Document], list[Finding]]:
    """A document for every file, empty for those that could not be read, and the findings that say which."""
    documents: dict[str, Document] = {}
    broken: list[Finding] = []
    for name, (file, content) in zip(FILES, contents.items(), strict=True):
        document = Document.parse(content, file=file) if isinstance(content, bytes) else content
        if isinstance(document, Finding):
            broken.append(document)
            document = Document(file=file, values={}, places=Places(""))
        documents[name] = document
    return documents, broken


def _loaded(
    providers: Providers,
    models: Models,
    rows: tuple[PriceRow, ...],
    findings: tuple[Finding, ...],
    *,
    digest: str,
    now: datetime,
) -> Loaded:
    prices = {row.price.price_id: row for row in rows if row.price is not None}
    catalogue = Catalogue(
        providers=MappingProxyType(providers.cards),
        models=MappingProxyType(models.models),
        prices=PriceTable(row.price for row in prices.values() if row.price is not None),
        digest=digest,
        loaded_at=now,
        aliases=MappingProxyType(models.aliases),
        routing=models.routing,
    )
    return Loaded(
        catalogue=catalogue,
        findings=findings,
        credentials=MappingProxyType(providers.credentials),
        price_lines=MappingProxyType({price_id: row.table.line() for price_id, row in prices.items()}),
    )


def _error(path: Path, message: str, mend: str) -> Finding:
    return Finding(level="error", file=str(path), line=1, message=message, mend=mend)
