"""Damages of a model's folder, by what they are; accord must refuse each with one sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], Any]


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(*keys: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in keys}))

    return change


def content(name: str, text: str | bytes) -> Change:
    def change(folder: Path) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)

    return change


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def linked(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def index(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


DAMAGES: dict[str, Change] = {
    "config gone": gone("config.json"),
    "config empty": content("config.json", ""),
    "config cut off": content("config.json", "{"),
    "config a list": content("config.json", "[]"),
    "config without anything": content("config.json", "{}"),
    "config no text": content("config.json", b"\xff\xfe\x00"),
    "config a folder": as_folder("config.json"),
    "config deep": content("config.json", '{"a":' * 3000 + "1" + "}" * 3000),
    "model_type unknown": config(model_type="nothing_of_the_kind"),
    "model_type a number": config(model_type=7),
    "model_type gone": without("model_type"),
    "model_type of no language model": config(model_type="bert", architectures=["BertModel"]),
    "hidden_size wrong": config(hidden_size=96),
    "hidden_size a text": config(hidden_size="large"),
    "hidden_size no multiple": config(hidden_size=65),
    "vocab_size wrong": config(vocab_size=11),
    "vocab_size negative": config(vocab_size=-1),
    "layers negative": config(num_hidden_layers=-1),
    "layers too many": config(num_hidden_layers=6),
    "layers too few": config(num_hidden_layers=1),
    "heads none": config(num_attention_heads=0),
    "dtype unknown": config(dtype="float7"),
    "activation unknown": config(hidden_act="wobble"),
    "rope unknown": config(rope_scaling={"rope_type": "spiral", "factor": 2.0}),
    "code of its own": config(auto_map={"AutoConfig": "evil.Config"}, model_type="evil"),
    "weights gone": gone("model.safetensors"),
    "weights empty": content("model.safetensors", b""),
    "weights a folder": as_folder("model.safetensors"),
    "weights a link to nothing": linked("model.safetensors", "/nonexistent"),
    "weights a link to themselves": linked("model.safetensors", "model.safetensors"),
    "index of nothing": index({}),
    "index a list": index([]),
    "index of an absent shard": index({"a": "model-00002-of-00002.safetensors"}),
    "index that leads out": index({"a": "../../../etc/passwd"}),
    "tokenizer gone": gone("tokenizer.json"),
    "tokenizer empty": content("tokenizer.json", ""),
    "tokenizer without anything": content("tokenizer.json", "{}"),
    "tokenizer_config cut off": content("tokenizer_config.json", "["),
    "template with a syntax error": content("chat_template.jinja", "{% for message in %}"),
    "template that reaches for Python": content("chat_template.jinja", "{{ ''.__class__.__mro__[1] }}"),
    "template that refuses everything": content("chat_template.jinja", "{{ raise_exception('no') }}"),
    "template without an end": content(
        "chat_template.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a folder that is in itself": lambda folder: (folder / "again").symlink_to(folder),
    "a pipe": lambda folder: os.mkfifo(folder / "weights.pipe"),
}  # fmt: skip
