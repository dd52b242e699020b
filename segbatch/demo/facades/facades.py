"""Renders photographs of imaginary streets, with the class of every pixel.

A scene is drawn in metres: a row of buildings (``building.py``, ``front.py``, ``openings.py``) is
painted onto a canvas (``canvas.py``), lit, projected (``viewpoint.py``), and placed in a street
with its sky, trees, cars and people (``street.py``); then it is exposed (``exposure.py``). The
label map goes through the same homography as the picture, so that both agree to the pixel.
Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.demo.facades import street
from segbatch.demo.facades.building import Building
from segbatch.demo.facades.canvas import BACKGROUND, NOTHING, SKY, Box, Canvas, Floats, Light, noise
from segbatch.demo.facades.exposure import expose
from segbatch.demo.facades.front import paint_front
from segbatch.demo.facades.viewpoint import Viewpoint
from segbatch.masks.classes import Classes

CLASSES = Classes(["background", "brick", "wall", "window", "door", "sky"])

SIZES = [(320, 256), (384, 288), (480, 360), (512, 384), (640, 480), (288, 384), (360, 480)]


@dataclass(frozen=True)
class Scene:
    """A rendered photograph: ``image`` HWC uint8 RGB, ``label_map`` HW uint8 of class ids."""

    image: npt.NDArray[np.uint8]
    label_map: npt.NDArray[np.uint8]


def render_facade(seed: int, long_side: int | None = None) -> Scene:
    """The scene of ``seed``; ``long_side`` sets its size in pixels, not its content."""
    rng, grain = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    size = SIZES[rng.integers(len(SIZES))]
    if long_side is not None:
        size = (round(size[0] * long_side / max(size)), round(size[1] * long_side / max(size)))
    light = _weather(rng)
    main = Building.random(rng, 0.0)
    view = _viewpoint(rng, main, size)
    row = _row(rng, main, view)

    canvas = _canvas(row, view, light, grain)
    for building in row:
        paint_front(canvas, rng, building)
    canvas.weather()
    front, truth = canvas.render(_sunlit(canvas, rng)), Image.fromarray(canvas.label)

    # The picture is composed at twice the size, for edges that blend as in a lens.
    fine = view.scaled(2)
    picture = street.sky(light, (fine.width, fine.height), grain)
    labels = Image.new("L", size, SKY)
    _put(picture, labels, street.distance(fine, light, grain))
    picture.alpha_composite(fine.warp(front, canvas, Image.Resampling.BILINEAR))
    truth = view.warp(truth, canvas, Image.Resampling.NEAREST, outside=NOTHING)
    labels.paste(truth, mask=truth.point(lambda label: 255 * (label != NOTHING)))
    _put(picture, labels, street.ground(fine, light, rng, grain))
    for thing in street.things(fine, light, rng, grain):
        _put(picture, labels, thing)
    picture = expose(picture.convert("RGB").reduce(2), rng, grain, dim=light.lamps)
    return Scene(np.array(picture), np.array(labels))


def _put(picture: Image.Image, labels: Image.Image, thing: street.Thing) -> None:
    """Paste a thing of no class onto ``picture``, and into ``labels`` where it hides most."""
    pixels, corner = thing
    picture.paste(pixels, corner, pixels)
    hidden = Image.new("L", picture.size)
    hidden.paste(pixels.getchannel("A"), corner)
    labels.paste(BACKGROUND, (0, 0), hidden.reduce(2).point(lambda share: 255 * (share >= 128)))


def _weather(rng: np.random.Generator) -> Light:
    """Sun, haze, clouds or dusk."""
    slant = (float(rng.uniform(-1.3, 1.3)), float(rng.uniform(0.4, 1.4)))
    warm, bright = rng.uniform(0.0, 0.18), rng.normal(1, 0.06)
    kind = rng.choice(["sun", "sun", "sun", "haze", "clouds", "dusk"])
    top, low, clouds, sun, ambient, lamps = {
        "sun": ((78, 128, 198), (188, 212, 232), rng.uniform(0, 0.7), 0.75, (0.3, 0.34, 0.41), 0.0),
        "haze": ((150, 176, 206), (222, 226, 228), 0.6, 0.35, (0.52, 0.54, 0.57), 0.0),
        "clouds": ((176, 182, 190), (226, 228, 230), 1.0, 0.0, (0.74, 0.76, 0.79), 0.04),
        "dusk": ((52, 64, 112), (206, 156, 132), 0.4, 0.0, (0.3, 0.29, 0.36), 0.4),
    }[str(kind)]
    sunlight = (sun * bright, sun * bright * (0.95 - warm / 2), sun * bright * (0.86 - warm))
    return Light(top, low, clouds, sunlight, ambient, slant, lamps)


def _viewpoint(rng: np.random.Generator, main: Building, size: tuple[int, int]) -> Viewpoint:
    """A view of most of the building, often with the sky above and the street below."""
    tall, ratio = main.eaves + 3.0, size[0] / size[1]
    span = max(main.width * rng.uniform(0.7, 1.1), tall * ratio * rng.uniform(0.55, 1.0))
    span = min(max(span, 6.0), 22.0)
    height = span / ratio
    low = rng.uniform(-1.8, 1.0) if height < tall else rng.uniform(-2.5, -0.5)
    aside = main.left + main.width * rng.uniform(0.35, 0.65)
    return Viewpoint.aimed(rng, size, (aside, low + height / 2), span)


def _row(rng: np.random.Generator, main: Building, view: Viewpoint) -> list[Building]:
    """The building and its neighbours across the picture; some rows end within it."""
    seen, row = view.visible(), [main]
    # A row may end on the side that the camera looks away from: that side wall is hidden.
    ends = rng.random() < 0.45
    leftwards = view.axes[2][0] < 0
    while row[-1].right < seen.right and (leftwards or not ends):
        row.append(Building.random(rng, row[-1].right))
    while row[0].left > seen.left and not (leftwards and ends):
        neighbour = Building.random(rng, 0.0)
        row.insert(0, replace(neighbour, left=row[0].left - neighbour.width))
    return row


def _canvas(
    row: list[Building], view: Viewpoint, light: Light, grain: np.random.Generator
) -> Canvas:
    """A canvas for the visible part of the row, finer than the picture."""
    seen = view.visible().grown(0.3)
    extent = Box(
        max(seen.left, row[0].left - 0.6),
        max(seen.bottom, 0.0),
        min(seen.right, row[-1].right + 0.6),
        min(seen.top, max(building.eaves for building in row) + 6),
    )
    # An oblique view needs a large canvas: its scale drops to keep the cost near the picture's.
    area = (extent.right - extent.left) * (extent.top - extent.bottom)
    fine = 1.5 * view.focal / float(view.position[2])
    return Canvas(extent, min(fine, (3.2 * view.width * view.height / area) ** 0.5), light, grain)


def _sunlit(canvas: Canvas, rng: np.random.Generator) -> Floats:
    """Sunlight between the shadows of the houses opposite and of a tree, HW float32, 0 to 1."""
    x, y = canvas.x[None], canvas.y[:, None]
    lit = np.ones(canvas.label.shape, np.float32)
    edges, heights = rng.uniform(-15, 25, 5), rng.uniform(0, 8, 6) * (rng.random() < 0.55)
    roofs = heights[np.searchsorted(np.sort(edges), x + y * canvas.light.slant[0])]
    lit *= np.clip((y - roofs) * 8 + 0.5, 0, 1)
    (middle, up), radius = rng.uniform([0, 2], [12, 7]), rng.uniform(1.5, 3.5)
    if rng.random() < 0.4:
        leaves = noise(canvas.grain, lit.shape, 0.5 * canvas.scale)
        leaves = leaves + 0.7 * noise(canvas.grain, lit.shape, 0.14 * canvas.scale)
        shade = 1.4 - np.hypot(x - middle, y - up) / radius + 0.8 * leaves
        lit *= 1 - 0.85 * np.clip(shade * 4, 0, 1)
    return np.asarray(lit, np.float32)
