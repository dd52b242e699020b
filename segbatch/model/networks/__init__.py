"""Networks: the architectures, each as a library has it, behind one interface.

A :class:`Network` wraps a model of a library and keeps the names of its parts, so a state_dict of
that library fits as it is. Prediction calls :meth:`Network.coarse`, the logits of the last
convolution, usually at 1/4 to 1/16 of the input's resolution, and upsamples them strip by strip
(:mod:`segbatch.model.logits`). Training calls ``forward``, which upsamples them to the input's
size exactly as the library does.

    torchvision.py      DeepLabV3
    smp.py              DeepLabV3+, DeepLabV3, SegFormer, UPerNet, FPN, U-Net and PSPNet of
                        segmentation_models_pytorch
    mmsegmentation.py   DeepLabV3 and DeepLabV3+ of MMSegmentation
    vainf.py            DeepLabV3 and DeepLabV3+ of VainF/DeepLabV3Plus-Pytorch
    transformers.py     DeepLabV3+ of Hugging Face transformers

To add an architecture, write a function that builds it and add a line to ``LIBRARIES``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, cast
from urllib.error import URLError

from segbatch.errors import ModelError
from segbatch.model.networks import mmsegmentation, smp, torchvision, transformers, vainf
from segbatch.model.networks.network import Maker, Network, Spec
from segbatch.storage import one_line

__all__ = ["ARCHITECTURES", "LIBRARIES", "Network", "Spec", "backbones", "build", "library_of"]

LIBRARIES: dict[str, dict[str, Maker]] = {
    "torchvision": {"deeplabv3": torchvision.deeplabv3},
    "smp": smp.ARCHITECTURES,
    "mmsegmentation": mmsegmentation.ARCHITECTURES,
    "vainf": vainf.ARCHITECTURES,
    "transformers": {"deeplabv3plus": transformers.deeplabv3plus},
}
ARCHITECTURES = tuple(smp.CLASSES)


def library_of(arch: str, backbone: str) -> str:
    """The library whose network is meant where none is named: ``torchvision`` for its DeepLabV3,
    else ``smp``.
    """
    is_torchvision = arch == "deeplabv3" and backbone in torchvision.STRIDES
    return "torchvision" if is_torchvision else "smp"


def build(
    arch: str,
    backbone: str,
    num_classes: int,
    output_stride: int | None = None,
    *,
    library: str | None = None,
    options: dict[str, Any] | None = None,
    pretrained: bool = False,
    auxiliary: bool = False,
) -> Network:
    """A network with random weights, or ImageNet weights of its library in the backbone.

    ``library`` ``None`` is :func:`library_of`; the other parameters are those of :class:`Spec`.
    Raises :class:`~segbatch.errors.ModelError` for an unknown architecture or backbone, a stride
    that it does not support, or weights that cannot be downloaded.
    """
    if arch not in ARCHITECTURES:
        raise unknown_name("arch", arch, ARCHITECTURES)
    library = library or library_of(arch, backbone)
    if library == "smp" and not smp.is_backbone(backbone):
        raise unknown_name(f"backbone of {arch}", backbone, backbones()[arch])
    makers = LIBRARIES.get(library, {})
    if arch not in makers:
        raise ModelError(f"{library}: no library that segbatch has a {arch} of")
    spec = Spec(arch, backbone, num_classes, output_stride, options or {}, pretrained, auxiliary)
    if not pretrained:
        return makers[arch](spec)
    try:
        return makers[arch](spec)
    except OSError as error:
        remedy = "set backbone_weights to a local file, or to null"
        raise no_download(f"the ImageNet weights of {backbone}", error, remedy) from error


def backbones() -> dict[str, list[str]]:
    """The names of the backbones of each architecture; each also takes any model of timm that can
    be dilated where the architecture dilates, as ``tu-NAME``.
    """
    return {arch: smp.backbones(arch) for arch in ARCHITECTURES} | {
        "deeplabv3": list(dict.fromkeys([*torchvision.STRIDES, *smp.backbones("deeplabv3")]))
    }


def unknown_name(what: str, given: str, known: Iterable[str]) -> ModelError:
    """The error for a name that is not ``known``, with those that are like it."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=3)
    if close:
        return ModelError(f"{given!r} is no {what}; did you mean {' or '.join(close)}?")
    more = f" and {len(names) - 8} more, see `segbatch model list`" if len(names) > 8 else ""
    return ModelError(f"{given!r} is no {what}; known: {', '.join(names[:8])}{more}")


def no_download(what: str, error: Exception, remedy: str) -> ModelError:
    """The error for ``what`` that could not be downloaded."""
    reason = error.reason if isinstance(error, URLError) else error
    return ModelError(
        f"{what} could not be downloaded: {one_line(cast(Exception, reason))}; {remedy}"
    )
