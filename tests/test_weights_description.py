"""Descriptions: every model of `dlc.models` is rebuilt exactly, and nothing harmful can be named in one."""

import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from dlc import layers, models
from dlc.errors import UserError
from dlc.layers.attention import Stretch
from dlc.models.gpt import GPT, GPTConfig, modern
from dlc.models.resnet_cifar import CifarResNet
from dlc.weights import describe, rebuild
from dlc.weights import description as descriptions

MODULES = [importlib.import_module(found.name) for found in pkgutil.iter_modules(models.__path__, "dlc.models.")]


def is_model(kind):
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def constructors():
    """Every public class and function in `dlc.models` that makes a model without further arguments, by its name."""
    for module in MODULES:
        for name, value in vars(module).items():
            public = not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            if public and (is_model(value) or inspect.isfunction(value)):
                made = value if is_model(value) else typing.get_type_hints(value).get("return")
                parameters = inspect.signature(value).parameters.values()
                needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
                if is_model(made) and not needed:
                    yield f"{module.__name__.rpartition('.')[2]}.{name}", value


CONSTRUCTORS = dict(constructors())


def variants(record):
    """Copies of a module or configuration with one field changed each."""
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in ("parent", "name", "remat"):  # which a description leaves out
            continue
        if field.name == "config":
            changes = [config for _, config in variants(value)]
        elif field.name == "dtype":
            changes = ["bfloat16", jnp.bfloat16, np.float16, jnp.dtype("bfloat16"), float]
        elif field.name == "param_dtype":
            changes = [jnp.dtype("float16")]
        elif typing.get_origin(hints[field.name]) is typing.Literal:
            changes = [choice for choice in typing.get_args(hints[field.name]) if choice != value]
        elif isinstance(value, bool):
            changes = [not value]
        elif isinstance(value, int | float):
            changes = [value + 1]
        elif isinstance(value, tuple):
            changes = [value[::-1] if value and isinstance(value[0], tuple) else ((value or (3,))[0] + 1, *value[1:])]
        elif set(typing.get_args(hints[field.name])) & {bool, Stretch}:  # or None
            changes = [True] if bool in typing.get_args(hints[field.name]) else [Stretch(8.0, 1.0, 4.0, 16)]
        else:
            changes = [3]
        for change in changes:
            yield field.name, dataclasses.replace(record, **{field.name: change})


def through_json(model):
    return rebuild(json.loads(json.dumps(describe(model))))


def test_no_model_is_missing():
    found = {type(make()) for make in CONSTRUCTORS.values()}
    public = set()
    for module in MODULES:
        for name, value in vars(module).items():
            if is_model(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                public.add(value)
    assert public == found
    assert len(CONSTRUCTORS) > 60


@pytest.mark.parametrize("make", CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_every_model_is_rebuilt(make):
    model = make()
    assert through_json(model) == model
    assert type(through_json(model)) is type(model)
    for name, variant in variants(model):
        assert through_json(variant) == variant
        found = descriptions.difference(describe(model), describe(variant))
        assert found[0] == name or found[0].startswith("config."), found


def test_a_description_reads_like_the_model():
    described = describe(modern(layers=3, dtype=jnp.bfloat16))
    assert described["class"] == "dlc.models.gpt.GPT"
    config = described["fields"]["config"]
    assert config["class"] == "dlc.models.gpt.GPTConfig"
    assert config["fields"]["layers"] == 3
    assert config["fields"]["dtype"] == {"path": "jax.numpy.bfloat16"}
    assert config["fields"]["norm"] == "rms"


# Fields of other kinds


class Pair(NamedTuple):
    width: int
    activation: Any = nn.relu


@dataclasses.dataclass(frozen=True)
class Sizes:
    widths: tuple[int, ...] = (3, 4)
    scale: float = 0.1


def halved(x):
    return x / 2


class Anything(nn.Module):
    value: Any = None

    @nn.compact
    def __call__(self, x):
        return x


FIELDS = {
    "nothing": None,
    "list": [1, 2.5, "three", None, True],
    "tuples": ((1, (2,)), ()),
    "dict": {"a": (1, 2), 3: {"b": [1]}},
    "frozen dict": freeze({"a": {"b": 1}}),
    "named tuple": Pair(3, nn.gelu),
    "dataclass": Sizes((1, 2), 1e-300),
    "floats": (float("inf"), -0.0, 1e-17, 0.1 + 0.2),
    "NumPy scalars": (np.int64(3), np.float32(0.1), np.bool_(True)),
    "scalar types": (jnp.float32, np.float32, float, jnp.dtype("bfloat16")),
    "functions": (nn.relu, nn.swish, jnp.tanh, jax.lax.rsqrt, nn.initializers.zeros, nn.avg_pool, halved),
    "a class": layers.Dense,
    "modules": (layers.Dense(3), nn.Dense(4), nn.Sequential([nn.Conv(2, (3, 3)), nn.relu])),
    "words": 'é \u2028 "{}" \\',
}


@pytest.mark.parametrize("value", FIELDS.values(), ids=FIELDS)
def test_fields_of_every_kind(value):
    model = Anything(value)
    again = through_json(model)
    assert again == model
    assert type(again.value) is type(value)


def test_partials_keep_their_arguments():
    function = through_json(Anything(functools.partial(nn.gelu, approximate=False))).value
    assert (function.func, function.args, function.keywords) == (nn.gelu, (), {"approximate": False})
    block = through_json(Anything(functools.partial(layers.Dense, 3, dtype=jnp.bfloat16))).value
    assert block(name="one") == layers.Dense(3, dtype=jnp.bfloat16, name="one")


def test_the_name_of_a_module_is_left_out():
    assert describe(nn.Dense(3, name="mine")) == describe(nn.Dense(3))


# What cannot be described


def local():
    class Inner(nn.Module):
        pass

    return Inner()


REFUSED = {
    "a lambda": (Anything(lambda x: x), r"^Anything\.value holds the function .*<lambda>, which cannot be saved"),
    "a nested lambda": (Anything(Pair(3, lambda x: x)), r"^Anything\.value\.activation holds the function"),
    "an array": (Anything(jnp.ones(3)), r"^Anything\.value is of type ArrayImpl, which cannot be saved"),
    "a NumPy array": (Anything((np.ones(3),)), r"^Anything\.value is of type ndarray"),
    "an initializer": (Anything(nn.initializers.normal(0.1)), r"^Anything\.value holds the function .*init"),
    "an initializer in a layer": (nn.Dense(3, kernel_init=nn.initializers.normal(0.1)), r"^Dense\.kernel_init holds"),
    "a local class": (local(), r"^Inner holds the class .*Inner, which cannot be saved"),
    "a partial of a user's function": (
        Anything(functools.partial(halved, 3)),
        r"^Anything\.value binds arguments to .*halved",
    ),
    "a built-in function": (Anything(sorted), r"^Anything\.value holds the function builtins\.sorted"),
    "no module": (GPTConfig(), "only a Flax Linen module can be described, not a GPTConfig"),
}


@pytest.mark.parametrize(("model", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_described_is_named(model, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        describe(model)
    assert "\n" not in str(error.value)


# Descriptions by strangers


def gpt(**changes):
    """The description of a GPT with changed fields of its configuration; "missing" removes one."""
    described = describe(GPT())
    fields = described["fields"]["config"]["fields"]
    fields |= changes
    for name in [name for name, value in fields.items() if value == "missing"]:
        del fields[name]
    return described


def holding(value):
    return {"class": f"{__name__}.Anything", "fields": {"value": value}}


def calling(path, *args):
    return holding({"partial": {"path": path}, "args": list(args), "keywords": {}})


STRANGE = {
    "an unknown module": ({"class": "dlc.models.gone.Net", "fields": {}}, "no module dlc.models.gone: .*other version"),
    "an unknown class": ({"class": "dlc.models.gpt.GPT9", "fields": {}}, "dlc.models.gpt has no GPT9: .*other version"),
    "an unknown field": (gpt(flavour=3), "GPTConfig has no field flavour: the description was made by another version"),
    "a missing field": (gpt(width="missing"), "GPTConfig also has the field width: .* by another version"),
    "an unknown function": (holding({"path": "flax.linen.relu9"}), "flax.linen has no relu9"),
    "not imported": ({"class": "antigravity2.Net", "fields": {}}, "needs antigravity2.Net: import antigravity2 first"),
    "not imported, with a dot": (holding({"path": "a.b.c"}), r"the model needs a\.b\.c: import a\.b first"),
    "the shell": (holding({"path": "os.system"}), "os.system belongs to Python's standard library"),
    "the shell by its other name": (holding({"path": "posix.system"}), "belongs to Python's standard library"),
    "eval": (holding({"path": "builtins.eval"}), "builtins.eval belongs to Python's standard library"),
    "eval with arguments": (calling("builtins.eval", "1"), "builtins.eval belongs to Python's standard library"),
    "a module's import": (holding({"path": "dlc.weights.artifact.json"}), "is not a model, configuration or function"),
    "a borrowed name": (holding({"path": "dlc.weights.files.save_file"}), "is not a model, configuration or function"),
    "a function with effects": (
        holding({"path": "dlc.weights.artifact.save"}),
        "is not a model, configuration",
    ),
    "a reader of files": (
        calling("jax.numpy.load", "x.npy"),
        "jax.numpy.load is not a model, configuration",
    ),
    "a writer of files": (
        calling("jax.numpy.save", "x.npy"),
        "jax.numpy.save is not a model, configuration",
    ),
    "private modules": (calling("jax._src.config.update", 1), "is not a model, configuration|has no update"),
    "a function of another library, with arguments": (
        calling("numpy.loadtxt", "x"),
        "binds arguments to numpy|is not a model",
    ),
    "a user's function, with arguments": (calling(f"{__name__}.halved", 1), "binds arguments to .*halved"),
    "a function as a class": ({"class": "flax.linen.relu", "fields": {}}, "is not a Flax Linen module, a dataclass"),
    "a plain class": ({"class": "dlc.errors.UserError", "fields": {}}, "is not a model, configuration or function"),
    "the program itself": ({"class": "dlc.__main__.main", "fields": {}}, "import dlc.__main__ first"),
    "a path upwards": (holding({"path": "..x"}), "is not the path of a class or function"),
    "an attribute": (holding({"path": "flax.linen.relu.__globals__"}), "the model needs flax.linen.relu.__globals__"),
    "no model": (
        {"class": "dlc.models.gpt.GPTConfig", "fields": gpt()["fields"]["config"]["fields"]},
        "of a GPTConfig",
    ),
    "a number": (3, "the description is of a int, not of a Flax Linen module"),
    "an unknown kind": (holding({"pickle": "abc"}), "is damaged: abc is unknown"),
    "two kinds": (holding({"tuple": [], "dict": []}), "is damaged"),
    "a malformed dict": (holding({"dict": [1]}), "is damaged: TypeError"),
    "an unhashable key": (holding({"dict": [[[1], 2]]}), "is damaged: TypeError"),
    "an unknown dtype": (holding({"dtype": "float7"}), "is damaged: TypeError"),
    "a dtype that NumPy would parse": (holding({"dtype": ",b"}), "is damaged: ,b is unknown"),
    "no fields": ({"class": "dlc.models.gpt.GPT"}, "is damaged"),
    "a path that is a number": ({"class": 3, "fields": {}}, "is damaged"),
    "very deep": (functools.reduce(lambda inner, _: [inner], range(5000), 1), "is damaged: RecursionError"),
}


@pytest.mark.parametrize(("described", "sentence"), STRANGE.values(), ids=STRANGE)
def test_descriptions_that_are_refused(described, sentence, monkeypatch):
    monkeypatch.delitem(sys.modules, "dlc.__main__", raising=False)  # another test may have imported it
    with pytest.raises(UserError, match=sentence) as error:
        rebuild(described)
    assert "\n" not in str(error.value)


def test_nothing_is_imported_for_a_description(tmp_path, monkeypatch):
    (tmp_path / "strange_module.py").write_text("from pathlib import Path\nPath('trace').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="import strange_module first"):
        rebuild({"class": "strange_module.Net", "fields": {}})
    assert not (tmp_path / "trace").exists()


def test_whether_activations_are_computed_again_is_not_part_of_a_model():
    """So that models are read that were written before there was a choice, and by versions that have none."""
    for make in (lambda **how: GPT(GPTConfig(layers=1, **how)), lambda **how: CifarResNet((1,), **how)):
        assert describe(make(remat=True)) == describe(make())
        assert "remat" not in json.dumps(describe(make()))
        assert rebuild(describe(make(remat=True))) == make()
