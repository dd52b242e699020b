"""The images that a dataset holds before an import, some of which the import replaces."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

from segbatch.console import ImageBar
from segbatch.errors import SourceError
from segbatch.labels.dataset import Dataset, Shard
from segbatch.labels.rows import DatasetRow, scan_rows
from segbatch.labels.splits import Splits


class ExistingImages:
    """The images of ``dataset``, none if it is ``None``; ``incoming`` are the URIs of the images
    that are imported.

    An imported image replaces the one with its URI, else one with the same content whose own URI is
    not imported: so the same import twice changes nothing. Raises
    :class:`~segbatch.errors.SourceError` for a damaged dataset.
    """

    def __init__(self, dataset: Dataset | None, incoming: Collection[str]) -> None:
        self._dataset = dataset.uri if dataset is not None else ""
        self._rows = list(_rows(dataset)) if dataset is not None else []
        self._by_uri = {row.uri: row for row in self._rows}
        self._by_content: dict[str, list[DatasetRow]] = defaultdict(list)  # last URI first
        for row in sorted(self._rows, key=lambda row: row.uri, reverse=True):
            if row.uri not in incoming:
                self._by_content[row.sha256].append(row)
        self._replaced: set[int] = set()

    def __contains__(self, uri: str) -> bool:
        return uri in self._by_uri

    @property
    def uris(self) -> Collection[str]:
        """The URIs of all images."""
        return self._by_uri.keys()

    @property
    def next_id(self) -> int:
        """The first image id that is free."""
        return max((row.image_id for row in self._rows), default=-1) + 1

    def refuse_groups(self) -> None:
        """Raise :class:`~segbatch.errors.SourceError` if any image has a group: a new image of it
        could come into another split.
        """
        row = next((row for row in self._rows if row.group is not None), None)
        if row is not None:
            raise SourceError(
                f"{self._dataset}: its images have groups, for instance {row.group!r} of {row.uri},"
                " and an earlier version did not record how they are found: add --group-by REGEX,"
                " as in that import"
            )

    def splits_of_groups(self, rules: Splits) -> dict[str, str]:
        """The split in which most images of each group are."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self._rows:
            group = rules.group_of(row.uri) or row.group
            if group is not None:
                counts[group][row.split] += 1
        return {group: splits.most_common(1)[0][0] for group, splits in counts.items()}

    def replace(self, uri: str, sha256: str) -> DatasetRow | None:
        """Mark the image that an imported one replaces, and return it; each only once."""
        row = self._by_uri.get(uri)
        if row is None and (alike := self._by_content.get(sha256)):
            row = alike.pop()  # the images are imported in the order of their URIs, too
        if row is not None:
            self._replaced.add(row.image_id)
        return row

    @property
    def replaced_ids(self) -> Mapping[str, Collection[int]]:
        """The ids of the replaced images, by the path of their shard."""
        ids = defaultdict(list)
        for row in self._rows:
            if row.image_id in self._replaced:
                ids[row.shard].append(row.image_id)
        return ids

    @property
    def remaining(self) -> Iterator[DatasetRow]:
        """The images that were not replaced."""
        return (row for row in self._rows if row.image_id not in self._replaced)


def _rows(dataset: Dataset) -> Iterator[DatasetRow]:
    def refuse(_: Shard, error: SourceError) -> None:
        raise error

    with ImageBar("dataset", sum(dataset.splits.values())) as bar:
        for rows in scan_rows(dataset, decode=False, on_damage=refuse):
            bar.add(len(rows))
            yield from rows
