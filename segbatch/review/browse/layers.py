"""Images of a run as the browse page shows them: a photograph and a mask to lay over it.

They are made on request from the original image, and cached within a memory limit. The mask is a
picture of its own, so that the browser can set its opacity.
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
CACHE_BYTES = 256 << 20
THREADS = 6  # as many as a browser has connections

# Short limits, because a person is waiting.
TIMEOUT_S = 10.0
RETRIES = 1


@dataclass(frozen=True)
class Layers:
    """An image: ``photo`` is a JPEG, ``mask`` a PNG of the same size, empty if there is none.

    If the image cannot be shown, ``why`` is set and ``photo`` is an SVG with the reason.
    """

    photo: bytes
    mask: bytes = b""
    why: str | None = None

    @property
    def media_type(self) -> str:
        return "image/jpeg" if self.why is None else "image/svg+xml"


class LayerCache:
    """Makes the layers of a run's images, and keeps the last used ones; for one event loop."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.limits = viewing_limits(run)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="layers")
        self._kept: OrderedDict[tuple[int, Size], Layers] = OrderedDict()
        self._kept_bytes = 0
        self._making: dict[tuple[int, Size], asyncio.Task[Layers]] = {}

    async def get(self, image_id: int, uri: str, size: Size) -> Layers:
        """The layers of one image; their longer side is at most ``LONG_SIDES[size]``."""
        key = (image_id, size)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._making:  # the browser requests both layers at once
            self._making[key] = asyncio.create_task(self._make_in_thread(key, uri))
        return await asyncio.shield(self._making[key])

    async def _make_in_thread(self, key: tuple[int, Size], uri: str) -> Layers:
        loop = asyncio.get_running_loop()
        try:
            layers = await loop.run_in_executor(self._threads, self._make, *key, uri)
            if layers.why is None:  # an error may be gone the next time
                self._keep(key, layers)
            return layers
        finally:
            del self._making[key]

    def _keep(self, key: tuple[int, Size], layers: Layers) -> None:
        self._kept[key] = layers
        self._kept_bytes += len(layers.photo) + len(layers.mask)
        while self._kept_bytes > CACHE_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.photo) + len(oldest.mask)

    def _make(self, image_id: int, size: Size, uri: str) -> Layers:
        try:
            png = mask_png(self._run, image_id)
            [seen] = read_pictures(
                self._run.parts([(image_id, uri)]), [png], LONG_SIDES[size], self.limits
            )
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
    """The job's limits on the size of an image, with limits on time that suit a waiting person."""
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
