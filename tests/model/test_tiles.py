"""Tiles cover the image, have one size, and leave no visible seams."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from segbatch.config.job import Predict, Tile
from segbatch.model.logits import CPU, Blended
from segbatch.model.patches import TileBox, tile_boxes
from segbatch.model.predict import Model
from tests.model.conftest import config_of


@dataclass(frozen=True)
class Piece:
    """The logits of a tile, cut out of those of the whole image."""

    whole: Tensor
    tile: TileBox

    @property
    def size(self) -> tuple[int, int]:
        return self.tile.height, self.tile.width

    def rows(self, top: int, bottom: int) -> Tensor:
        columns = slice(self.tile.left, self.tile.left + self.tile.width)
        return self.whole[:, self.tile.top + top : self.tile.top + bottom, columns]


@pytest.mark.parametrize("size", [(100, 230), (64, 64), (65, 63), (20, 300), (30, 40)])
@pytest.mark.parametrize("overlap", [0, 16, 40])
def test_tiles_of_one_size_cover_the_image_with_their_overlap(size, overlap):
    tiles = tile_boxes(size, 64, overlap)
    covered = np.zeros(size, int)
    for tile in tiles:
        assert (tile.height, tile.width) == (min(64, size[0]), min(64, size[1]))
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() >= 1
    assert len(set(tiles)) == len(tiles)
    lefts = sorted({tile.left for tile in tiles})
    assert all(right - left <= 64 - overlap for left, right in pairwise(lefts))


def test_an_image_smaller_than_a_tile_goes_whole():
    assert tile_boxes((30, 40), 64, 16) == [TileBox(0, 0, 30, 40)]


@pytest.mark.parametrize("overlap", [0, 16, 48])
def test_blending_what_agrees_changes_nothing(overlap):
    whole = torch.randn(3, 100, 230, generator=torch.Generator().manual_seed(1))
    tiles = tile_boxes((100, 230), 64, overlap)
    pieces = [Piece(whole, tile) for tile in tiles]
    blended = Blended((100, 230), tiles, pieces, overlap, 3, CPU)
    torch.testing.assert_close(blended.rows(0, 100), whole, atol=1e-5, rtol=1e-5)
    strips = [blended.rows(top, min(top + 9, 100)) for top in range(0, 100, 9)]
    assert torch.equal(torch.cat(strips, 1), blended.rows(0, 100))


def test_where_tiles_disagree_one_fades_into_the_other():
    tiles = tile_boxes((64, 112), 64, 16)
    pieces = [Piece(torch.full((1, 64, 112), float(i)), tile) for i, tile in enumerate(tiles)]
    row = Blended((64, 112), tiles, pieces, 16, 1, CPU).rows(5, 6)[0, 0]
    assert (row[:48] == 0).all()
    assert (row[64:] == 1).all()
    assert row.diff().max() < 1.1 / 16


def test_tiled_prediction_has_the_images_size_and_the_pixels_add_up(networks, photo):
    network = networks["deeplabv3plus"]
    config = config_of(network, "deeplabv3plus")
    options = Predict(tile=Tile(size=64, overlap=16), flip=True, batch_size=3)
    model = Model(network, config, "cpu", options)
    images = [photo(100, 150), photo(40, 50, seed=1)]
    predictions = model.predict_batch(images, [None, None])
    assert [p.mask.shape for p in predictions] == [(100, 150), (40, 50)]
    assert [p.pixels.sum() for p in predictions] == [15_000, 2_000]
    whole = Model(network, config, "cpu", Predict(flip=True)).predict(images[1])
    assert np.mean(predictions[1].mask != whole.mask) < 1e-3


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ValidationError, match="overlap"):
        Tile(size=64, overlap=overlap)
