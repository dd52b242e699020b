"""The command line of labels: ``segbatch labels import``, ``check`` and ``suggest``."""

from __future__ import annotations

from typing import Annotated

import typer

from segbatch.cli.facts import Facts, FactsFormat, print_facts
from segbatch.cli.suggest_cli import suggest_app

labels_app = typer.Typer(
    help="Labelled images: import them as a dataset, check it, and say what to label next.",
    no_args_is_help=True,
)
labels_app.add_typer(suggest_app)


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
    from segbatch.labels.report import print_report
    from segbatch.labels.target import SKIPPED

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
        print_report(report, storage.join(report.dataset, SKIPPED))
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
    from segbatch.labels.report import print_balance
    from segbatch.labels.sheet import sheet_format, write_sheet

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
