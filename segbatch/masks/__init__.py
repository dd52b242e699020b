"""Classes with their names and colours, and label maps as palette PNGs."""

from segbatch.masks.codec import SIGNATURE, decode_mask, encode_mask
from segbatch.masks.drawing import FILL, encode_picture, overlay, picture_format, share, with_legend

__all__ = [
    "FILL",
    "SIGNATURE",
    "decode_mask",
    "encode_mask",
    "encode_picture",
    "overlay",
    "picture_format",
    "share",
    "with_legend",
]
