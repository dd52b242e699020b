"""A run as its user holds it: query it, look at it, export it, audit it.

Each method is one call into :mod:`segbatch.results` or :mod:`segbatch.review`; the folder itself
is :class:`~segbatch.results.runfolder.RunFolder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING

from segbatch import storage
from segbatch.errors import RunError
from segbatch.masks import FILL
from segbatch.masks.html import table_html
from segbatch.results.runfolder import RunFolder, open_folder

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from PIL.Image import Image

    from segbatch.results.audit import Audit
    from segbatch.results.diff import Diff
    from segbatch.review.export.export import Exported


class Run(RunFolder):
    """A run as it was when it was opened; open it again to see its progress."""

    def _repr_html_(self) -> str:
        """For notebooks: how far the run is, and why images failed."""
        facts = self.summary()
        rows = [("images", facts["images"]), ("ok", facts["ok"])]
        rows += [(f"failed: {kind}", number) for kind, number in facts["failed"].items()]
        rows += [("remaining", facts["remaining"]), ("model", facts["model"])]
        table = table_html([(escape(name), escape(str(value))) for name, value in rows])
        return f"<p><b>{escape(self.uri)}</b> {escape(self.status)}</p>{table}"

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation over the views ``images``, ``masks``, ``wide``, ``classes``,
        ``failures`` and ``runs``. Raises :class:`~segbatch.errors.InputError` for wrong SQL.
        """
        from segbatch.results.query import sql

        return sql([self], query)

    def to_pandas(self, query: str = "SELECT * FROM wide") -> pd.DataFrame:
        """The result of :meth:`sql` as a data frame; the flat view ``wide`` unless told."""
        frame: pd.DataFrame = self.sql(query).df()
        return frame

    def mask(self, image_id: int) -> npt.NDArray[np.uint8] | None:
        """The label map of one image, ``(mask_height, mask_width)`` uint8 class ids.

        ``None`` where the image failed or no masks are stored; :meth:`overlay` says which. Raises
        :class:`~segbatch.errors.RunError` for an id that has no row, and for a damaged mask.
        """
        from segbatch.results.lookup import label_map

        return label_map(self, image_id)

    def image(self, image_id: int) -> Image:
        """The photograph of one image, upright, from where the run read it.

        Raises :class:`~segbatch.errors.RunError` for an id that has no row, and
        :class:`~segbatch.errors.SourceError` where the photograph cannot be read.
        """
        from segbatch.review.pictures import read_photograph

        return read_photograph(self, image_id)

    def overlay(self, image_id: int, alpha: float = FILL) -> Image:
        """The photograph of one image under the colours of its classes; see
        :func:`segbatch.masks.overlay`.

        Raises what :meth:`image` does, and :class:`~segbatch.errors.RunError` with the reason where
        the image has no mask.
        """
        from segbatch.review.pictures import read_overlay

        return read_overlay(self, image_id, alpha)

    def audit(self, *, deep: bool = False) -> Audit:
        """Count the rows against the manifest; ``deep`` compares every file's SHA-256 too."""
        from segbatch.results.audit import audit

        return audit(self, deep=deep)

    def diff(self, other: Run) -> Diff:
        """What changed from this run to ``other``, another one over the same images: coverages,
        pixels of another class, and which images changed most.
        """
        from segbatch.results.diff import diff

        return diff(self, other)

    def report(
        self,
        path: str,
        *,
        by: str | None = None,
        against: Run | None = None,
        prices: str | None = None,
        tiles: str | None = None,
    ) -> int:
        """Write one page to look at, to any URI: distributions, failures, images; its bytes.

        ``by`` is a column of the user's to group by, ``against`` a run over the same images,
        ``prices`` a table of prices other than ours, ``tiles`` an address of tiles for the map.
        """
        from segbatch.review.report.page import write_report

        return write_report(self, path, by=by, against=against, prices=prices, tiles=tiles)

    def export(
        self, folder: str, to: str, *, where: str | None = None, limit: int | None = None
    ) -> Exported:
        """Write images into a folder, any URI, as other tools read them: ``to`` is ``png``,
        ``overlay``, ``voc``, ``labelme``, ``coco``, ``fiftyone`` or ``labelstudio``; or rows:
        ``csv``, ``parquet``; or points with coordinates: ``geoparquet``, ``geojson``.
        """
        from segbatch.review.export.export import export

        return export(self, folder, to, where=where, limit=limit)


def open_run(uri: str) -> Run:
    """The run at ``uri``. Raises :class:`~segbatch.errors.RunError` if there is none."""
    folder = open_folder(uri)
    return Run(folder.uri, folder.info)


def open_runs(uris: Sequence[str]) -> list[Run]:
    """The runs at ``uris``, each once; a glob names the folders with a ``run.json``, by key.

    Raises :class:`~segbatch.errors.RunError` if there is none at one of them.
    """
    return [open_run(uri) for uri in dict.fromkeys(found for uri in uris for found in _named(uri))]


def _named(uri: str) -> list[str]:
    """The URIs of the runs that ``uri`` names: its own, unless it is a glob and no run's."""
    uri = storage.normalize(uri)
    where = storage.join(uri, "run.json")
    if not any(character in uri for character in "*?["):
        return [uri]
    found: list[str] = []
    # A missing bucket is not an error here: then no run matches.
    with storage.translate_errors("cannot look for runs", RunError), suppress(FileNotFoundError):
        if storage.exists(where):
            return [uri]
        fs, path = storage.filesystem(where)
        # By level, not all files below: a run may have very many.
        found = [storage.normalize(fs.unstrip_protocol(name)) for name in fs.glob(path)]
    if not found:
        raise RunError(f"{uri}: no run matches (no folder with a run.json in it)")
    return sorted(name.removesuffix("/run.json") for name in found)
