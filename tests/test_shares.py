"""A batch shared by three processes, against one that has it alone."""

import pytest
import torch
from processes import together
from test_contrast import by_image, still, tiny, two_views
from torch import nn

from fetal_utils.contrast import contrast_step
from fetal_utils.ranks import ALONE, Ranks, meet
from fetal_utils.shares import SharedSimCLR, share_batch

N_IMAGES = 7  # fourteen views, which three processes can't share evenly
CASES = {
    f"{dtype}, {normalisation.__name__}, {chunk_size=}, {masked=}": (dtype, normalisation, chunk_size, masked)
    for dtype in (torch.float64, torch.float32)
    for normalisation in (by_image, nn.BatchNorm2d)
    for chunk_size, masked in ((0, False), (0, True), (5, True))
}
TOLERANCES = {torch.float64: {"rtol": 1e-10, "atol": 1e-13}, torch.float32: {"rtol": 1e-4, "atol": 1e-6}}


def shares_of_all(n_images, world_size, chunk_size=0):
    return [share_batch(n_images, ranks=Ranks(rank, world_size), chunk_size=chunk_size) for rank in range(world_size)]


# --- who encodes what ---


@pytest.mark.parametrize(("n_images", "world_size"), [(2, 2), (6, 2), (7, 2), (7, 3), (9, 8)])
@pytest.mark.parametrize("chunk_size", [0, 12, 16])
def test_shares_are_disjoint_and_together_the_batch_and_none_is_larger_by_more_than_a_view_of_each_piece(
    n_images, world_size, chunk_size
):
    shares = shares_of_all(n_images, world_size, chunk_size)
    assert sorted(torch.cat([share.own for share in shares]).tolist()) == list(range(2 * n_images))
    sizes = [len(share.own) for share in shares]
    assert max(sizes) - min(sizes) <= len(shares[0].pieces[0])
    for share in shares:
        assert share.own.tolist() == sorted(share.own.tolist())
        assert all(map(len, share.images))


def test_views_of_three_processes_by_hand():
    # views 0 to 3 are the images' first ones, 4 to 7 their second ones
    shares = shares_of_all(4, 3)
    assert [share.own.tolist() for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [[part.tolist() for part in share.images] for share in shares] == [
        [[0, 3], [2]],
        [[1], [0, 3]],
        [[2], [1]],
    ]


def test_an_even_batch_is_shared_by_whole_images():
    for share in shares_of_all(12, 4):
        first, second = share.images
        assert torch.equal(first, second)
        assert len(first) == 3


def test_pieces_are_those_of_one_process_each_shared_by_all():
    shares = shares_of_all(5, 2, chunk_size=4)  # pieces of 4, 3 and 3 views
    of_each_piece = zip(*(share.pieces[rank] for rank, share in enumerate(shares)), strict=True)
    assert [sorted(torch.cat(parts).tolist()) for parts in of_each_piece] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    views = torch.arange(10.0)
    assert [part.tolist() for part in shares[1].split(views[shares[1].own])] == [[1, 3], [5], [8]]


@pytest.mark.parametrize(
    ("n_images", "world_size", "chunk_size", "largest"), [(3, 4, 0, 3), (8, 4, 3, 2), (8, 3, 2, 2), (4, 5, 100, 4)]
)
def test_more_processes_than_a_piece_can_feed_are_refused_with_how_many_it_can(
    n_images, world_size, chunk_size, largest
):
    message = rf"batch of {n_images} images with chunk_size={chunk_size} .* {world_size} processes.* at most {largest}$"
    with pytest.raises(ValueError, match=message):
        share_batch(n_images, ranks=Ranks(0, world_size), chunk_size=chunk_size)
    share_batch(n_images, ranks=Ranks(0, largest), chunk_size=chunk_size)


# --- one step together ---


def step(case, ranks):
    """Gradients, measures and statistics of a step that moves nothing."""
    dtype, normalisation, chunk_size, masked = case
    model = tiny(normalisation).to(dtype)
    view_a, view_b = two_views(N_IMAGES, dtype=dtype)
    mask = torch.rand(N_IMAGES, N_IMAGES, generator=torch.Generator().manual_seed(4)) < 0.3
    share, network = None, model
    if ranks.world_size > 1:
        share = share_batch(N_IMAGES, ranks=ranks, chunk_size=chunk_size)
        network = SharedSimCLR(model, ranks)
        view_a, view_b = (view[kept] for view, kept in zip((view_a, view_b), share.images, strict=True))
    measured = contrast_step(
        network,
        *still(model),
        view_a,
        view_b,
        temperature=0.2,
        not_negatives=mask | mask.T if masked else None,
        chunk_size=chunk_size,
        share=share,
    )
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return measured, {name: parameter.grad for name, parameter in model.named_parameters()} | buffers


def all_steps():
    """What each process does."""
    ranks = meet()
    ranks.join("cpu")
    steps = {name: step(case, ranks) for name, case in CASES.items()}
    ranks.leave()
    return steps


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The steps of every case, of each of three processes."""
    ended = together(all_steps, n_processes=3, folder=tmp_path_factory.mktemp("shared") / "steps")
    assert [process.status for process in ended] == [0, 0, 0], ended
    return [process.result for process in ended]


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_three_processes_is_that_of_one_with_the_whole_batch(shared, name):
    measured, expected = step(CASES[name], ALONE)
    for steps in shared:
        found_measured, found = steps[name]
        torch.testing.assert_close(found_measured, measured, rtol=1e-5, atol=1e-6)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, **TOLERANCES[CASES[name][0]])


@pytest.mark.parametrize("name", CASES)
def test_all_processes_take_the_same_step_to_the_bit(shared, name):
    (measured, first), *others = (steps[name] for steps in shared)
    for other_measured, other in others:
        assert torch.equal(measured, other_measured)
        assert all(torch.equal(first[parameter], other[parameter]) for parameter in first)
