"""A model written down as JSON, and rebuilt from it.

    describe(model)         # {"class": "dlc.models.gpt.GPT", "fields": {"config": {"class": ..., "fields": ...}}}
    rebuild(description)    # the same model

A Flax Linen module is a frozen dataclass, so the import path of its class and its fields define it completely. JSON has
no tuples, classes or functions. Each of these becomes an object whose key says what it is:

    {"tuple": [...]}   {"dict": [[key, value], ...]}   {"frozen": [[key, value], ...]}   {"dtype": "bfloat16"}
    {"path": "flax.linen.relu"}   {"partial": ..., "args": [...], "keywords": {...}}
    {"class": "dlc.models.gpt.GPT", "fields": {...}}
    {"default": true}, for the default of a field where it has no path, such as an initializer made by a call

Descriptions travel in files that strangers may have written, so a description can only name things, never run them:
- A path is looked up in `dlc`, in the public modules of Flax and JAX, or in a module that this process has imported.
  Nothing else is imported. The modules of Python's standard library are refused.
- Only Linen modules, dataclasses and named tuples are constructed, with exactly the fields that they have.
- Functions are put into fields, not called. Arguments are bound (`functools.partial`) only to functions of JAX, Flax
  and the layers here, which compute and nothing else: in a partial the file would choose the arguments of a call.
"""

import dataclasses
import functools
import importlib
import re
import sys
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from dlc.errors import UserError

# Where functions and classes of Flax and JAX are looked for. Their own modules are private and move.
PUBLIC = ("flax.linen", "flax.linen.initializers", "jax.nn", "jax.nn.initializers", "jax.numpy", "jax.lax")
READERS = {"load", "fromfile"}  # functions of jax.numpy that read files
PURE = ("dlc.layers", "dlc.models")  # whose functions may be put into fields
PYTHON = {"builtins.bool": bool, "builtins.int": int, "builtins.float": float, "builtins.complex": complex}
OTHER_VERSION = "the description was made by another version"


def describe(model: Any) -> dict[str, Any]:
    """The class and fields of a Linen module, as values that JSON can hold.

    The fields `parent` and `name` of modules are left out, and so is `remat`, which says whether a model in training
    computes its activations again: none of them changes what a model computes. Raises UserError if
    a field cannot be described, for example a lambda or an array.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"only a Flax Linen module can be described, not a {type(model).__name__}")
    return _described(model, type(model).__name__)


def rebuild(description: Any) -> Any:
    """The model of a description. It equals the original, except that two partials never compare equal.

    Raises UserError if the description is damaged, or names a class, field or function that is unknown or not allowed.
    """
    try:
        model = _rebuilt(description)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the description of the model is damaged: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"the description is of a {type(model).__name__}, not of a Flax Linen module")
    return model


def difference(one: Any, other: Any, at: str = "") -> tuple[str, str, str] | None:
    """The first place where two descriptions differ: (path of the field, one value, the other). None if they agree."""
    if isinstance(one, dict) and isinstance(other, dict) and "class" in one and one.get("class") == other.get("class"):
        for name in {**one["fields"], **other["fields"]}:
            mine, theirs = (each["fields"].get(name, "missing") for each in (one, other))
            if found := difference(mine, theirs, f"{at}.{name}".lstrip(".")):
                return found
        return None
    return None if one == other else (at or "class", _short(one), _short(other))


# Writing


def _described(value: Any, where: str) -> Any:
    """A value as JSON; `where` is the class and field that it belongs to."""
    if isinstance(value, np.generic):
        value = value.item()  # NumPy's scalars, such as np.int64(3)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [_described(item, where) for item in value]
    if type(value) is tuple:
        return {"tuple": [_described(item, where) for item in value]}
    if isinstance(value, dict | FrozenDict):
        kind = "frozen" if isinstance(value, FrozenDict) else "dict"
        return {kind: [[_described(k, where), _described(v, where)] for k, v in value.items()]}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, functools.partial):
        _check_pure(value.func, where)
        args = [_described(item, where) for item in value.args]
        keywords = {name: _described(item, where) for name, item in value.keywords.items()}
        return {"partial": _described(value.func, where), "args": args, "keywords": keywords}
    if isinstance(value, type) or (callable(value) and not dataclasses.is_dataclass(value)):
        return {"path": _path(value, where)}
    if dataclasses.is_dataclass(value) or _is_named_tuple(type(value)):
        return _described_fields(value, where)
    raise UserError(f"{where} is of type {type(value).__name__}, which cannot be saved with the weights")


def _described_fields(value: Any, where: str) -> dict[str, Any]:
    kind, fields = type(value), {}
    for name, default in _fields(kind).items():
        field = getattr(value, name)
        try:
            fields[name] = _described(field, f"{where}.{name}")
        except UserError:
            if field is not default:
                raise
            fields[name] = {"default": True}
    return {"class": _path(kind, where), "fields": fields}


def _path(value: Any, where: str) -> str:
    """The import path of a class or function. Raises UserError unless it leads back to the same object."""
    for path, known in PYTHON.items():
        if value is known:
            return path
    name, home = getattr(value, "__name__", ""), str(getattr(value, "__module__", ""))
    if home == "__main__":
        home = getattr(sys.modules[home].__spec__, "name", home)  # `python -m package.program`
    for module in (*PUBLIC, home):
        if getattr(sys.modules.get(module), name, None) is value or module == home:
            path = f"{module}.{name}"
            break
    try:
        if _found(path) is value:
            return path
    except UserError:
        pass
    kind = "class" if isinstance(value, type) else "function"
    raise UserError(
        f"{where} holds the {kind} {path}, which cannot be saved with the weights: "
        f"use a {kind} that is defined by name at the top of a module"
    )


# Reading


def _rebuilt(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_rebuilt(item) for item in value]
    match value:
        case {"tuple": items, **rest} if not rest:
            return tuple(_rebuilt(item) for item in items)
        case {"dict": items, **rest} if not rest:
            return {_rebuilt(key): _rebuilt(item) for key, item in items}
        case {"frozen": items, **rest} if not rest:
            return FrozenDict({_rebuilt(key): _rebuilt(item) for key, item in items})
        case {"dtype": str(name), **rest} if not rest and name.isidentifier():  # NumPy parses others as Python
            return jnp.dtype(name)
        case {"path": str(path), **rest} if not rest:
            return _found(path)
        case {"partial": function, "args": args, "keywords": keywords, **rest} if not rest:
            known = _rebuilt(function)
            _check_pure(known, "the description")
            return functools.partial(known, *_rebuilt(args), **{name: _rebuilt(v) for name, v in keywords.items()})
        case {"class": str(path), "fields": dict(fields), **rest} if not rest:
            return _constructed(path, fields)
    raise UserError(f"the description of the model is damaged: {_short(value)} is unknown")


def _constructed(path: str, fields: dict[str, Any]) -> Any:
    kind = _found(path)
    if not _is_record(kind):
        raise UserError(f"{path} is not a Flax Linen module, a dataclass or a named tuple")
    known = _fields(kind)
    if differing := sorted(set(known) ^ set(fields)):
        has = "has no" if differing[0] in fields else "also has the"
        raise UserError(f"{path} {has} field {differing[0]}: {OTHER_VERSION}")
    values = {field: _rebuilt(value) for field, value in fields.items() if value != {"default": True}}
    return kind(**values, parent=None) if issubclass(kind, nn.Module) else kind(**values)


def _found(path: str) -> Any:
    """The class or function at an import path. Raises UserError unless a description may name it."""
    if path in PYTHON:
        return PYTHON[path]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path):
        raise UserError(f"{path!r} is not the path of a class or function")
    module, _, name = path.rpartition(".")
    value = vars(_module(module, path)).get(name)
    if value is None:
        raise UserError(f"{module} has no {name}: {OTHER_VERSION}")
    home = getattr(value, "__module__", None)
    if module in PUBLIC:
        ours = str(home).partition(".")[0] in ("jax", "flax") and name not in READERS
    else:
        ours = home == module or (home == "__main__" and _module(module, path) is sys.modules["__main__"])
    if isinstance(value, type):
        allowed = _is_record(value) or issubclass(value, np.generic) or type(value) is type(jnp.float32)
    else:
        package = module.partition(".")[0]
        allowed = callable(value) and (package not in ("dlc", "jax", "flax") or module in PUBLIC or _within(module))
    if not (ours and allowed):
        raise UserError(f"{path} is not a model, configuration or function that a description may name")
    return value


def _module(name: str, path: str) -> Any:
    """A module that descriptions may look into. Raises UserError for any other."""
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        raise UserError(f"{path} belongs to Python's standard library, which a description may not name")
    main = sys.modules.get("__main__")
    if name == getattr(getattr(main, "__spec__", None), "name", None):
        return main  # the running program, whose classes are those of `__main__`
    if name in sys.modules:
        return sys.modules[name]
    if name not in PUBLIC and (package != "dlc" or "__main__" in name):
        raise UserError(f"the model needs {path}: import {name} first, if you trust it")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"there is no module {name}: {OTHER_VERSION}") from None


def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass, Linen module or named tuple, and their defaults."""
    if _is_named_tuple(kind):
        return {name: kind._field_defaults.get(name, dataclasses.MISSING) for name in kind._fields}
    linen = {"parent", "name"} if issubclass(kind, nn.Module) else set()
    left_out = {"remat", *linen} if kind.__module__.partition(".")[0] == "dlc" else linen
    return {
        field.name: field.default for field in dataclasses.fields(kind) if field.init and field.name not in left_out
    }


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or _is_named_tuple(kind))


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_field_defaults")


def _within(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in PURE)


def _check_pure(function: Any, where: str) -> None:
    """Raises UserError unless arguments may be bound to a function: see the top of this file."""
    module = _path(function, where).rpartition(".")[0]
    if not (module in PUBLIC or _within(module) or (isinstance(function, type) and issubclass(function, nn.Module))):
        raise UserError(f"{where} binds arguments to {_path(function, where)}: only functions of JAX and Flax may be")


def _short(value: Any) -> str:
    """A described value in a sentence."""
    if isinstance(value, dict):
        value = value.get("class") or value.get("path") or value.get("dtype") or next(iter(value.values()), value)
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
