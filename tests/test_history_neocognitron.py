"""The neocognitron: responses of its cells, what its planes learn, and that a shift moves answers and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.models import neocognitron
from dlc.models.neocognitron import Planes, Stage
from dlc.tasks import fields

STAGE = Stage(planes=6, window=3, pool=3, stride=1, selectivity=4.0, winners=3)
RNG = np.random.default_rng(0)


def bars(*places, horizontal):
    """Patterns [N, 12, 12, 1] of one bar of five pixels each."""
    u = np.zeros((len(places), 12, 12, 1), np.float32)
    for pattern, (y, x) in zip(u, places, strict=True):
        pattern[(y, slice(x, x + 5)) if horizontal else (slice(y, y + 5), x)] = 1
    return jnp.asarray(u)


def test_a_cell_responds_to_its_feature_whatever_its_contrast_and_not_to_another():
    """As 1980's equations say: by cosine alone if the response is strong, from r / (1 + r) on."""
    feature, other = (jnp.float32(RNG.random((3, 3, 1))) for _ in range(2))
    shares, v = neocognitron.decay(3)[..., None], neocognitron.activity(feature)
    planes = Planes(1e6 * (shares * feature)[None], (1e6 / 2 * v)[None], jnp.ones((), jnp.int32))
    for contrast in (1.0, 0.3):
        assert neocognitron.respond(planes, contrast * feature, 4.0) == pytest.approx(1.0, rel=1e-3)
    like = float((shares * feature * other).sum() / v / neocognitron.activity(other))
    for r in (0.5, 4.0):
        assert neocognitron.respond(planes, other, r) == pytest.approx(max(0, (1 + r) * like - r), abs=1e-3)
    assert neocognitron.respond(planes, 0 * feature, 4.0) == 0


def test_planes_grow_where_no_plane_responds_and_only_there():
    u = jnp.concatenate([bars((3, 2), (8, 4), (5, 5), horizontal=True), bars((3, 2), (4, 8), horizontal=False)])
    one = jax.jit(neocognitron.grow, static_argnums=1)(u[:1], STAGE)
    more = neocognitron.grow(u[:3], STAGE)
    both = neocognitron.grow(u, STAGE)
    assert one.used == more.used  # the same bar elsewhere is nothing new
    assert both.used > more.used
    assert not np.asarray(both.excitatory[both.used :]).any()
    few = neocognitron.grow(u, STAGE._replace(planes=1))
    assert few.used == 1
    assert neocognitron.grow(0 * u, STAGE).used == 0


def test_with_x64_planes_grow_as_well():
    with jax.enable_x64(True):
        assert neocognitron.grow(bars((3, 2), horizontal=True), STAGE).used > 0


def test_a_shift_of_the_input_shifts_every_layer():
    u = jnp.pad(jnp.float32(RNG.random((1, 12, 12, 1))), ((0, 0), (6, 6), (6, 6), (0, 0)))
    planes = neocognitron.grow(u, STAGE)

    def layers(u):
        s = neocognitron.s_layer(planes, u, STAGE)
        whole = neocognitron.c_layer(s, STAGE._replace(pool=None))
        return s, neocognitron.c_layer(s, STAGE), neocognitron.c_layer(s, STAGE._replace(stride=2)), whole

    for here, there, stride in zip(layers(u), layers(jnp.roll(u, (2, -4), (1, 2))), (1, 1, 2, 100), strict=True):
        assert float(np.abs(here).max()) > 0
        np.testing.assert_allclose(np.roll(here, (2 // stride, -(4 // stride)), (1, 2)), there, atol=1e-5)


def test_shifts_and_deformations_of_nothing_change_nothing():
    x = fields.field(RNG.integers(0, 256, (4, 28, 28, 1), dtype=np.uint8))
    assert x.shape == (4, 28, 28, 1)
    np.testing.assert_allclose(fields.shifted(x, 0, RNG), x)
    np.testing.assert_allclose(fields.deformed(x, 0.0, RNG), x, atol=1e-6)
    moved = fields.shifted(x, 7, RNG)
    np.testing.assert_allclose(moved.sum((1, 2)), x.sum((1, 2)), rtol=1e-5)
    assert np.abs(moved - x).max((1, 2, 3)).min() > 0


def test_the_perceptron_makes_no_mistake_on_what_is_separable():
    x = np.eye(10, 20, dtype=np.float32)[RNG.integers(10, size=40)]
    label = x.argmax(1)
    assert (np.argmax(x @ np.asarray(fields.perceptron(x, label)).T, 1) == label).all()
