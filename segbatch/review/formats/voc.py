"""VOC: ``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/default.txt`` and
``labelmap.txt``, as CVAT writes them.

The masks' indices are class ids and their colours those of ``labelmap.txt``, so that readers of
either see the same. There, no two classes may have one colour, nor any that of void: where some
have, all get the colours of VOC.

Source: the VOC2012 development kit's documentation; CVAT's documentation of Pascal VOC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segbatch.formats.writing import Format, Part, Photos, Segmented
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes, voc_color

LIST = Part("list")
HEAD = "# label:color_rgb:parts:actions\n"


def files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph as JPEG, and its mask at its size."""
    assert image.photo is not None
    mask = encode_mask(image.label_map, apart(image.classes).palette)
    return {
        f"JPEGImages/{image.photo_name}": image.photo.data,
        f"SegmentationClass/{image.name}.png": mask,
    }


def entries(image: Segmented, last: str) -> Mapping[str, Sequence[str]]:
    """Its line in the list."""
    return {LIST.name: [f"{image.name}\n"]}


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The colours by name, and the list of all images."""
    lines = (f"{c.name}:{','.join(map(str, c.color))}::\n" for c in apart(classes))
    return {
        "labelmap.txt": [HEAD, *lines],
        "ImageSets/Segmentation/default.txt": [LIST],
    }


def apart(classes: Classes) -> Classes:
    """The same classes in colours that are all different, from each other and from void."""
    colors = {c.color for c in classes}
    if len(colors) == len(classes) and voc_color(IGNORE_INDEX) not in colors:
        return classes
    return Classes(classes.names, [voc_color(c.id) for c in classes])


VOC = Format(Photos.JPEG_FILES, files, ("SegmentationClass/{name}.png",), shared, entries)
