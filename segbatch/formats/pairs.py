"""Pairs: photographs and masks of the same names in folders, as mmsegmentation lays them out.

Two patterns locate them: ``img_dir/{split}/{id}.jpg`` and ``ann_dir/{split}/{id}.png``. In tar
shards they are members: ``{id}.jpg`` and ``{id}.seg.png``, or without patterns the two images of a
sample.
"""

from __future__ import annotations

import re

from segbatch import storage
from segbatch.config.images import is_shard_name
from segbatch.errors import InputError, SourceError
from segbatch.formats.folder import (
    folder_of,
    is_image,
    list_uris,
    split_of_path,
    split_of_word,
)
from segbatch.formats.format import (
    AnnotatedImage,
    Annotations,
    Format,
    Reader,
    ReadOptions,
    Skipped,
)
from segbatch.formats.maskfiles import (
    ColorKey,
    IndexKey,
    NamedFile,
    mask_key,
    pair_by_id,
    read_mask_file,
)
from segbatch.images.archive import Member
from segbatch.images.shards import find_shards, list_images, member_uri, sample_of

IMAGES, MASKS = "images/{id}.*", "masks/{id}.*"
EXAMPLE = "--images 'img_dir/{split}/{id}.jpg' --masks 'ann_dir/{split}/{id}.png'"
PLACEHOLDERS = {"{split}": r"(?P<split>[^/]+?)", "{id}": r"(?P<id>.+)", "*": r"[^/]*"}


def find_pairs(source: str, options: ReadOptions) -> Annotations:
    """The files that match ``options.images`` and ``options.masks`` with the same ``{id}``, and the
    same ``{split}`` if both patterns have it.

    Raises :class:`~segbatch.errors.InputError` for options that do not fit,
    :class:`~segbatch.errors.SourceError` if there is no pair, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    source = storage.normalize(source)
    if (options.images is None) != (options.masks is None):
        raise InputError(f"--from pairs: --images and --masks go together: {EXAMPLE}")
    key = mask_key(source, options)
    if is_shard_name(source):
        return _find_in_shards(source, options, key)
    photo_pattern = Pattern(options.images or IMAGES, source)
    mask_pattern = Pattern(options.masks or MASKS, source)
    by_split = photo_pattern.has_split and mask_pattern.has_split
    masks = mask_pattern.files(by_split)
    mask_uris = {mask.uri for mask in masks}  # a wide pattern of photographs may match masks
    photos = [photo for photo in photo_pattern.files(by_split) if photo.uri not in mask_uris]
    images, skipped = pair_by_id(photos, masks, key)
    if not images:
        raise SourceError(
            f"{source}: {len(photos)} images match {photo_pattern.text}, {len(masks)} masks match"
            f" {mask_pattern.text}, and no image has a mask of its name: locate them with {EXAMPLE}"
        )
    return Annotations(images, key.names, key.colors, skipped)


# ------------------------------------------------------------------------------------------ shards


def _find_in_shards(source: str, options: ReadOptions, key: IndexKey | ColorKey) -> Annotations:
    """Pairs of members in each of the shards that ``source`` names: one, a glob, or numbers in
    braces.
    """
    images: list[AnnotatedImage] = []
    skipped: list[Skipped] = []
    shards = find_shards(source)
    for shard in shards:
        split = split_of_path(storage.name_of(shard))
        photos: list[NamedFile] = []
        masks: list[NamedFile] = []
        for member in list_images(shard):
            file = member_uri(shard, member.name, member.occurrence)
            mask_id = _id_in_shard(member, options.masks, is_png=True)
            id = mask_id or _id_in_shard(member, options.images, is_png=False)
            if member.why is not None:
                skipped.append(Skipped(file, member.why.message))
            elif id is not None:
                (masks if mask_id else photos).append(NamedFile(file, id, split))
        paired, left_out = pair_by_id(photos, masks, key)
        images += paired
        skipped += left_out
    if not images:
        raise SourceError(
            f"{source}: no image in {len(shards)} shards has a mask: samples need a photograph and"
            " a PNG, or name them with --images '{id}.jpg' --masks '{id}.seg.png'"
        )
    return Annotations(images, key.names, key.colors, skipped)


def _id_in_shard(member: Member, pattern: str | None, *, is_png: bool) -> str | None:
    """What a member has in common with its counterpart: ``{id}`` of the pattern; or its sample, if
    it is a PNG, as masks are, or is none.
    """
    if pattern is None:
        return sample_of(member.name) if (member.extension == ".png") is is_png else None
    before, found, after = pattern.partition("{id}")
    if not found:
        raise InputError(f"{pattern}: must have {{id}} once: --images '{{id}}.jpg'")
    is_match = member.name.startswith(before) and member.name.endswith(after)
    return member.name[len(before) : len(member.name) - len(after)] if is_match else None


# ---------------------------------------------------------------------------------------- patterns


class Pattern:
    """A path relative to ``source`` with ``{id}``, which may contain slashes, and perhaps
    ``{split}``, which may not; ``*`` stands for anything without a slash, and at the end for the
    extension of an image: other files of that name are no photographs and no masks.

    Raises :class:`~segbatch.errors.InputError` for any other placeholder, or without ``{id}``.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        is_absolute = not storage.is_local(text) or text.startswith(("/", "~", "file:"))
        above = "" if is_absolute else f"{source}/"
        parts = re.split(r"(\{.*?\}|\*)", storage.normalize(text) if is_absolute else text)
        placeholders = sorted(part for part in parts if part.startswith("{"))
        if placeholders not in (["{id}"], ["{id}", "{split}"]):
            raise InputError(f"{text}: must have {{id}} once, and may have {{split}}: {EXAMPLE}")
        self.has_split = "{split}" in placeholders
        self._folder = folder_of(above + parts[0])
        regex = "".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts)
        self._regex = re.compile(re.escape(above) + regex)

    def files(self, by_split: bool) -> list[NamedFile]:
        """The files that match. With ``by_split``, files of different splits are never a pair."""
        files = []
        any_extension = self.text.endswith("*")
        for uri in list_uris(self._folder):
            match = self._regex.fullmatch(uri)
            if match and (is_image(uri) or not any_extension):
                id = match["id"]
                if self.has_split:
                    split = match["split"]
                    whole = f"{split}/{id}" if by_split else id
                    files.append(NamedFile(uri, whole, split_of_word(split)))
                else:
                    files.append(NamedFile(uri, id, split_of_path(f"{folder_of(id)}/")))
        return files


PAIRS = Format(
    reader=Reader(find_pairs, read_mask_file, options=["masks", "colors", "reduce-zero-label"])
)
