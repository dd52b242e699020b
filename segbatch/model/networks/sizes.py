"""What networks cost: parameters, and multiplications for an image of 512×512.

They are measured once and kept in ``sizes.csv``, because building hundreds of networks takes
minutes. Write it again with: python -m segbatch.model.networks.sizes
"""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import NamedTuple

SIDE = 512  # of the image, in pixels
NUM_CLASSES = 21
FILE = "sizes.csv"

# Licences of the ImageNet weights, by the first letters of a backbone. What is not here is
# published under several, which smp and timm name.
LICENCES = {
    "mit_": "non-commercial (NVIDIA)",
    "resnet": "BSD-3-Clause",
    "resnext50": "BSD-3-Clause",
    "mobilenet_v": "BSD-3-Clause",
    "vgg": "BSD-3-Clause",
    "densenet": "BSD-3-Clause",
    "efficientnet": "Apache-2.0",
    "mobileone": "Apple's own",
}


class Size(NamedTuple):
    """The cost of a network: ``parameters``, and ``gmac``, 10^9 multiply-adds an image."""

    arch: str
    backbone: str
    parameters: int
    gmac: float

    @property
    def licence(self) -> str:
        """Licence of the backbone's ImageNet weights."""
        found = (text for start, text in LICENCES.items() if self.backbone.startswith(start))
        return next(found, "see its library")


def known_sizes() -> list[Size]:
    """The sizes of all architectures on all their listed backbones."""
    text = files(__package__).joinpath(FILE).read_text()
    rows = csv.reader(text.splitlines())
    next(rows)  # the headings
    return [Size(arch, name, int(number), float(gmac)) for arch, name, number, gmac in rows]


def measure(arch: str, backbone: str) -> Size:
    """Build a network and count."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from segbatch.model import networks

    network = networks.build(arch, backbone, NUM_CLASSES).eval().to("meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.coarse(torch.zeros(1, 3, SIDE, SIDE, device="meta"))
    number = sum(parameter.numel() for parameter in network.parameters())
    return Size(arch, backbone, number, round(counter.get_total_flops() / 2e9, 2))


def write() -> None:
    """Measure all networks and write ``sizes.csv``."""
    from pathlib import Path

    from segbatch.model import networks

    with Path(__file__).with_name(FILE).open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Size._fields)
        for arch, names in networks.backbones().items():
            rows.writerows(measure(arch, name) for name in names)


if __name__ == "__main__":
    write()
