"""Image files: where the image is that labels call by a relative path, or by a path of another
machine.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

from segbatch import storage
from segbatch.formats import layout, provenance


class ImageFiles:
    """The files ``uris`` below ``folder``, or those below ``root`` where the user names one."""

    def __init__(self, folder: str, uris: Iterable[str], root: str | None) -> None:
        self._folder = folder
        self._root = storage.normalize(root) if root is not None else None
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for uri in uris if self._root is None else layout.list_uris(self._root):
            self._by_name[storage.name_of(uri)].append(uri)

    def locate(self, path: str, labels_uri: str) -> str:
        """The URI of the image that the file ``labels_uri`` calls ``path``.

        It is where the path leads from the root, or else from the folder of ``labels_uri``. Where
        there is nothing, it is the one file below the root, below that folder, or else below the
        folder above it, whose own path ends so and which is in no folder of another split. Of a
        path that leads out of its folder, only the name has to be the same. What is found nowhere
        is where the path leads. Raises ``ValueError`` where there are several such files.
        """
        if storage.scheme_of(path):
            return path
        path = posixpath.normpath(path.replace("\\", "/"))
        goal = self._follow(path, labels_uri)
        same_name = self._by_name.get(storage.name_of(path), [])
        if goal in same_name:
            return goal
        leads_out = path.startswith(("../", "/")) or path[1:3] == ":/"
        end = f"/{storage.name_of(path) if leads_out else path}"
        own = layout.folder_of(labels_uri)
        for place in [own, layout.folder_of(own)] if self._root is None else [self._root]:
            same = [uri for uri in same_name if uri.startswith(f"{place}/") and uri.endswith(end)]
            same = self._of_split(self.split_of(labels_uri), same)
            if len(same) > 1:
                raise ValueError(
                    f"{path} may be {same[0]} or {same[1]}: name the folder that it starts from"
                    " with --images"
                )
            if same:
                return same[0]
        return goal

    @cached_property
    def own_uris(self) -> dict[str, str]:
        """The URIs of the images that ``labels suggest`` copied here, by those of the copies."""
        return {
            storage.join(layout.folder_of(listed), name): uri
            for listed in self._by_name.get(provenance.LIST, [])
            for name, uri in provenance.listed_uris(layout.read_bytes(listed)).items()
        }

    def split_of(self, uri: str) -> str | None:
        """The split that a path below the folder, or the folder's own name, speaks of."""
        root = self._root if self._root and uri.startswith(f"{self._root}/") else self._folder
        return layout.split_in(f"{storage.name_of(root)}{uri.removeprefix(root)}")

    def _of_split(self, split: str | None, uris: list[str]) -> list[str]:
        """Those in a folder of the split, else those that are in none; all, where it is unknown."""
        if split is None:
            return uris
        splits = {uri: self.split_of(f"{layout.folder_of(uri)}/") for uri in uris}
        of_split = [uri for uri in uris if splits[uri] == split]
        return of_split or [uri for uri in uris if splits[uri] is None]

    def _follow(self, path: str, labels_uri: str) -> str:
        if self._root is None and path.startswith("/"):
            return path
        folder = self._root or layout.folder_of(labels_uri)
        while path.startswith("../"):
            folder, path = layout.folder_of(folder), path.removeprefix("../")
        return storage.join(folder, path)
