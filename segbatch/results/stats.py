"""Statistics of label maps, and the Arrow struct columns that store them.

Statistics are computed for one image at a time. Columns are built for a whole block at once, with
the types of :mod:`segbatch.results.schema`. A failed image is a null struct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cc3d
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch.results.schema import BOX


@dataclass(frozen=True)
class Regions:
    """The 8-connected regions of one label map, largest first; ignored pixels belong to none.

    ``class_ids`` is ``(regions,)`` uint8, 0 to 254. ``boxes`` is ``(regions, 5)`` int64: x and y
    of the top left corner from 0, width, height, and the region's own pixels.
    """

    class_ids: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.int64]


@dataclass
class Block:
    """The images of one block, from which optional statistics are computed.

    ``ok``, ``(rows,)`` bool: the image did not fail. ``label_maps``: ``(height, width)`` uint8,
    ``None`` for failed images; empty if no label map is needed. ``table``: the model's own counts.
    ``with_boxes``: the column ``boxes`` is computed, too.
    """

    ok: npt.NDArray[np.bool_]
    num_classes: int
    label_maps: Sequence[npt.NDArray[np.uint8] | None]
    table: pa.Table
    with_boxes: bool

    @cached_property
    def regions(self) -> list[Regions | None]:
        """The regions of each image; ``None`` for failed images."""
        return [None if m is None else find_regions(m) for m in self.label_maps]


def confidence_column(block: Block, struct: pa.StructType) -> pa.StructArray:
    """The column ``confidence``: the model's mean probability of each class that is there."""
    confidence = values_by_class(block.table["class_confidence"], block.ok, block.num_classes)
    return struct_column(confidence, block.ok, struct)


def components_column(block: Block, struct: pa.StructType) -> pa.StructArray:
    """The column ``components``: 8-connected regions of each class."""
    nothing = np.zeros(block.num_classes, np.int32)
    if block.with_boxes:  # whose regions are found already
        counts = [None if r is None else count_regions(r, block.num_classes) for r in block.regions]
    else:
        counts = [
            None if m is None else count_components(m, block.num_classes) for m in block.label_maps
        ]
    counted = np.stack([nothing if count is None else count for count in counts])
    return struct_column(counted, block.ok, struct)


def pixels_per_class(label_map: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.int64]:
    """Pixels of each class, ``(classes,)`` int64, in a uint8 label map; other ids are ignored."""
    return np.bincount(label_map.ravel(), minlength=num_classes)[:num_classes]


def coverage(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Share of each class, float32 from 0 to 1, of pixel counts ``(..., classes)``.

    The shares of an image sum to 1; those of an image without any pixel are NaN.
    """
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = pixels / pixels.sum(axis=-1, keepdims=True)
    return shares.astype(np.float32)


def count_components(label_map: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.int32]:
    """8-connected regions of each class, ``(classes,)`` int32, in a ``(height, width)`` uint8 map.

    If boxes are needed, too, :func:`find_regions` with :func:`count_regions` labels only once.
    """
    _, class_ids = _label_regions(label_map)
    return _count(class_ids, num_classes)


def find_regions(label_map: npt.NDArray[np.uint8]) -> Regions:
    """The 8-connected regions of a ``(height, width)`` uint8 label map.

    Regions of equal size are in the order of their first pixels, row by row.
    """
    labels, class_ids = _label_regions(label_map)
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    pixels = statistics["voxel_counts"][1:].astype(np.int64)  # entry 0: pixels in no region
    top, bottom, left, right = statistics["bounding_boxes"][1:].astype(np.int64).T
    boxes = np.stack([left, top, right - left + 1, bottom - top + 1, pixels], axis=1)
    largest_first = np.argsort(-pixels, kind="stable")
    return Regions(class_ids[largest_first], boxes[largest_first])


def count_regions(regions: Regions, num_classes: int) -> npt.NDArray[np.int32]:
    """Regions of each class, ``(classes,)`` int32."""
    return _count(regions.class_ids, num_classes)


def struct_column(
    values: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_], struct: pa.StructType
) -> pa.StructArray:
    """A struct column from ``(rows, fields)`` values, with a field for each class or formula.

    A row's struct is null where ``valid``, ``(rows,)`` bool, is false; otherwise NaN becomes a null
    field. ``struct`` is the type in ``rows_schema`` of ``pixels``, ``coverage``, ``confidence``,
    ``formulas`` or ``components``. Raises ``ValueError`` if the shapes do not fit it.
    """
    if values.shape != (len(valid), struct.num_fields):
        raise ValueError(f"{values.shape} values for {len(valid)} rows × {struct.num_fields}")
    null = np.isnan(values) | ~valid[:, None]
    fields = list(struct)
    children = [
        pa.array(values[:, i].astype(field.type.to_pandas_dtype()), mask=null[:, i])
        for i, field in enumerate(fields)
    ]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(~valid))


def boxes_column(regions: Sequence[Regions | None], struct: pa.StructType) -> pa.StructArray:
    """The column ``boxes`` from the regions of each image, ``None`` for failed images.

    ``struct`` is the column's type in ``rows_schema``. A class without a region in an image has an
    empty list.
    """
    nothing = Regions(np.empty(0, np.uint8), np.empty((0, 5), np.int64))
    found = [nothing if image is None else image for image in regions]
    failed = pa.array([image is None for image in regions], pa.bool_())
    num_rows = len(regions)
    row_of = np.repeat(np.arange(num_rows), [len(image.class_ids) for image in found])
    class_ids = np.concatenate([nothing.class_ids, *(image.class_ids for image in found)])
    boxes = np.concatenate([nothing.boxes, *(image.boxes for image in found)])

    # Boxes in the order of the lists: those of the first class, row by row, then of the second, …
    list_of = class_ids * np.int64(num_rows) + row_of
    boxes = boxes[np.argsort(list_of, kind="stable")]
    lengths = np.bincount(list_of, minlength=num_rows * struct.num_fields)
    ends = np.concatenate([[0], np.cumsum(lengths)])

    children = []
    for class_id, field in enumerate(struct):
        offsets = ends[class_id * num_rows : (class_id + 1) * num_rows + 1]
        children.append(
            pa.ListArray.from_arrays(
                pa.array((offsets - offsets[0]).astype(np.int32)),
                _box_array(boxes[offsets[0] : offsets[-1]]),
                type=field.type,
                mask=failed,
            )
        )
    return pa.StructArray.from_arrays(children, fields=list(struct), mask=failed)


# Optional columns by name, in the order in which they are computed; to add one, write its function
# above, a line here, its column in schema.py and its name in the `stats` key of a job.
STATISTICS: Mapping[str, Callable[[Block, pa.StructType], pa.StructArray]] = {
    "confidence": confidence_column,
    "boxes": lambda block, struct: boxes_column(block.regions, struct),
    "components": components_column,
}


def values_by_class(
    lists: pa.ChunkedArray, ok: npt.NDArray[np.bool_], num_classes: int
) -> npt.NDArray[np.float64]:
    """Lists of one value per class as ``(rows, classes)``, with zeros in place of null lists."""
    values = np.zeros((len(lists), num_classes))  # float64 holds pixel counts exactly
    flat = lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values[ok] = flat.reshape(-1, num_classes)
    return values


def _label_regions(
    label_map: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.uint8]]:
    """The region of each pixel, from 1, or 0 for none, and the class ids of regions 1, 2, …"""
    # cc3d takes 0 as background. Adding 1 in uint8 turns ignore (255) into 0, and class 0 into 1.
    shifted = np.ascontiguousarray(label_map) + np.uint8(1)
    labels, num_regions = cc3d.connected_components(shifted, connectivity=8, return_N=True)
    class_ids = np.empty(num_regions + 1, np.uint8)
    class_ids[labels.ravel()] = label_map.ravel()  # all pixels of a region agree
    return labels, class_ids[1:]


def _count(class_ids: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.int32]:
    return np.bincount(class_ids, minlength=num_classes)[:num_classes].astype(np.int32)


def _box_array(boxes: npt.NDArray[np.int64]) -> pa.StructArray:
    columns = [
        pa.array(boxes[:, i].astype(field.type.to_pandas_dtype())) for i, field in enumerate(BOX)
    ]
    return pa.StructArray.from_arrays(columns, fields=list(BOX))
