"""Annotation formats, one a file: each reads a folder of labels, writes one, or both."""

from segbatch.formats.coco import COCO_READER, COCO_WRITER
from segbatch.formats.fiftyone import FIFTYONE
from segbatch.formats.format import Reader
from segbatch.formats.labelme import LABELME_READER, LABELME_WRITER
from segbatch.formats.pairs import PAIRS_READER
from segbatch.formats.png import MASKS, OVERLAYS
from segbatch.formats.voc import VOC_READER, VOC_WRITER
from segbatch.formats.writing import Writer

READERS: dict[str, Reader] = {
    "labelme": LABELME_READER,
    "voc": VOC_READER,
    "coco": COCO_READER,
    "pairs": PAIRS_READER,
}

WRITERS: dict[str, Writer] = {
    "png": MASKS,
    "overlay": OVERLAYS,
    "voc": VOC_WRITER,
    "labelme": LABELME_WRITER,
    "coco": COCO_WRITER,
    "fiftyone": FIFTYONE,
}
