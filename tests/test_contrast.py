"""One contrastive step, whole and in pieces; in float64 where gradients are compared."""

import copy

import pytest
import torch
from torch import nn

from fetal_utils import contrast
from fetal_utils.contrast import STEP_MEASURES, SimCLR, contrast_step, even_pieces, frozen_statistics
from fetal_utils.diagnostics import alignment, top1_accuracy, uniformity
from fetal_utils.encoders import InitialWeights
from fetal_utils.losses import nt_xent_loss
from fetal_utils.optimisers import build_optimiser, warmup_cosine

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
N_IMAGES = 6
CHUNK_SIZES = [2, 3, 4, 5, 7, 11]  # of twelve views: some divide them, some do not


class TinyEncoder(nn.Sequential):
    """Two layers and a mean, with a normalisation that knows each image alone or the batch."""

    num_features = 8

    def __init__(self, normalisation):
        # no biases: a batch normalisation after them, the head's too, takes any shift away
        first, second = (nn.Conv2d(*widths, 3, bias=False) for widths in ((1, 4), (4, 8)))
        super().__init__(first, normalisation(4), nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def by_image(n_channels):
    return nn.GroupNorm(2, n_channels)


def tiny(normalisation=by_image):
    """A model in float64 with weights from a generator."""
    model = SimCLR(TinyEncoder(normalisation), projection_dim=5, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.double()


def two_views(n_images=N_IMAGES, side=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, n_images, 1, side, side, generator=generator, dtype=dtype)
    return images, images + 0.5 * noise


def still(model):
    """An optimiser and a schedule that never move a weight: what a step leaves are its gradients."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    return optimiser, warmup_cosine(optimiser, n_steps=100, n_warmup=0)


def moving(model, lr=1e-2):
    optimiser = build_optimiser(model, lr=lr, weight_decay=0.0)
    return optimiser, warmup_cosine(optimiser, n_steps=100, n_warmup=0)


def gradients(model, **options):
    """A step's gradients, its norm clipped like any step's, and what it measured."""
    model = copy.deepcopy(model)
    measured = contrast_step(model, *still(model), *two_views(), temperature=0.2, **options)
    return [parameter.grad for parameter in model.parameters()], measured


def differ(some, others):
    return [not torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(some, others, strict=True)]


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def statistics_of(model):
    return {name: value.clone() for name, value in model.encoder.named_buffers()}


# --- a whole batch ---


def test_the_loss_falls_within_a_few_steps_on_one_batch(tiny_dataset):
    """Of 32 images the same two views are seen 12 times: a loss that can't fall here never will."""
    pool = torch.tensor(tiny_dataset.images(32, progress=False)[:32]).unsqueeze(1) / 255 - 0.5
    model = SimCLR(START.encoder(), projection_dim=16, seed=0)
    optimiser, schedule = moving(model, lr=2e-3)
    steps = [contrast_step(model, optimiser, schedule, pool, pool.flip(3), temperature=0.1) for _ in range(12)]
    assert steps[-1][0] < steps[0][0] - 1
    assert steps[-1][1] > steps[0][1]


def test_a_step_measures_the_projections_before_it_moves():
    model, (view_a, view_b) = tiny(), two_views()
    z_a, z_b = (part.detach() for part in copy.deepcopy(model).train()(torch.cat([view_a, view_b])).chunk(2))
    measured = contrast_step(model, *moving(model), view_a, view_b, temperature=0.5)
    expected = {
        "loss": nt_xent_loss(z_a, z_b, temperature=0.5),
        "top1_accuracy": top1_accuracy(z_a, z_b),
        "alignment": alignment(z_a, z_b),
        "uniformity": uniformity(torch.cat([z_a, z_b])),
    }
    assert tuple(expected) == STEP_MEASURES
    assert measured.tolist() == pytest.approx([value.item() for value in expected.values()], rel=1e-5)
    assert not measured.requires_grad


def test_a_step_moves_every_weight_and_the_schedule_once():
    model = tiny()
    before = weights_of(model)
    optimiser, schedule = moving(model)
    contrast_step(model, optimiser, schedule, *two_views(), temperature=0.2)
    assert all(differ(before, weights_of(model)))
    assert schedule.last_epoch == 1


def test_a_step_with_rate_zero_measures_but_does_not_move():
    model = SimCLR(START.encoder(), projection_dim=16, seed=0)
    before = weights_of(model)
    measured = contrast_step(model, *still(model), *two_views(8, 32, torch.float32), temperature=0.5)
    loss, accuracy, aligned, uniform = measured.tolist()
    assert 0 < loss < 10
    assert 0 <= accuracy <= 1
    assert 0 <= aligned <= 4
    assert -8 <= uniform <= 0
    assert all(map(torch.equal, weights_of(model), before))


def test_both_views_share_the_statistics_of_one_batch():
    model, (view_a, view_b) = tiny(nn.BatchNorm2d), two_views()
    contrast_step(model, *still(model), view_a, view_b, temperature=0.2)
    assert model.encoder[1].num_batches_tracked == 1


@pytest.mark.parametrize("chunk_size", [0, 4])
def test_masked_pairs_reach_the_loss(chunk_size):
    model, views = tiny(), two_views()
    masked = torch.zeros(N_IMAGES, N_IMAGES, dtype=torch.bool)
    masked[0, 1] = masked[1, 0] = masked[2, 5] = masked[5, 2] = True
    (loss, *_), (unmasked, *_) = (
        gradients(model, chunk_size=chunk_size, not_negatives=mask)[1] for mask in (masked, None)
    )
    z_a, z_b = model.train()(torch.cat(views)).chunk(2)
    assert loss.item() == pytest.approx(nt_xent_loss(z_a, z_b, temperature=0.2, not_negatives=masked).item())
    assert loss < unmasked  # fewer candidates to confuse the other view with


# --- in pieces ---


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_gradients_in_pieces_are_those_of_the_whole_batch(chunk_size):
    model = tiny()
    expected, whole = gradients(model)
    found, measured = gradients(model, chunk_size=chunk_size)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)
    assert measured.tolist() == pytest.approx(whole.tolist(), rel=1e-6)


def test_a_training_in_pieces_ends_like_one_without(chunk_size=5):
    models = [tiny(), tiny()]
    for model, size in zip(models, [0, chunk_size], strict=True):
        optimiser, schedule = moving(model)
        for _ in range(4):
            contrast_step(model, optimiser, schedule, *two_views(), temperature=0.2, chunk_size=size)
        assert schedule.last_epoch == 4
    assert not any(differ(*map(weights_of, models)))


def test_accumulated_losses_of_the_pieces_would_give_other_gradients():
    """What the pieces are for: an image meets the negatives of all pieces, not of its own alone."""
    model, (view_a, view_b) = tiny(), two_views()
    expected, _ = gradients(model)
    for a, b in zip(view_a.split(2), view_b.split(2), strict=True):
        z_a, z_b = model.train()(torch.cat([a, b])).chunk(2)
        (nt_xent_loss(z_a, z_b, temperature=0.2) / 3).backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    assert all(differ(expected, [parameter.grad for parameter in model.parameters()]))


@pytest.mark.parametrize("chunk_size", [3, 4])
def test_batch_normalisation_sees_a_piece_and_not_the_batch(chunk_size):
    model = tiny(nn.BatchNorm2d)
    found, (loss, *_) = gradients(model, chunk_size=chunk_size)
    whole, _ = gradients(model)
    features = [model.train().encoder(piece) for piece in even_pieces(torch.cat(two_views()), chunk_size)]
    direct = nt_xent_loss(*model.projection_head(torch.cat(features)).chunk(2), temperature=0.2)
    direct.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    assert not any(differ(found, [parameter.grad for parameter in model.parameters()]))
    assert any(differ(found, whole))
    assert loss.item() == pytest.approx(direct.item())


def test_running_statistics_count_each_piece_once_though_it_passes_twice():
    model = tiny(nn.BatchNorm2d)
    expected = copy.deepcopy(model)
    for piece in torch.cat(two_views()).split(4):
        expected.train().encoder(piece)
    contrast_step(model, *still(model), *two_views(), temperature=0.2, chunk_size=4)
    assert model.encoder[1].num_batches_tracked == 3
    for name, value in statistics_of(model).items():
        torch.testing.assert_close(value, statistics_of(expected)[name])
    assert model.projection_head[1].num_batches_tracked == 1


@pytest.mark.parametrize("chunk_size", [12, 13, 10_000])
def test_a_piece_that_holds_the_batch_is_the_batch(chunk_size, monkeypatch):
    monkeypatch.setattr(contrast, "backward_in_pieces", None)  # an error if it were called
    model = tiny(nn.BatchNorm2d)
    pairs = zip(gradients(model, chunk_size=chunk_size)[0], gradients(model)[0], strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(("chunk_size", "sizes"), [(2, [2] * 5), (3, [3, 3, 2, 2]), (4, [4, 3, 3]), (9, [5, 5])])
def test_pieces_are_as_few_and_as_even_as_they_can_be(chunk_size, sizes):
    views = torch.arange(10.0)
    pieces = even_pieces(views, chunk_size)
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat(pieces), views)


@pytest.mark.parametrize("chunk_size", [2, 3, 9])
def test_no_piece_is_a_single_view_whose_batch_normalisation_could_not_work(chunk_size):
    """Ten views in nines leave one over; at 32 px the last map has one pixel, so one view has no variance."""
    model = SimCLR(START.encoder(), projection_dim=8, seed=0)
    sizes = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    contrast_step(model, *still(model), *two_views(5, 32, torch.float32), temperature=0.2, chunk_size=chunk_size)
    assert sum(sizes) == 2 * 10  # each view passes twice
    assert 2 <= min(sizes) <= max(sizes) <= chunk_size


def test_statistics_run_on_after_an_error_in_a_block_that_froze_them():
    layer = nn.BatchNorm1d(2, momentum=1.0)
    with pytest.raises(KeyError), frozen_statistics(layer):
        layer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        raise KeyError
    assert layer.running_mean.tolist() == [0, 0]
    layer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert layer.running_mean.tolist() == [2, 3]


def test_a_layer_that_never_kept_statistics_is_not_made_to():
    layer = nn.BatchNorm1d(2, track_running_stats=False)
    with frozen_statistics(layer):
        pass
    assert not layer.track_running_stats


# --- a loss that is no number ---


@pytest.mark.parametrize("chunk_size", [0, 5])
def test_a_loss_that_is_no_number_names_its_step_and_leaves_the_weights_of_the_one_before(chunk_size):
    model, (view_a, view_b) = tiny(), two_views()
    optimiser, schedule = moving(model)
    options = {"temperature": 0.2, "chunk_size": chunk_size}
    for _ in range(2):
        contrast_step(model, optimiser, schedule, view_a, view_b, **options)
    before = weights_of(model)
    broken = view_b.clone()
    broken[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3: the training diverged; try a lower lr"):
        contrast_step(model, optimiser, schedule, view_a, broken, **options)
    assert all(map(torch.equal, weights_of(model), before))
    assert schedule.last_epoch == 2
