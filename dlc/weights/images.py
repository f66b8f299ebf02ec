"""The classics of ImageNet as torchvision and timm publish them: state dicts to our variables and back.

    model = resnet50()
    variables = load_state_dict("resnet50.pth", model)   # {"params": ..., "batch_stats": ...}
    save_state_dict("resnet50.safetensors", model, variables)

A published file is a flat table of names such as "layer1.0.conv1.weight"; our variables are a tree of modules. For
each family one function maps the path of our module to the published name. The names of the leaves and the memory
layout (kernels [KH, KW, I, O] here, [O, I, KH, KW] there) are the same for all families.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dlc.errors import UserError
from dlc.models.alexnet import AlexNet
from dlc.models.densenet import DenseNet
from dlc.models.googlenet import GoogLeNet
from dlc.models.inception import InceptionV3
from dlc.models.inception_v4 import V4_MODULES, InceptionV4
from dlc.models.resnet import ResNet
from dlc.models.squeezenet import POOLED, SqueezeNet
from dlc.models.vgg import VGG
from dlc.models.vit import ViT
from dlc.weights import files

# From our leaf names to PyTorch's.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Published(NamedTuple):
    """The published form of a family of models."""

    names: Callable[[Any, str], str]  # from our model and a module path to the published module name
    head: str  # the published module that outputs the classes
    network: Callable[[Any], str]  # the name of a model in torchvision and timm
    image: Callable[[Any], int] = lambda model: 224  # height and width that the weights were made for
    renamed: tuple[tuple[str, str], ...] = ()  # regular expressions for spellings in older files, and today's
    ignored: Callable[[Any], str] = lambda model: "$^"  # a regular expression for tensors to skip


def load_state_dict(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """The variables of `model`, read from a local state dict: a safetensors file or a PyTorch pickle.

    Returns {"params": ...} and, where the model has them, {"batch_stats": ...}. Reading a pickle needs PyTorch and
    runs no code.

    The file may be compressed, and its tensors may have the names that DataParallel and other wrappers give them.

    Names and shapes cannot tell all networks apart. timm's resnetblur50 and resnetaa50, or a ResNet-50 that was trained
    with dilation or another activation, look like `resnet50()`. A network that the file names, or `config.json` beside
    it as timm publishes it, must be the model; a file that names none is believed.

    Raises UserError if the file is missing, damaged, holds more than tensors, or belongs to another model. The sentence
    names the tensor that is missing, unknown or wrongly shaped.
    """
    path, form = Path(path), published(model)
    _check_named(path, form.network(model))
    wanted = _shapes(model, form)
    theirs = {ours: _theirs(model, form, ours) for ours in wanted}
    with contextlib.ExitStack() as stack:
        found, network = _open(stack, path, form)
        kind = type(model).__name__
        if missing := sorted(set(theirs.values()) - set(found)):
            hint = " (set aux=False for a model without auxiliary heads)" if _only_aux(model, form, missing) else ""
            raise UserError(f"{path} is not a state dict of this {kind}: {files.lacks(missing, found)}{hint}")
        ignored = rf".*\.num_batches_tracked|{form.ignored(model)}"
        unknown = sorted(n for n in set(found) - set(theirs.values()) if not re.fullmatch(ignored, n))
        if unknown:
            raise UserError(f"{path} has tensors that this {kind} does not: {files.some(unknown)}")
        name, allowed = allowed_networks(model, form)
        files.check_network(path, network, allowed, name)
        classes, ours = files.classes(path, f"{form.head}.bias", found), _head(form, wanted, theirs)[0]
        if classes != ours:
            raise UserError(f"{path} has {classes:,} classes, but the model has {ours:,}: set num_classes={classes}")
        variables: dict[str, Any] = {}
        for at, leaf in wanted.items():  # one at a time, so that at most one tensor is in memory twice
            tensor = found[theirs[at]]
            files.check(
                path, theirs[at], tensor, _turned(np.broadcast_to(np.float32(0), leaf.shape)).shape, "the model"
            )
            files.put(variables, at, jnp.array(_turned_back(tensor.read()), leaf.dtype))
    return variables


def save_state_dict(path: str | Path, model: nn.Module, variables: Any) -> None:
    """Writes `variables` as a safetensors file with the names that torchvision or timm uses.

    Raises UserError if the variables do not belong to the model or the folder does not exist, and OSError if the disk
    is full.
    """
    path, form = Path(path), published(model)
    wanted, arrays = _shapes(model, form), files.flat(variables)
    if differing := sorted(set(arrays) ^ set(wanted)):
        raise UserError(f"the variables do not belong to the model: {files.some(differing)}")
    for at, leaf in wanted.items():
        if arrays[at].shape != leaf.shape:
            raise UserError(f"{at} has shape {arrays[at].shape}, but the model expects {leaf.shape}")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist: create it first")
    tensors = {_theirs(model, form, at): _turned(np.asarray(array)) for at, array in arrays.items()}
    files.save_safetensors(path, tensors)


def published_classes(path: str | Path, model: nn.Module) -> int:
    """The number of classes of a file. Raises UserError if the file is not of this model's family."""
    path, form = Path(path), published(model)
    with contextlib.ExitStack() as stack:
        found = _open(stack, path, form).tensors
        if (bias := f"{form.head}.bias") not in found:
            raise UserError(f"{path} is not a state dict of a {type(model).__name__}: {files.lacks([bias], found)}")
        return files.classes(path, bias, found)


def published(model: nn.Module) -> Published:
    """The published form of a model. Raises UserError if there is none."""
    if isinstance(model, ViT):
        raise UserError("use weights.load_vit and weights.save_vit for a ViT")
    if type(model) not in FORMS:
        raise UserError(f"{type(model).__name__} has no published weights that can be read here")
    return FORMS[type(model)]


def allowed_networks(model: nn.Module, form: Published) -> tuple[str, str]:
    """The name of a model in torchvision and timm, and a regular expression for all names that it may have."""
    name = form.network(model)
    # timm's prefixes are for weights from elsewhere; some programs write the name of the class.
    return name, rf"(tv_|tf_|gluon_|ssl_|swsl_)?{name}(_v1b)?|{type(model).__name__.lower()}"


def _check_named(path: Path, network: str) -> None:
    """Raises UserError if a file is not the one of its name: torchvision's end with the first digits of the sha256."""
    named = re.fullmatch(rf"{network}\D*-([0-9a-f]{{8}})\.pth", path.name)
    if named and path.is_file():
        with path.open("rb") as file:
            if not hashlib.file_digest(file, "sha256").hexdigest().startswith(named[1]):
                raise UserError(
                    f"{path} is not the published file of this name, whose sha256 begins with {named[1]}: fetch it "
                    "again, or give it another name if it is yours"
                )


def _open(stack: contextlib.ExitStack, path: Path, form: Published) -> files.Content:
    """The content of a file, with today's names."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: give the path of a state dict, *.safetensors or *.pth")
    found, network = files.open_tensors(stack, path)
    for old, new in form.renamed:
        found = {re.sub(old, new, name): tensor for name, tensor in found.items()}
    return files.Content(found, network)


@functools.cache
def _shapes(model: nn.Module, form: Published) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a model's variables, by path."""
    side = form.image(model)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return files.flat(jax.eval_shape(model.init, jax.random.key(0), image))


def _theirs(model: nn.Module, form: Published, ours: str) -> str:
    """The published name of our leaf "collection/module/.../leaf"."""
    _, module, leaf = re.fullmatch(r"(\w+?)/(.+)/(\w+)", ours).groups()  # type: ignore[union-attr]
    return f"{form.names(model, module)}.{LEAVES[leaf]}"


def _head(form: Published, wanted: dict[str, Any], theirs: dict[str, str]) -> tuple[int, ...]:
    return next(wanted[ours].shape for ours, name in theirs.items() if name == f"{form.head}.bias")


def _only_aux(model: Any, form: Published, missing: list[str]) -> bool:
    if not getattr(model, "aux", False):
        return False
    return all(re.fullmatch(form.ignored(model.clone(aux=False)), name) for name in missing)


def _turned(array: np.ndarray) -> np.ndarray:
    """Our array in PyTorch's layout: kernels with the output axis first."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # the transpose of a vector is the vector


def _turned_back(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


# From our module paths to the published names, one function per family


def _alexnet(model: AlexNet, path: str) -> str:
    if model.norm == "batch":
        raise UserError("AlexNet with batch norm has no published weights that can be read here")
    convolutions, dense = {1: 0, 2: 3, 3: 6, 4: 8, 5: 10}, {1: 1, 2: 4, 3: 6}
    place = int(path[-1])
    return f"features.{convolutions[place]}" if path.startswith("conv") else f"classifier.{dense[place]}"


def _vgg(model: VGG, path: str) -> str:
    if path.startswith("dense"):
        return f"classifier.{3 * int(path[-1]) - 3}"
    kind, stage, place = re.fullmatch(r"(conv|norm)(\d)_(\d)", path).groups()  # type: ignore[union-attr]
    each = 3 if model.norm else 2  # convolution, norm if there is one, ReLU; pooling ends a stage
    before = sum(model.depths[: int(stage) - 1]) + int(place) - 1
    return f"features.{each * before + int(stage) - 1 + (kind == 'norm')}"


def _googlenet(model: GoogLeNet, path: str) -> str:
    if model.form != "torchvision":
        raise UserError("the published weights of GoogLeNet are for its form with batch norm: use googlenet_bn()")
    theirs = {
        "conv1x1": "branch1", "reduce3x3": "branch2.0", "conv3x3": "branch2.1", "reduce5x5": "branch3.0",
        "conv5x5": "branch3.1", "project": "branch4.1", "norm": "bn", "dense": "fc", "dense1": "fc1", "dense2": "fc2",
    }  # fmt: skip
    return ".".join(theirs.get(part, part) for part in path.split("/"))


def _inception_v3(model: InceptionV3, path: str) -> str:
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
    branches = {  # where a name ends with _, the position in the branch follows
        "5": ["branch1x1", "branch5x5_", "branch3x3dbl_", "branch_pool"],
        "6a": ["branch3x3", "branch3x3dbl_"],
        "6": ["branch1x1", "branch7x7_", "branch7x7dbl_", "branch_pool"],
        "7a": ["branch3x3_", "branch7x7x3_"],
        "7": ["branch1x1", "branch3x3_", "branch3x3dbl_", "branch_pool"],
    }
    theirs = {"norm": "bn", "dense": "fc", "aux": "AuxLogits", "conv1": "conv0", "conv2": "conv1"}
    module, *rest = (theirs.get(part, part) for part in path.split("/"))
    if module in ("fc", "AuxLogits"):
        return ".".join([module, *rest])
    branch, place = re.fullmatch(r"branch(\d)_(\w+)", rest[0]).groups()  # type: ignore[union-attr]
    if module == "stem":
        return f"{stem[int(place) - 1]}.{rest[1]}"
    name = module.removeprefix("mixed")
    kind = branches.get(name) or branches[name[0]]
    within = kind[int(branch) - 1]
    return f"Mixed_{name}.{within}{place if within.endswith('_') else ''}.{rest[1]}"


def _inception_v4(model: InceptionV4, path: str) -> str:
    if path == "dense":
        return "last_linear"
    module, within, part = path.replace("norm", "bn").split("/")
    branch, place, letter = re.fullmatch(r"branch(\d)_(\d)(\w?)", within).groups()  # type: ignore[union-attr]
    if module == "stem1":
        return f"features.{int(place) - 1}.{part}"
    feature = f"features.{list(V4_MODULES).index(module) + 2}"
    if module in ("stem2", "stem4"):
        return f"{feature}.conv.{part}"
    chain = V4_MODULES[module][int(branch) - 1]
    theirs, pooled = f"{feature}.branch{int(branch) - 1}", callable(chain[0])
    if len(chain) == 1:
        return f"{theirs}.{part}"
    if module.startswith("c") and not pooled:
        return f"{theirs}_{int(place) - 1}{letter}.{part}"
    return f"{theirs}.{int(place) - 1 + pooled}.{part}"


def _squeezenet(model: SqueezeNet, path: str) -> str:
    module, _, part = path.partition("/")
    place = int(re.sub(r"\D", "", module))  # conv1, fire2 to fire9, conv10
    if place == 10:
        return "classifier.1"
    if place == 1:
        return "features.0"  # features.1 is its ReLU
    return f"features.{place + sum(pooled < place for pooled in POOLED[model.version])}.{part}"


def _densenet(model: DenseNet, path: str) -> str:
    ends = {"conv": "features.conv0", "norm1": "features.norm0", "norm2": "features.norm5", "dense": "classifier"}
    if path in ends:
        return ends[path]
    path = re.sub(r"block(\d)_layer(\d+)/", r"denseblock\1.denselayer\2.", path)
    return "features." + re.sub(r"(transition\d)_", r"\1.", path)


def _resnet(model: ResNet, path: str) -> str:
    if model.bottleneck and model.stride_at != "3x3":  # a file does not show this: the kernels have the same shapes
        raise UserError('published weights have the stride in the 3x3 convolution: use a ResNet with stride_at="3x3"')
    ends = {"conv1": "conv1", "norm1": "bn1", "dense": "fc"}
    if path in ends:
        return ends[path]
    stage, block, part = re.fullmatch(r"stage(\d)_block(\d+)/(\w+)", path).groups()  # type: ignore[union-attr]
    part = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(part, part.replace("norm", "bn"))
    return f"layer{stage}.{int(block) - 1}.{part}"


FORMS: dict[type[nn.Module], Published] = {
    # The AlexNet of 2012 has no published weights, but ours are saved in the same form.
    AlexNet: Published(
        _alexnet, "classifier.6", lambda model: "alexnet", image=lambda model: 224 if model.padding else 227
    ),
    # torchvision's files date from a time when module names could contain dots.
    DenseNet: Published(
        _densenet,
        "classifier",
        lambda model: f"densenet{2 * sum(model.blocks) + 5}",
        renamed=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    ),
    ResNet: Published(_resnet, "fc", lambda model: f"resnet{(3 if model.bottleneck else 2) * sum(model.blocks) + 2}"),
    GoogLeNet: Published(
        _googlenet, "fc", lambda model: "googlenet", ignored=lambda model: "$^" if model.aux else r"aux[12]\..*"
    ),
    InceptionV3: Published(
        _inception_v3,
        "fc",
        lambda model: "inception_v3",
        image=lambda model: 299,
        ignored=lambda model: "$^" if model.aux else r"AuxLogits\..*",
    ),
    InceptionV4: Published(_inception_v4, "last_linear", lambda model: "inception_v4", image=lambda model: 299),
    SqueezeNet: Published(_squeezenet, "classifier.1", lambda model: f"squeezenet{model.version.replace('.', '_')}"),
    VGG: Published(_vgg, "classifier.6", lambda model: f"vgg{sum(model.depths) + 3}{'_bn' if model.norm else ''}"),
}
