"""Pairs: photographs and masks of the same names in folders, as mmsegmentation lays them out.

Where they are is said by two patterns: ``img_dir/{split}/{id}.jpg``, ``ann_dir/{split}/{id}.png``.
"""

from __future__ import annotations

import re

from segbatch import storage
from segbatch.errors import InputError, SourceError
from segbatch.formats import maskfiles
from segbatch.formats.files import folder_of, list_uris, split_in, split_of
from segbatch.formats.format import Found, Options, Reader
from segbatch.formats.maskfiles import ColorKey, File, IndexKey, colors_of, read_colors

IMAGES, MASKS = "images/{id}.*", "masks/{id}.*"
EXAMPLE = "--images 'img_dir/{split}/{id}.jpg' --masks 'ann_dir/{split}/{id}.png'"

PLACES = {"{split}": r"(?P<split>[^/]+?)", "{id}": r"(?P<id>.+)", "*": r"[^/]*"}


class Pattern:
    """Files that are called alike but for ``{split}``, within one folder's name, and ``{id}``,
    which may have slashes; ``*`` is anything without a slash. Relative to ``source``.

    Raises :class:`~segbatch.errors.InputError` for any other place, or no ``{id}``.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        is_absolute = not storage.is_local(text) or text.startswith(("/", "~", "file:"))
        above = "" if is_absolute else f"{source}/"
        parts = re.split(r"(\{.*?\}|\*)", storage.normalize(text) if is_absolute else text)
        places = [part for part in parts if part.startswith("{")]
        if sorted(places) not in (["{id}"], ["{id}", "{split}"]):
            raise InputError(f"{text}: must have {{id}} once, and may have {{split}}: {EXAMPLE}")
        self.has_split = "{split}" in places
        self._folder = folder_of(above + parts[0])
        regex = "".join(PLACES.get(part, re.escape(part)) for part in parts)
        self._regex = re.compile(re.escape(above) + regex)

    def files(self, by_split: bool) -> list[File]:
        """The files there are. ``by_split``: files of different splits are never a pair."""
        files = []
        for uri in list_uris(self._folder):
            if match := self._regex.fullmatch(uri):
                name = match["id"]
                if not self.has_split:
                    files.append(File(uri, name, split_in(f"{folder_of(name)}/")))
                    continue
                split = match["split"]
                whole = f"{split}/{name}" if by_split else name
                files.append(File(uri, whole, split_of(split)))
        return files


def find(source: str, options: Options) -> Found:
    """The files that match ``options.images`` and ``options.masks`` with the same ``{id}``, and
    ``{split}`` where both have it.

    Raises :class:`~segbatch.errors.InputError` for options that do not fit,
    :class:`~segbatch.errors.SourceError` where there is no pair, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    source = storage.normalize(source)
    if (options.images is None) != (options.masks is None):
        raise InputError(f"--from pairs: --images and --masks go together: {EXAMPLE}")
    key = _key(source, options)
    images = Pattern(options.images or IMAGES, source)
    masks = Pattern(options.masks or MASKS, source)
    by_split = images.has_split and masks.has_split
    mask_files = masks.files(by_split)
    are_masks = {file.uri for file in mask_files}  # a wide pattern of images may match them
    image_files = [file for file in images.files(by_split) if file.uri not in are_masks]
    items, skipped = maskfiles.pair(image_files, mask_files, key)
    if not items:
        raise SourceError(
            f"{source}: {len(image_files)} images match {images.text},"
            f" {len(mask_files)} masks match {masks.text}, and none of them has the other: say"
            f" where they are with {EXAMPLE}"
        )
    if isinstance(key, IndexKey):
        return Found(items, key.names, skipped=skipped)
    colors = colors_of(key.colors)
    return Found(items, list(colors), colors, skipped)


def _key(source: str, options: Options) -> IndexKey | ColorKey:
    if options.colors is not None:
        if options.reduce_zero_label:
            raise InputError(
                "--reduce-zero-label is for masks of ids: leave it out, or leave out --colors"
            )
        return ColorKey(read_colors(options.colors))
    if options.class_names is None:
        raise SourceError(
            f"{source}: masks have no names: give those of the ids 0, 1, 2 … with --classes, or"
            " those of colours with --colors FILE"
        )
    return IndexKey(options.class_names, options.reduce_zero_label)


PAIRS_READER = Reader(find, maskfiles.read)
