"""Formats: how labels may be stored, by the name that ``labels import --from`` takes."""

from segbatch.formats.coco import COCO
from segbatch.formats.format import Format
from segbatch.formats.labelme import LABELME
from segbatch.formats.pairs import PAIRS
from segbatch.formats.voc import VOC

FORMATS: dict[str, Format] = {
    "labelme": LABELME,
    "voc": VOC,
    "coco": COCO,
    "pairs": PAIRS,
}
