"""Linear CKA on matrices whose relation is known, and the stages of toy encoders."""

import numpy as np
import pytest
import torch

from fetal_utils.encoders import extract_features
from fetal_utils.models import build_encoder
from fetal_utils.similarity import FEATURES, cka_matrix, linear_cka, stage_activations, stage_names

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("debiased", [True, False])


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def cka_of_grams(a, b):
    """The unbiased estimator as Song et al. write it, on n x n kernel matrices without their diagonals."""
    n = len(a)

    def hsic(k, m):
        k, m = (gram - np.diag(np.diag(gram)) for gram in (k, m))
        ends = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + ends - 2 / (n - 2) * k.sum(axis=0) @ m.sum(axis=1)) / (n * (n - 3))

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@BOTH
def test_a_rotation_a_scale_and_a_shift_leave_cka_at_1(debiased):
    a = gaussian(40, 6)
    rotation = np.linalg.qr(gaussian(6, 6, seed=1))[0]
    assert linear_cka(a, 0.01 * a @ rotation + 5, debiased=debiased) == pytest.approx(1, abs=1e-9)


@BOTH
def test_cka_is_the_same_with_the_two_swapped(debiased):
    a = gaussian(40, 6)
    b = np.hstack([a[:, :3], gaussian(40, 2, seed=1)])
    value = linear_cka(a, b, debiased=debiased)
    assert 0.3 < value < 0.95
    assert linear_cka(b, a, debiased=debiased) == pytest.approx(value, rel=1e-12)


def test_unrelated_activations_score_about_0_only_when_debiased():
    pairs = [(gaussian(60, 200, seed=2 * s), gaussian(60, 200, seed=2 * s + 1)) for s in range(20)]
    assert np.mean([linear_cka(a, b) for a, b in pairs]) == pytest.approx(0, abs=0.02)
    assert np.mean([linear_cka(a, b, debiased=False) for a, b in pairs]) > 0.7


def test_the_debiased_value_is_that_of_the_unbiased_estimator_on_kernel_matrices():
    a, b = gaussian(25, 8), gaussian(25, 8) + gaussian(25, 8, seed=1)
    assert linear_cka(a + 3, b - 1) == pytest.approx(cka_of_grams(a, b), rel=1e-9)


def test_the_plain_value_is_equation_4_on_centred_kernel_matrices():
    a, b = gaussian(25, 8), np.hstack([gaussian(25, 3), gaussian(25, 3, seed=1)])
    centre = np.eye(25) - 1 / 25
    k, m = (centre @ x @ x.T @ centre for x in (a, b))
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(a, b, debiased=False) == pytest.approx(expected, rel=1e-9)


@BOTH
def test_activations_that_do_not_vary_have_no_cka(debiased):
    assert np.isnan(linear_cka(np.full((10, 4), 0.3), gaussian(10, 4), debiased=debiased))


@pytest.mark.parametrize(
    "a, b, message",
    [
        (gaussian(10, 4), gaussian(9, 4), "activations of 10 and 9 images: expected the same images"),
        (gaussian(3, 4), gaussian(3, 4), "3 and 3 images.*at least 4"),
        (gaussian(10, 4), np.full((10, 4), np.nan), "10 of 10 images hold NaN"),
    ],
)
def test_activations_that_cannot_be_compared_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        linear_cka(a, b)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(256, size=(9, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def encoder(request):
    return build_encoder(request.param, init="random", seed=0)


def activations(encoder, images, **options):
    return stage_activations(encoder, images, image_size=32, device=CPU, **options)


def test_stages_are_named_by_timm_and_the_last_are_the_features(encoder, images):
    found = activations(encoder, images)
    assert list(found) == [*(stage["module"] for stage in encoder.feature_info), FEATURES]
    assert [x.shape for x in found.values()][:-1] == [(9, stage["num_chs"]) for stage in encoder.feature_info]
    features = extract_features(encoder, images, image_size=32, device=CPU)
    np.testing.assert_allclose(found[FEATURES], features, rtol=1e-4, atol=1e-6)


def test_a_stage_is_averaged_over_the_image(encoder, images):
    name, seen = stage_names(encoder)[2], []
    module = encoder.get_submodule(name)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output.mean(dim=(2, 3))))
    found = activations(encoder, images)[name]
    handle.remove()
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=1e-5, atol=1e-6)


def test_batches_do_not_change_the_activations(encoder, images):
    whole, parts = activations(encoder, images), activations(encoder, images, batch_size=4)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_is_left_as_it_was(encoder, images, training):
    encoder.train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    activations(encoder, images)
    assert all(module.training is training for module in encoder.modules())
    assert not any(module._forward_hooks for module in encoder.modules())
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_an_encoder_without_stages_and_a_table_without_images_are_refused(encoder, images):
    with pytest.raises(ValueError, match="Linear and 9 images: expected a timm encoder with forward_intermediates"):
        activations(torch.nn.Linear(2, 2), images)
    with pytest.raises(ValueError, match="0 images"):
        activations(encoder, images[:0])


def test_the_matrix_has_a_cka_for_every_pair_of_stages():
    a = {"stem": gaussian(20, 3), "head": gaussian(20, 5, seed=1)}
    b = {"stem": gaussian(20, 4, seed=2), "middle": gaussian(20, 4, seed=3), "head": a["head"] * 2}
    matrix = cka_matrix(a, b)
    assert (list(matrix.index), list(matrix.columns)) == (["stem", "head"], ["stem", "middle", "head"])
    assert matrix.loc["head", "head"] == pytest.approx(1)
    assert matrix.loc["stem", "middle"] == linear_cka(a["stem"], b["middle"])
    np.testing.assert_allclose(cka_matrix(b, a), matrix.T)


def test_a_matrix_without_stages_is_refused():
    with pytest.raises(ValueError, match="1 and 0 stages: expected at least one of each"):
        cka_matrix({"stem": gaussian(20, 3)}, {})
