"""Forty damaged model folders: each is refused with one sentence of what is wrong and where, before anything starts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.chat import rendering
from accord.errors import AccordError
from accord.models.base import examine_base, look_at_base
from accord.models.references import Model
from accord.runs import Runs

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


@pytest.fixture
def folder(tiny_model: Model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model.folder, tmp_path / "model"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(rendering, "SECONDS_TO_RENDER", 2.0)
    DAMAGES[damage](folder)
    with pytest.raises(AccordError) as refused:
        look_at_base(str(folder), Runs(tmp_path / "runs"))
        examine_base(str(folder), Runs(tmp_path / "runs"))
    told = str(refused.value)
    assert "\n" not in told and len(told) < 900 and str(folder) in told


def test_an_undamaged_folder_is_taken(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").touch(exist_ok=True)
    examine_base(str(folder), Runs(tmp_path / "runs"))
    (folder / "elsewhere.safetensors.md").symlink_to(folder / "config.json")
    examine_base(str(folder), Runs(tmp_path / "runs"))


def test_what_a_template_below_a_folder_changes_is_its_digest(folder: Path, tmp_path: Path) -> None:
    from accord.models.references import resolve

    runs = Runs(tmp_path / "runs")
    before = resolve(str(folder), runs).digest
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    inside = resolve(str(folder), runs).digest
    (folder / "additional_chat_templates").rename(tmp_path / "elsewhere")
    assert resolve(str(folder), runs).digest == before
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert resolve(str(folder), runs).digest == inside != before
