"""The command line of labels: ``segbatch labels import``, ``check`` and ``suggest``."""

from __future__ import annotations

import csv
import io
from typing import Annotated

import typer

from segbatch.cli.options import Facts, FactsFormat, RunUri, print_facts
from segbatch.errors import Incomplete, InputError

labels_app = typer.Typer(
    help="Labelled images: import them as a dataset, check it, and say what to label next.",
    no_args_is_help=True,
)


DatasetUri = Annotated[
    str, typer.Argument(metavar="DATASET", help="The labelled dataset's folder, any URI.")
]


@labels_app.command("import")
def labels_import(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of the labels, any URI.")],
    dataset: DatasetUri,
    *,
    from_format: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="labelme, voc, coco or pairs.")
    ],
    images: Annotated[
        str | None,
        typer.Option(help="Folder of the images; pairs: 'img_dir/{split}/{id}.jpg'."),
    ] = None,
    masks: Annotated[str | None, typer.Option(help="pairs: 'ann_dir/{split}/{id}.png'.")] = None,
    colors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Classes of colour masks: lines R G B name."),
    ] = None,
    reduce_zero_label: Annotated[
        bool, typer.Option("--reduce-zero-label", help="pairs: 0 is void, 1 the first class.")
    ] = False,
    classes: Annotated[
        str | None, typer.Option(help="Names by id: a,b,c; a file, one a line; a classes.json.")
    ] = None,
    renames: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OLD=NEW", help="Rename; NEW may be __ignore__."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|ignore",
            help="What no shape covers; default: _background_ if it is a class, else ignore.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES|folder", help="val=0.1,test=0.1, or folder.", show_default="val=0.1"
        ),
    ] = None,
    split_list: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Lines NAME SPLIT, or a CSV with uri and split."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Images in whose URI it finds the same stay together."),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the dataset.")] = False,
    add_class: Annotated[
        bool, typer.Option("--add-class", help="With --append: new names become classes.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make the dataset anew.")] = False,
    format: FactsFormat = Facts.text,
) -> None:
    """Annotated images of labelme, VOC, COCO or mask pairs → a labelled dataset."""
    from segbatch import storage
    from segbatch.console import say
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
    )
    if format is Facts.json:
        print_facts(report.to_json(), format)
    else:
        print_summary(report, storage.join(report.dataset, SKIPPED))
    for note in report.notes:
        say(note)
    say(f"look at it with: segbatch labels check {report.dataset} --sheet sheet.png")


@labels_app.command("check")
def labels_check(
    dataset: DatasetUri,
    *,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", "-o", metavar="FILE", help="Write a contact sheet, .png or .jpg."),
    ] = None,
    format: FactsFormat = Facts.text,
) -> None:
    """Look at every sample: 0 all can be trained on (warnings or not), 1 some cannot."""
    from segbatch.console import say
    from segbatch.labels.check import check_dataset
    from segbatch.labels.sheet import sheet_format, write_sheet
    from segbatch.labels.summary import print_balance

    if sheet is not None:
        sheet_format(sheet)
    report = check_dataset(dataset)
    if format is Facts.json:
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
    raise typer.Exit(report.exit_code)


# The command line of ``segbatch labels suggest``.


@labels_app.command("suggest")
def suggest_command(
    run: RunUri,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to, any URI.")],
    *,
    count: Annotated[int, typer.Option(min=1, help="Images, at most.")] = 20,
    by: Annotated[
        str, typer.Option(help="uncertainty, disagreement, failures or diverse.")
    ] = "uncertainty",
    against: Annotated[
        str | None, typer.Option(metavar="RUN_B", help="The run that it disagrees with.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET", help="Leave out what is in this labelled dataset."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Among these only: a URI a line, or a CSV with uri."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="How labels are written: labelme or coco (CVAT).")
    ] = "labelme",
    format: FactsFormat = Facts.text,
) -> None:
    """Images of a run that are worth labelling, with their masks as polygons to correct."""
    from segbatch import storage
    from segbatch.console import say
    from segbatch.labels.dataset import open_dataset
    from segbatch.review.suggest.suggest import LabelledImages, suggest
    from segbatch.run import open_run

    opened = open_run(run)
    uris: set[str] = set()
    digests: set[str] = set()
    for dataset in exclude or ():
        contents = open_dataset(dataset).image_digests()
        uris |= contents.keys()
        digests |= set(contents.values())
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
    print_facts(suggestions.to_json() if format is Facts.json else suggestions.facts(), format)
    if suggestions.unanswered and not suggestions.images:
        raise Incomplete("storage did not give the images to look at; run it again as it is")
    if suggestions.images and to == "labelme" and storage.is_local(suggestions.folder):
        say(f"correct them with: labelme {suggestions.folder} --nodata --autosave")
    if suggestions.images:
        say(
            f"then take them back with: segbatch labels import {suggestions.folder} DATASET"
            f" --from {to} --append"
        )


def read_uris(where: str) -> list[str]:
    """The URIs of a list of images: a line each, or the column ``uri`` of a CSV.

    Raises :class:`~segbatch.errors.InputError` where there is none.
    """
    from segbatch import storage

    try:
        text = storage.read_input(where, InputError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--images {where}: is no text in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    found = (
        [row["uri"] for row in reader]
        if "uri" in (reader.fieldnames or ())
        else [line.strip() for line in text.splitlines()]
    )
    uris = list(dict.fromkeys(uri for uri in found if uri))
    if not uris:
        raise InputError(f"--images {where}: names no image: a URI a line, or a CSV with uri")
    return uris
