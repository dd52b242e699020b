"""Networks with random weights that tell something apart, so that their masks look like masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from segbatch.demo.facades.facades import CLASSES
from segbatch.model import networks, zoo
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network


def random_network(arch: str, backbone: str, pictures: Sequence[Image.Image] = ()) -> Network:
    """A network with random weights; its norms and its head are fitted to ``pictures``.

    Without them, activations of a deep one vanish and every pixel has the same class: good enough
    where only its seconds count.
    """
    torch.manual_seed(7)
    network = networks.build(arch, backbone, len(CLASSES))
    if pictures:
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
        mean, std = (torch.tensor(v)[:, None, None] for v in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD))
        images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        network.train()
        with torch.no_grad():
            for _ in range(5):  # of the batch norms
                network(images)
            network.eval()
            head = network.get_submodule(network.head_key)
            assert isinstance(head, torch.nn.Conv2d)
            assert head.bias is not None
            head.bias.zero_()
            logits = network.coarse(images)
            spread = logits.std((0, 2, 3))
            head.weight /= spread[:, None, None, None] / 3
            head.bias -= logits.mean((0, 2, 3)) / spread * 3
    return network.eval()


def random_bundle(
    folder: str, arch: str, backbone: str, pictures: Sequence[Image.Image] = ()
) -> str:
    """The same as a bundle below ``folder``; its URI."""
    network = random_network(arch, backbone, pictures)
    save_bundle(
        f"{folder}/model", network, ModelConfig(arch, backbone, network.output_stride, CLASSES)
    )
    return f"{folder}/model"
