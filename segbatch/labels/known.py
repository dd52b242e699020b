"""Known: the images that a dataset has already, and what happens to them when others are added."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256

from segbatch.errors import SourceError
from segbatch.labels.dataset import Dataset, Shard, open_dataset
from segbatch.labels.rows import Row, survey
from segbatch.labels.splits import Splits
from segbatch.pace import Pace

FEW_ROWS = 16  # that are Python's at a time


class Known:
    """Images of ``dataset``, of which some are replaced by images that come in.

    An image that comes in takes the place of the one with its URI, else of one with the same
    content whose own URI does not come in: so the same import twice changes nothing. Raises
    :class:`~segbatch.errors.SourceError` for a damaged dataset.
    """

    def __init__(self, dataset: Dataset | None, incoming: Collection[str]) -> None:
        self._rows = list(_rows_of(dataset)) if dataset is not None else []
        self._by_uri = {row.uri: row for row in self._rows}
        self._by_content: dict[str, Row] = {}
        for row in self._rows:
            if row.uri not in incoming:
                self._by_content.setdefault(row.sha256, row)
        self._replaced: set[int] = set()

    def __contains__(self, uri: str) -> bool:
        return uri in self._by_uri

    @property
    def next_id(self) -> int:
        return max((row.image_id for row in self._rows), default=-1) + 1

    def replace(self, uri: str, sha256: str) -> Row | None:
        """The image that this one takes the place of; each only once."""
        row = self._by_uri.get(uri) or self._by_content.pop(sha256, None)
        if row is not None:
            self._replaced.add(row.image_id)
        return row

    @property
    def replaced(self) -> Mapping[str, Collection[int]]:
        """Image ids that were replaced, by shard."""
        ids = defaultdict(list)
        for row in self._rows:
            if row.image_id in self._replaced:
                ids[row.shard].append(row.image_id)
        return ids

    @property
    def remaining(self) -> Iterator[Row]:
        """What was not replaced."""
        return (row for row in self._rows if row.image_id not in self._replaced)

    def splits_of_groups(self, rules: Splits) -> dict[str, str]:
        """The split in which most images of each group are."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self._rows:
            group = rules.group_of(row.uri) or row.group
            if group is not None:
                counts[group][row.split] += 1
        return {group: splits.most_common(1)[0][0] for group, splits in counts.items()}


def contents_of(uri: str) -> dict[str, str]:
    """The SHA-256 of each image in the dataset in the folder ``uri``, in hex, by the image's URI.

    Reads all of it, a shard at a time. Raises as :func:`~segbatch.labels.dataset.open_dataset` and
    :meth:`~segbatch.labels.dataset.Dataset.read_shard`.
    """
    dataset = open_dataset(uri)
    return {
        row["uri"]: sha256(row["image"]["bytes"]).hexdigest()
        for shard in dataset.shards
        for batch in dataset.read_shard(shard, ["uri", "image"]).to_batches(FEW_ROWS)
        for row in batch.to_pylist()
    }


def _rows_of(dataset: Dataset) -> Iterator[Row]:
    def damaged(_: Shard, error: SourceError) -> None:
        raise error

    with Pace("dataset", sum(dataset.splits.values())) as pace:
        for rows in survey(dataset, decode=False, damaged=damaged):
            pace.add(len(rows))
            yield from rows
