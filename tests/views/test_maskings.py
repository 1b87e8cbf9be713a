"""Strategies of masking: exact numbers, the parts by their definition, and the distributions of large samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.views import fold_in, random_blocks

GRID = (4, 6)
N = 24
PARTS = ("future", "past", "top", "bottom", "occluded")


def keys_of(count, seed=0):
    return views.example_keys(jax.random.key(seed), jnp.arange(count))


@functools.cache
def drawn(masking, ratio=0.5, progress=1.0, count=4000):
    made = jax.jit(lambda keys: masking(keys, GRID, ratio, progress))(keys_of(count))
    target, visible = (np.asarray(x).reshape(count, *GRID) for x in made)
    assert not (target & visible).any()
    return target, visible


EVERY = [
    views.RandomMasking(),
    views.BlockMasking(),
    views.BlockMasking(scale=(0.02, 0.05)),
    views.PartMasking(),
    *(views.PartMasking(kinds=(kind,)) for kind in PARTS),
]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("masking", EVERY, ids=str)
def test_every_example_hides_exactly_the_share(masking, ratio):
    target, visible = drawn(masking, ratio, count=300)
    assert (target.sum((1, 2)) == round(ratio * N)).all() and (target | visible).all()


def test_random_masks_are_those_of_random_patch_mask():
    made = views.RandomMasking()(keys_of(50), GRID, 0.6)
    keep, mask = views.random_patch_mask(keys_of(50), N, 0.6)
    np.testing.assert_array_equal(made.target, mask)
    np.testing.assert_array_equal(np.nonzero(np.asarray(made.visible))[1].reshape(50, -1), keep)


@pytest.mark.parametrize("kind", PARTS[:4])
def test_parts_by_their_definition(kind):
    target, _ = drawn(views.PartMasking(kinds=(kind,)), count=3)
    row, column = np.indices(GRID)
    expected = {"future": column >= 3, "past": column < 3, "top": row < 2, "bottom": row >= 2}[kind]
    assert (target == expected).all()
    # In a sequence the future is its end.
    made = views.PartMasking(kinds=(kind,))(keys_of(2), (1, 8), 0.25).target
    end = {"future": [6, 7], "past": [0, 1], "top": [0, 1], "bottom": [0, 1]}[kind]
    assert np.flatnonzero(made[0]).tolist() == end


def test_the_recent_past_is_what_is_seen():
    target, visible = drawn(views.PartMasking(kinds=("future",), near=1 / 6), ratio=1 / 3, count=3)
    _, column = np.indices(GRID)
    assert (target == (column >= 4)).all() and (visible == (column == 3)).all()


def test_each_part_has_the_same_probability():
    masking, single = views.PartMasking(kinds=PARTS[:4]), {}
    target, _ = drawn(masking)
    for kind in PARTS[:4]:
        single[kind] = drawn(views.PartMasking(kinds=(kind,)), count=3)[0][0]
    shares = [np.mean((target == part).all((1, 2))) for part in single.values()]
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 4000))


def test_an_occluded_region_is_one_piece_around_a_uniform_patch():
    target, _ = drawn(views.PartMasking(kinds=("occluded",)), ratio=1 / 24)
    places = target.reshape(-1, N).mean(0)  # one patch: the centre
    np.testing.assert_allclose(places, 1 / N, atol=5 * np.sqrt(1 / N / 4000))
    target, _ = drawn(views.PartMasking(kinds=("occluded",)), ratio=0.3, count=200)
    for mask in target:
        assert pieces(mask) == 1


def test_blocks_cover_the_share_without_single_places():
    """Small blocks, at first a third of their size: every hidden place is in a block of two or more."""
    for ratio, progress in ((0.6, 1.0), (0.9, 1.0), (0.75, 0.0)):
        masking = views.BlockMasking(scale=(0.05, 0.05), grows=("size",))
        made = masking(keys_of(200), (14, 14), ratio, progress)
        drawn_at = masking._number(196, ratio)
        blocks = random_blocks(
            fold_in(keys_of(200), 0), (14, 14), drawn_at, (0.05 * (0.3 if progress == 0 else 1),) * 2, masking.aspect
        )
        alone = np.asarray(made.target) & ~np.asarray(blocks).any(1)
        assert alone.any(1).mean() < 0.01


@pytest.mark.parametrize("name", ["random", "parts"])
def test_strategies_without_sizes_refuse_growing_ones(name):
    masking = views.MASKINGS.get(name)(grows=("size",))
    with pytest.raises(UserError, match=r"objective\.masking\.grows: got 'size', but only 'blocks' have a size"):
        masking.check("objective.masking", 16, 0.5)


def test_a_block_that_is_too_high_is_wider():
    for grid in ((4, 40), (40, 4), (1, 100), (2, 3)):
        blocks = np.asarray(random_blocks(keys_of(200), grid, 4, (0.2, 0.2), (0.75, 1.5)))
        places = grid[0] * grid[1]
        assert np.abs(blocks.sum(-1) - 0.2 * places).max() <= max(2.0, 0.12 * places)


def test_regions_of_a_large_grid_are_around_their_centre():
    """Grids of more than 181 x 181 patches made the distances overflow."""
    made = views.PartMasking(kinds=("occluded",))(keys_of(3), (200, 200), 0.1).target
    for mask in np.asarray(made).reshape(3, 200, 200):
        assert pieces(mask) == 1


def pieces(mask):
    """The number of connected regions, with neighbours on four sides."""
    left, count = {tuple(p) for p in np.argwhere(mask)}, 0
    while left:
        count, front = count + 1, [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            front += near
    return count


def test_blocks_are_hidden_one_after_another():
    """The hidden patches are the first blocks of the draw, of which the last one may be cut, row by row."""
    masking = views.BlockMasking(scale=(0.1, 0.2))
    target, _ = drawn(masking, count=100)
    blocks = np.asarray(views.random_blocks(views.fold_in(keys_of(100), 0), GRID, 64, (0.1, 0.2), (0.75, 1.5)))
    for mask, own in zip(target.reshape(100, N), blocks):
        hidden = np.zeros(N, bool)
        for block in own:
            new = np.flatnonzero(block & ~hidden)[: N // 2 - hidden.sum()]
            hidden[new] = True
        if hidden.sum() == N // 2:
            np.testing.assert_array_equal(mask, hidden)
    assert (mask.sum() == N // 2) and len(blocks) == 100


def test_large_blocks_make_fewer_pieces():
    number = [
        np.mean([pieces(mask) for mask in drawn(masking, 0.4, count=200)[0]])
        for masking in (views.BlockMasking(scale=(0.6, 0.7)), views.BlockMasking(scale=(0.05, 0.1)), EVERY[0])
    ]
    assert number[0] == 1 < number[1] < number[2]


@pytest.mark.parametrize(("progress", "hidden"), [(0.0, 4), (0.25, 8), (0.5, 12), (1.0, 12)])
def test_the_ratio_grows(progress, hidden):
    masking = views.RandomMasking(grows=("ratio",), start=1 / 3, ramp=0.5)
    target, visible = drawn(masking, 0.5, progress, 20)
    assert (target.sum((1, 2)) == hidden).all() and (visible == ~target).all()


def test_blocks_grow():
    masking = views.BlockMasking(scale=(0.6, 0.7), grows=("size",), start=0.1, ramp=1.0)
    number = [np.mean([pieces(mask) for mask in drawn(masking, 0.4, progress, 200)[0]]) for progress in (0.0, 0.5, 1.0)]
    assert number[0] > number[1] >= number[2] == 1
    assert (drawn(masking, 0.4, 0.0, 200)[0].sum((1, 2)) == 10).all()


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"objective\.masking\.near: shows 16 of 24 patches, must be at least 1 and at"):
        views.PartMasking(kinds=("future",), near=0.65).check("objective.masking", N, 0.5)
    with pytest.raises(ValueError, match="scale"):
        views.BlockMasking(scale=(0.4, 0.2)).validate()
    with pytest.raises(ValueError, match="kinds"):
        views.PartMasking(kinds=()).validate()
