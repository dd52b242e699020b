"""A building: random proportions and materials that fit each other.

Lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segbatch.demo.facades.canvas import Color

BRICKS: list[Color] = [(152, 76, 54), (126, 58, 46), (174, 100, 68), (178, 128, 80), (112, 70, 58)]
PLASTERS: list[Color] = [
    (232, 222, 200), (240, 237, 228), (222, 204, 172), (228, 200, 174), (192, 198, 196),
    (224, 200, 146), (196, 206, 188), (178, 188, 202), (164, 156, 146), (224, 192, 180),
]  # fmt: skip
STONES: list[Color] = [(178, 170, 154), (152, 148, 140), (204, 196, 178), (226, 222, 212)]
FRAMES: list[Color] = [(238, 236, 230), (238, 236, 230), (92, 62, 42), (52, 70, 58), (58, 60, 64)]
WOODS: list[Color] = [
    (92, 52, 34),
    (44, 76, 58),
    (122, 32, 30),
    (34, 54, 92),
    (66, 66, 70),
    (142, 98, 58),
]


def one_of(rng: np.random.Generator, colors: list[Color]) -> Color:
    """One of the colours at random."""
    return colors[rng.integers(len(colors))]


@dataclass(frozen=True)
class Building:
    """The properties of one building that all of its parts share."""

    left: float
    width: float
    ground: float  # height of the ground floor
    storey: float
    storeys: int  # above the ground floor
    columns: int
    brick: bool
    color: Color
    stone: Color
    frame: Color
    brick_length: float
    window: tuple[float, float]
    panes: tuple[int, int]
    rise: float  # of the arches above the windows; 0 if they are straight
    shutters: Color | None
    roof: str

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def eaves(self) -> float:
        return self.ground + self.storey * self.storeys

    def bay(self, column: int) -> float:
        """The x of the middle of a column of windows."""
        return self.left + self.width * (column + 0.5) / self.columns

    @classmethod
    def random(cls, rng: np.random.Generator, left: float) -> Building:
        """A random building whose left edge is at ``left``."""
        columns, bay = int(rng.integers(2, 6)), rng.uniform(1.9, 3.0)
        storey = rng.uniform(2.8, 3.5)
        brick = bool(rng.random() < 0.5)
        width = rng.uniform(0.38, 0.6) * bay
        tone = np.array(one_of(rng, BRICKS if brick else PLASTERS)) * rng.normal(1, 0.05)
        red, green, blue = (
            float(value) for value in np.clip(tone * rng.normal(1, 0.02, 3), 0, 250)
        )
        shutters = one_of(rng, WOODS) if rng.random() < 0.3 and width < bay * 0.46 else None
        return cls(
            left=left,
            width=columns * bay + rng.uniform(0.2, 1.2),
            ground=rng.uniform(3.0, 4.0),
            storey=storey,
            storeys=int(rng.integers(1, 4)),
            columns=columns,
            brick=brick,
            color=(red, green, blue),
            stone=one_of(rng, STONES),
            frame=one_of(rng, FRAMES),
            brick_length=rng.uniform(0.24, 0.36),
            window=(width, min(storey * 0.66, width * rng.uniform(1.2, 2.0))),
            panes=((1, 1), (2, 1), (2, 2), (2, 3), (3, 2))[rng.integers(5)],
            rise=float(rng.choice([0.0, 0.0, 0.14, 0.5])) * width,
            shutters=shutters,
            roof=str(rng.choice(["flat", "eaves", "eaves", "gable", "stepped"])),
        )
