"""Adversarial examples: in the box, in the ball, of another class; the nearest one where it is known exactly."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import normal

from dlc.analysis import adversarial
from dlc.analysis.adversarial import Descent, Search
from dlc.errors import UserError

BATCH, CLASSES = 6, 4
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (BATCH, 6, 6, 1)).astype(np.uint8)
PIXELS[:, :2] = 0  # against the bounds, as most of a digit is
PIXELS[:, 2] = 255


def apply(variables, pixels):
    """A small network that is not linear."""
    x = pixels.reshape(len(pixels), -1) / 255 - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


VARIABLES = {"in": normal(36, 16, seed=1), "out": normal(16, CLASSES, seed=2)}
LABEL = np.asarray(apply(VARIABLES, PIXELS).argmax(-1))


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3])
def test_pgd_stays_in_the_box_and_in_the_ball(epsilon, key):
    changed = adversarial.pgd(apply, VARIABLES, PIXELS, LABEL, epsilon, Descent(20, 0.05), key)
    assert changed.shape == PIXELS.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert abs(changed - PIXELS.astype(np.float32)).max() <= 255 * epsilon + 1e-4


def test_a_larger_ball_flips_more_labels_until_all_are_flipped():
    share = []
    for epsilon in (0.0, 0.1, 0.5):
        changed = adversarial.pgd(apply, VARIABLES, PIXELS, LABEL, epsilon, Descent(40, 0.05))
        share.append(float((apply(VARIABLES, changed).argmax(-1) != LABEL).mean()))
    assert share[0] == 0
    assert share == sorted(share)
    assert share[-1] == 1


def test_fgsm_is_one_step_along_the_sign_of_the_gradient():
    one = adversarial.fgsm(apply, VARIABLES, PIXELS, LABEL, 0.1)
    moved = np.asarray(one) - PIXELS
    inside = (PIXELS > 26) & (PIXELS < 229)
    np.testing.assert_allclose(abs(moved[inside]), 25.5, rtol=1e-5)
    assert ((one >= 0) & (one <= 255)).all()
    traced = jax.jit(lambda epsilon: adversarial.fgsm(apply, VARIABLES, PIXELS, LABEL, epsilon))(0.1)
    np.testing.assert_allclose(one, traced, rtol=1e-5)


def test_the_minimal_example_stays_in_the_box_flips_the_label_and_is_nearer_than_any_other():
    target = (LABEL + 1) % CLASSES
    changed, found = jax.jit(lambda target: adversarial.minimal(apply, VARIABLES, PIXELS, target))(target)
    assert found.all()
    assert 0 <= changed.min() <= changed.max() <= 255
    np.testing.assert_array_equal(apply(VARIABLES, changed).argmax(-1), target)
    half = (changed + PIXELS) / 2  # the way there is not yet of the target's class
    assert (apply(VARIABLES, half).argmax(-1) != target).all()


def test_with_x64_it_works_as_well():
    with jax.enable_x64(True):
        changed, found = adversarial.minimal(apply, VARIABLES, PIXELS, LABEL, Search(rounds=1, steps=2))
    assert found.all()
    np.testing.assert_array_equal(apply(VARIABLES, changed).argmax(-1), LABEL)


def test_for_a_linear_network_it_is_the_foot_of_the_perpendicular():
    normal_to = np.array([3.0, 4.0], np.float32) / 5
    aside = jnp.array([[0.8, -0.8]])

    def linear(variables, pixels):
        return pixels.reshape(-1, 2) / 255 @ jnp.stack([-normal_to, normal_to], 1) + aside

    pixels = np.array([[100.0, 50.0], [60.0, 90.0]], np.float32).reshape(2, 1, 2, 1)
    changed, found = adversarial.minimal(linear, None, pixels, np.array([1, 1]), Search(rounds=20))
    assert found.all()
    distance = 255 * (0.8 - pixels.reshape(2, 2) @ normal_to / 255)  # to the line where both logits are equal
    foot = pixels.reshape(2, 2) + distance[:, None] * normal_to
    np.testing.assert_allclose(changed.reshape(2, 2), foot, atol=1.0)


def test_a_class_that_cannot_be_reached_is_said():
    constant = lambda variables, pixels: jnp.zeros((len(pixels), 1)) + jnp.array([[1.0, 0.0]])  # noqa: E731
    changed, found = adversarial.minimal(constant, None, PIXELS, np.ones(BATCH, int), Search(rounds=2, steps=2))
    assert not found.any()
    np.testing.assert_array_equal(changed, PIXELS)


def test_the_distortion_is_the_papers_and_a_magnified_change_has_the_size_asked_for():
    changed = np.full((2, 3, 3, 1), 100.0)
    pixels = changed - np.array([51.0, 0.0]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(adversarial.distortion(changed, pixels), [0.2, 0], atol=1e-6)
    larger = adversarial.magnified(changed[:1], pixels[:1], 0.3)
    np.testing.assert_allclose(adversarial.distortion(larger, pixels[:1]), [0.3], rtol=1e-5)
    assert adversarial.magnified(changed, pixels, 3.0).max() <= 255


@pytest.mark.parametrize("attack", [adversarial.fgsm, adversarial.pgd])
@pytest.mark.parametrize("epsilon", [-0.1, np.float32(-0.5), jnp.float32(-2), float("nan")])
def test_a_negative_epsilon_is_one_sentence(attack, epsilon):
    with pytest.raises(UserError, match=rf"^epsilon must not be negative, as {re.escape(str(epsilon))} is$"):
        attack(apply, VARIABLES, PIXELS, LABEL, epsilon)


def test_the_minimal_example_is_as_near_as_that_of_scipys_optimiser():
    from scipy.optimize import minimize

    from dlc.losses import cross_entropy

    target = (LABEL + 1) % CLASSES
    changed, _ = adversarial.minimal(apply, VARIABLES, PIXELS, target, Search(rounds=12))

    def objective(x, origin, weight, target):
        shown = 255 * x.reshape(1, 6, 6, 1)
        return jnp.square(x - origin).sum() + weight * cross_entropy(apply(VARIABLES, shown), target[None])[0]

    both = jax.jit(jax.value_and_grad(objective))
    for image, ours, wanted in zip(PIXELS[:2], changed, target, strict=False):
        origin, low, high, nearest = image.ravel() / 255, 0.0, 0.0, np.inf
        for _ in range(12):
            weight = np.sqrt(max(low, high / 100) * high) if high else 10 * low or 1.0
            value = lambda x, w=weight, o=origin, t=wanted: [np.float64(part) for part in both(x, o, w, t)]  # noqa: E731
            found = minimize(value, origin, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 36).x
            if apply(VARIABLES, 255 * found.reshape(1, 6, 6, 1)).argmax() == wanted:
                high, nearest = weight, min(nearest, np.sqrt(np.mean((found - origin) ** 2)))
            else:
                low = weight
        assert float(adversarial.distortion(ours[None], image[None])[0]) < 1.05 * nearest
