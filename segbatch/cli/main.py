"""The command line: a thin layer over the public functions.

Results go to stdout, everything else to stderr. A command imports what it needs when it runs, so
that ``--help`` and ``query`` load neither torch nor Ray.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from segbatch.cli.browse_cli import browse_app
from segbatch.cli.cluster import cluster_app
from segbatch.cli.export_cli import export_app
from segbatch.cli.facts import Facts, FactsFormat, print_facts
from segbatch.cli.labels import labels_app
from segbatch.cli.options import (
    JobFile,
    Only,
    Overrides,
    Repair,
    RetryFailed,
    RunUri,
    kinds_of,
    refuse_misfits,
)
from segbatch.cli.plan import plan_app
from segbatch.cli.report_cli import report_app
from segbatch.errors import Incomplete, InputError, SegbatchError

app = typer.Typer(
    rich_markup_mode=None,  # rich would take half of the time of a --help
    name="segbatch",
    help="Batch semantic segmentation of image collections in object storage, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(help="Model bundles: list, inspect, import, export.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(labels_app, name="labels")
app.add_typer(cluster_app)  # without a name: submit, jobs, logs, stop
app.add_typer(plan_app)
app.add_typer(export_app)
app.add_typer(browse_app)
app.add_typer(report_app)


class Runtime(StrEnum):
    """What a bundle is exported to."""

    onnx = "onnx"


class Rows(StrEnum):
    """How rows are printed or written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def _version(wanted: bool) -> None:
    if wanted:
        from segbatch import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    job: JobFile,
    overrides: Overrides = None,
    retry_failed: RetryFailed = False,
    only: Only = None,
    repair: Repair = False,
) -> None:
    """Run a job on this machine, or on the Ray cluster of RAY_ADDRESS; resumes by itself."""
    from segbatch.config.job import load_job

    loaded = load_job(job, overrides or ())
    kinds = kinds_of(only)
    refuse_misfits(loaded, retry_failed=retry_failed, only=kinds, repair=repair)
    if loaded.kind == "finetune":
        from segbatch.jobs.finetune import finetune

        print_facts(finetune(loaded), Facts.text)
    elif loaded.kind == "evaluate":
        from segbatch.jobs.evaluate import evaluate
        from segbatch.jobs.scores import as_text

        print(as_text(evaluate(loaded)))
    else:
        from segbatch.jobs.segment import segment

        finished = segment(loaded, retry_failed=retry_failed, only=kinds, repair=repair)
        print_facts(finished.summary(), Facts.text)


@app.command()
def status(run_uri: RunUri, format: FactsFormat = Facts.text) -> None:
    """Where a run stands, from storage alone."""
    from segbatch.results.runfolder import open_run

    print_facts(open_run(run_uri).summary(), format)


@app.command()
def audit(
    run_uri: RunUri,
    deep: Annotated[bool, typer.Option(help="Compare every file's SHA-256.")] = False,
    format: FactsFormat = Facts.text,
) -> None:
    """Count a run's rows against its manifest: 0 clean, 1 lost, twice or damaged, 3 unfinished."""
    from segbatch.results.runfolder import open_run

    result = open_run(run_uri).audit(deep=deep)
    print_facts(result.to_json(), format)
    raise typer.Exit(result.exit_code)


@app.command()
def query(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN... [SQL]", help="Runs or globs, then one SELECT.")
    ],
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the SQL from a file; - is stdin.")
    ] = None,
    format: Annotated[Rows, typer.Option("--format", help="How rows are written.")] = Rows.table,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Write all rows here, any URI.")
    ] = None,
) -> None:
    """SQL over one or several runs: views images, masks, wide, classes, failures, runs."""
    from segbatch.results.answer import write
    from segbatch.results.query import sql
    from segbatch.results.runfolder import open_runs

    runs, text = list(arguments), ""
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else _read_text(file)
    elif len(runs) > 1:
        text = runs.pop()
    else:
        raise InputError('no SQL given: segbatch query RUN "SELECT * FROM images LIMIT 10"')
    write(sql(open_runs(runs), text), format.value, output)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="The run to start from, any URI.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to hold against it.")],
    format: FactsFormat = Facts.text,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Write a row per image: .parquet, .csv, .json."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many rows of a kind are shown.")] = 20,
) -> None:
    """How two runs over the same images differ: by class, by pixel, and where most."""
    from segbatch.results.answer import SHOWN_ROWS, format_of, write
    from segbatch.results.runfolder import open_run

    output_format = None if output is None else format_of(output)
    found = open_run(run_a).diff(open_run(run_b))
    for note in found.notes():
        print(note, file=sys.stderr)
    if output_format is not None:
        write(found.images, output_format, output)
    if format is Facts.json:
        print_facts(found.to_json(limit), format)
        return
    print_facts(found.facts, format)
    for title, rows in found.tables(limit).items():
        print(f"\n{title}")
        write(rows, shown_rows=max(limit, SHOWN_ROWS))


@app.command()
def predict(
    source: Annotated[
        str,
        typer.Argument(help="An image, a video, a folder of these (any URI), or camera:0."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A model bundle or zoo:NAME.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A picture, a video, or a folder; a camera needs none."
        ),
    ] = None,
) -> None:
    """Look at what a model sees, without Ray: overlays with a legend."""
    from segbatch.review.predict.camera import is_camera, predict_camera

    if is_camera(source):
        shown = predict_camera(source, model, output)
        print(f"{shown} frames in {output or 'a window'}", file=sys.stderr)
        return
    if output is None:
        raise InputError("no output given: -o overlay.png, -o overlay.mp4 or -o FOLDER/")
    from segbatch.review.predict.images import predict_pictures

    written = predict_pictures(source, model, output)
    print(f"{written} overlay{'s' if written != 1 else ''} in {output}", file=sys.stderr)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything goes.")],
) -> None:
    """The whole way on rendered facades: an S3 server, a small model, a run, SQL."""
    from segbatch.demo.tour import tour

    tour(folder)


@model_app.command("list")
def model_list(
    uri: Annotated[str | None, typer.Argument(metavar="URI", help="Bundles below this.")] = None,
    format: FactsFormat = Facts.text,
) -> None:
    """What can be named as a model; with URI, the bundles below it."""
    from segbatch.model import bundle, zoo

    if uri is None:
        facts: Any = {
            "architectures": list(zoo.ARCHITECTURES),
            "published weights": [f"{zoo.ZOO_PREFIX}{name}" for name in zoo.ZOO],
            "backbones": zoo.backbones(),
        }
    else:
        facts = [
            {
                "uri": where,
                "arch": config.arch,
                "backbone": config.backbone,
                "long_side": config.long_side,
                "classes": config.classes.names,
            }
            for where, config in bundle.list_bundles(uri)
        ]
    print_facts(facts, format)


@model_app.command("info")
def model_info(
    uri: Annotated[str, typer.Argument(metavar="BUNDLE", help="A model bundle or zoo:NAME.")],
    format: FactsFormat = Facts.text,
) -> None:
    """What a bundle holds: network, classes, sizes, metrics, provenance."""
    from segbatch.model import bundle

    facts = bundle.describe(uri)
    if format is Facts.text:
        facts["classes"] = [entry["name"] for entry in facts["classes"]]
    print_facts(facts, format)


@model_app.command("import")
def model_import(
    weights: Annotated[str, typer.Argument(help="A state_dict: .pth, .pt or .safetensors.")],
    uri: Annotated[str, typer.Argument(metavar="BUNDLE", help="Where the bundle goes.")],
    arch: Annotated[str, typer.Option(help="deeplabv3 or deeplabv3plus.")],
    backbone: Annotated[str, typer.Option(help="resnet50, mobilenet_v2, …")],
    classes: Annotated[str, typer.Option(help="Names by id: a,b,c; or a file, one a line.")],
    output_stride: Annotated[int | None, typer.Option(help="8 or 16 (deeplabv3plus).")] = None,
    long_side: Annotated[
        int | None, typer.Option(help="Longer side in pixels that the model was trained at.")
    ] = None,
) -> None:
    """Make a bundle of weights from torchvision or segmentation-models-pytorch."""
    from segbatch.masks.classes import read_classes
    from segbatch.model import bundle

    bundle.import_weights(
        weights,
        uri,
        arch=arch,
        backbone=backbone,
        classes=read_classes(classes),
        output_stride=output_stride,
        long_side=long_side,
    )
    print(f"{uri}: imported; look at it with: segbatch model info {uri}", file=sys.stderr)


@model_app.command("export")
def model_export(
    uri: Annotated[str, typer.Argument(metavar="BUNDLE", help="A model bundle or zoo:NAME.")],
    to: Annotated[Runtime, typer.Option("--to", help="What other runtimes load.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file, any URI.")
    ] = "model.onnx",
) -> None:
    """Write a bundle as one file for other runtimes, checked against the original."""
    from segbatch.model.onnx import export_onnx

    parity = export_onnx(uri, output)
    print(
        f"{output}: {to.value}; on random images logits differ by {parity.difference:.1g} of the"
        f" largest, class ids are equal at {parity.equal:.3%} of pixels",
        file=sys.stderr,
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def main() -> None:
    """Entry point: an error that segbatch raises on purpose is one line and an exit code."""
    try:
        app()
    except SegbatchError as error:
        print(f"segbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)  # `segbatch query … | head`
    except OSError as error:
        print(f"segbatch: {error}; run it again", file=sys.stderr)
        sys.exit(Incomplete.exit_code)
