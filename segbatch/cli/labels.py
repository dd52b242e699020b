"""Commands on labelled images: ``segbatch labels import``, ``check`` and ``suggest``."""

from __future__ import annotations

import json
from shlex import quote
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from segbatch.cli.groups import example
from segbatch.cli.options import Format, RunUri, print_facts
from segbatch.console import say
from segbatch.errors import Incomplete, InputError

labels_app = Typer(
    help="Labelled images: import, check, and suggest what to label next.", no_args_is_help=True
)

DatasetUri = Annotated[
    str, Argument(metavar="DATASET", help="The labelled dataset's folder (any URI).")
]


@labels_app.command(
    "import", epilog=example("segbatch labels import annotations/ labels/facades --from labelme")
)
def labels_import(
    source: Annotated[str, Argument(metavar="SOURCE", help="Folder of the labels (any URI).")],
    dataset: DatasetUri,
    *,
    from_format: Annotated[
        str, Option("--from", metavar="FORMAT", help="labelme, voc, coco, pairs, labelstudio, hf.")
    ],
    images: Annotated[
        str | None,
        Option(help="Folder of the images; pairs: 'img_dir/{split}/{id}.jpg'; hf: a column."),
    ] = None,
    masks: Annotated[
        str | None, Option(help="pairs: 'ann_dir/{split}/{id}.png'; hf: a column.")
    ] = None,
    colors: Annotated[
        str | None, Option(metavar="FILE", help="Classes of colour masks: lines R G B name.")
    ] = None,
    reduce_zero_label: Annotated[
        bool, Option("--reduce-zero-label", help="pairs: 0 is void, 1 the first class.")
    ] = False,
    classes: Annotated[
        str | None, Option(help="Names by id: a,b,c; a file, one a line; a classes.json.")
    ] = None,
    renames: Annotated[
        list[str] | None,
        Option("--map", metavar="OLD=NEW", help="Rename a class; NEW may be __ignore__."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        Option(
            metavar="CLASS|ignore",
            help="Class of pixels that no shape covers; default: _background_ if it is a class,"
            " else ignore.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        Option(
            metavar="SHARES|folder", help="val=0.1,test=0.1, or folder.", show_default="val=0.1"
        ),
    ] = None,
    split_list: Annotated[
        str | None, Option(metavar="FILE", help="Lines NAME SPLIT, or a CSV with uri and split.")
    ] = None,
    group_by: Annotated[
        str | None,
        Option(
            metavar="REGEX",
            help="Keep images whose URIs have the same match in one split; --append: as before.",
        ),
    ] = None,
    append: Annotated[bool, Option("--append", help="Add to the dataset.")] = False,
    add_class: Annotated[
        bool, Option("--add-class", help="With --append: allow new classes.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the dataset.")] = False,
    accept_unchanged: Annotated[
        bool, Option("--accept-unchanged", help="Take suggestions that nobody has changed, too.")
    ] = False,
    format: Format = "text",
) -> None:
    """Import annotated images as a labelled dataset.

    Reads labelme, VOC, COCO, Label Studio, pairs of images and masks (also in tar shards), and
    Hugging Face datasets with columns of both.
    """
    from segbatch import storage
    from segbatch.labels.importing import import_labels
    from segbatch.labels.naming import read_renames
    from segbatch.labels.summary import print_summary
    from segbatch.labels.writer import SKIPPED

    report = import_labels(
        source,
        dataset,
        format=from_format,
        classes=classes,
        images=images,
        masks=masks,
        colors=colors,
        reduce_zero_label=reduce_zero_label,
        map=read_renames(renames or ()),
        unlabelled=unlabelled,
        split=split,
        split_list=split_list,
        group_by=group_by,
        append=append,
        add_class=add_class,
        overwrite=overwrite,
        accept_unchanged=accept_unchanged,
    )
    if format == "json":
        print_facts(report.to_json(), format)
    else:
        print_summary(report, storage.join(report.dataset, SKIPPED))
    for note in report.notes:
        say(note)
    say(f"look at it with: segbatch labels check {quote(report.dataset)} --sheet sheet.png")


@labels_app.command(
    "check", epilog=example("segbatch labels check labels/facades --sheet sheet.png")
)
def labels_check(
    dataset: DatasetUri,
    *,
    sheet: Annotated[
        str | None,
        Option("--sheet", "-o", metavar="FILE", help="Write a contact sheet, .png or .jpg."),
    ] = None,
    format: Format = "text",
) -> None:
    """Check that every sample of a dataset can be trained on.

    Exit code 0: all can, perhaps with warnings; 1: some cannot.
    """
    from segbatch.labels.check import check_dataset
    from segbatch.labels.sheet import write_sheet
    from segbatch.labels.summary import print_balance
    from segbatch.masks import picture_format

    if sheet is not None:
        picture_format(sheet)
    report = check_dataset(dataset)
    if format == "json":
        print_facts(report.to_json(), format)
    else:
        for finding in report.findings:
            print(finding)
        if report.findings:
            print()
        print_balance(report.balance, report.dataset.classes)
        images = ", ".join(f"{split} {count:,}" for split, count in report.balance.splits.items())
        warnings = len(report.findings) - report.errors
        print(f"\nimages: {images or 'none'}; errors: {report.errors}; warnings: {warnings}")
    if sheet is not None:
        say(f"{write_sheet(report, sheet)} images in {sheet}")
    else:
        say("to see images with their masks: --sheet sheet.png")
    raise Exit(report.exit_code)


@labels_app.command(
    "suggest",
    epilog=example("segbatch labels suggest RUN to-label/ --count 50 --exclude labels"),
)
def labels_suggest(
    run: RunUri,
    folder: Annotated[str, Argument(metavar="DIR", help="Output folder (any URI).")],
    *,
    count: Annotated[int, Option(min=1, help="Maximum number of images.")] = 20,
    by: Annotated[
        str, Option(help="uncertainty, rare, disagreement, failures, diverse.")
    ] = "uncertainty",
    against: Annotated[
        str | None, Option(metavar="RUN_B", help="Other run for disagreement.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        Option(metavar="DATASET", help="Leave out images of this labelled dataset."),
    ] = None,
    images: Annotated[
        str | None,
        Option(metavar="LIST", help="Only these images: a URI a line, or a CSV or JSON with uri."),
    ] = None,
    to: Annotated[
        str, Option("--to", help="Format of labels: labelme, coco (CVAT), labelstudio.")
    ] = "labelme",
    format: Format = "text",
) -> None:
    """Copy the images of a run that are most worth labelling.

    The run's masks come with them as polygons, or for Label Studio as brushes, to correct.
    """
    from segbatch import storage
    from segbatch.labels.dataset import open_dataset
    from segbatch.results.database import sigint_stops_queries
    from segbatch.review.suggest.suggest import LabelledImages, suggest
    from segbatch.run import open_run

    opened = open_run(run)
    uris: set[str] = set()
    digests: set[str] = set()
    for dataset in exclude or ():
        contents = open_dataset(dataset).image_digests()
        uris |= contents.keys()
        digests |= set(contents.values())
    with sigint_stops_queries():
        suggestions = suggest(
            opened,
            folder,
            count=count,
            by=by,
            against=None if against is None else open_run(against),
            images=None if images is None else read_uris(images),
            labelled=LabelledImages(uris, digests),
            to=to,
        )
    print_facts(suggestions.to_json() if format == "json" else suggestions.facts(), format)
    if suggestions.unanswered and not suggestions.images:
        raise Incomplete("storage did not deliver the images; run it again as it is")
    if not suggestions.images:
        say("nothing is left to suggest: segment more photographs, or choose another --by")
    elif not exclude:
        say("images that are labelled already are left out only with --exclude DATASET")
    is_local = storage.is_local(suggestions.folder)
    if suggestions.images and to == "labelme" and is_local:
        say(f"correct them with: labelme {quote(suggestions.folder)}")
    if suggestions.images and to == "labelstudio":
        if is_local:
            root = quote(suggestions.folder.rpartition("/")[0] or "/")
            say(
                "correct them in: LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
                f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} label-studio start"
            )
        say(
            "there: paste label_config.xml into a new project, add the folder as a source storage,"
            " import tasks_*.json, correct, and export JSON into the folder"
        )
    if suggestions.images:
        say(
            f"then import them with: segbatch labels import {quote(suggestions.folder)} DATASET"
            f" --from {to} --append"
        )


def read_uris(where: str) -> list[str]:
    """The distinct URIs of a list of images: one a line, or ``uri`` of a CSV or a JSON list.

    Raises :class:`~segbatch.errors.InputError` if there is no such list, or no URI in it.
    """
    from segbatch import storage

    entries = _entries(storage.read_text(where, InputError))
    found = [entry.get("uri") if isinstance(entry, dict) else entry for entry in entries]
    uris = list(dict.fromkeys(uri for uri in found if isinstance(uri, str) and uri))
    if not uris:
        raise InputError(
            f"--images {where}: no URIs: give one a line, or a CSV or a JSON list with uri"
        )
    return uris


def _entries(text: str) -> list[Any]:
    from segbatch import storage

    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError):
            pass  # names that begin with a bracket
    table = storage.csv_reader(text, ["uri"])
    return list(table) if table is not None else [line.strip() for line in text.splitlines()]
