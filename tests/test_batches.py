import pytest
import torch

from fetal_utils.batches import draw_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n_images", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 2)])
def test_every_image_comes_once_before_any_comes_again(n_images, batch_size):
    drawn = draw_batches(n_images, n_batches=20, batch_size=batch_size, generator=generator()).flatten().tolist()
    for start in range(0, len(drawn) - n_images + 1, n_images):
        assert sorted(drawn[start : start + n_images]) == list(range(n_images))


def test_images_come_equally_often_up_to_one():
    drawn = draw_batches(10, n_batches=7, batch_size=4, generator=generator())
    assert set(torch.bincount(drawn.flatten(), minlength=10).tolist()) == {2, 3}  # 28 places for 10 images


@pytest.mark.parametrize(
    ("n_images", "n_batches", "batch_size", "shape"),
    [(10, 3, 4, (3, 4)), (10, 1, 10, (1, 10)), (3, 5, 64, (5, 3)), (2, 1, 2, (1, 2))],
)
def test_every_batch_is_full_and_no_larger_than_the_images(n_images, n_batches, batch_size, shape):
    drawn = draw_batches(n_images, n_batches=n_batches, batch_size=batch_size, generator=generator())
    assert drawn.shape == shape
    assert drawn.dtype == torch.int64


def test_no_batch_holds_an_image_twice_where_batches_fill_an_order_exactly():
    for batch in draw_batches(12, n_batches=9, batch_size=4, generator=generator()):
        assert len(set(batch.tolist())) == 4


def test_the_generator_alone_decides_the_order():
    first = draw_batches(50, n_batches=4, batch_size=8, generator=generator(1))
    torch.manual_seed(99)
    assert torch.equal(first, draw_batches(50, n_batches=4, batch_size=8, generator=generator(1)))
    assert not torch.equal(first, draw_batches(50, n_batches=4, batch_size=8, generator=generator(2)))


def test_a_generator_goes_on_from_call_to_call():
    going_on = generator()
    first, second = (draw_batches(50, n_batches=2, batch_size=8, generator=going_on) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("n_images", "n_batches", "batch_size"), [(1, 1, 8), (0, 1, 8), (9, 1, 1), (9, 0, 4)])
def test_too_few_images_or_batches_are_refused_with_what_was_given(n_images, n_batches, batch_size):
    with pytest.raises(ValueError, match=f"n_images={n_images}, n_batches={n_batches}, batch_size={batch_size}"):
        draw_batches(n_images, n_batches=n_batches, batch_size=batch_size, generator=generator())
