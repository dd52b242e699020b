"""COCO: ``annotations.json`` and ``images/``, an annotation with compressed RLE for each region.

Regions are 8-connected and of one class, as in the column ``components`` of a run; ``iscrowd`` is
0, for each is one. Category ids are class ids plus 1, because many readers keep 0 for what is none;
ignored pixels are in no region. ``file_name`` is relative to the folder of the JSON file.

Source: https://cocodataset.org/#format-data and ``common/maskApi.c`` of
https://github.com/cocodataset/cocoapi
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from segbatch.formats.writing import Format, Part, Photos, Segmented
from segbatch.masks.classes import Classes

IMAGES = Part("images", between=",\n")
ANNOTATIONS = Part("annotations", between=",\n")
IDS = 1_000_000  # of annotations that an image has for itself


def files(image: Segmented) -> Mapping[str, bytes]:
    """The photograph."""
    assert image.photo is not None
    return {f"images/{image.photo_name}": image.photo.data}


def entries(image: Segmented, last: str) -> Mapping[str, Sequence[str]]:
    """Its image and its regions."""
    height, width = image.label_map.shape
    entry = {
        "id": image.image_id,
        "file_name": last,
        "width": width,
        "height": height,
        "uri": image.uri,
    }
    annotations = [
        {"id": image.image_id * IDS + number, "image_id": image.image_id, **region}
        for number, region in enumerate(_regions(image.label_map), 1)
    ]
    return {
        IMAGES.name: [json.dumps(entry, ensure_ascii=False)],
        ANNOTATIONS.name: [json.dumps(annotation) for annotation in annotations],
    }


def shared(classes: Classes, run: str) -> Mapping[str, Sequence[str | Part]]:
    """The one file of all annotations."""
    info = {"description": f"masks of the segbatch run {run}"}
    return {
        "annotations.json": [
            f'{{"info": {json.dumps(info)},\n"licenses": [],\n',
            f'"categories": {json.dumps(categories(classes), ensure_ascii=False)},\n"images": [\n',
            IMAGES,
            '\n],\n"annotations": [\n',
            ANNOTATIONS,
            "\n]}\n",
        ]
    }


def categories(classes: Classes) -> list[dict[str, Any]]:
    """As they stand in a file: ids are class ids plus 1."""
    return [{"id": c.id + 1, "name": c.name, "supercategory": ""} for c in classes]


def _regions(label_map: npt.NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    """Category, RLE, area and box of each region, in the order of their first pixels.

    All regions are encoded in one walk over the pixels, column by column as COCO counts them.
    """
    height, width = label_map.shape
    # One more, in uint8, makes ignore (255) the background that cc3d leaves out.
    labels = cc3d.connected_components(label_map + np.uint8(1), connectivity=8)
    flat, classes = labels.ravel(order="F"), label_map.ravel(order="F")
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    starts, ends = starts[order], ends[order]
    regions, firsts = np.unique(flat[starts], return_index=True)
    boxes = cc3d.statistics(labels, no_slice_conversion=True)["bounding_boxes"].tolist()
    for region, first, last in zip(regions, firsts, [*firsts[1:], len(starts)], strict=True):
        if not region:
            continue
        edges = np.stack([starts[first:last], ends[first:last]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size).tolist()
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        top, bottom, left, right = boxes[region]
        yield {
            "category_id": int(classes[starts[first]]) + 1,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
            "area": int((ends[first:last] - starts[first:last]).sum()),
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "iscrowd": 0,
        }


COCO = Format(Photos.FILES, files, ("images/{name}.jpg", "images/{name}.png"), shared, entries)
