"""Copies of training pictures are distinguished from new pictures of the same brand."""

import torch

from onbrand.families.tiny.brands import draw_brand
from onbrand.training.data.dataset import fitted
from onbrand.training.memorization import SIDE, nearest, nearest_of_each, thumbnail


def brand(index: int) -> torch.Tensor:
    return fitted(draw_brand("zorblax", index, 128), 64)


TRAINED = torch.stack([thumbnail(brand(index)) for index in range(12)])


def test_a_sample_that_is_a_training_picture_is_a_copy_and_names_it():
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    for index in (0, 2, 5):
        likeness = nearest((brand(index) + 0.02 * noise).clamp(-1, 1), TRAINED)
        assert likeness is not None
        assert likeness.is_copy
        assert likeness.row == index


def test_new_pictures_of_the_same_brand_are_no_copies():
    found = [nearest(brand(index), TRAINED) for index in range(100, 130)]
    assert all(likeness is not None for likeness in found)
    assert sum(likeness.is_copy for likeness in found if likeness) <= 2


def test_every_sample_is_told_and_the_one_that_is_most_a_copy_first():
    found = nearest_of_each([brand(200), brand(3), brand(201)], TRAINED)
    assert sorted(found) == [0, 1, 2]
    assert next(iter(found)) == 1
    assert found[1].row == 3
    assert [likeness.distance for likeness in found.values()] == sorted(each.distance for each in found.values())


def test_of_few_pictures_or_of_one_many_times_nothing_is_said():
    assert nearest(brand(0), TRAINED[:3]) is None
    assert nearest(brand(0), TRAINED[:1].expand(12, 3, SIDE, SIDE)) is None
    assert nearest_of_each([brand(0)], TRAINED[:2]) == {}
