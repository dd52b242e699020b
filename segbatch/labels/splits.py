"""Assigns images to splits: some train the model, some choose it, and some test it.

By default a hash of the image's URI, or of its group, decides, so that an image always lands in the
same split, no matter what else is imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segbatch import storage
from segbatch.errors import InputError, SourceError
from segbatch.formats.folder import split_of_word
from segbatch.formats.format import AnnotatedImage
from segbatch.labels.dataset import SPLITS

DEFAULT = "val=0.1"
FOLDER = "folder"


class Splits:
    """The rules of ``--split``, ``--split-list`` and ``--group-by``.

    ``split``: ``val=0.1,test=0.1``, the rest is train; or ``folder``. ``split_list``: a file, any
    URI, of lines ``NAME SPLIT``, or a CSV with the columns ``uri`` and ``split``; a name is an
    image's URI or the end of it, with or without its extension. ``group_by``: a regular
    expression; its first group, or the whole match, in an image's URI is the image's group. Raises
    :class:`~segbatch.errors.InputError` for rules that cannot be used.
    """

    def __init__(
        self, split: str | None = None, split_list: str | None = None, group_by: str | None = None
    ) -> None:
        if split is not None and split_list is not None:
            raise InputError("--split and --split-list exclude each other")
        self.by_default = split is None and split_list is None
        self.text = next(rule for rule in (split_list, split, DEFAULT) if rule is not None)
        self.group_by = group_by
        self._by_folder = split == FOLDER
        self._listed = None if split_list is None else _read_list(split_list)
        by_hash = not self._by_folder and self._listed is None
        self._fractions = _read_fractions(self.text) if by_hash else {}
        try:
            self._group_by = None if group_by is None else re.compile(group_by)
        except re.error as error:
            raise InputError(f"--group-by {group_by}: not a regular expression: {error}") from error

    @property
    def wanted(self) -> list[str]:
        """The splits other than train that get a share."""
        return list(self._fractions)

    def group_of(self, uri: str) -> str | None:
        """The image's group; ``None`` if it has none."""
        match = self._group_by.search(uri) if self._group_by is not None else None
        if match is None:
            return None
        return next((group for group in match.groups() if group), match[0])

    def require_groups(self, uris: Sequence[str]) -> None:
        """Raise :class:`~segbatch.errors.SourceError` if ``--group-by`` matches none of ``uris``,
        at least one: it is perhaps misspelt.
        """
        if self.group_by is not None and not any(map(self.group_of, uris)):
            raise SourceError(
                f"--group-by {self.group_by}: matches no image, for instance not {uris[0]}"
            )

    def assign(
        self, images: Sequence[AnnotatedImage], of_group: Mapping[str, str]
    ) -> dict[str, str]:
        """The split of each image by URI. ``of_group`` are the splits that groups have already.

        Raises :class:`~segbatch.errors.SourceError` if folders or the list leave images out or
        divide a group.
        """
        groups = {image.uri: self.group_of(image.uri) for image in images}
        chosen = {image.uri: self._choose(image, groups[image.uri]) for image in images}
        left_out = [uri for uri, split in chosen.items() if split is None]
        if left_out:
            why = (
                "in no folder or file called train, val (valid) or test: leave out --split folder"
                if self._by_folder
                else f"not in {self.text}: add them"
            )
            raise SourceError(f"{len(left_out)} of {len(chosen)} images are {why}: {left_out[0]}")
        return _keep_groups({uri: str(split) for uri, split in chosen.items()}, groups, of_group)

    def _choose(self, image: AnnotatedImage, group: str | None) -> str | None:
        if self._by_folder:
            return image.split
        if self._listed is not None:
            names = (name for name in _names_of(image.uri) if name in self._listed)
            return next((self._listed[name] for name in names), None)
        number = _hash_fraction(group or image.uri)
        for split, fraction in self._fractions.items():
            if number < fraction:
                return split
            number -= fraction
        return "train"


def _keep_groups(
    chosen: Mapping[str, str], groups: Mapping[str, str | None], before: Mapping[str, str]
) -> dict[str, str]:
    """The chosen splits, but with each group in one: that of ``before``, or of its first image."""
    of_group = dict(before)
    splits = {}
    for uri, split in chosen.items():
        group = groups[uri]
        splits[uri] = of_group.setdefault(group, split) if group is not None else split
        if splits[uri] != split and group not in before:
            raise SourceError(
                f"{uri}: belongs in {split}, but its group {group!r} is in {splits[uri]}:"
                " give the whole group one split, or assign the splits by shares"
            )
    return splits


def _hash_fraction(key: str) -> float:
    """A number from 0 to 1 that depends only on the key."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read_fractions(text: str) -> dict[str, float]:
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        split = split_of_word(name.strip())
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if split is None or not 0 <= fraction <= 1 or split in fractions:
            raise InputError(f"--split {text}: must be {FOLDER}, or shares like val=0.1,test=0.1")
        fractions[split] = fraction
    rest = 1 - sum(fractions.values())
    if rest < -1e-9 or ("train" in fractions and rest > 1e-9):
        raise InputError(f"--split {text}: the shares must sum to 1; train may be left out")
    # In a fixed order, so that a share of test added later moves no image out of val.
    return {split: fractions[split] for split in ("val", "test") if split in fractions}


def _read_list(where: str) -> dict[str, str]:
    """The split by name in the file of ``--split-list``."""
    try:
        text = storage.decode_text(storage.read_bytes(where), f"--split-list {where}")
    except OSError as error:
        raise InputError(f"--split-list {where}: {storage.one_line(error)}") from error
    listed: dict[str, str] = {}
    for line, path, word in _list_entries(text):
        name, split = storage.composed(path.removeprefix("./")), split_of_word(word)
        if not name or split is None:
            raise InputError(
                f"--split-list {where}, line {line}: must be NAME SPLIT, and SPLIT one of"
                f" {', '.join(SPLITS)}"
            )
        if listed.setdefault(name, split) != split:
            raise InputError(f"--split-list {where}, line {line}: {name} is in {listed[name]}, too")
    if not listed:
        raise InputError(f"--split-list {where}: has no line NAME SPLIT")
    return listed


def _list_entries(text: str) -> Iterable[tuple[int, str, str]]:
    """Line number, name and split of each entry."""
    if (reader := storage.csv_reader(text, ["uri", "split"])) is not None:
        return [(reader.line_num, _text(row["uri"]), _text(row["split"])) for row in reader]
    return [
        (number, *_name_and_split(line.strip()))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]


def _name_and_split(line: str) -> tuple[str, str]:
    """Name and split, separated by blanks, a tab or a comma."""
    match = re.fullmatch(r"(.*?)[\s,]+([^\s,]+)", line)
    return (match[1], match[2]) if match else ("", line)


def _text(value: Any) -> str:
    return (value or "").strip()


def _names_of(uri: str) -> Iterable[str]:
    """The URI and its path suffixes, longest first, each with and without its extension."""
    parts = storage.composed(uri).split("/")
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        yield name
        yield re.sub(r"\.[^./]+$", "", name)
