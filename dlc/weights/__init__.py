"""Weights, of our runs and as others publish them: a model and its variables.

    model, variables = weights.load("runs/mine")                     # a run: `artifact.py`
    model, variables = weights.load("gpt2/")                         # a Hugging Face folder: `huggingface.py`
    model, variables = weights.load("stories260K.bin")               # a file of llama2.c: `llama2c.py`
    model, variables = weights.load("resnet50.pth", resnet50())      # a torchvision or timm file: `images.py`
    model, variables = weights.load("compressed_SqueezeNet.net")     # its authors' file: `deep_compression.py`
    variables = weights.begin(variables, "runs/mine")                # training begins from them

    weights.save("mine.safetensors", model, variables)               # `save_*` write for other libraries

Weights are read from local files. Nothing here uses the network, and no code in a file is run. A damaged or
foreign file raises a UserError of one sentence.
"""

from dlc.weights.artifact import save, write_model
from dlc.weights.chat import chat_prompt, end_tokens
from dlc.weights.deep_compression import load_squeezenet_dc
from dlc.weights.description import describe, rebuild
from dlc.weights.huggingface import (
    load_bert,
    load_bert_masked_lm,
    load_gpt2,
    load_llama,
    load_vit,
    save_bert,
    save_gpt2,
    save_vit,
)
from dlc.weights.images import load_state_dict, published_classes, save_state_dict
from dlc.weights.llama2c import load_llama2c
from dlc.weights.sources import begin, load

__all__ = [
    "begin",
    "chat_prompt",
    "describe",
    "end_tokens",
    "load",
    "load_bert",
    "load_bert_masked_lm",
    "load_gpt2",
    "load_llama",
    "load_llama2c",
    "load_squeezenet_dc",
    "load_state_dict",
    "load_vit",
    "published_classes",
    "rebuild",
    "save",
    "save_bert",
    "save_gpt2",
    "save_state_dict",
    "save_vit",
    "write_model",
]
