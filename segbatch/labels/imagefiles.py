"""Image files: where the image is that labels call by a relative path, or by a path of another
machine.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable

from segbatch import storage
from segbatch.labels import layout


class ImageFiles:
    """The files below ``folder``, or below ``root`` where the user names one."""

    def __init__(self, folder: str, uris: Iterable[str], root: str | None) -> None:
        self._folder = folder
        self._root = storage.normalize(root) if root is not None else None
        self._uris = set(layout.list_uris(self._root) if self._root is not None else uris)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for uri in sorted(self._uris):
            self._by_name[storage.name_of(uri)].append(uri)

    def locate(self, path: str, labels_uri: str) -> str:
        """The URI of the image that the file ``labels_uri`` calls ``path``.

        It is what the path leads to from the root, or else from the folder of ``labels_uri``; or,
        where there is nothing, the file whose own path ends so. Of a path that leads out of its
        folder, only the name has to be the same. One of several is taken if it alone is in a
        folder of the split of ``labels_uri``. What is found nowhere is where the path leads.
        Raises ``ValueError`` where several are left.
        """
        if storage.scheme_of(path):
            return path
        path = posixpath.normpath(path.replace("\\", "/"))
        leads = self._lead(path, labels_uri)
        if leads in self._uris:
            return leads
        leads_out = path.startswith(("../", "/")) or path[1:3] == ":/"
        end = storage.name_of(path) if leads_out else path
        same = [uri for uri in self._by_name[storage.name_of(path)] if uri.endswith(f"/{end}")]
        if len(same) > 1:
            split = self.split_of(labels_uri)
            same = [
                uri for uri in same if self.split_of(f"{layout.folder_of(uri)}/") == split
            ] or same
        if len(same) > 1:
            raise ValueError(
                f"{path} may be {same[0]} or {same[1]}: name the folder that it starts from with"
                " --images"
            )
        return same[0] if same else leads

    def split_of(self, uri: str) -> str | None:
        """The split that a path below the folder, or the folder's own name, speaks of."""
        root = self._root if self._root and uri.startswith(f"{self._root}/") else self._folder
        return layout.split_in(f"{storage.name_of(root)}{uri.removeprefix(root)}")

    def _lead(self, path: str, labels_uri: str) -> str:
        if self._root is None and path.startswith("/"):
            return path
        folder = self._root or layout.folder_of(labels_uri)
        while path.startswith("../"):
            folder, path = layout.folder_of(folder), path.removeprefix("../")
        return storage.join(folder, path)
