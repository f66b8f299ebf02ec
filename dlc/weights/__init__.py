"""Published PyTorch weights to our variables and back.

    model, variables = weights.load_gpt2("FOLDER")               # as Hugging Face publishes them: `huggingface.py`
    variables = weights.load_state_dict("resnet50.pth", model)   # as torchvision and timm do: `images.py`

Weights are read from local files; nothing here uses the network. A weight that is missing, unknown or of another size
is a UserError that names it.
"""

from dlc.weights.huggingface import (
    load_bert,
    load_bert_masked_lm,
    load_gpt2,
    load_vit,
    save_bert,
    save_gpt2,
    save_vit,
)
from dlc.weights.images import load_state_dict, published_classes, save_state_dict

__all__ = [
    "load_bert",
    "load_bert_masked_lm",
    "load_gpt2",
    "load_state_dict",
    "load_vit",
    "published_classes",
    "save_bert",
    "save_gpt2",
    "save_state_dict",
    "save_vit",
]
