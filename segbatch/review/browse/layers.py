"""Layers: an image of a run as a browser shows it, a photograph and its mask to lay over it.

Made when they are asked for, from the image itself, and kept while there is room. The mask is a
picture of its own and not painted in, so that the browser settles how much of it is seen.
"""

from __future__ import annotations

import asyncio
import io
import textwrap
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

from PIL import Image

from segbatch.config.job import Limits
from segbatch.errors import SegbatchError, UnreadableMask
from segbatch.masks import encode_mask
from segbatch.results.lookup import mask_png
from segbatch.results.runfolder import RunFolder
from segbatch.review.pictures import Picture, limits_of, read_pictures

Size = Literal["small", "large"]

LONG_SIDES: dict[Size, int] = {"small": 320, "large": 1600}
KEPT_BYTES = 256 << 20
THREADS = 6  # as many as a browser asks for at a time

# Of one that looks at pictures, and not of a job that runs through the night.
TIMEOUT_S = 10.0
RETRIES = 1


@dataclass(frozen=True)
class Layers:
    """``photo`` is JPEG, or SVG that says ``why`` there is none; ``mask`` a PNG of the same size,
    or empty.
    """

    photo: bytes
    mask: bytes = b""
    why: str | None = None

    @property
    def media_type(self) -> str:
        return "image/jpeg" if self.why is None else "image/svg+xml"


class Album:
    """The layers of the images of a run, the latest seen ones in memory; for one event loop."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.limits = viewing_limits(run)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="layers")
        self._kept: OrderedDict[tuple[int, Size], Layers] = OrderedDict()
        self._kept_bytes = 0
        self._making: dict[tuple[int, Size], asyncio.Task[Layers]] = {}

    async def layers(self, image_id: int, uri: str, size: Size) -> Layers:
        """The layers of one image, whose longer side is at most ``LONG_SIDES[size]``."""
        key = (image_id, size)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._making:  # the photograph and the mask are asked for at one time
            self._making[key] = asyncio.create_task(self._made(key, uri))
        return await asyncio.shield(self._making[key])

    async def _made(self, key: tuple[int, Size], uri: str) -> Layers:
        loop = asyncio.get_running_loop()
        try:
            layers = await loop.run_in_executor(self._threads, self._make, *key, uri)
            if layers.why is None:  # what is missing may be there the next time
                self._keep(key, layers)
            return layers
        finally:
            del self._making[key]

    def _keep(self, key: tuple[int, Size], layers: Layers) -> None:
        self._kept[key] = layers
        self._kept_bytes += len(layers.photo) + len(layers.mask)
        while self._kept_bytes > KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.photo) + len(oldest.mask)

    def _make(self, image_id: int, size: Size, uri: str) -> Layers:
        try:
            png = mask_png(self._run, image_id)
            [seen] = read_pictures([uri], [png], LONG_SIDES[size], self.limits)
        except UnreadableMask as error:
            return _placeholder(f"damaged mask: {error.why}")
        except (SegbatchError, OSError, ValueError) as error:
            return _placeholder(str(error))
        if not isinstance(seen, Picture):
            return _placeholder(f"{seen.kind}: {seen.message}")
        photo = io.BytesIO()
        Image.fromarray(seen.photo).save(photo, "JPEG", quality=80)
        mask = encode_mask(seen.label_map, self._run.classes.palette) if png else b""
        return Layers(photo.getvalue(), mask)


def viewing_limits(run: RunFolder) -> Limits:
    """How large an image may be by the run's job; of time, as much as a person waits."""
    limits = limits_of(run)
    quick = {"timeout_s": min(limits.timeout_s, TIMEOUT_S), "retries": min(limits.retries, RETRIES)}
    return limits.model_copy(update=quick)


def _placeholder(why: str) -> Layers:
    lines = textwrap.wrap(why, 32, max_lines=10) or ["no reason given"]
    printable = ("".join(c if c.isprintable() else "·" for c in line) for line in lines)
    texts = "".join(
        f'<text x="16" y="{40 + 20 * number}">{escape(line)}</text>'
        for number, line in enumerate(printable)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="320" height="240" font-size="14"'
        f' font-family="sans-serif" fill="#777">{texts}</svg>'
    )
    return Layers(svg.encode(), why=why)
