"""Damaged model folders: each is refused with one sentence of what is wrong and where, before anything starts."""

import shutil
from pathlib import Path

import pytest
from damaged_models import DAMAGES

from accord.chat import rendering
from accord.errors import AccordError
from accord.models.base import examine_base, look_at_base
from accord.models.references import Model
from accord.runs import Runs


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
