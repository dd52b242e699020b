"""Annotation formats: each file reads a folder of labels, writes one, or both.

A new format is a file with a :class:`~segbatch.formats.format.Format` and a line here.
"""

from segbatch.formats.coco import COCO
from segbatch.formats.fiftyone import FIFTYONE
from segbatch.formats.format import Format
from segbatch.formats.hf import HF
from segbatch.formats.labelme import LABELME
from segbatch.formats.labelstudio import LABELSTUDIO
from segbatch.formats.pairs import PAIRS
from segbatch.formats.png import OVERLAY, PNG
from segbatch.formats.voc import VOC

FORMATS: dict[str, Format] = {
    "png": PNG,
    "overlay": OVERLAY,
    "labelme": LABELME,
    "voc": VOC,
    "coco": COCO,
    "pairs": PAIRS,
    "labelstudio": LABELSTUDIO,
    "hf": HF,
    "fiftyone": FIFTYONE,
}
