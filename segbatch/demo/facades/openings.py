"""Openings in a front: windows, shop windows, doors and garages, with what shows behind panes."""

from __future__ import annotations

import numpy as np

from segbatch.demo.facades.building import WOODS, Building, one_of
from segbatch.demo.facades.canvas import BACKGROUND, DOOR, WALL, WINDOW, Box, Canvas, Color, linear

AWNINGS: list[Color] = [(150, 40, 40), (40, 84, 70), (190, 160, 90), (50, 66, 110)]
CURTAINS: list[Color] = [(226, 222, 214), (206, 196, 176), (150, 120, 110), (196, 206, 210)]
IRON: Color = (44, 46, 48)
INSIDE: Color = (34, 36, 40)
LAMPLIGHT: Color = (255, 206, 128)


def window(canvas: Canvas, rng: np.random.Generator, b: Building, box: Box) -> None:
    """A window: lintel, frame, panes, the room behind them, sill and shutters."""
    rise = min(b.rise, 0.45 * (box.top - box.bottom))
    opening = canvas.arch(box, rise)
    if b.brick and not rise:
        lintel = Box(box.left - 0.15, box.top, box.right + 0.15, box.top + 0.16)
        canvas.paint(lintel, linear(b.stone), WALL, depth=0.01)
    frame = linear(b.frame)
    canvas.paint(box, frame * 0.8, WINDOW, depth=-0.16, where=opening)

    behind, matte = linear(INSIDE) * rng.uniform(0.3, 1.5), 0.2
    shift, strength = rng.normal(0, 0.6), rng.uniform(0.25, 0.8)
    if rng.random() < canvas.light.lamps:
        behind, strength, matte = linear(LAMPLIGHT) * rng.uniform(0.35, 0.95), 0.1, 0.0
    inner = box.grown(-0.06)
    canvas.paint(
        inner, canvas.glass(inner, behind, strength, shift), WINDOW, depth=-0.16, matte=matte,
        where=canvas.arch(inner, rise),
    )  # fmt: skip
    straight = inner._replace(top=inner.top - rise)
    if rng.random() < 0.5:
        _curtains(canvas, rng, straight)
    for bar in _bars(straight, b.panes):
        canvas.paint(bar, frame, WINDOW, depth=-0.13)
    if rise:
        canvas.paint(straight._replace(bottom=straight.top - 0.06), frame, WINDOW, depth=-0.13)

    canvas.stone(
        Box(box.left - 0.1, box.bottom - 0.1, box.right + 0.1, box.bottom), b.stone, depth=0.13
    )
    if b.shutters is not None:
        half = (box.right - box.left) / 2
        shut = rng.random() < 0.08
        for outer, edge in ((box.left - half, box.left), (box.right, box.right - half)):
            left = edge if shut else outer
            leaf = Box(left, box.bottom, left + half, box.top - rise)
            _louvres(canvas, leaf, b.shutters)


def _bars(box: Box, panes: tuple[int, int]) -> list[Box]:
    """The glazing bars between ``panes`` columns and rows; upper rows are less high."""
    columns, rows = panes
    xs = [box.left + (box.right - box.left) * i / columns for i in range(1, columns)]
    ys = [box.bottom + (box.top - box.bottom) * (i / rows) ** 0.7 for i in range(1, rows)]
    return [Box(x - 0.03, box.bottom, x + 0.03, box.top) for x in xs] + [
        Box(box.left, y - 0.025, box.right, y + 0.025) for y in ys
    ]


def _curtains(canvas: Canvas, rng: np.random.Generator, box: Box) -> None:
    """A lowered blind, or curtains at the sides, behind the pane."""
    cloth = linear(one_of(rng, CURTAINS)) * rng.uniform(0.35, 0.8)
    down, aside, blind = rng.uniform(0.15, 1.0), rng.uniform(0.12, 0.3), rng.random() < 0.5
    height, width = box.top - box.bottom, box.right - box.left
    parts = (
        [box._replace(bottom=box.top - down * height)]
        if blind
        else [
            box._replace(right=box.left + aside * width),
            box._replace(left=box.right - aside * width),
        ]
    )
    for part in parts:
        pane = canvas.glass(part, cloth, 0.25, 0.0)
        canvas.paint(part, pane, WINDOW, depth=-0.16, matte=0.6)


def _louvres(canvas: Canvas, box: Box, color: Color) -> None:
    """A shutter; its class is that of its window."""
    canvas.paint(box, linear(color), WINDOW, depth=0.05)
    for slat in np.arange(box.bottom + 0.1, box.top - 0.1, 0.11):
        canvas.stain(Box(box.left + 0.06, slat, box.right - 0.06, slat + 0.05), 0.72)


def door(canvas: Canvas, rng: np.random.Generator, b: Building, box: Box) -> None:
    """A door in its frame: panels or panes, a fanlight, steps, perhaps a canopy."""
    wood = linear(one_of(rng, WOODS)) * rng.uniform(0.8, 1.2)
    rise = (box.right - box.left) * float(rng.choice([0.0, 0.0, 0.15, 0.5]))
    style, panels = rng.choice(["panels", "panes", "plain"]), int(rng.integers(2, 5))
    stone = box.grown(0.18, 0)._replace(top=box.top + 0.2)
    where = canvas.arch(stone, rise)
    canvas.paint(stone, linear(b.stone), WALL, depth=0.06, where=where)
    canvas.paint(box, wood * 0.7, DOOR, depth=-0.25, where=canvas.arch(box, rise))
    inner = box.grown(-0.07, 0)._replace(top=box.top - 0.07)
    dark = linear(INSIDE) * rng.uniform(0.4, 1.6)
    canvas.paint(
        inner, canvas.glass(inner, dark, 0.4, 0.0), DOOR, depth=-0.25, matte=0.3,
        where=canvas.arch(inner, rise),
    )  # fmt: skip
    leaf = inner._replace(top=max(box.top - rise, box.bottom + 1.9) - 0.35)
    canvas.paint(leaf, canvas.plaster(leaf, (255, 255, 255), 0.03) * wood, DOOR, depth=-0.23)
    wings = 2 if box.right - box.left > 1.3 else 1
    for cell in leaf.grid(wings, 1 if style == "panes" else panels, 0.12):
        if style == "panels":
            canvas.paint(cell, wood * 0.75, DOOR, depth=-0.26)
            canvas.paint(cell.grown(-0.05), wood * 1.12, DOOR, depth=-0.23)
        elif style == "panes":
            pane = cell._replace(bottom=cell.bottom + 0.4)
            canvas.paint(pane, canvas.glass(pane, dark, 0.5, 0.3), DOOR, depth=-0.26, matte=0.3)
    knob = Box(leaf.right - 0.14, 1.0, leaf.right - 0.08, 1.14)
    canvas.paint(knob, linear((200, 180, 120)), DOOR, depth=-0.18)
    for step in range(int(rng.integers(0, 3))):
        wide = box.grown(0.3 - 0.12 * step, 0)
        tread = wide._replace(bottom=-0.1, top=0.16 * (step + 1))
        canvas.paint(
            tread, linear(b.stone) * (0.8 + 0.1 * step), BACKGROUND, depth=0.3 - 0.1 * step
        )
    if rng.random() < 0.25:
        canopy = Box(box.left - 0.35, box.top + 0.28, box.right + 0.35, box.top + 0.42)
        canvas.paint(canopy, linear(IRON), BACKGROUND, depth=0.7)


def shop(canvas: Canvas, rng: np.random.Generator, b: Building, box: Box) -> None:
    """A shop window: a large pane with goods behind it, and a sign or an awning above."""
    wood = one_of(rng, WOODS)
    canvas.paint(box.grown(0.1), linear(wood), WINDOW, depth=0.03)
    bright = LAMPLIGHT if canvas.light.lamps else CURTAINS[rng.integers(len(CURTAINS))]
    behind = linear(INSIDE) + linear(bright) * rng.uniform(0.02, 0.3)
    canvas.paint(box, canvas.glass(box, behind, 0.45, 0.5), WINDOW, depth=-0.12, matte=0.3)
    for _ in range(int(rng.integers(2, 6))):
        x, tall, wide = (
            rng.uniform(box.left, box.right - 0.4),
            rng.uniform(0.3, 1.1),
            rng.uniform(0.1, 0.4),
        )
        ware = Box(x, box.bottom, x + wide, box.bottom + tall)
        canvas.paint(ware, linear(one_of(rng, AWNINGS)) * 0.5, WINDOW, depth=-0.12, matte=0.4)
    canvas.paint(
        box._replace(
            left=(box.left + box.right) / 2 - 0.03, right=(box.left + box.right) / 2 + 0.03
        ),
        linear(wood),
        WINDOW,
    )
    cloth = one_of(rng, AWNINGS)
    awning = Box(box.left - 0.15, box.top - 0.2, box.right + 0.15, box.top + 0.55)
    sign = Box(box.left - 0.1, box.top + 0.12, box.right + 0.1, box.top + 0.5)
    if rng.random() < 0.4:
        canvas.paint(awning, linear(cloth), BACKGROUND, depth=0.8)
        for stripe in np.arange(awning.left, awning.right - 0.1, 0.4):
            canvas.stain(awning._replace(left=stripe, right=stripe + 0.2), 1.9)
    else:
        canvas.paint(sign, linear(cloth), BACKGROUND, depth=0.1)
        for letter in np.arange(sign.left + 0.3, sign.right - 0.3, 0.16):
            ink = Box(letter, sign.bottom + 0.1, letter + 0.09, sign.top - rng.uniform(0.08, 0.16))
            canvas.paint(ink, linear((232, 226, 208)), BACKGROUND, depth=0.1)


def garage(canvas: Canvas, rng: np.random.Generator, box: Box) -> None:
    """A garage door with horizontal slats."""
    color = linear(one_of(rng, [*WOODS, (200, 200, 196), (160, 164, 166)]))
    canvas.paint(box.grown(0.06, 0), color * 0.8, DOOR)
    canvas.paint(box, color, DOOR, depth=-0.2)
    for slat in np.arange(0.2, 2.1, 0.22):
        canvas.stain(Box(box.left, slat, box.right, slat + 0.035), 0.6)
