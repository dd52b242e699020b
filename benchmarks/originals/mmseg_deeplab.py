"""DeepLabs of MMSegmentation itself, as checkpoints, with the coarse logits that they give.

    python mmseg_deeplab.py FOLDER PACKAGES

PACKAGES is a folder with mmsegmentation, mmengine and mmcv-lite (`pip install --target`). Needs
torch, and nothing of segbatch. For each of NETWORKS it writes NAME.pth, as its runner saves it, and
NAME.safetensors: ``coarse`` and ``auxiliary`` logits of :func:`fill.picture`.
"""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

SIZE = (97, 129)
NUM_CLASSES = 5
CLASSES = ("background", "wall", "window", "door", "roof")
PALETTE = [[0, 0, 0], [120, 120, 120], [180, 120, 120], [6, 230, 230], [80, 50, 50]]

# By the name of its configuration in the wheel of mmsegmentation.
NETWORKS = {
    "plus-r50": "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512",
    "plus-r50-aligned": "deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-769x769",
    "plus-r50b-aligned": "deeplabv3plus/deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-769x769",
    "plus-r101-d16": "deeplabv3plus/deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
    "v3-r50": "deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512",
    "plus-m2": "mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024",
    "v3-m2": "mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024",
}


def without_operators() -> None:
    """mmcv-lite has no compiled operators; a DeepLab uses none."""
    import mmcv

    operators = types.ModuleType("mmcv.ops")

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    operators.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules["mmcv.ops"] = mmcv.ops = operators


def unsynchronised(config: Any) -> None:
    """Batch norms of one process."""
    if isinstance(config, dict):
        if "norm_cfg" in config:
            config["norm_cfg"]["type"] = "BN"
        for value in config.values():
            unsynchronised(value)


def main(folder: Path, packages: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.originals.fill import fill, picture

    sys.path.append(str(packages))
    warnings.simplefilter("ignore")
    without_operators()
    import mmseg
    import mmseg.models
    from mmengine.config import Config
    from mmengine.logging import MessageHub
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    curves = MessageHub.get_instance("training")
    curves.update_scalar("train/loss", 1.0)
    for name, config_name in NETWORKS.items():
        where = Path(mmseg.__file__).parent / ".mim" / "configs" / f"{config_name}.py"
        config = Config.fromfile(where)
        config.model.pretrained = None
        unsynchronised(config.model)
        for head in ("decode_head", "auxiliary_head"):
            config.model[head].num_classes = NUM_CLASSES
        model = MODELS.build(config.model).eval()
        fill(model)
        meta = {
            "cfg": config.pretty_text,
            "dataset_meta": {"classes": CLASSES, "palette": PALETTE},
            "mmengine_version": "0.10.7",
            "iter": 10,
        }
        saved = {
            "meta": meta, "state_dict": model.state_dict(), "message_hub": curves.state_dict()
        }  # fmt: skip
        torch.save(saved, folder / f"{name}.pth")
        with torch.inference_mode():
            features = model.extract_feat(picture(*SIZE))
            logits = {
                "coarse": model.decode_head(features),
                "auxiliary": model.auxiliary_head(features),
            }
        safetensors.torch.save_file(logits, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
