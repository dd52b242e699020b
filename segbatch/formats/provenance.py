"""Provenance: which image a copy that was made for labelling is one of.

``segbatch labels suggest`` copies images into a folder. Corrected labels go back under the image's
own URI, so that its split is the one that the image always has, and nothing is labelled twice: each
labelme file carries it in :data:`KEY`, and the folder's list has it for tools that keep no key of
ours (CVAT).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from segbatch.masks.classes import CONTROL

# A key beside those of labelme, which keeps such as they are when it saves (`otherData`); it would
# take a dictionary in `flags` for a box that is ticked.
KEY = "segbatch"
LIST = "suggested.csv"
MAX_URI = 4096


def own_uri(content: Mapping[str, Any]) -> str | None:
    """The URI of the image that the labels in a labelme file are for; ``None`` if it says none."""
    provenance = content.get(KEY)
    uri = provenance.get("uri") if isinstance(provenance, dict) else None
    return uri if _is_uri(uri) else None


def listed_uris(data: bytes) -> dict[str, str]:
    """The images' own URIs by the names of their copies, of a folder's list.

    What is no such list, or no line of one, has none.
    """
    rows = csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline=""))
    return {row["file"]: row["uri"] for row in rows if row.get("file") and _is_uri(row.get("uri"))}


def _is_uri(uri: Any) -> bool:
    return isinstance(uri, str) and 0 < len(uri) <= MAX_URI and not CONTROL.search(uri)
