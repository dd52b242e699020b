"""Formats: how labels may be stored, by the name that ``labels import --from`` takes."""

from segbatch.labels.annotated import Format
from segbatch.labels.coco import COCO
from segbatch.labels.labelme import LABELME
from segbatch.labels.pairs import PAIRS
from segbatch.labels.voc import VOC

FORMATS: dict[str, Format] = {
    "labelme": LABELME,
    "voc": VOC,
    "coco": COCO,
    "pairs": PAIRS,
}
