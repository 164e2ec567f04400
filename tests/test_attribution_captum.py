"""captum's own TCAV with our vectors, and our scores, on the same activations, concepts and classifier."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from conceptkit.attribution.captum_adapter import ConceptClassifier
from conceptkit.attribution.outputs import choose_outputs
from conceptkit.attribution.sensitivity import pooled_gradients
from conceptkit.attribution.tcav import directional_derivatives, magnitude, mean, sign_count
from conceptkit.errors import InputError
from conceptkit.models.inference import pooled_activations
from conceptkit.probe.classification import ConceptActivationVector

CHANNELS, SIDE = 6, 5


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Tanh(), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Tanh()]
        layers += [nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 12), nn.Tanh(), nn.Linear(12, 3)]
        network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[2].weight *= 4  # so that units saturate, and derivatives differ in sign between images
        network[5].weight *= 8
    return network


def drawn(seed, shift):
    noise = torch.randn(24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return noise + shift * torch.tensor([1.0, -0.5, 0.3]).view(3, 1, 1)


EXAMPLES = [drawn(1, 1.0), drawn(2, -1.0), drawn(3, 0.0)]
IMAGES = drawn(4, 0.2)


def captum_scores(network, classifier, concepts, target, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's own, of its progress bars and of NumPy's old names
        from captum.concept import TCAV, Concept

        given = [Concept(i, f"c{i}", [x[:12], x[12:]]) for i, x in enumerate(concepts)]
        tcav = TCAV(network, ["1"], classifier=classifier, save_path=str(folder))
        found = tcav.interpret(IMAGES, [given], target=target)
    return found["-".join(str(i) for i in range(len(concepts)))]["1"]


def our_scores(network, concepts, target, *, pool):
    X = np.concatenate([pooled_activations(network, x, ["1"], pool=pool)["1"].double().numpy() for x in concepts])
    y = np.repeat(np.arange(len(concepts)), 24)
    order = np.random.default_rng(0).permutation(len(y))
    vector = ConceptActivationVector().fit(X[order], y[order])
    W = np.concatenate([-vector.coef_, vector.coef_]).T if len(concepts) == 2 else vector.coef_.T
    outputs = choose_outputs(network, IMAGES, [str(target)])
    return directional_derivatives(pooled_gradients(network, "1", outputs, [IMAGES], pool=pool)[0], W)


@pytest.mark.parametrize("n_concepts", [2, 3])
@pytest.mark.parametrize(("pool", "channels"), [("flatten", None), ("gap", CHANNELS)])
def test_both_give_the_same_scores(network, tmp_path, n_concepts, pool, channels):
    concepts, mixed = EXAMPLES[:n_concepts], []
    for target in (0, 2):
        classifier = ConceptClassifier(channels=channels)
        theirs = captum_scores(network, classifier, concepts, target, tmp_path / str(target))
        S = our_scores(network, concepts, target, pool=pool)
        np.testing.assert_allclose(sign_count(S), theirs["sign_count"].numpy(), atol=1e-6)
        # What captum calls magnitude is the mean, whatever its documentation says; ours of that name is the documented.
        np.testing.assert_allclose(mean(S), theirs["magnitude"].numpy(), rtol=1e-4, atol=1e-6)
        assert not np.allclose(magnitude(S), theirs["magnitude"].numpy(), atol=1e-3)
        mixed.append(0 < sign_count(S)[0] < 1)
    assert any(mixed)  # the control: counts of 0 and 1 would agree by chance


def test_two_concepts_are_each_others_negative_and_the_sign_is_that_of_the_second(network, tmp_path):
    classifier = ConceptClassifier(channels=CHANNELS)
    captum_scores(network, classifier, EXAMPLES[:2], 1, tmp_path)
    weights = classifier.weights()
    assert weights.shape == (2, CHANNELS * SIDE * SIDE)
    assert torch.equal(weights[0], -weights[1])
    assert classifier.classes() == [0, 1]
    second = pooled_activations(network, EXAMPLES[1], ["1"])["1"].numpy()
    first = pooled_activations(network, EXAMPLES[0], ["1"])["1"].numpy()
    assert (second @ classifier.vector.coef_[0]).mean() > (first @ classifier.vector.coef_[0]).mean()
    # The vector stands at every position: the derivative by the pooled activation is the sum over them.
    assert torch.equal(weights[1].reshape(CHANNELS, -1)[:, 0], weights[1].reshape(CHANNELS, -1)[:, -1])


def test_channels_that_do_not_fit_the_layer_are_told(network, tmp_path):
    with pytest.raises(InputError, match="channels: must divide the layer's 150 values, got 7"):
        captum_scores(network, ConceptClassifier(channels=7), EXAMPLES[:2], 0, tmp_path)


def test_its_accuracy_is_that_on_what_it_was_given(network, tmp_path):
    classifier = ConceptClassifier(method="mean-difference")
    loader = [(torch.randn(8, 4) + 3, torch.zeros(8)), (torch.randn(8, 4) - 3, torch.ones(8))]
    assert classifier.train_and_eval(loader)["accs"] > 0.9
    assert classifier.vector.method == "mean-difference"
