"""The catalogue is read whole from three files, or not at all: every finding at once, with file, line and mend.

:func:`load` is a function of the files and the time; it opens nothing else and resolves no secret.
"""

from gateway.catalog.demo import render_demo_config
from gateway.catalog.findings import CatalogError, Finding
from gateway.catalog.loading import FILES, Loaded, load
from gateway.catalog.providers import SecretRef

__all__ = ["FILES", "CatalogError", "Finding", "Loaded", "SecretRef", "load", "render_demo_config"]
