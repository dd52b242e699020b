"""``segbatch predict`` and ``segbatch model``."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from segbatch.cli.options import (
    Facts,
    FactsFormat,
    print_facts,
)
from segbatch.errors import InputError

model_app = typer.Typer(help="Model bundles: list, inspect, import, export.", no_args_is_help=True)
predict_app = typer.Typer()


class Runtime(StrEnum):
    """What a bundle is exported to."""

    onnx = "onnx"


@predict_app.command()
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
    from segbatch.review.predict.images import predict_files

    written = predict_files(source, model, output)
    print(f"{written} overlay{'s' if written != 1 else ''} in {output}", file=sys.stderr)


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
