"""The overlap of samples with sprites: known shares, whatever the place."""

import pytest
import torch

from benchmarks.overlap import centred, draw, overlaps
from models.infogan import InfoGAN


def square(side: int, row: int, column: int) -> torch.Tensor:
    image = torch.zeros(1, 1, 64, 64)
    image[:, :, row : row + side, column : column + side] = 1
    return image


SPRITES = centred(torch.cat([square(10, 5, 30), square(20, 20, 3)]))


def test_a_sprite_lies_over_itself_wherever_it_is():
    images = torch.cat([square(20, 1, 40), square(10, 50, 0), 0.9 * square(20, 7, 8)])
    found, nearest = overlaps(images, SPRITES)
    assert found == pytest.approx(1.0)
    assert nearest.tolist() == [1, 0, 1]


def test_the_share_is_intersection_over_union():
    found, nearest = overlaps(square(16, 30, 30), SPRITES)
    assert found[0] == pytest.approx(256 / 400)  # within 20 x 20; 10 x 10 has 100 / 256
    assert nearest[0] == 1


def test_an_empty_image_overlaps_with_nothing():
    found, _ = overlaps(0.4 * square(20, 7, 8), SPRITES)
    assert found[0] == 0


def test_samples_have_codes_and_noise_of_their_own():
    torch.manual_seed(0)
    model = InfoGAN((1, 64, 64), network="broadcast").eval()
    images = draw(model, 130)
    assert images.shape == (130, 1, 64, 64)
    assert torch.equal(images, draw(model, 130))
    assert images.flatten(1).std(0).max() > 0
