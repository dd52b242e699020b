"""Naming: the names that labels use → the classes of the dataset, whose ids never move."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from segbatch.errors import InputError, SourceError
from segbatch.formats.format import IGNORE, Found
from segbatch.masks.classes import IGNORE_INDEX, Classes, Color, read_classes

BACKGROUND = "_background_"


@dataclass(frozen=True)
class Naming:
    """The dataset's classes, the id (or the ignore index) of every name that was found, and which
    classes the dataset did not have before.
    """

    classes: Classes
    ids: Mapping[str, int]
    added: Sequence[str] = ()


def given_classes(classes: str | Sequence[str] | None) -> Classes | None:
    """What ``--classes`` says, or a list of names."""
    if classes is None:
        return None
    if isinstance(classes, str):
        read = read_classes(classes)
        if IGNORE not in read.names:
            return read  # with the colours that a file may give
        classes = read.names
    return Classes([name for name in classes if name != IGNORE])


def read_renames(pairs: Iterable[str]) -> dict[str, str]:
    """``--map old=new`` → ``{old: new}``. Raises :class:`~segbatch.errors.InputError`."""
    renames: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not (old and equals and new):
            raise InputError(f"--map {pair}: must be old=new, for instance --map windows=window")
        if renames.setdefault(old, new) != new:
            raise InputError(f"--map {pair}: {old!r} is already mapped to {renames[old]!r}")
    return renames


def name_classes(
    source: str,
    found: Found,
    *,
    given: Classes | None,
    renames: Mapping[str, str],
    before: Classes | None,
    add_class: bool,
) -> Naming:
    """The classes, and an id for each name that was found in ``source``.

    In this order: the classes that the dataset had ``before``, then those ``given``, else the
    sorted names. Raises :class:`~segbatch.errors.InputError` for names that are no class, and
    :class:`~segbatch.errors.SourceError` where there is no name at all.
    """
    names = {name: renames.get(name, name) for name in found.names}
    used = sorted(set(names.values()) - {IGNORE})
    if before is None and given is None and not used:
        raise SourceError(f"{source}: no shape there has the name of a class")
    kept = before.names if before is not None else []
    extra = [name for name in (given.names if given is not None else used) if name not in kept]
    if before is not None and extra and not add_class:
        raise InputError(
            f"{source}: {_listed(extra, kept)}: not among the classes of the dataset; rename with"
            f" --map {_quoted(extra[0])}={_closest(extra[0], kept)}, leave out with"
            f" --map {_quoted(extra[0])}={IGNORE}, or add with --add-class"
        )
    known = [*kept, *extra]
    _refuse_unknown(source, names, known)
    for old, new in renames.items():
        if new not in known and new != IGNORE:
            raise InputError(f"--map {old}={new}: {_listed([new], known)} is no class")
    colors = _colors(found, names, given, before)
    try:
        classes = Classes(known, [colors.get(name) for name in known])
    except InputError as error:
        raise InputError(f"{source}: {error}, with --map old=new") from error
    position = {c.name: c.id for c in classes} | {IGNORE: IGNORE_INDEX}
    ids = {name: position[new] for name, new in names.items()}
    return Naming(classes, ids, extra if before is not None else ())


def unlabelled_id(unlabelled: str | None, classes: Classes) -> int:
    """The id of pixels that no shape covers: of the class that ``--unlabelled`` names, by default
    of ``_background_`` where that is a class, else the ignore index.
    """
    position = {c.name: c.id for c in classes}
    if unlabelled is None:
        return position.get(BACKGROUND, IGNORE_INDEX)
    if unlabelled not in position and unlabelled not in ("ignore", IGNORE):
        raise InputError(
            f"--unlabelled {unlabelled}: {_listed([unlabelled], classes.names)} is no class; the"
            f" classes are {', '.join(classes.names)}; or ignore"
        )
    return position.get(unlabelled, IGNORE_INDEX)


def _refuse_unknown(source: str, names: Mapping[str, str], known: Sequence[str]) -> None:
    unknown = [old for old, new in names.items() if new not in known and new != IGNORE]
    if unknown:
        raise InputError(
            f"{source}: {_listed(unknown, known)}: not among the classes"
            f" {', '.join(known)}; rename with --map"
            f" {_quoted(unknown[0])}={_closest(unknown[0], known)}, leave out with"
            f" --map {_quoted(unknown[0])}={IGNORE}, or name it in --classes"
        )


def _listed(names: Sequence[str], known: Sequence[str]) -> str:
    """The names, each with the class that it may be a slip of."""
    close = {name: difflib.get_close_matches(name, known, 1) for name in names}
    return ", ".join(
        f"{name!r} (did you mean {close[name][0]!r}?)" if close[name] else repr(name)
        for name in names
    )


def _closest(name: str, known: Sequence[str]) -> str:
    return _quoted(next(iter(difflib.get_close_matches(name, known, 1)), "NEW"))


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _colors(
    found: Found, names: Mapping[str, str], given: Classes | None, before: Classes | None
) -> dict[str, Color]:
    """Colours by name: the dataset's own, else those of ``--classes``, else the format's."""
    colors = {names[old]: color for old, color in found.colors.items() if old in names}
    if given is not None:  # a bare name has a colour by default, which says nothing
        defaults = Classes(given.names)
        colors |= {c.name: c.color for c in given if c.color != defaults[c.id].color}
    if before is not None:
        colors |= {c.name: c.color for c in before}
    return colors
