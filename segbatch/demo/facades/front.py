"""The front of a building, painted onto a canvas from back to front.

Random numbers are drawn for all parts, visible or not, so that a building does not depend on the
viewpoint.
"""

from __future__ import annotations

import numpy as np

from segbatch.demo.facades.building import BRICKS, STONES, Building, one_of
from segbatch.demo.facades.canvas import BACKGROUND, BRICK, WALL, Box, Canvas, Color, Mask, linear
from segbatch.demo.facades.openings import IRON, door, garage, shop, window

TILES: list[Color] = [(140, 74, 54), (112, 64, 52), (82, 80, 82), (100, 96, 94)]


def paint_front(canvas: Canvas, rng: np.random.Generator, building: Building) -> None:
    """Paint the whole front of a building."""
    b = building
    _roof(canvas, rng, b)
    _masonry(canvas, b, Box(b.left, -0.1, b.right, b.eaves))
    _ground_floor(canvas, rng, b)
    if rng.random() < 0.6:
        canvas.stone(Box(b.left, b.ground - 0.12, b.right, b.ground + 0.1), b.stone, depth=0.1)
    if rng.random() < 0.25:
        _quoins(canvas, b)

    trimmed, pediment = rng.random() < 0.6, rng.random() < 0.25 and not b.rise
    balconies, balcony_column = rng.random() < 0.3, int(rng.integers(b.columns))
    width, height = b.window
    for floor in range(b.storeys):
        sill = b.ground + b.storey * floor + (b.storey - height) * 0.52
        for column in range(b.columns):
            box = Box(b.bay(column) - width / 2, sill, b.bay(column) + width / 2, sill + height)
            balcony = balconies and column == balcony_column
            if balcony:
                box = box._replace(bottom=b.ground + b.storey * floor + 0.12)
            if trimmed:
                canvas.paint(
                    box.grown(0.13), linear(b.stone), WALL, depth=0.04,
                    where=canvas.arch(box.grown(0.13), b.rise),
                )  # fmt: skip
            if pediment:
                top = Box(box.left - 0.25, box.top + 0.18, box.right + 0.25, box.top + 0.32)
                canvas.stone(top, b.stone, depth=0.22)
            window(canvas, rng, b, box)
            if balcony:
                _balcony(canvas, box)
    _cornice(canvas, rng, b)
    if rng.random() < 0.6:
        x = (b.left + 0.12, b.right - 0.24)[rng.integers(2)]
        canvas.paint(Box(x, 0, x + 0.11, b.eaves), linear((96, 98, 98)), BACKGROUND, depth=0.14)


def _masonry(canvas: Canvas, b: Building, box: Box, where: Mask | bool = True) -> None:
    """A plain wall."""
    if b.brick:
        texture = canvas.bricks(box, b.color, (176, 168, 156), b.brick_length, b.brick_length / 3.2)
    else:
        texture = canvas.plaster(box, b.color, 0.05)
    canvas.paint(box, texture, BRICK if b.brick else WALL, where=where)


def _ground_floor(canvas: Canvas, rng: np.random.Generator, b: Building) -> None:
    box = Box(b.left, -0.1, b.right, b.ground)
    style = rng.choice(["as above", "as above", "plaster", "rusticated"])
    if style != "as above":
        canvas.paint(box, canvas.plaster(box, b.stone, 0.05), WALL)
    if style == "rusticated":
        for joint in np.arange(0.45, b.ground - 0.2, 0.42):
            canvas.stain(Box(b.left, joint, b.right, joint + 0.03), 0.45)
    plinth = rng.uniform(0.25, 0.8)
    canvas.stone(Box(b.left, -0.1, b.right, plinth), b.stone, depth=0.05)

    entrance = int(rng.integers(b.columns))
    has_shop = rng.random() < 0.3
    width, height = b.window
    for column in range(b.columns):
        x = b.bay(column)
        if column == entrance:
            wide = min(rng.uniform(1.1, 1.6), 0.8 * b.width / b.columns)
            door(canvas, rng, b, Box(x - wide / 2, 0, x + wide / 2, rng.uniform(2.3, 2.9)))
        elif has_shop:
            half = 0.42 * b.width / b.columns
            shop(canvas, rng, b, Box(x - half, 0.5, x + half, min(2.7, b.ground - 0.6)))
        elif rng.random() < 0.12:
            half = min(1.2, 0.45 * b.width / b.columns)
            garage(canvas, rng, Box(x - half, 0, x + half, 2.2))
        else:
            sill = max(plinth + 0.1, 0.9)
            top = min(sill + height, b.ground - 0.35)
            window(canvas, rng, b, Box(x - width / 2, sill, x + width / 2, top))


def _balcony(canvas: Canvas, window: Box) -> None:
    """A slab with its railing; the window shows between the bars."""
    slab = Box(window.left - 0.5, window.bottom - 0.22, window.right + 0.5, window.bottom - 0.02)
    canvas.paint(slab, linear(STONES[1]), BACKGROUND, depth=0.85)
    left, right, bottom = slab.left + 0.05, slab.right - 0.05, slab.top
    for x in np.arange(left, right, 0.14):
        canvas.paint(Box(x, bottom, x + 0.025, bottom + 0.95), linear(IRON), BACKGROUND, depth=0.8)
    rail = Box(left, bottom + 0.93, right, bottom + 1.0)
    canvas.paint(rail, linear(IRON), BACKGROUND, depth=0.8)


def _quoins(canvas: Canvas, b: Building) -> None:
    """Corner stones, alternately long and short."""
    for index, y in enumerate(np.arange(b.ground + 0.1, b.eaves - 0.4, 0.34)):
        long = 0.55 if index % 2 else 0.35
        for left, right in ((b.left, b.left + long), (b.right - long, b.right)):
            canvas.paint(Box(left, y, right, y + 0.31), linear(b.stone), WALL, depth=0.03)


def _cornice(canvas: Canvas, rng: np.random.Generator, b: Building) -> None:
    """The top of the wall: stone courses, each further out, or the gutter of a roof."""
    if b.roof == "flat":
        for course in range(int(rng.integers(1, 4))):
            y = b.eaves - 0.35 + 0.14 * course
            reach = 0.04 + 0.05 * course
            box = Box(b.left - reach, y, b.right + reach, y + 0.14)
            canvas.stone(box, b.stone, depth=0.12 + 0.14 * course)
        if rng.random() < 0.4:
            for x in np.arange(b.left + 0.1, b.right - 0.1, 0.3):
                bracket = Box(x, b.eaves - 0.5, x + 0.12, b.eaves - 0.35)
                canvas.paint(bracket, linear(b.stone), WALL, depth=0.1)
    elif b.roof == "eaves":
        gutter = Box(b.left - 0.25, b.eaves - 0.06, b.right + 0.25, b.eaves + 0.08)
        canvas.paint(gutter, linear((112, 112, 108)), BACKGROUND, depth=0.5)


def _roof(canvas: Canvas, rng: np.random.Generator, b: Building) -> None:
    """Everything above the eaves; a gable is wall, tiles and chimney caps are background."""
    tile, chimney = one_of(rng, TILES), rng.uniform(b.left + 0.5, b.right - 1.2)
    tall, half = rng.uniform(1.4, 3.0), b.width / 2
    if b.roof != "stepped" and rng.random() < 0.6:
        stack = Box(chimney, b.eaves, chimney + 0.7, b.eaves + tall + rng.uniform(0.3, 0.9))
        canvas.paint(stack, canvas.bricks(stack, BRICKS[1], (150, 142, 132), 0.26, 0.08), BRICK)
        canvas.paint(
            stack._replace(bottom=stack.top - 0.12).grown(0.06, 0), linear(IRON), BACKGROUND
        )
    if b.roof == "eaves":
        box = Box(b.left - 0.25, b.eaves, b.right + 0.25, b.eaves + tall)
        tiles = canvas.bricks(box, tile, (40, 36, 34), 0.24, 0.2)
        slope = canvas.slope(box, half - rng.uniform(-0.2, 1.2))
        canvas.paint(box, tiles, BACKGROUND, depth=0.1, where=slope)
        if rng.random() < 0.4 and tall > 1.9:
            for column in range(0, b.columns, 2):
                x = b.bay(column)
                dormer = Box(x - 0.6, b.eaves + 0.3, x + 0.6, b.eaves + 1.7)
                canvas.paint(dormer, canvas.plaster(dormer, (226, 222, 210), 0.04), WALL, depth=0.5)
                hood = Box(x - 0.75, b.eaves + 1.7, x + 0.75, b.eaves + 1.85)
                canvas.paint(hood, linear(tile) * 0.7, BACKGROUND, depth=0.7)
                window(canvas, rng, b, Box(x - 0.42, b.eaves + 0.5, x + 0.42, b.eaves + 1.55))
    elif b.roof in ("gable", "stepped"):
        steps = 6 if b.roof == "stepped" else 0
        gable = Box(b.left, b.eaves, b.right, b.eaves + half * rng.uniform(0.5, 0.75))
        verge = gable.grown(0.2, 0)._replace(top=gable.top + 0.22)
        cap = linear(b.stone) if steps else linear(tile)
        canvas.paint(
            verge, cap, WALL if steps else BACKGROUND, depth=0.15,
            where=canvas.slope(verge, 0.0, steps),
        )  # fmt: skip
        _masonry(canvas, b, gable, canvas.slope(gable, 0.0, steps))
        x, w = (gable.left + gable.right) / 2, min(b.window[0] / 2, 0.16 * half)
        window(canvas, rng, b, Box(x - w, gable.bottom + 0.4, x + w, gable.bottom + 0.4 + w * 2.4))
