"""A file of a manifest. A module of its own: reading ``run.json`` must not import image code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ManifestFile:
    """One file of the manifest as ``run.json`` lists it; ``size`` is in bytes."""

    name: str
    rows: int
    first_id: int
    sha256: str
    size: int
