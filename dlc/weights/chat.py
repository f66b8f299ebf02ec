"""What a published folder says of conversations: the template that writes one down, and the tokens that end a text.

    ids = tokenizer.encode(chat_prompt("FOLDER", [{"role": "user", "content": "What is a cat?"}]))
    stop = end_tokens("FOLDER", tokenizer)

A template is a small program in the language of Jinja. It runs in Jinja's sandbox, where it can make nothing but text.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dlc.errors import UserError, needs
from dlc.tokens import BPE, Characters
from dlc.weights import files

SETTINGS = "tokenizer_config.json"


def chat_prompt(folder: str | Path, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the model in `folder` reads it, up to where its answer begins.

    `messages` have a "role" ("user", "assistant" or, with most models, "system") and a "content". The text has the
    names of special tokens in it, also of the one that begins a text: it is `encode` that reads it.

    Raises UserError if the folder has no template, or if it is damaged or refuses the conversation.
    """
    needs("text", "jinja2")
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    folder = Path(folder)
    path, template = _template(folder)
    named = {name: _content(value) for name, value in _settings(folder).items() if name.endswith("_token")}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    given = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return environment.from_string(template).render(**named, **given)
    except Exception as error:  # of a program by others, which may fail in every way
        raise UserError(f"the chat template in {path} does not work: {error}; fetch it again, or do without") from None


def end_tokens(folder: str | Path, tokenizer: Characters | BPE) -> tuple[int, ...]:
    """The tokens that end a text of the model in `folder`: none, if it does not say.

    Raises UserError if they are not tokens of the vocabulary.
    """
    folder = Path(folder)
    found: list[Any] = []
    for path in (folder / "generation_config.json", folder / "config.json"):
        listed = files.read_json(path).get("eos_token_id") if path.is_file() else None
        if listed is not None:
            found = listed if isinstance(listed, list) else [listed]
            if not all(type(token) is int and 0 <= token < tokenizer.size for token in found):
                said = f"{path} has eos_token_id = {files.short(listed)}"
                raise UserError(f"{said}, which is not in the vocabulary of {tokenizer.size:,} tokens beside it")
            break
    name = _content(_settings(folder).get("eos_token"))
    if name and isinstance(tokenizer, BPE):
        found = [*found, tokenizer.id(name)]
    return tuple(dict.fromkeys(found))


def _template(folder: Path) -> tuple[Path, str]:
    """The file that has the template, and the template."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}; fetch it again") from None
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):  # of several, for several purposes
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else template
    if template is None:
        raise UserError(f"{folder} has no chat template, so its model has not learnt to answer: leave out --chat")
    if not isinstance(template, str):
        raise UserError(f"{folder / SETTINGS} has chat_template = {files.short(template)}, but it must be a text")
    return folder / SETTINGS, template


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    return files.read_json(path) if path.is_file() else {}


def _content(token: Any) -> str:
    """The name of a special token, which may be described by an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
