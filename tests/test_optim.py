"""Schedules, momentum and Muon against their definitions, written out."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import optim
from dlc.errors import UserError


def test_by_epoch_holds_each_factor_from_its_epoch_on():
    schedule = optim.by_epoch(2.0, {0: 1.0, 2: 0.5, 3: 0.1}, steps_per_epoch=10)
    np.testing.assert_allclose([schedule(s) for s in (0, 19, 20, 29, 30, 99)], [2, 2, 1, 1, 0.2, 0.2], rtol=1e-6)


def test_a_triangle_rises_to_its_peak_and_falls():
    schedule = optim.triangle(2.0, steps=100, rise=0.25, start=0.2, end=0.07)
    np.testing.assert_allclose([schedule(s) for s in (0, 25, 100)], [0.4, 2.0, 0.14], rtol=1e-6)
    rates = np.array([schedule(s) for s in range(101)])
    assert (np.diff(rates[:26]) > 0).all()
    assert (np.diff(rates[25:]) < 0).all()


def test_muon_keeps_filters_at_their_norm_and_steps_by_orthogonal_ones():
    """The rows [O, KH KW I] of an update are nearly orthogonal, and its length depends only on the rate."""
    kernel, gradient = (drawn.normal(3, 3, 8, 16, seed=i) for i in (0, 1))
    tx = optim.muon(0.1, newton_schulz_steps=8)
    update = jax.jit(lambda gradient: tx.update({"k": gradient}, tx.init({"k": kernel}), {"k": kernel})[0]["k"])
    scaled = kernel * 4 / jnp.linalg.norm(kernel.ravel())  # sqrt(16) filters
    step = (np.asarray(kernel + update(gradient) - scaled) / -0.1).reshape(-1, 16).T
    singular = np.linalg.svd(step, compute_uv=False)
    assert singular.min() > 0.6
    assert singular.max() < 1.3  # the band of Newton-Schulz with these coefficients
    u, _, v = np.linalg.svd(np.asarray(gradient).reshape(-1, 16).T, full_matrices=False)
    assert np.vdot(step, u @ v) / (np.linalg.norm(step) * 4) > 0.97
    np.testing.assert_allclose(update(1000 * gradient), update(gradient), rtol=1e-3, atol=1e-5)


def test_muon_under_vmap_is_muon_for_each():
    kernels = drawn.normal(3, 3, 3, 4, 8)
    tx = optim.muon(0.1)

    def one(kernel):
        return tx.update({"k": kernel**2}, tx.init({"k": kernel}), {"k": kernel})[0]["k"]

    apply = jax.jit(one)
    together, alone = jax.jit(jax.vmap(one))(kernels), np.stack([apply(kernel) for kernel in np.asarray(kernels)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_muon_is_for_kernels_and_adam_for_the_rest():
    shapes = {"token": {"embedding": (6, 4)}, "up": {"kernel": (4, 8), "bias": (8,)}, "down": {"kernel": (8, 4)}}
    params = jax.tree.map(lambda shape: drawn.normal(*shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(jnp.square, params)
    constant = optax.constant_schedule(0.1)
    tx = optim.muon_for_kernels(constant, 0.3)
    update, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
    for name, longest in (("up", 2**0.5), ("down", 1.0)):  # sqrt(max(1, O / I))
        singular = np.linalg.svd(np.asarray(update[name]["kernel"]), compute_uv=False)
        assert (singular / (0.1 * longest) > 0.6).all()
        assert (singular / (0.1 * longest) < 1.3).all()
    adam = optax.adam(0.03, nesterov=True)
    plain, _ = adam.update(grads, adam.init(params), params)
    np.testing.assert_allclose(update["token"]["embedding"], plain["token"]["embedding"], rtol=1e-5)
    np.testing.assert_allclose(update["up"]["bias"], plain["up"]["bias"], rtol=1e-5)
    kept = jax.tree.map(jnp.zeros_like, grads)
    decayed, _ = optim.muon_for_kernels(constant, weight_decay=0.5).update(kept, tx.init(params), params)
    np.testing.assert_allclose(decayed["up"]["kernel"], -0.05 * params["up"]["kernel"], rtol=1e-5)
    assert not np.any(decayed["token"]["embedding"])


def test_the_rate_rises_once_and_is_divided_at_equal_distances():
    rate = optim.drops(0.4, 90, 2, rise=5, start=0.1)
    np.testing.assert_allclose(
        [rate(i) for i in (0, 5, 29, 31, 59, 61, 89)], [0.1, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rtol=1e-6
    )
    np.testing.assert_allclose(rate(2), 0.1 + 0.3 * 2 / 5, rtol=1e-6)
    plain = optim.drops(0.1, 90, 3)
    np.testing.assert_allclose(
        [plain(i) for i in (0, 21, 24, 46, 68, 89)], [0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4], rtol=1e-5
    )
    np.testing.assert_allclose(optim.drops(0.1, 90, 0)(89), 0.1)
    with pytest.raises(UserError, match=r"^a warm-up of 30 steps must end before the rate falls at step 30$"):
        optim.drops(0.1, 90, 2, rise=30)


def test_the_papers_momentum_has_the_rate_inside():
    tx = optim.papers_momentum(optax.piecewise_constant_schedule(0.5, {1: 0.1}), 0.9, weight_decay=0.1)
    w, v, state = np.float32(2), 0.0, tx.init(jnp.float32(2))
    for rate, gradient in ((0.5, 1.0), (0.05, -3.0), (0.05, 0.5)):
        v = 0.9 * v - rate * (gradient + 0.1 * w)
        update, state = tx.update(jnp.float32(gradient), state, jnp.float32(w))
        np.testing.assert_allclose(update, v, rtol=1e-6)
        w = w + v


def test_max_norm_scales_back_only_the_units_beyond_it():
    kernel, bias = 3 * drawn.normal(5, 4, seed=0), 9 * drawn.normal(4, seed=1)
    params = {"kernel": kernel.at[:, 0].multiply(0.01), "bias": bias}
    tx = optax.chain(optax.sgd(0.1), optim.within(2.0))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved, free = optax.apply_updates(params, updates), jax.tree.map(lambda leaf: leaf - 0.1, params)
    norms = jnp.linalg.norm(moved["kernel"], axis=0)
    assert (norms <= 2 + 1e-5).all()
    assert (norms > 1.99).sum() == 3
    np.testing.assert_allclose(moved["kernel"][:, 0], free["kernel"][:, 0], rtol=1e-5)
    np.testing.assert_allclose(moved["bias"], free["bias"])
    cosine = (moved["kernel"] * free["kernel"]).sum(0) / norms / jnp.linalg.norm(free["kernel"], axis=0)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)  # the direction stays
