"""Files that operating systems and NAS boxes leave in folders of photographs, and hidden files.

Below a prefix or a folder they are never photographs or labels, of any extension: the
``._a.jpg`` of an archive that was made on a Mac holds no picture. A user who names such a file, or
a folder of them, gets it; a wildcard does not name it, as in a shell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TypeVar

FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})

Item = TypeVar("Item")


def system_part(path: str) -> str | None:
    """The part of ``path``, relative to what the user named, that makes it a system file or a
    hidden one: ``._*``, ``__MACOSX/``, ``.thumbnails/``, ``Thumbs.db``; ``None`` if there is none.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if folder.startswith(".") or folder.lower() in FOLDERS:
            return f"{folder}/"
    if name.startswith("._"):
        return "._*"
    return name if name.startswith(".") or name.lower() in FILES else None


class SystemFiles:
    """Leaves system files out of listings, and counts them; those that ``glob`` names are kept:
    with ``**/.thumbnails/*.jpg`` what is in ``.thumbnails``.
    """

    def __init__(self, glob: str = "") -> None:
        self.counts: Counter[str] = Counter()
        parts = glob.split("/")
        self._named = [part for part in parts if system_part(part) or system_part(f"{part}/")]

    def left_out(self, items: Iterable[Item], path_of: Callable[[Item], str]) -> Iterator[Item]:
        """The ``items`` that are none; ``path_of`` gives the path relative to what was named."""
        for item in items:
            part = system_part(self._without_named_parts(path_of(item)))
            if part is None:
                yield item
            else:
                self.counts[part] += 1

    def _without_named_parts(self, path: str) -> str:
        if not self._named:
            return path
        return "/".join("" if self._is_named(part) else part for part in path.split("/"))

    def _is_named(self, part: str) -> bool:
        return any(part == name or fnmatchcase(part, name) for name in self._named)

    def __str__(self) -> str:
        """``5 system files (._*, __MACOSX/)``; empty if there are none."""
        number = self.counts.total()
        kinds = [kind for kind, _ in self.counts.most_common(4)]
        more = ", …" if len(self.counts) > len(kinds) else ""
        return f"{number:,} system file{'s' * (number > 1)} ({', '.join(kinds)}{more})" * (
            number > 0
        )
