"""The fused kernel compared with the strips in Triton's interpreter, and through its compiler.

The interpreter runs the kernel on the CPU, in a process of its own, where ``TRITON_INTERPRET`` is
set before Triton is imported. The compiler needs no GPU to compile for one. What neither shows is
the kernel at work on a GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segbatch.model import reduction
from segbatch.model.logits import CPU, LazyLogits, Mean, Resized, RowTaps, Upsampled
from segbatch.model.patches import Size
from segbatch.model.reduction import fused_on, reduce
from segbatch.model.strips import Reduced, reduce_in_strips

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

AS_GOOD_AS_EQUAL = 1e-5  # logits of about 3
GPU = torch.device("cuda")  # passed to `reduce`; the tensors are on the CPU


@dataclass(frozen=True)
class Case:
    """Random coarse logits, and how they are reduced."""

    num_classes: int = 5
    coarse: Size = (4, 6)
    padded: Size = (64, 64)
    size: Size = (23, 29)  # more than one program of the kernel, and part of another
    mask_size: Size = (23, 29)
    align_corners: bool = False
    mirrored: bool = False
    confidence: bool = True
    seed: int = 0

    def logits(self) -> Upsampled:
        generator = torch.Generator().manual_seed(self.seed)
        coarse = 3 * torch.randn(self.num_classes, *self.coarse, generator=generator)
        return Upsampled(coarse, self.padded, self.size, self.align_corners, self.mirrored)


# In the interpreter's process.


def interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    run_on_cpu = reduce(Case().logits(), (9, 9), 5, CPU)
    assert run_on_cpu.mask.shape == (9, 9)
    assert "triton" not in sys.modules, "on the CPU nobody pays for importing Triton"


def fused_of(coarse: Any, padded: Size, size: Size, mask_size: Size) -> Any:
    from segbatch.model import fused

    logits = Upsampled(torch.from_numpy(coarse), padded, size, False)
    return arrays(fused.reduce(logits, mask_size))


def both(case: Case) -> tuple[Any, Any, float]:
    """Reduced by the kernel and in strips, and how far the kernel's winner is behind at most."""
    from segbatch.model import fused

    logits = case.logits()
    assert fused.serves(logits, case.mask_size)
    ours = fused.reduce(logits, case.mask_size, confidence=case.confidence)
    theirs = reduce_in_strips(
        logits, case.mask_size, case.num_classes, CPU, confidence=case.confidence
    )
    target = logits if case.mask_size == case.size else Resized(logits, case.mask_size)
    full = target.rows(0, case.mask_size[0])
    behind = full.amax(0) - full.gather(0, ours.mask.long()[None])[0]
    return arrays(ours), arrays(theirs), behind.max().item()


def arrays(reduced: Reduced) -> Any:
    return {name: tensor.numpy() for name, tensor in reduced._asdict().items()}


def launches_of(kind: str) -> int:
    """How often ``reduce`` launches the kernel for logits on a device other than the CPU."""
    from segbatch.model import fused

    plain = replace(Case(), num_classes=2).logits()
    kinds: dict[str, LazyLogits] = {
        "plain": plain,
        "mean": Mean([plain, plain]),
        "resized": Resized(plain, (23, 29)),
        "transposed": replace(plain, coarse=plain.coarse.transpose(1, 2)),
    }
    with (
        patch.object(reduction, "fused_on", lambda device: device == GPU),
        patch.object(fused, "_launch", wraps=fused._launch) as launch,
        patch.object(reduction, "reduce_in_strips"),
    ):
        reduce(kinds[kind], (23, 29), 2, GPU)
    return launch.call_count


def proof(fault: str) -> str:
    """The message of the proof when the kernel or its device has a fault."""
    from segbatch.model import fused, kernel

    whole_taps, whole_launch = fused.row_taps, fused._launch

    def shifted(*args: Any) -> RowTaps:
        taps = whole_taps(*args)
        return replace(taps, weight=(taps.weight + 0.1).clamp(max=1))

    def miscounted(*args: Any) -> tuple[Tensor, ...]:
        mask, pixels, probability, margin = whole_launch(*args)
        return mask, pixels + (pixels > 0), probability, margin

    def overflowing(*args: Any) -> tuple[Tensor, ...]:
        mask, *rest = whole_launch(*args)
        return mask + 200, *rest

    def unsure(*args: Any) -> tuple[Tensor, ...]:
        mask, pixels, probability, margin = whole_launch(*args)
        return mask, pixels, probability, margin * 1.01

    faults = {
        "none": (reduction, "TOLERANCE", reduction.TOLERANCE),
        "interpolation": (fused, "row_taps", shifted),
        "counts": (fused, "_launch", miscounted),
        "ids": (fused, "_launch", overflowing),
        "margins": (fused, "_launch", unsure),
    }
    # Larger programs only because each costs the interpreter the same.
    with patch.object(kernel, "BLOCK", 2048), patch.object(*faults[fault]):
        try:
            reduction.prove(CPU)
        except reduction.Unproved as error:
            return str(error)
    return ""


# In the tests' process.


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process where Triton interprets."""
    with ProcessPoolExecutor(1, get_context("spawn"), interpret) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def check(interpreted: Callable[..., Any], case: Case) -> None:
    ours, theirs, behind = interpreted(both, case)
    height, width = case.mask_size
    assert behind < AS_GOOD_AS_EQUAL
    assert ours["mask"].shape == (height, width)
    assert ours["pixels"].sum() == height * width
    counts = np.bincount(ours["mask"].ravel(), minlength=case.num_classes)
    assert ours["pixels"].tolist() == counts.tolist()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.shape == theirs[name].shape
    for name in ("confidence", "uncertainty"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 2, 9, 16, 21, 150])
def test_any_number_of_classes(interpreted, num_classes):
    check(interpreted, Case(num_classes))


@pytest.mark.parametrize("mask_size", [(23, 29), (41, 37), (23, 50), (11, 9)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_on_any_grid(interpreted, align_corners, mirrored, mask_size):
    check(
        interpreted,
        Case(mask_size=mask_size, align_corners=align_corners, mirrored=mirrored, padded=(32, 64)),
    )


@pytest.mark.parametrize("mask_size", [(23, 29), (11, 9)])
def test_without_confidence_there_is_none(interpreted, mask_size):
    case = Case(mask_size=mask_size, confidence=False)
    check(interpreted, case)
    ours, _, _ = interpreted(both, case)
    assert np.isnan(ours["confidence"]).all()
    assert np.isnan(ours["uncertainty"])


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    case=st.builds(
        Case,
        num_classes=st.integers(1, 4),
        coarse=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        padded=st.sampled_from([(24, 24), (32, 24), (24, 64)]),
        size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
        mask_size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
        align_corners=st.booleans(),
        mirrored=st.booleans(),
        seed=st.integers(0, 99),
    )
)
def test_images_of_any_shape(interpreted, case):
    check(interpreted, case)


def test_equal_logits_go_to_the_first_class_and_are_wholly_uncertain(interpreted):
    same = interpreted(fused_of, np.zeros((4, 2, 2), np.float32), (64, 64), (20, 20), (20, 20))
    assert not same["mask"].any()
    assert same["uncertainty"] == 1
    coarse = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    twice = interpreted(fused_of, np.concatenate([coarse] * 2), (64, 64), (20, 20), (31, 17))
    assert set(np.unique(twice["mask"])) == {0, 1, 2}
    assert twice["uncertainty"] == 1


def test_one_image_twice_gives_the_same_bytes(interpreted):
    (first, _, _), (second, _, _) = (
        interpreted(both, Case(mask_size=(11, 9), seed=3)) for _ in range(2)
    )
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes()


@pytest.mark.parametrize(
    ("kind", "launches"), [("plain", 1), ("mean", 0), ("resized", 0), ("transposed", 0)]
)
def test_a_gpu_reduces_one_forward_pass_by_the_kernel_and_all_else_in_strips(
    interpreted, kind, launches
):
    assert interpreted(launches_of, kind) == launches


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mask_size", [(513, 700), (1200, 1600)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_gpu_gives_what_strips_on_the_cpu_give(align_corners, mask_size):
    case = Case(21, (72, 88), (576, 704), (513, 700), mask_size, align_corners)
    logits = case.logits()
    theirs = reduce_in_strips(logits, mask_size, 21, CPU)
    assert fused_on(GPU)
    ours = reduce(replace(logits, coarse=logits.coarse.to(GPU)), mask_size, 21, GPU)
    # Positions far from the origin have few bits left for weights: ties are wider here.
    assert (ours.mask.cpu() != theirs.mask).float().mean() < 1e-4
    assert ours.pixels.sum() == mask_size[0] * mask_size[1]
    torch.testing.assert_close(ours.confidence.cpu(), theirs.confidence, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.uncertainty.cpu(), theirs.uncertainty, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", ""),
        ("interpolation", "class ids are wrong"),
        ("ids", "class ids are wrong"),
        ("counts", "counts of pixels are wrong"),
        ("margins", "uncertainty is wrong"),
    ],
)
def test_a_kernel_must_prove_itself_before_it_is_used(interpreted, fault, said):
    assert interpreted(proof, fault) == said


@pytest.fixture
def cleared_cache() -> Iterator[None]:
    fused_on.cache_clear()
    yield
    fused_on.cache_clear()


@pytest.mark.usefixtures("cleared_cache")
def test_where_the_kernel_cannot_run_that_is_said_once(capsys):
    assert [fused_on(CPU) for _ in range(2)] == [False, False]  # it cannot without its interpreter
    said = capsys.readouterr().err
    assert said.startswith("cpu: reducing logits without the fused kernel: ")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("cleared_cache")
def test_without_triton_it_is_said_that_there_is_none(capsys, monkeypatch):
    for name in ("fused", "kernel"):
        monkeypatch.delattr(f"segbatch.model.{name}", raising=False)
        monkeypatch.delitem(sys.modules, f"segbatch.model.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not fused_on(CPU)
    assert "triton" in capsys.readouterr().err


@pytest.mark.usefixtures("cleared_cache")
def test_a_device_without_memory_for_the_proof_is_asked_again(monkeypatch):

    def full(device: torch.device) -> None:
        raise torch.OutOfMemoryError("device out of memory")

    monkeypatch.setattr(reduction, "prove", full)
    with pytest.raises(torch.OutOfMemoryError):
        fused_on(CPU)
    monkeypatch.setattr(reduction, "prove", lambda device: None)
    assert fused_on(CPU)


class Launches:
    """Replaces a kernel and records the arguments of its launches."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.seen.append((args, kwargs))


@pytest.mark.parametrize("capability", [80, 90])
def test_what_is_launched_compiles_for_gpus(capability, monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    from segbatch.model import fused, kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    reduce_block, launches = kernel.reduce_block, Launches()
    monkeypatch.setattr(kernel, "reduce_block", launches)
    fused.reduce(Case().logits(), (23, 29))
    fused.reduce(Case().logits(), (23, 29), confidence=False)
    fused.reduce(Case().logits(), (11, 9), confidence=False)
    assert len(launches.seen) == 3
    for args, kwargs in launches.seen:
        constants = {name: kwargs.pop(name) for name in list(kwargs) if name.isupper()}
        types = [mangle_type(arg) for arg in args] + ["constexpr"] * len(constants)
        source = ASTSource(
            reduce_block, dict(zip(reduce_block.arg_names, types, strict=True)), constants
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kwargs)
        assert compiled.asm["cubin"]
        assert "fma." not in compiled.asm["ptx"], "contracted, it would round otherwise"


def test_one_compilation_serves_all_sizes():
    from segbatch.model import kernel

    for parameter in kernel.reduce_block.params:
        assert parameter.is_constexpr or parameter.do_not_specialize
