"""torchvision's and timm's models. Importing them needs compiled operators, which a PyTorch for CPU may not have."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any


def build(name: str, **options: Any) -> Any:
    """The model of this name, such as "torchvision.resnet50" or "timm.inception_v4", with random weights.

    Raises ModuleNotFoundError if the library is not installed.
    """
    package, model = name.split(".")
    define_operators()
    if package == "timm":
        return importlib.import_module("timm").create_model(model, **options)
    makers: Any = importlib.import_module("torchvision.models")
    return getattr(makers, model)(weights=None, **options)


def define_operators() -> None:
    """Declares torchvision's operators if they are missing. No model for classification calls one of them."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if not found or hasattr(define_operators, "library") or hasattr(torch.ops.torchvision, "nms"):
        return
    text = (Path(found.origin or "").parent / "_meta_registrations.py").read_text("utf-8")
    library = define_operators.library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
    for operator in sorted(set(re.findall(r"torchvision::(\w+)", text))):
        library.define(f"{operator}(Tensor x) -> Tensor")
