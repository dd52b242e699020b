"""A file of a manifest. A module of its own: reading ``run.json`` must not import image code."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ManifestFile(BaseModel):
    """One file of the manifest as ``run.json`` lists it; ``size`` is in bytes."""

    model_config = ConfigDict(extra="allow")

    name: str
    rows: int
    first_id: int
    sha256: str
    size: int

    @property
    def end_id(self) -> int:
        """The id after the last one."""
        return self.first_id + self.rows
