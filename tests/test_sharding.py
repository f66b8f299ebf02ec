"""Training on a mesh of devices: the same losses and weights as on one, compiled once, placed where it was put."""

import functools
import os
import re
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
from dlc.models import convnet, gpt, resnet_cifar, vit
from dlc.models.mlp import MLP
from dlc.run.run import Run
from dlc.tasks import images

assert here  # a fixture

BATCH, SIDE, STEPS, TOKENS, VOCAB = 16, 8, 5, 12, 24

NETWORKS = {
    "convnet": lambda **kinds: convnet.Convnet(**kinds),
    "resnet": lambda **kinds: resnet_cifar.CifarResNet((1, 1), widths=(8, 16), stem=8, **kinds),
    "resnet20": lambda **kinds: resnet_cifar.cifar_resnet(20).clone(**kinds),
    "gpt": lambda **kinds: gpt.GPT(gpt.GPTConfig(vocab=VOCAB, context=TOKENS, layers=2, heads=4, width=16, **kinds)),
    "vit": lambda **kinds: vit.vit_cifar(classes=10, patch=4, layers=1, heads=2, width=16, image=SIDE, **kinds),
}
SIDES = {"convnet": (28, 28, 1), "resnet": (SIDE, SIDE, 3), "resnet20": (SIDE, SIDE, 3), "vit": (SIDE, SIDE, 3)}


def learner(name, dtype):
    """A step, the shapes of its first state, and the model's axes.

    With SGD: Adam divides small gradients by themselves, which turns rounding into steps of full length.
    """
    model = NETWORKS[name](param_dtype=dtype, dtype=dtype)
    if name == "gpt":
        some, loss_fn, tx = jnp.zeros((1, TOKENS), jnp.int32), losses.next_token(model), optax.sgd(0.1, momentum=0.9)
    else:
        some, loss_fn, tx = jnp.zeros((1, *SIDES[name]), dtype), losses.classify(model), optax.sgd(0.02, momentum=0.9)

    def init(key):
        variables = dict(model.init(key, some))
        return train.init(variables.pop("params"), tx, key, aux=variables or None)

    return train.make_step(loss_fn, tx), jax.eval_shape(init, jax.random.key(0)), getattr(model, "axes", None)


def begun(shapes):
    """A state with weights that NumPy draws: to compile a model's own beginning takes longer than the rest."""
    draw = np.random.default_rng(1)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "key":
            return jax.random.key(0)
        value = draw.normal(0, 0.2, shape.shape) if name.startswith("params") else np.zeros(shape.shape)
        return jnp.asarray(np.ones(shape.shape) if name.endswith(("scale", "var")) else value, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def batch_of(name, dtype, number=0):
    draw = np.random.default_rng(number)
    if name == "gpt":
        return {"tokens": draw.integers(VOCAB, size=(BATCH, TOKENS + 1)).astype(np.int32)}
    label = draw.integers(10, size=BATCH).astype(np.int32)
    return {
        "image": draw.normal(label[:, None, None, None] / 5, 1, (BATCH, *SIDES[name])).astype(dtype),
        "label": label,
    }


def trained(name, dtype, mesh, steps):
    """State and losses after a few steps on a mesh, which leave everything where it was and are traced once."""
    step, shapes, axes = learner(name, dtype)
    traces = []

    def counted(state, batch):
        traces.append(None)
        return step(state, batch)

    state = begun(shapes)
    if mesh is None:
        run = train.compiled(counted, donate=False)
    else:
        devices = sharding.mesh(mesh)
        places = sharding.layout(state, devices, axes)
        state = sharding.kept(state, devices, axes)
        run = train.compiled(sharding.on_mesh(counted, devices, axes), donate=False)
    history = []
    for i in range(steps):
        batch = batch_of(name, dtype, i)
        state, metrics = run(state, batch if mesh is None else jax.device_put(batch, sharding.split(devices)))
        history.append(float(metrics["loss"]))
    assert len(traces) == 1
    if mesh is not None:
        stayed = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, places)
        assert all(jax.tree.leaves(stayed))
    return state, history


@functools.cache
def alone(name, dtype, steps):
    return trained(name, dtype, None, steps)


CASES = [
    *(("convnet", mesh, 2) for mesh in ("data=8",)),
    *(("resnet", mesh, STEPS) for mesh in ("data=8", "data=4,fsdp=2")),
    *(("resnet20", mesh, 2) for mesh in ("data=4,fsdp=2",)),
    *(("vit", mesh, STEPS) for mesh in ("data=4", "fsdp=4")),
    *(("gpt", mesh, STEPS) for mesh in ("data=8", "fsdp=8", "model=4", "data=2,fsdp=2,model=2")),
]


@pytest.mark.parametrize(
    ("name", "mesh", "steps", "dtype", "atol"),
    [
        *((*case, "float64", 1e-9) for case in CASES),
        *((*case, "float32", 1e-5) for case in CASES if case[0] != "resnet20"),
    ],
)
def test_devices_together_train_as_one_does(request, name, mesh, steps, dtype, atol):
    if name == "resnet20":
        request.getfixturevalue("_plain")  # the forms for a CPU take a minute to compile; "resnet" has them
    with jax.enable_x64(dtype == "float64"):
        one, losses_one = alone(name, dtype, steps)
        several, losses_several = trained(name, dtype, mesh, steps)
        np.testing.assert_allclose(losses_several, losses_one, atol=atol)
        pairs = zip(*(jax.tree.leaves((run.params, run.aux)) for run in (several, one)), strict=True)
        assert max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs) <= atol


def program(name, mesh):
    """The compiled program of a step, as text."""
    step, shapes, axes = learner(name, "float32")
    devices = sharding.mesh(mesh)
    places = sharding.layout(shapes, devices, axes)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.split(devices)),
        batch_of(name, "float32"),
    )
    step = sharding.on_mesh(step, devices, axes)
    return jax.jit(lambda step, *rest: step(*rest)).lower(step, state, batch).compile().as_text()


def collectives(text):
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def test_each_device_has_its_part():
    devices = sharding.mesh("data=2,fsdp=2,model=2")
    state = {"up": {"kernel": jnp.zeros((16, 32))}, "conv": jnp.zeros((3, 3, 16, 32)), "step": jnp.zeros((), jnp.int32)}
    spec = jax.tree.map(lambda place: place.spec, sharding.layout(state, devices, {"up/kernel": ("width", "hidden")}))
    assert spec == {
        "up": {"kernel": PartitionSpec("fsdp", "model")},
        "conv": PartitionSpec(None, None, None, "fsdp"),
        "step": PartitionSpec(),
    }
    whole = sharding.kept(state, sharding.mesh("data=4"))
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 4 for leaf in jax.tree.leaves(whole))
    conv = sharding.kept(state, devices)["conv"]
    assert {shard.data.shape for shard in conv.addressable_shards} == {(3, 3, 16, 16)}
    batch = jax.device_put(np.zeros((2, 8, 4)), sharding.split(devices, axis=1))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2, 4)}


def test_the_moments_of_an_optimizer_follow_their_weights():
    params = {"block0": {"up": {"kernel": jnp.zeros((4, 8))}}}
    state = train.init(params, optax.adam(1e-3), jax.random.key(0))
    places = sharding.layout(state, sharding.mesh("model=2"), {"up/kernel": (None, "hidden")})
    moments = places.opt_state[0].mu, places.opt_state[0].nu, places.params
    assert {place["block0"]["up"]["kernel"].spec for place in moments} == {PartitionSpec(None, "model")}


def test_what_the_devices_do_not_divide_is_not_cut():
    devices = sharding.mesh("fsdp=2,model=4")
    state = {"up": {"kernel": jnp.zeros((5, 6)), "bias": jnp.zeros(7)}}
    places = sharding.layout(state, devices, {"up/kernel": ("width", "hidden")})
    assert places["up"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert places["up"]["bias"].spec == PartitionSpec(None)


@pytest.mark.parametrize(
    "text", ["4", "data", "data=0", "data=-1", "heads=2", "data=2,data=2", "data=2,", "data=1e9", ""]
)
def test_another_text_is_no_mesh(text):
    with pytest.raises(UserError, match=rf'^a mesh is written as "data=4", .* not as "{re.escape(text)}"$'):
        sharding.mesh(text)


def test_more_devices_than_there_are():
    sentence = "a mesh of 9 devices needs more than are available: there are 8 of cpu; choose a smaller one"
    with pytest.raises(UserError, match=f"^{sentence}$"):
        sharding.mesh("data=9")


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"^4 devices cannot share a batch of 10 equally: choose 12, for example$"):
        sharding.fits(10, sharding.mesh("data=4"))


@pytest.mark.parametrize(
    ("name", "mesh", "expected"),
    [
        ("resnet", "data=2", {"all-reduce"}),
        ("gpt", "data=8", {"all-reduce"}),
        ("gpt", "fsdp=8", {"all-reduce", "all-gather"}),
    ],
)
def test_devices_exchange_no_more_than_they_must(name, mesh, expected):
    """Left to itself, XLA would split the loop over groups of images, and gather all images on every device."""
    found = collectives(program(name, mesh))
    assert {kind for kind, count in found.items() if count} == expected, found


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
        images.fit(Run(mesh=mesh), task, optax.sgd(0.1), images.Epochs(5, 100, shuffle=True))[1]
        for mesh in (None, sharding.mesh("data=2"))
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
