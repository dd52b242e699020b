"""The street: the sky above the facades, the ground in front, and things that stand there."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segbatch.demo.facades.canvas import Color, Floats, Light, as_floats, linear, noise, resized
from segbatch.demo.facades.viewpoint import Viewpoint

# An RGBA picture and the position of its top left corner.
Thing = tuple[Image.Image, tuple[int, int]]

LEAVES: list[Color] = [(74, 104, 42), (96, 118, 50), (58, 88, 48), (150, 122, 44), (160, 92, 40)]
CARS: list[Color] = [(190, 190, 194), (40, 42, 48), (128, 26, 26), (38, 62, 108), (226, 226, 222)]
CLOTHES: list[Color] = [(50, 54, 66), (130, 40, 44), (60, 92, 120), (150, 140, 120), (200, 180, 60)]
PAVING: list[Color] = [(150, 146, 140), (130, 124, 116), (168, 158, 142), (118, 120, 124)]


def sky(light: Light, size: tuple[int, int], grain: np.random.Generator) -> Image.Image:
    """Sky of ``size`` (width, height): a gradient, brighter near the roofs, and clouds."""
    width, height = size
    shape = (height // 4, width // 4)
    down = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    colors = as_floats(light.sky_top) * (1 - down) + as_floats(light.sky_low) * down
    heap = np.zeros(shape, np.float32)
    for octave in range(4):
        # Clouds are wider than high: square noise is stretched.
        square = noise(grain, (shape[0], shape[1] // 2), shape[1] / (6 * 2**octave))
        heap += resized(square, shape) * 0.6**octave
    veil = np.clip((heap + 2.2 * light.clouds - 1.1) * 1.4, 0, 1)[..., None]
    bright = np.minimum(as_floats(light.sky_low) * 1.06 + 8, 255) * (
        0.9 + 0.1 * (heap > 0.3)[..., None]
    )
    pixels = colors + veil * (bright - colors) * 0.85
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BILINEAR).convert("RGBA")


def distance(view: Viewpoint, light: Light, grain: np.random.Generator) -> Thing:
    """Hazy trees behind the facades, near the horizon."""
    ahead = view.position + view.axes[2] * [1, 0, 1]
    horizon = view.project(ahead)[1]
    top = min(max(int(horizon - 0.14 * view.focal), 0), view.height - 1)
    shape = (view.height - top, view.width)
    crest = noise(grain, (1, shape[1]), shape[1] / 9) + 0.4 * noise(
        grain, (1, shape[1]), shape[1] / 60
    )
    above = (horizon - top - np.arange(shape[0], dtype=np.float32)[:, None]) / view.focal
    haze = as_floats((96, 112, 96)) * 0.6 + as_floats(light.sky_low) * 0.25
    tone = 0.85 + 0.12 * noise(grain, shape, shape[1] / 80)
    return _picture(tone[..., None] * haze, above < 0.07 + 0.03 * crest), (0, top)


def ground(
    view: Viewpoint, light: Light, rng: np.random.Generator, grain: np.random.Generator
) -> Thing:
    """Pavement, kerb and road in front of the facades."""
    slab, kerb = rng.choice([0.12, 0.4, 0.6, 1.0]), rng.uniform(1.4, 4)
    paving = linear(PAVING[rng.integers(len(PAVING))])
    # The line where the facades meet the ground: all visible ground lies below it.
    line = np.linalg.inv(view.facade_homography())[1]
    foot = -(line[0] * np.array([0, view.width]) + line[2]) / line[1]
    top = min(max(int(foot.min()), 0), view.height - 1)

    back = np.linalg.inv(view.ground_homography()).astype(np.float32)
    u = np.arange(view.width, dtype=np.float32) + 0.5
    v = np.arange(top, view.height, dtype=np.float32)[:, None] + 0.5
    x, z, w = (row[0] * u + row[1] * v + row[2] for row in back)
    x, z = x / w, z / w
    column, row = np.floor(x / slab), np.floor(z / slab)
    table = 1 + 0.09 * grain.standard_normal((64, 64), np.float32)
    tone = table[row.astype(np.int64) % 64, column.astype(np.int64) % 64]
    joint = (x - column * slab < 0.02) | (z - row * slab < 0.02)
    tone = np.where(joint, np.float32(0.55), tone)
    tone = tone * (1 + 0.1 * grain.standard_normal(tone.shape, np.float32))
    # The foot of a wall gets light from half of the sky only.
    tone = tone * (1 + 0.1 * noise(grain, tone.shape, 40) - 0.4 * np.exp(-np.abs(z) / 0.5))
    color = np.where((z < kerb)[..., None], paving, linear((92, 92, 96)))
    color = np.where((np.abs(z - kerb) < 0.08)[..., None], linear((178, 176, 170)), color)
    shine = light.on_the_street
    pixels = np.sqrt(np.clip(color * tone[..., None] * shine, 0, 1)) * 255
    return _picture(pixels, z > 0), (0, top)


def things(
    view: Viewpoint, light: Light, rng: np.random.Generator, grain: np.random.Generator
) -> Iterator[Thing]:
    """The things in front of the facades, from far to near."""
    middle = view.position + view.axes[2] * view.position[2]
    reach = view.position[2] * 0.6
    placed = []
    for kind, often, (low, high), near in (
        (tree, 0.9, (3.5, 8.0), 1.5),
        (car, 0.8, (1.4, 1.6), 2.2),
        (person, 1.0, (1.55, 1.9), 0.8),
        (lamp, 0.3, (4.0, 6.0), 1.2),
    ):
        for _ in range(rng.poisson(often)):
            z = rng.uniform(near, max(near + 0.2, min(reach, 7)))
            x = middle[0] + rng.uniform(-0.65, 0.65) * view.width / view.focal * view.position[2]
            placed.append((z, x, rng.uniform(low, high), kind))
    for z, x, height, kind in sorted(placed, key=lambda thing: thing[0]):
        pixels = int(height * view.scale_at(x, z))
        if 8 < pixels < 3 * view.height:
            picture = kind(rng, grain, pixels, light)
            u, v = view.project((x, 0, z))
            yield picture, (int(u) - picture.width // 2, int(v) - picture.height)


def tree(
    rng: np.random.Generator, grain: np.random.Generator, height: int, light: Light
) -> Image.Image:
    """A tree, RGBA, ``height`` pixels high: bare, or in leaf with gaps between the leaves."""
    width = int(height * rng.uniform(0.65, 1.0))
    bare = rng.random() < 0.25
    shine = light.on_the_street
    wood = Image.new("L", (width, height))
    trunk = (width / 2, height)
    upward, forks = -math.pi / 2, 7 if bare else 5
    _branch(ImageDraw.Draw(wood), rng, trunk, upward, length=height * 0.3, forks=forks)
    alpha = np.asarray(wood, np.float32) / 255
    bark = np.sqrt(np.clip(linear((88, 74, 62)) * shine, 0, 1)) * 255
    pixels = np.broadcast_to(bark, (height, width, 3)).copy()

    puffs = rng.uniform([-0.9, -0.85, 0.3], [0.9, 0.85, 0.55], (14, 3))
    leaf = linear(LEAVES[rng.integers(len(LEAVES))])
    if not bare:
        y, x = np.mgrid[-1:1:60j, -1:1:60j].astype(np.float32)
        crown = np.full((60, 60), -1, np.float32)
        for across, up, radius in puffs * [0.55, 0.7, 1]:
            np.maximum(crown, 1 - np.hypot(x - across, y - up) / np.float32(radius), out=crown)
        # A puff is bright where it faces the sky: where less crown lies above than below.
        facing = np.clip(crown - np.roll(crown, 4, axis=0), -0.6, 0.6)
        top = int(height * 0.78)
        crown, facing = (resized(part, (top, width)) for part in (crown, facing))
        twigs = noise(grain, (top, width), height / 26)
        leaves = noise(grain, (top, width), max(2, height / 110))
        thick = crown + 0.4 * twigs + 0.5 * leaves
        cover = np.clip((thick - 0.18) * 12, 0, 1)
        tone = np.clip(0.75 + 0.8 * facing + 0.35 * leaves + 0.2 * twigs, 0.15, 2)
        green = np.sqrt(np.clip(leaf * shine * tone[..., None], 0, 1)) * 255
        pixels[:top] += (green - pixels[:top]) * cover[..., None]
        alpha[:top] = np.maximum(alpha[:top], cover)
    return _picture(pixels, alpha)


def _branch(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    *,
    length: float,
    forks: int,
) -> None:
    """Draw a branch, ``length`` pixels long, and the branches that fork from its end."""
    end = (start[0] + length * math.cos(angle), start[1] + length * math.sin(angle))
    draw.line([start, end], fill=255, width=max(1, round(length * 0.03 * forks**0.5)))
    if forks > 1:
        for side in (-1, 0, 1):
            turn = side * rng.uniform(0.3, 0.75) + rng.normal(0, 0.12)
            shrink = rng.uniform(0.55, 0.75)
            if side or rng.random() < 0.5:
                _branch(draw, rng, end, angle + turn, length=length * shrink, forks=forks - 1)


def car(
    rng: np.random.Generator, _grain: np.random.Generator, height: int, light: Light
) -> Image.Image:
    """A parked car from the side, RGBA, ``height`` pixels high."""
    h, w = height, int(height * rng.uniform(2.6, 3.1))
    paint = _lit(CARS[rng.integers(len(CARS))], light)
    hood, boot = rng.uniform(0.2, 0.32), rng.uniform(0.03, 0.16)
    cabin = [(hood - 0.06, 0.5), (hood + 0.08, 0.04), (0.9 - boot, 0.02), (1 - boot * 0.5, 0.5)]
    if rng.random() < 0.5:
        cabin = [(1 - x, y) for x, y in cabin]
    middle = sum(x for x, _ in cabin) / 4
    pane = [(middle + (x - middle) * 0.84, 0.48 if y > 0.2 else 0.12) for x, y in cabin]
    picture = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(picture)
    draw.polygon([(x * w, y * h) for x, y in cabin], fill=paint)
    draw.rounded_rectangle((0, 0.42 * h, w - 1, 0.84 * h), radius=0.16 * h, fill=paint)
    draw.polygon([(x * w, y * h) for x, y in pane], fill=_lit((70, 84, 94), light))
    draw.line([(middle * w, 0.1 * h), (middle * w, 0.8 * h)], fill=paint, width=max(1, h // 22))
    draw.line([(0.02 * w, 0.58 * h), (0.98 * w, 0.58 * h)], fill=_lit((60, 60, 60), light))
    draw.rectangle((0.06 * w, 0.8 * h, 0.94 * w, 0.9 * h), fill=(18, 18, 20))
    for x in (0.19, 0.8):
        for radius, shade in ((0.2, 22), (0.11, 120)):
            at = (x * w - radius * h, (0.8 - radius) * h, x * w + radius * h, (0.8 + radius) * h)
            draw.ellipse(at, fill=_lit((shade, shade, shade), light))
    return picture


def person(
    rng: np.random.Generator, _grain: np.random.Generator, height: int, light: Light
) -> Image.Image:
    """A person who walks by, RGBA, ``height`` pixels high."""
    h, w = height, max(4, int(height * 0.4))
    coat, legs = (_lit(CLOTHES[rng.integers(len(CLOTHES))], light) for _ in range(2))
    skin = _lit([(224, 172, 140), (160, 110, 80), (96, 66, 50)][rng.integers(3)], light)
    stride = rng.uniform(0.05, 0.3)
    picture = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(picture)
    for side in (-1, 1):
        knee = (w / 2 + side * stride * w * 0.5, h * 0.75)
        foot = (w / 2 + side * stride * w, h - 1)
        draw.line([(w / 2, h * 0.5), knee, foot], fill=legs, width=max(2, w // 5))
        hand = (w * (0.5 + side * 0.32), h * 0.52)
        draw.line([(w * (0.5 + side * 0.2), h * 0.2), hand], fill=coat, width=max(2, w // 6))
    draw.rounded_rectangle((w * 0.26, h * 0.15, w * 0.74, h * 0.56), radius=w * 0.15, fill=coat)
    draw.ellipse((w * 0.34, 0, w * 0.66, h * 0.14), fill=skin)
    return picture


def lamp(
    rng: np.random.Generator, _grain: np.random.Generator, height: int, light: Light
) -> Image.Image:
    """A street lamp, RGBA, ``height`` pixels high."""
    h, w = height, max(6, int(height * 0.12))
    iron = _lit(((50, 60, 56), (120, 122, 124))[rng.integers(2)], light)
    picture = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(picture)
    draw.line([(w / 2, h * 0.1), (w / 2, h)], fill=iron, width=max(2, w // 7))
    draw.rectangle((w * 0.4, h * 0.86, w * 0.6, h), fill=iron)
    globe = (255, 226, 160) if light.lamps > 0.2 else _lit((226, 226, 220), light)
    draw.polygon(
        [(0.2 * w, 0.03 * h), (0.8 * w, 0.03 * h), (0.66 * w, 0.11 * h), (0.34 * w, 0.11 * h)],
        fill=globe,
    )
    draw.polygon([(0.1 * w, 0.03 * h), (0.5 * w, 0), (0.9 * w, 0.03 * h)], fill=iron)
    return picture


def _lit(color: Color, light: Light) -> tuple[int, int, int]:
    """``color`` in the light on the street, sRGB."""
    shine = light.on_the_street
    red, green, blue = (np.sqrt(np.clip(linear(color) * shine, 0, 1)) * 255).astype(int)
    return int(red), int(green), int(blue)


def _picture(pixels: Floats, cover: npt.NDArray[np.generic]) -> Image.Image:
    """An RGBA picture of ``pixels`` HWC, 0 to 255, with the opacity ``cover`` HW, 0 to 1."""
    bytes_hwc = np.empty((*pixels.shape[:2], 4), np.uint8)
    bytes_hwc[..., :3] = np.clip(pixels, 0, 255)
    bytes_hwc[..., 3] = cover * 255
    return Image.fromarray(bytes_hwc)
