"""Checkpoints of other people's training scripts, as these write them."""

import argparse
import shlex
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model.bundle import load_bundle
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.networks import Network
from tests.model.conftest import BACKBONES, CLASSES, random_network

ARCH = "deeplabv3plus"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(ARCH)


def prefixed(prefix: str, state: State, **more: Any) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()} | more


class Wrapped(nn.Module):
    """A network as Lightning modules hold it: with buffers and a loss that has weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.loss_fn = nn.CrossEntropyLoss(torch.ones(5))


LIGHTNING: dict[str, Any] = {"epoch": 3, "pytorch-lightning_version": "2.4.0", "loops": {},
                             "optimizer_states": [], "hyper_parameters": {"lr": 1e-3}}  # fmt: skip

CHECKPOINTS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda net: net.state_dict(),
    "half": lambda net: {
        k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()
    },
    "ddp and compile": lambda net: prefixed("module._orig_mod.", net.state_dict()),
    "lightning": lambda net: {"state_dict": Wrapped(net).state_dict(), **LIGHTNING},
    "ema": lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
    "lightning with ema": lambda net: {
        "state_dict": Wrapped(net).state_dict() | prefixed("ema.module.", net.state_dict()),
        **LIGHTNING,
    },
    "torchvision's script": lambda net: {
        "model": net.state_dict(),
        "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict(),
        "epoch": 1,
        "args": argparse.Namespace(lr=0.1, device="cuda"),
    },
    "model_state": lambda net: {"model_state": net.state_dict(), "best": np.float64(0.5)},
    "net": lambda net: {"net": net.state_dict(), "epoch": 1},
    "nested": lambda net: {"checkpoint": {"weights": net.state_dict()}, "loss": [0.1]},
    "student and teacher": lambda net: {"model": net.state_dict(), "ema": net.state_dict()},
}


def imported(uri: str, tmp_path: Path) -> State:
    import_model(uri, str(tmp_path / "out"), Known(ARCH, BACKBONES[ARCH], CLASSES))
    return load_bundle(str(tmp_path / "out"))[0].state_dict()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_training_scripts_are_imported(
    network: Network, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(CHECKPOINTS[name](network), path)
    state = imported(str(path), tmp_path)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_networks_in_a_file_the_one_that_is_recognised_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_first: bool
) -> None:
    """A student, and the average of a teacher with another decoder, without its buffers."""
    student, teacher = (
        smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=5, decoder_channels=width)
        for width in (64, 32)
    )
    average = prefixed("ema.", dict(teacher.named_parameters()))
    parts = [average, prefixed("net.", student.state_dict())]
    first, second = parts if is_first else reversed(parts)
    torch.save({"state_dict": first | second}, tmp_path / "a.ckpt")
    import_model(str(tmp_path / "a.ckpt"), str(tmp_path / "out"), Known(classes=CLASSES))
    network, config = load_bundle(str(tmp_path / "out"))
    assert config.options == {"decoder_channels": 64}
    for key, value in student.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert f"left out, because they are not the network's: {next(iter(average))}" in (
        capsys.readouterr().err
    )


def test_a_copy_next_to_a_bare_network_is_left_out(network: Network, tmp_path: Path) -> None:
    average = {key: value + 1 for key, value in network.state_dict().items()}
    for copy in (prefixed("ema.module.", average), prefixed("ema.module.", average, n_averaged=1)):
        both = {k: torch.as_tensor(v) for k, v in (network.state_dict() | copy).items()}
        torch.save(both, tmp_path / "a.pth")
        state = imported(str(tmp_path / "a.pth"), tmp_path)
        for key, value in network.state_dict().items():
            assert torch.equal(state[key], value)


def test_what_is_left_out_is_said(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Wrapped(network).state_dict()}, tmp_path / "a.ckpt")
    imported(str(tmp_path / "a.ckpt"), tmp_path)
    told = capsys.readouterr().err
    assert "left out, because they are not the network's: mean, loss_fn.weight" in told


def test_a_folder_of_save_pretrained_is_imported(network: Network, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "hub").mkdir()
    save_file(network.state_dict(), tmp_path / "hub" / "model.safetensors")
    assert imported(str(tmp_path / "hub"), tmp_path).keys() == network.state_dict().keys()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is a folder without model\.safetensors"):
        imported(str(tmp_path / "empty"), tmp_path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_the_advice_for_a_torchscript_archive_works(network: Network, tmp_path: Path) -> None:
    module = nn.Sequential(OrderedDict(decoder=nn.Conv2d(3, 3, 1)))
    torch.jit.save(torch.jit.script(module), str(tmp_path / 'it\'s a "model".pt'))
    with pytest.raises(ModelError, match="is a TorchScript archive, which is code") as refused:
        imported(str(tmp_path / 'it\'s a "model".pt'), tmp_path)
    python, *arguments = shlex.split(str(refused.value).partition("with: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    assert list(torch.load(tmp_path / "weights.pth")) == list(module.state_dict())


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (nn.Conv2d(1, 1, 1), r"holds more than tensors \(torch\.nn\.modules\.conv\.Conv2d"),
        ({"epoch": 3, "loss": [1.0]}, "no state_dict in it; it has epoch, loss"),
        ([1, 2], "holds a list, not a state_dict"),
        ({"state_dict": {"a.weight": torch.ones(1)}}, f"not weights of {ARCH}.*they lack"),
    ],
)
def test_other_files_are_refused_with_what_they_hold(tmp_path: Path, saved: Any, why: str) -> None:
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=why) as refused:
        imported(str(tmp_path / "a.pth"), tmp_path)
    assert "weights_only" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_of_another_network_inside_a_wrapper_are_refused_by_their_own_names(
    network: Network, tmp_path: Path
) -> None:
    torch.save(prefixed("model.", random_network("deeplabv3").state_dict()), tmp_path / "a.pth")
    with pytest.raises(ModelError, match="not weights of"):
        imported(str(tmp_path / "a.pth"), tmp_path)
    state = prefixed("model.", network.state_dict(), **{"model.extra.weight": torch.ones(1)})
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"they have extra\.weight, which the network does not"):
        imported(str(tmp_path / "b.pth"), tmp_path)
    known = Known(ARCH, BACKBONES[ARCH], Classes(["a", "b"]))
    with pytest.raises(ModelError, match="know 5 classes, but 2 were given"):
        import_model(str(tmp_path / "b.pth"), str(tmp_path / "c"), known)
