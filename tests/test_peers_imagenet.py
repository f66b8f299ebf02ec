"""The classics of ImageNet beside torchvision and timm: the same weights give the same numbers, layer by layer."""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import weights
from dlc.models import alexnet, densenet, googlenet, inception, inception_v4, resnet, squeezenet, vgg
from dlc.weights import files, images

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
if not (importlib.util.find_spec("torchvision") and importlib.util.find_spec("timm")):  # cannot be imported yet
    pytest.skip("needs torchvision and timm", allow_module_level=True)

from experiments.bench import vision_torch  # noqa: E402, needs torch


class Pair(NamedTuple):
    model: Any  # ours
    theirs: str  # "torchvision.resnet18", "timm.inception_v4"
    image: tuple[int, int]  # height and width
    options: Mapping[str, Any] = MappingProxyType({})


PAIRS = {
    "densenet121": Pair(densenet.densenet121(), "torchvision.densenet121", (77, 98)),
    "densenet121 of timm": Pair(densenet.densenet121(), "timm.densenet121", (65, 48)),
    "densenet161": Pair(densenet.densenet161(), "torchvision.densenet161", (65, 48)),
    "googlenet": Pair(googlenet.googlenet_bn(), "torchvision.googlenet", (97, 66), {"init_weights": False}),
    "googlenet without heads": Pair(
        googlenet.googlenet_bn(aux=False),
        "torchvision.googlenet",
        (66, 97),
        {"aux_logits": False, "init_weights": False},
    ),
    "inception_v3": Pair(inception.inception_v3(), "torchvision.inception_v3", (107, 90), {"init_weights": False}),
    "inception_v3 of timm, without head": Pair(inception.inception_v3(aux=False), "timm.inception_v3", (90, 107)),
    "inception_v4": Pair(inception_v4.inception_v4(), "timm.inception_v4", (107, 90)),
    "resnet18": Pair(resnet.resnet18(), "torchvision.resnet18", (97, 66)),
    "resnet34": Pair(resnet.resnet34(), "torchvision.resnet34", (65, 48)),
    "resnet50": Pair(resnet.resnet50(), "torchvision.resnet50", (97, 66)),
    "resnet50 of timm": Pair(resnet.resnet50(), "timm.resnet50", (97, 66)),
    "resnet101": Pair(resnet.resnet101(), "torchvision.resnet101", (33, 48)),
    "resnet152": Pair(resnet.resnet152(), "torchvision.resnet152", (33, 48)),
    "alexnet_2014": Pair(alexnet.alexnet_2014(), "torchvision.alexnet", (231, 226)),
    "squeezenet1_0": Pair(squeezenet.squeezenet1_0(), "torchvision.squeezenet1_0", (97, 114)),
    "squeezenet1_1": Pair(squeezenet.squeezenet1_1(), "torchvision.squeezenet1_1", (97, 114)),
    # Half a gigabyte each; for the others, only names and sizes are compared, below.
    "vgg11": Pair(vgg.vgg11(), "torchvision.vgg11", (224, 224), {"init_weights": False}),
    "vgg13_bn": Pair(vgg.vgg13(norm=True), "torchvision.vgg13_bn", (231, 225), {"init_weights": False}),
}

every = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def published(pair, path):
    """Their model, saved, with random batch statistics and random weights that keep every activation significant."""
    torch.manual_seed(0)
    theirs = vision_torch.build(pair.theirs, **pair.options).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1 and tensor.is_floating_point():  # biases, and scales of norms
                tensor.add_(0.2 * torch.randn_like(tensor))
            elif tensor.ndim > 1:  # He's, so that activations neither vanish nor grow
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    torch.save(theirs.state_dict(), path)
    return theirs


def their_outputs(theirs, x):
    """The logits, and the output of every module, by name."""
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor):
                seen[name] = output.detach().clone().numpy()  # later layers may work in place

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in theirs.named_modules()]
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    for handle in handles:
        handle.remove()
    return logits, seen


def our_outputs(model, variables, x):
    """The logits, and the output of every layer with weights, by path."""

    def apply(variables, x):
        return model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])

    logits, state = jax.jit(apply)(variables, jnp.asarray(x))
    flat = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    outputs = {"/".join(str(key.key) for key in at[:-2]): np.asarray(leaf) for at, leaf in flat}
    modules = {path.split("/", 1)[1].rsplit("/", 1)[0] for path in files.flat(variables)}
    return np.asarray(logits), {path: outputs[path] for path in modules if path in outputs}


def assert_close(ours, theirs, what):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4, err_msg=what)


@every
def test_their_weights_give_their_numbers_here_and_ours_there(pair, tmp_path):
    theirs = published(pair, tmp_path / "theirs.pth")
    variables = weights.load_state_dict(tmp_path / "theirs.pth", pair.model)
    x = np.random.default_rng(0).normal(size=(2, *pair.image, 3)).astype(np.float32)
    expected, seen = their_outputs(theirs, x)
    logits, outputs = our_outputs(pair.model, variables, x)
    assert np.abs(expected).std() > 0.01
    assert_close(logits, expected, "logits")
    form = images.published(pair.model)
    compared = 0
    for path, output in outputs.items():
        name = form.names(pair.model, path)
        if (other := seen.get(name)) is not None:
            other = other.transpose(0, 2, 3, 1) if other.ndim == 4 else other
            if hasattr(theirs.get_submodule(name), "act"):  # timm's norms have the ReLU inside
                output = np.maximum(output, 0)
            assert_close(output, other, path)
            compared += 1
    assert compared > 0.9 * len(outputs)

    weights.save_state_dict(tmp_path / "ours.safetensors", pair.model, variables)
    again = vision_torch.build(pair.theirs, **pair.options).eval()
    from safetensors.torch import load_file

    again.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    there, _ = their_outputs(again, x)
    assert_close(there, expected, "the way back")


def test_in_training_googlenets_heads_and_statistics_are_theirs(tmp_path):
    theirs = published(PAIRS["googlenet"], tmp_path / "theirs.pth").train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = PAIRS["googlenet"].model.clone(dropout=0.0, aux_dropout=0.0)
    variables = weights.load_state_dict(tmp_path / "theirs.pth", model)
    x = np.random.default_rng(0).normal(size=(4, 97, 130, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    outputs, changed = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    for ours, name in zip(outputs, ("logits", "aux_logits1", "aux_logits2"), strict=True):
        assert_close(ours, getattr(expected, name).numpy(), name)
    torch.save(theirs.state_dict(), tmp_path / "after.pth")
    after = weights.load_state_dict(tmp_path / "after.pth", model)["batch_stats"]
    jax.tree.map(lambda ours, theirs: assert_close(ours, theirs, "statistics"), changed["batch_stats"], after)


OTHERS = {f"vgg{depth}{norm}": getattr(vgg, f"vgg{depth}")(norm=bool(norm))
          for depth in (11, 13, 16, 19) for norm in ("", "_bn")}  # fmt: skip
OTHERS |= {"densenet169": densenet.densenet169(), "densenet201": densenet.densenet201()}


@pytest.mark.parametrize(("name", "model"), OTHERS.items(), ids=OTHERS)
def test_every_tensor_has_its_name_and_size_there(name, model):
    with torch.device("meta"):
        theirs = vision_torch.build(f"torchvision.{name}").state_dict()
    form = images.published(model)
    ours = images._shapes(model, form)
    assert {
        images._theirs(model, form, at): images._turned(np.broadcast_to(0, leaf.shape)).shape
        for at, leaf in ours.items()
    } == {name: tuple(tensor.shape) for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")}
