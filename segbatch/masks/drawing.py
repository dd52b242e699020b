"""Draws label maps over photographs, and legends of their classes."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from segbatch.errors import InputError
from segbatch.masks.classes import IGNORE_INDEX, Classes, SegClass

# Formats that hold a picture of any class colours at its full size, by extension.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}

FILL = 0.35  # opacity of the class colours: what they cover is still seen
OUTLINE = 700  # longer side of a picture, in pixels, for each pixel of an outline's width
CHANGED = (255, 0, 122)  # of highlighted pixels: no photograph and no preset has this colour
FADED = 0.55  # share of white over a photograph whose pixels are highlighted
DARKEST = 110  # brightness of an outline, 0 to 255: black on a night's photograph vanishes

# Of the legend that lies on a picture.
MIN_FONT = 9  # pixels; smaller text is illegible
BACKGROUND = (0, 0, 0, 150)  # RGBA: the picture shines through
MAX_WIDTH_SHARE = 0.5  # of the picture's width


def picture_format(where: str) -> str:
    """Pillow's name for the format of a picture to be written to ``where``, by its extension.

    Raises :class:`~segbatch.errors.InputError`, which lists the extensions, for any other one.
    """
    extension = PurePosixPath(where).suffix.lower()
    if where.endswith("/") or extension not in FORMATS:
        raise InputError(f"{where}: the extension must be one of {', '.join(FORMATS)}")
    return FORMATS[extension]


def encode_picture(picture: Image.Image, where: str) -> bytes:
    """The bytes of ``picture`` as a file of the name ``where``.

    Raises :class:`~segbatch.errors.InputError` for another extension than those of
    :data:`FORMATS`, and for a picture that is too large for its format.
    """
    format, sink = picture_format(where), io.BytesIO()
    try:
        picture.save(sink, format)
    except (OSError, ValueError) as error:
        size = f"{picture.width}×{picture.height}"
        raise InputError(f"{where}: {format} cannot hold {size} pixels; use .png") from error
    return sink.getvalue()


def overlay(
    image: npt.NDArray[np.uint8],
    label_map: npt.NDArray[np.uint8],
    classes: Classes,
    alpha: float = FILL,
) -> Image.Image:
    """The photograph with the class colours over it, and an outline around what each class covers.

    ``image`` is ``(height, width, 3)`` uint8 RGB, ``label_map`` ``(height, width)`` uint8, and
    ``alpha`` the opacity of the colours, 0 (outlines only) to 1 (colours only). Ignored pixels are
    left as they are. Returns an RGB picture of the same size. Raises ``ValueError`` if the shapes
    differ or ``alpha`` is out of range.
    """
    if image.shape != (*label_map.shape, 3):
        raise ValueError(
            f"image {image.shape} and label map {label_map.shape}: must be HW3 and HW of one size"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share from 0 to 1, not {alpha}")
    colors = Image.fromarray(label_map)
    colors.putpalette(classes.palette.tobytes())
    opacity = (label_map != IGNORE_INDEX) * np.uint8(round(alpha * 255))
    picture = Image.fromarray(image)
    picture.paste(colors.convert("RGB"), mask=Image.fromarray(opacity))
    colors.putpalette(_brightened(classes.palette).tobytes())
    width = max(1, round(max(label_map.shape) / OUTLINE))
    border = _borders(label_map, width) & (label_map != IGNORE_INDEX)
    picture.paste(colors.convert("RGB"), mask=Image.fromarray(border))
    return picture


def highlight(image: npt.NDArray[np.uint8], marked: npt.NDArray[np.bool_]) -> Image.Image:
    """A grey, faded photograph with the ``marked`` pixels in one colour.

    ``image`` is ``(height, width, 3)`` uint8 RGB, ``marked`` ``(height, width)``. Returns an RGB
    picture of the same size. Raises ``ValueError`` if the sizes differ.
    """
    if image.shape != (*marked.shape, 3):
        raise ValueError(f"image {image.shape} and pixels {marked.shape}: must be of one size")
    grey = Image.fromarray(image).convert("L").convert("RGB")
    picture = Image.blend(grey, Image.new("RGB", grey.size, "white"), FADED)
    picture.paste(CHANGED, mask=Image.fromarray(marked))
    return picture


def _borders(label_map: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_]:
    """Pixels that are at most ``width`` from one of another id, to the side, above or below."""
    border = np.zeros(label_map.shape, bool)
    for ids, marked in ((label_map, border), (label_map.T, border.T)):
        for distance in range(1, width + 1):
            differs = ids[distance:] != ids[:-distance]
            marked[distance:] |= differs
            marked[:-distance] |= differs
    return border


def _brightened(palette: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The palette, ``(256, 3)``, with dark colours mixed with white until they are seen."""
    colors = palette.astype(np.float32)
    brightness = colors @ np.array([0.299, 0.587, 0.114], np.float32)
    share = np.clip((DARKEST - brightness) / (255 - brightness + 1e-6), 0, 1)[:, None]
    return np.asarray(np.rint(colors + (255 - colors) * share), np.uint8)


def with_legend(
    picture: Image.Image,
    classes: Classes,
    coverage: npt.NDArray[np.floating],
    font_size: int | None = None,
) -> Image.Image:
    """``picture`` with a legend below it: colour, name and share of each class, largest first.

    ``coverage`` is ``(classes,)``, 0 to 1; classes without pixels are left out. ``font_size``, in
    pixels, follows from the picture's width unless given. The result is RGB, higher than
    ``picture``, and wider only if an entry needs it. Raises ``ValueError`` unless there is one
    share per class.
    """
    if len(coverage) != len(classes):
        raise ValueError(f"{len(coverage)} shares for {len(classes)} classes")
    present = [classes[i] for i in np.argsort(-coverage, kind="stable") if coverage[i] > 0]
    size = font_size or max(12, picture.width // 60)  # all other lengths derive from it
    font = load_font(size)
    texts = [f"{legible_name(c, font)}  {share(coverage[c.id])}" for c in present]
    entry_width = 3 * size + max((round(font.getlength(text)) for text in texts), default=0)
    num_columns = max(1, picture.width // entry_width)
    num_lines = -(-len(texts) // num_columns)

    sheet = Image.new(
        "RGB",
        (max(picture.width, entry_width), picture.height + 2 * size * num_lines),
        "white",
    )
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for index, (seg_class, text) in enumerate(zip(present, texts, strict=True)):
        line, column = divmod(index, num_columns)
        x = column * entry_width + size // 2
        y = picture.height + line * 2 * size + size // 2
        draw.rectangle((x, y, x + size, y + size), fill=seg_class.color, outline="black")
        draw.text((x + size * 3 // 2, y + size // 2), text, fill="black", font=font, anchor="lm")
    return sheet


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, of ``size`` pixels. It has Latin, Greek, Cyrillic and Arabic
    letters; Pillow's own font has ASCII alone.
    """
    import matplotlib  # takes a third of a second, which only pictures with text need

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def legible_name(seg_class: SegClass, font: ImageFont.FreeTypeFont) -> str:
    """The name of a class; its id where the font lacks a letter of it (Chinese, Japanese, Korean),
    because all names would look alike.
    """
    missing = bytes(font.getmask("\uffff"))
    others = (letter for letter in seg_class.name if not letter.isascii())
    is_legible = all(bytes(font.getmask(letter)) != missing for letter in others)
    return seg_class.name if is_legible else f"class {seg_class.id}"


def share(value: float) -> str:
    """A share as a percentage; what rounds to nothing is not nothing."""
    return f"{value:.1%}" if value >= 0.0005 or not value else "<0.1%"


def legend(classes: Classes, size: tuple[int, int]) -> Image.Image | None:
    """An RGBA legend, colour and name of each class, to lie on a picture of ``(width, height)``.

    ``None`` if it does not fit: too many classes, or too small a picture.
    """
    width, height = size
    font_size = max(MIN_FONT, height // 45)  # all other lengths derive from it
    line = round(font_size * 1.4)
    font = load_font(font_size)
    names = [legible_name(each, font) for each in classes]
    text_width = max(round(font.getlength(name)) for name in names)
    needed = (text_width + 3 * font_size, line * len(classes) + font_size)
    if needed[0] > width * MAX_WIDTH_SHARE or needed[1] > height:
        return None
    sheet = Image.new("RGBA", needed, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for each in classes:
        y = font_size // 2 + each.id * line
        box = (font_size // 2, y, font_size * 3 // 2, y + font_size)
        draw.rectangle(box, fill=each.color, outline="white")
        middle = y + font_size // 2
        draw.text((font_size * 2, middle), names[each.id], fill="white", font=font, anchor="lm")
    return sheet
