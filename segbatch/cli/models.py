"""Commands on models: ``segbatch predict`` and ``segbatch model``."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from typer import Argument, Option, Typer

from segbatch.cli.groups import SEGMENT, example
from segbatch.cli.options import Bundle, Format, print_facts, require_extension
from segbatch.console import say
from segbatch.errors import InputError

if TYPE_CHECKING:
    from segbatch.model.networks.sizes import Size

model_app = Typer(help="Model bundles: list, inspect, import, export.", no_args_is_help=True)
predict_app = Typer()


@predict_app.command(
    rich_help_panel=SEGMENT,
    epilog=example("segbatch predict photos/ --model zoo:facades -o overlays/"),
)
def predict(
    source: Annotated[
        str, Argument(help="Image, video, folder, tar shard, Parquet file (any URI), or camera:0.")
    ],
    model: Annotated[str, Option("--model", "-m", help="A model bundle or zoo:NAME.")],
    output: Annotated[
        str | None,
        Option("--output", "-o", help="An image, a video or a folder; a camera needs none."),
    ] = None,
    fill: Annotated[
        float | None,
        Option(min=0, max=1, help="Opacity of the class colours, else 0.35; 0: outlines only."),
    ] = None,
) -> None:
    """Draw what a model predicts over images, videos or a camera.

    Runs without Ray.
    """
    from segbatch.masks import FILL
    from segbatch.review.predict.camera import is_camera, predict_camera

    fill = FILL if fill is None else fill
    if is_camera(source):
        shown = predict_camera(source, model, output, fill)
        say(f"{shown} frames in {output or 'a window'}")
        return
    if output is None:
        raise InputError("no output given: -o overlay.png, -o overlay.mp4 or -o FOLDER/")
    from segbatch.review.predict.images import predict_files

    written = predict_files(source, model, output, fill)
    say(f"{written} overlay{'s' if written != 1 else ''} in {output}")


@model_app.command("list", epilog=example("segbatch model list --arch deeplabv3plus"))
def model_list(
    uri: Annotated[str | None, Argument(metavar="URI", help="Folder to list bundles of.")] = None,
    arch: Annotated[
        str | None,
        Option(
            help="List all backbones of this architecture, by cost; or the bundles that have it."
        ),
    ] = None,
    format: Format = "text",
) -> None:
    """List what a job can name as its model, or the bundles below URI.

    GMAC: 10^9 multiply-adds for an image of 512×512.
    """
    from segbatch.model.networks import ARCHITECTURES, unknown_name

    if uri is not None:
        from segbatch.model import bundle
        from segbatch.model.config import GRAPH

        if arch is not None and arch not in (GRAPH, *ARCHITECTURES):
            raise unknown_name("arch", arch, [*ARCHITECTURES, GRAPH])
        found = [
            {
                "uri": where,
                "arch": config.arch,
                "backbone": config.backbone,
                "long_side": config.long_side,
                "classes": config.classes.names,
            }
            for where, config in bundle.list_bundles(uri)
            if arch in (None, config.arch)
        ]
        print_facts(found, format)
        return
    from segbatch.model import zoo
    from segbatch.model.networks.sizes import known_sizes

    if arch is not None and arch not in ARCHITECTURES:
        raise unknown_name("arch", arch, ARCHITECTURES)
    sizes = [size for size in known_sizes() if arch in (None, size.arch)]
    if format == "json":
        networks = [{**size._asdict(), "licence": size.licence} for size in sizes]
        names = [f"{zoo.ZOO_PREFIX}{name}" for name in (*zoo.SHIPPED, *zoo.ZOO)]
        print_facts({"networks": networks, "models": names}, format)
        return
    shown = sizes if arch else [size for size in sizes if size.backbone in USUAL_BACKBONES]
    _print_networks(sorted(shown, key=lambda size: size.gmac) if arch else shown)
    if arch is None:
        print(
            f"\n{len(sizes) - len(shown)} more: segbatch model list --arch ARCH; timm's as tu-NAME"
        )
        kinds: dict[str, Iterable[str]] = {
            "comes with segbatch": zoo.SHIPPED,
            "published weights": zoo.ZOO,
        }
        for kind, models in kinds.items():
            print(f"{kind}: {', '.join(f'{zoo.ZOO_PREFIX}{name}' for name in models)}")


USUAL_BACKBONES = ("mobilenet_v2", "efficientnet-b0", "resnet50", "resnet101", "mit_b0", "mit_b2")


def _print_networks(sizes: list[Size]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("arch", "backbone"):
        table.add_column(heading)
    for heading in ("parameters", "GMAC"):
        table.add_column(heading, justify="right")
    table.add_column("licence of ImageNet weights")
    for size in sizes:
        millions = f"{size.parameters / 1e6:.1f} M"
        table.add_row(size.arch, size.backbone, millions, f"{size.gmac:.1f}", size.licence)
    Console(soft_wrap=True).print(table)


@model_app.command("info", epilog=example("segbatch model info zoo:facades"))
def model_info(uri: Bundle, format: Format = "text") -> None:
    """Show a bundle's network, classes, sizes, metrics and provenance."""
    from segbatch.cli.modelinfo import print_model
    from segbatch.model import bundle
    from segbatch.model.engine import runs_here

    facts = bundle.describe(uri)
    facts["runs_here"] = runs_here(facts["arch"])
    if format == "json":
        print_facts(facts, format)
    else:
        print_model(facts, bundle.TERMS)


@model_app.command(
    "import", epilog=example("segbatch model import hf://OWNER/NAME models/segformer")
)
def model_import(
    source: Annotated[
        str, Argument(metavar="SOURCE", help="A file of weights or a graph, or a folder (any URI).")
    ],
    uri: Annotated[str, Argument(metavar="BUNDLE", help="Output folder of the bundle (any URI).")],
    classes: Annotated[
        str | None, Option(help="Names by id: a,b,c; a preset; or a file, one a line.")
    ] = None,
    arch: Annotated[str | None, Option(help="Architecture, if it is not recognised.")] = None,
    backbone: Annotated[str | None, Option(help="Backbone, if it is not recognised.")] = None,
    output_stride: Annotated[int | None, Option(help="8 or 16, if no file says it.")] = None,
    long_side: Annotated[
        int | None, Option(help="Longer side in pixels that the model was trained at.")
    ] = None,
    mean: Annotated[str | None, Option(help="Mean of red,green,blue; 0 to 1, or to 255.")] = None,
    std: Annotated[str | None, Option(help="Standard deviation of red,green,blue.")] = None,
    input_range: Annotated[
        str | None, Option(help="Black,white as a graph takes them: 0,1 or =-1,1 or 0,255.")
    ] = None,
    output: Annotated[
        str | None, Option(help="A graph's output: logits, probabilities, labels, or its NAME.")
    ] = None,
) -> None:
    """Import weights or a graph as a bundle.

    Weights: MMSegmentation (DeepLabV3, DeepLabV3+), Hugging Face transformers (SegFormer,
    MobileNetV2), segmentation_models_pytorch, VainF, torchvision, also in wrappers. Graphs:
    ONNX, TensorFlow, TensorFlow Lite, Paddle, OpenVINO.
    """
    from segbatch.masks.classfile import read_classes
    from segbatch.model.checkpoints import Known, import_model

    known = Known(
        arch=arch,
        backbone=backbone,
        classes=None if classes is None else read_classes(classes),
        output_stride=output_stride,
        mean=_numbers("--mean", mean, 3),
        std=_numbers("--std", std, 3),
        long_side=long_side,
        input_range=_numbers("--input-range", input_range, 2),
        output=output,
    )
    import_model(source, uri, known)
    say(f"{uri}: imported; look at it with: segbatch model info {quote(uri)}")


def _numbers(option: str, text: str | None, number: int) -> Any:
    """The numbers of an option, ``None`` if it is not given."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != number or (number == 2 and values[0] >= values[1]):
        example = "0.485,0.456,0.406" if number == 3 else "0,255"
        raise InputError(f"{option} {text}: must be {number} numbers, such as {example}")
    if option == "--std" and min(values) <= 0:
        raise InputError(f"{option} {text}: must be above 0")
    return values


@model_app.command(
    "quantize",
    epilog=example("segbatch model quantize models/facades models/int8 --images photos/"),
)
def model_quantize(
    uri: Bundle,
    output: Annotated[str, Argument(metavar="OUT", help="Folder of the new bundle (any URI).")],
    images: Annotated[str, Option(help="Images to calibrate with: a folder, glob or manifest.")],
) -> None:
    """Make a bundle that computes in int8, much faster on CPUs."""
    from segbatch.model.quantize import quantize_bundle

    quantize_bundle(uri, output, images)
    say(f"{output}: computes in int8; what that costs in mIoU: evaluate it on labelled images")


@model_app.command(
    "push", epilog=example("segbatch model push models/facades hf://our-team/facades")
)
def model_push(
    uri: Bundle,
    hub: Annotated[str, Argument(metavar="hf://OWNER/NAME", help="Repository of a model.")],
) -> None:
    """Push a bundle to the Hugging Face Hub.

    The repository is made if there is none. The token is HF_TOKEN, or that of `hf auth login`.
    """
    from segbatch.model import bundle

    pushed = bundle.push(uri, hub)
    say(f"{pushed}: name it as the model of a job, at this commit or without what follows @")


@model_app.command(
    "export", epilog=example("segbatch model export zoo:facades --to onnx -o facades.onnx")
)
def model_export(
    uri: Bundle,
    to: Annotated[Literal["onnx"], Option("--to", help="Format to write.")],
    output: Annotated[
        str, Option("--output", "-o", help="Output file, .onnx (any URI).")
    ] = "model.onnx",
) -> None:
    """Export a bundle as one file for other runtimes.

    The file is checked against the original.
    """
    from segbatch.model.onnx import export_onnx

    require_extension(output, ".onnx")
    parity = export_onnx(uri, output)
    say(
        f"{output}: {to}; on random images logits differ by {parity.difference:.1g} of the"
        f" largest, class ids are equal at {parity.equal:.3%} of pixels"
    )
