"""Maps the names in labels to the classes of a dataset, whose ids never change."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from segbatch.errors import InputError, SourceError
from segbatch.formats.format import Annotations
from segbatch.masks.classes import IGNORE, IGNORE_INDEX, Classes, Color
from segbatch.masks.classfile import names_by_id, read_classes
from segbatch.storage import clean_name

BACKGROUND = "_background_"


@dataclass(frozen=True)
class Naming:
    """The classes of the dataset, the class id or ignore index of every name in the labels, and the
    classes that the dataset did not have before.
    """

    classes: Classes
    ids: Mapping[str, int]
    added: Sequence[str] = ()


def given_classes(classes: str | Sequence[str] | None) -> Classes | None:
    """The classes that ``--classes`` or a list of names gives; ``__ignore__`` may come first, and
    is none of them.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        return read_classes(classes)  # with colours, if a file gives any
    return Classes(names_by_id(classes))


def read_renames(pairs: Iterable[str]) -> dict[str, str]:
    """``--map old=new`` → ``{old: new}``. Raises :class:`~segbatch.errors.InputError`."""
    renames: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = (clean_name(part) for part in pair.rpartition("="))
        if not (old and equals and new):
            raise InputError(f"--map {pair}: must be old=new, for instance --map windows=window")
        if renames.setdefault(old, new) != new:
            raise InputError(f"--map {pair}: {old!r} is already mapped to {renames[old]!r}")
    return renames


def name_classes(
    source: str,
    found: Annotations,
    *,
    given: Classes | None,
    renames: Mapping[str, str],
    before: Classes | None,
    add_class: bool,
) -> Naming:
    """The classes of the dataset, and an id for each name in the labels of ``source``.

    The classes are those that the dataset had ``before``, then those ``given``, or else the sorted
    names. Raises :class:`~segbatch.errors.InputError` for names that are not classes, and
    :class:`~segbatch.errors.SourceError` if there is no name at all.
    """
    in_dataset = before.names if before is not None else []
    # A dataset may hold names that an earlier version did not clean.
    spelled = {clean_name(name): name for name in in_dataset}
    renames = {clean_name(old): clean_name(new) for old, new in renames.items()}

    def class_of(name: str) -> str:
        new = renames.get(clean_name(name), clean_name(name))
        return spelled.get(new, new)

    class_by_label = {name: class_of(name) for name in found.names}
    used = sorted(set(class_by_label.values()) - {IGNORE})
    if before is None and given is None and not used:
        raise SourceError(f"{source}: no shape there has the name of a class")
    wanted = used if given is None else [spelled.get(name, name) for name in given.names]
    added = [name for name in wanted if name not in in_dataset]
    if before is not None and added and not add_class:
        raise InputError(
            f"{source}: {_listed(added, in_dataset)}: not among the classes of the dataset; rename"
            f" with --map {_map(added[0], _closest(added[0], in_dataset))}, leave out with"
            f" --map {_map(added[0], IGNORE)}, or add with --add-class"
        )
    class_names = [*in_dataset, *added]
    _refuse_unknown(source, class_by_label, class_names)
    for old, new in renames.items():
        if spelled.get(new, new) not in class_names and new != IGNORE:
            raise InputError(f"--map {old}={new}: {_listed([new], class_names)} is not a class")
    colors = _colors(found, class_by_label, given, before)
    try:
        classes = Classes(class_names, [colors.get(name) for name in class_names])
    except InputError as error:
        raise InputError(f"{source}: {error}, with --map old=new") from error
    id_of_class = {c.name: c.id for c in classes} | {IGNORE: IGNORE_INDEX}
    ids = {name: id_of_class[new] for name, new in class_by_label.items()}
    return Naming(classes, ids, added if before is not None else ())


def unlabelled_id(unlabelled: str | None, classes: Classes) -> int:
    """The id of pixels that no shape covers: that of the class named by ``--unlabelled``; by
    default that of ``_background_``, or the ignore index if there is no such class.
    """
    id_of_class = {clean_name(c.name): c.id for c in classes}
    if unlabelled is None:
        return id_of_class.get(BACKGROUND, IGNORE_INDEX)
    unlabelled = clean_name(unlabelled)
    if unlabelled not in id_of_class and unlabelled not in ("ignore", IGNORE):
        raise InputError(
            f"--unlabelled {unlabelled}: {_listed([unlabelled], classes.names)} is not a class; the"
            f" classes are {', '.join(classes.names)}; or ignore"
        )
    return id_of_class.get(unlabelled, IGNORE_INDEX)


def _refuse_unknown(source: str, names: Mapping[str, str], known: Sequence[str]) -> None:
    unknown = [old for old, new in names.items() if new not in known and new != IGNORE]
    if unknown:
        raise InputError(
            f"{source}: {_listed(unknown, known)}: not among the classes"
            f" {', '.join(known)}; rename with --map"
            f" {_map(unknown[0], _closest(unknown[0], known))}, leave out with"
            f" --map {_map(unknown[0], IGNORE)}, or name it in --classes"
        )


def _listed(names: Sequence[str], known: Sequence[str]) -> str:
    """The names, each with the class that was perhaps meant."""
    close = {name: difflib.get_close_matches(name, known, 1) for name in names}
    return ", ".join(
        f"{name!r} (did you mean {close[name][0]!r}?)" if close[name] else repr(name)
        for name in names
    )


def _closest(name: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1)), "NEW")


def _map(old: str, new: str) -> str:
    """The value of ``--map`` as it is typed into a shell."""
    return shlex.quote(f"{old}={new}")


def _colors(
    found: Annotations, names: Mapping[str, str], given: Classes | None, before: Classes | None
) -> dict[str, Color]:
    """The colour by class name: the dataset's, else that of ``--classes``, else the format's."""
    colors = {names[old]: color for old, color in found.colors.items() if old in names}
    if given is not None:  # a name without a colour gets a default, which does not count
        defaults = Classes(given.names)
        colors |= {c.name: c.color for c in given if c.color != defaults[c.id].color}
    if before is not None:
        colors |= {c.name: c.color for c in before}
    return colors
