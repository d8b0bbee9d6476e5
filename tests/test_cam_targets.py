import numpy as np
import pytest
import torch
from torch import nn

from fetal_utils.cam_targets import class_prototypes, class_targets, similarity_targets, target_scores


def test_a_class_target_is_the_logit_or_the_probability_of_that_class():
    logits = torch.tensor([0.0, 1.0, 3.0])
    (logit,) = class_targets(2, n_images=1, n_classes=3)
    (probability,) = class_targets([2], n_images=1, n_classes=3, probability=True)
    assert logit(logits) == 3
    assert probability(logits).item() == pytest.approx(np.exp(3) / (1 + np.e + np.exp(3)))


def test_a_similarity_target_is_the_cosine():
    (target,) = similarity_targets(np.array([3.0, 4.0]), n_images=1, n_features=2)
    assert target(torch.tensor([1.0, 0.0])).item() == pytest.approx(0.6)
    assert target(torch.tensor([-6.0, -8.0])).item() == pytest.approx(-1)


def test_one_reference_serves_all_images_or_each_has_its_own():
    shared = similarity_targets(torch.tensor([1.0, 0.0]), n_images=2, n_features=2)
    own = similarity_targets(torch.eye(2), n_images=2, n_features=2)
    features = torch.tensor([1.0, 0.0])
    assert [target(features).item() for target in shared] == [1, 1]
    assert [target(features).item() for target in own] == [1, 0]


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3), (1, 2, 2)])
def test_references_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(2,\) for all images or \(2, 2\)"):
        similarity_targets(torch.ones(shape), n_images=2, n_features=2)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_reference_without_a_direction_is_refused(value):
    with pytest.raises(ValueError, match="zero or not finite"):
        similarity_targets(torch.tensor([[1.0, 0.0], [value, 0.0]]), n_images=2, n_features=2)


def test_a_prototype_is_the_mean_direction_of_a_class_whatever_the_length_of_its_features():
    features = np.array([[3.0, 4.0], [100.0, 0.0], [0.0, 2.0], [7.0, 7.0]])
    prototypes = class_prototypes(features, np.array([0, 0, 1, -1]), n_classes=2)
    np.testing.assert_allclose(prototypes, [[0.8, 0.4], [0, 1]], rtol=1e-6)
    assert prototypes.dtype == np.float32


def test_a_class_without_labelled_images_has_no_prototype():
    with pytest.raises(ValueError, match=r"classes \[1\] have no labelled image"):
        class_prototypes(np.ones((2, 3)), np.array([0, 2]), n_classes=3)


def test_scores_are_each_images_own_target_in_batches_of_any_size():
    model = nn.Linear(3, 2)
    images = torch.arange(15.0).reshape(5, 3)
    targets = class_targets([0, 1, 0, 1, 1], n_images=5, n_classes=2)
    expected = model(images)[torch.arange(5), [0, 1, 0, 1, 1]].detach()
    for batch_size in (1, 2, 9):
        np.testing.assert_allclose(target_scores(model, images, targets, batch_size=batch_size), expected, rtol=1e-5)
