"""Codes measured from the pixels: known places, areas and angles."""

import math

import pytest
import torch

from benchmarks.moments import CODES, moments


def bar(dy, dx):
    """A bar of 3 x 31 pixels about (20, 40), along the direction (dy, dx) in pixels."""
    y, x = torch.meshgrid(torch.arange(64.0) - 20, torch.arange(64.0) - 40, indexing="ij")
    length = math.hypot(dy, dx)
    along, across = (y * dy + x * dx) / length, (y * dx - x * dy) / length
    return ((along.abs() <= 15) & (across.abs() <= 1)).float()[None, None]


@pytest.mark.parametrize(("dy", "dx", "angle"), [(0, 1, 0.0), (1, 1, 45.0), (-1, 1, -45.0)])
def test_the_moments_of_a_bar(dy, dx, angle):
    x, y, area, along, across, found = moments(bar(dy, dx))[0].tolist()
    assert (x, y) == pytest.approx((40, 20))
    assert area == bar(dy, dx).sum()
    assert math.degrees(found) == pytest.approx(angle, abs=1e-3)
    assert math.atan2(across, along) == pytest.approx(math.radians(2 * angle), abs=1e-5)


def test_a_square_has_no_elongation():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 10:20, 30:40] = 1
    assert moments(image)[0, 3:5].abs().max() < 1e-6


def test_the_moments_do_not_depend_on_the_batch():
    images = torch.cat([bar(0, 1), bar(1, 1), bar(1, 2)])
    torch.testing.assert_close(moments(images)[1:], moments(images[1:]))


def test_every_set_of_codes_is_there():
    assert {column for columns in CODES.values() for column in columns} == set(range(6))
