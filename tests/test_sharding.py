"""Training on a mesh of devices: the same losses and weights as on one, compiled once, placed where it was put."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cli import assert_refused, here
from jax.sharding import PartitionSpec

from dlc import data, layers, losses, process, sharding, train
from dlc.errors import UserError
from dlc.models import resnet_cifar, vit
from dlc.models.mlp import MLP
from dlc.run.run import Run
from dlc.tasks import images

assert here  # a fixture

BATCH, SIDE, STEPS = 16, 8, 5

MODELS = {
    "resnet": lambda: resnet_cifar.CifarResNet(
        (1, 1), widths=(8, 16), stem=8, num_classes=5, param_dtype="float64", dtype="float64"
    ),
    "vit": lambda: vit.vit_cifar(
        classes=5, patch=4, layers=1, heads=2, width=16, image=SIDE, param_dtype="float64", dtype="float64"
    ),
}


def examples(steps=STEPS):
    draw = np.random.default_rng(0)
    label = draw.integers(5, size=(steps, BATCH)).astype(np.int32)
    return {"image": draw.normal(label[..., None, None, None], 1, (steps, BATCH, SIDE, SIDE, 3)), "label": label}


def begun(model, tx):
    """A state whose weights NumPy draws: to compile a model's own beginning takes longer than the rest of the test."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.2, leaf.shape)), shapes)
    params = variables.pop("params")
    return train.init(params, tx, jax.random.key(0), aux=variables or None)


def trained(model, tx, state, devices, fully=False):
    """State and losses after a few steps on a mesh, and the number of times that the step was traced."""
    step, history, traces = train.make_step(losses.classify(model), tx), [], []

    def counted(state, batch):
        traces.append(None)
        return step(state, batch)

    run = train.compiled(sharding.on_mesh(counted, devices, fully), donate=False)
    state = sharding.kept(state, devices, fully)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    for i in range(STEPS):
        batch = jax.tree.map(lambda leaf, i=i: leaf[i], examples())
        state, metrics = run(state, jax.device_put(batch, sharding.split(devices)))
        history.append(float(metrics["loss"]))
    stayed = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, places)
    assert all(jax.tree.leaves(stayed))
    return state, history, len(traces)


@pytest.mark.parametrize(("name", "lr", "ways"), [("resnet", 0.02, [False]), ("vit", 0.1, [False, True])])
def test_four_devices_train_as_one_does(name, lr, ways):
    with jax.enable_x64(True):
        model, tx = MODELS[name](), optax.sgd(lr, momentum=0.9)
        state = begun(model, tx)
        one, losses_one, _ = trained(model, tx, state, sharding.mesh("data=1"))
        assert losses_one[-1] < losses_one[0]
        for fully in ways:
            four, losses_four, traces = trained(model, tx, state, sharding.mesh("data=4"), fully)
            np.testing.assert_allclose(losses_four, losses_one, rtol=1e-9)
            assert traces == 1
            pairs = zip(*(jax.tree.leaves((run.params, run.aux)) for run in (four, one)), strict=True)
            assert all(np.allclose(a, b, atol=1e-9) for a, b in pairs)


def test_each_device_has_its_part():
    devices = sharding.mesh("data=4")
    state = {"kernel": jnp.zeros((3, 3, 16, 32)), "bias": jnp.zeros(10), "step": jnp.zeros((), jnp.int32)}
    whole = sharding.kept(state, devices)
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 4 for leaf in whole.values())
    parts = sharding.layout(state, devices, fully=True)
    assert parts["kernel"].spec == PartitionSpec(None, None, None, "data")
    assert parts["bias"].spec == parts["step"].spec == PartitionSpec()
    kernel = sharding.kept(state, devices, fully=True)["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 16, 8)}
    batch = jax.device_put(np.zeros((2, 8, 4)), sharding.split(devices, axis=1))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2, 4)}


@pytest.mark.parametrize("text", ["4", "data", "data=0", "data=-1", "model=2", "data=2,data=2", ""])
def test_another_text_is_no_mesh(text):
    with pytest.raises(UserError, match=rf'^a mesh is written as "data=4", .* not as "{text}"$'):
        sharding.mesh(text)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"^a mesh of 9 devices needs more than are available: there are 8 of cpu$"):
        sharding.mesh("data=9")


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"^4 devices cannot share a batch of 10 equally: choose 12, for example$"):
        sharding.fits(10, sharding.mesh("data=4"))


def test_each_device_convolves_its_own_images():
    """Left to itself, XLA splits the loop over groups of images, and gathers all images on every device."""
    devices, model = sharding.mesh("data=2"), resnet_cifar.CifarResNet((1, 1), widths=(8, 16), stem=8, num_classes=5)
    tx = optax.sgd(0.1)
    step = sharding.on_mesh(train.make_step(losses.classify(model), tx), devices)
    state = jax.eval_shape(
        lambda: train.init(
            (variables := dict(model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3))))).pop("params"),
            tx, jax.random.key(0), aux=variables,
        )
    )  # fmt: skip
    batch = {"image": jax.ShapeDtypeStruct((64, SIDE, SIDE, 3), "float32")}
    batch["label"] = jax.ShapeDtypeStruct((64,), "int32")
    program = jax.jit(lambda step, *rest: step(*rest)).lower(step, state, batch).compile().as_text()
    assert "all-reduce" in program
    assert not any(other in program for other in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("groups", [1, 16])
def test_several_kernels_at_once_have_the_gradients_of_one_device(groups):
    devices, draw = sharding.mesh("data=2"), np.random.default_rng(0)
    image, kernels = draw.normal(size=(4, 5, 4, 16)), draw.normal(size=(2, 3, 3, 16 // groups, 16))

    def slopes(kernels, image):
        def total(kernel, image):
            return jnp.sin(layers.conv(image, kernel, padding="SAME", groups=groups)).sum()

        return jax.vmap(jax.grad(total, (0, 1)))(kernels, jnp.stack([image, image + 1]))

    one = jax.jit(slopes)(kernels, image)
    two = jax.jit(sharding.shared(slopes, devices))(kernels, image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), two, one)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_gradient_is_summed_over_devices_once(platform):
    step = sharding.shared(
        lambda kernel, x: jax.grad(lambda k: layers.conv(x, k, padding="SAME").sum())(kernel), sharding.mesh("data=2")
    )
    x, kernel = jnp.zeros((4, 5, 4, 3)), jnp.zeros((3, 3, 3, 5))
    text = jax.export.export(jax.jit(step), platforms=[platform])(kernel, x).mlir_module()
    assert text.count("stablehlo.all_reduce") == 1


def test_an_experiment_on_two_devices_ends_as_on_one():
    digits = data.load("digits")
    task = images.Task(digits, MLP(hidden=(16,)), lambda image: jnp.asarray(image, jnp.float32) / 255)
    measured = [
        images.fit(Run(), task, optax.sgd(0.1), images.Epochs(5, 100, shuffle=True, mesh=mesh))[1]
        for mesh in ("data=1", "data=2")
    ]
    one, two = (float(found["test_loss"]) for found in measured)
    assert one < 2.2 < np.log(10)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_a_cpu_is_offered_as_several_devices():
    program = "import jax; from dlc import process; process.offer_cpu_devices(3); print(jax.device_count())"
    for environment, count in (({}, 3), ({"JAX_NUM_CPU_DEVICES": "2"}, 2)):
        found = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(found.stdout) == count


def test_a_mesh_is_offered_as_many_cpu_devices_as_there_are_cores(here, monkeypatch, tmp_path):
    offered = []
    monkeypatch.setattr(process, "offer_cpu_devices", offered.append)
    monkeypatch.setattr(process, "cores", lambda: 2)
    sentence = "a mesh of 1024 devices needs more than are available"
    assert_refused(here("experiments.cifar10.resnet", "--smoke", "--mesh", "data=1024", "--out", tmp_path), sentence)
    assert offered == [2]
