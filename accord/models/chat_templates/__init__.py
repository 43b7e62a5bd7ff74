"""Chat templates for models that have none, in plain Jinja, and what a template is taken from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.chat.tokenizer import TEMPLATES, add_control_tokens, render_probe
from accord.errors import DataError, UsageError
from accord.models.loading import read_tokenizer
from accord.models.references import locate
from accord.runs import Runs
from accord.text_files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROL = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "zephyr": ("<|system|>", "<|user|>", "<|assistant|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
"""The control tokens of each, apart from BOS and EOS."""
MARK = re.compile(r"<\|[^<>|\s]+\|>|<(?:start|end)_of_\w+>|\[/?[A-Z_]+\]")
"""What is meant as a control token in a file's template."""
END = re.compile(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])")
BOS = "{{- bos_token -}}\n"


@dataclass(frozen=True)
class Template:
    """A chat template that a model shall have."""

    name: str
    text: str
    control: tuple[str, ...] | None = None
    """What it writes between messages; None: whatever looks like it."""


def find_template(setting: str, runs: Runs) -> Template:
    """The template that a setting names: one of ours, a file, or another model's.

    Raises:
        UsageError: there is none.
    """
    if setting in TEMPLATES:
        text = (Path(__file__).parent / f"{setting}.jinja").read_text(encoding="utf-8")
        return Template(setting, text, CONTROL[setting])
    if setting.endswith((".jinja", ".jinja2", ".j2")):
        try:
            text = read_text(Path(setting))
        except DataError as error:
            raise UsageError(f"{error}; name an existing template file") from None
        if not text.strip():
            raise UsageError(
                f"{setting}: is empty; write how a conversation is put into text, or name another file"
            )
        return Template(setting, text)
    try:
        folder = locate(setting, runs).folder
    except UsageError as error:
        raise UsageError(
            f"'{setting}' is none of {', '.join(TEMPLATES)}, no file.jinja, and no model whose template could be "
            f"taken: {error}"
        ) from None
    theirs = read_tokenizer(folder)
    its: Any = theirs.chat_template
    its = its.get("default") if isinstance(its, dict) else its
    if not its:
        raise UsageError(f"'{setting}' has no chat template either; name another model, or a file")
    control = tuple(str(token) for token in theirs.added_tokens_decoder.values() if token.special)
    return Template(setting, its, control)


def give(template: Template, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Give a tokenizer a template and the control tokens that this writes.

    BOS stays in one of our templates where the tokenizer itself begins a text with it, as in pre-training.

    Raises:
        UsageError: the template takes no conversation of user and assistant by turns.
    """
    if tokenizer.eos_token is None and "eos_token" in template.text:
        tokenizer.add_special_tokens({"eos_token": "</s>"})
    text = template.text
    if template.name in TEMPLATES and not _begins_with_bos(tokenizer):
        text = text.replace(BOS, "")
    tokenizer.chat_template = text
    written = render_probe(tokenizer, name)
    control = template.control
    if control is None:
        ends = [END.match(written, match.end()) for match in re.finditer(r"Seven\.", written)]
        control = (*MARK.findall(written), *(end.group(1) for end in ends if end))
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    lacking = [token for token in dict.fromkeys(control) if token in written and token not in special]
    add_control_tokens(tokenizer, lacking)


def _begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and list(ids)[:1] == [tokenizer.bos_token_id]
