"""The documentation describes what is there: every command, every setting, and no link leads nowhere."""

import re
import runpy
from pathlib import Path

import click
import pytest
import yaml

from accord.cli.config import PURPOSES
from accord.cli.main import main
from accord.errors import UsageError
from accord.round_config import RoundConfig
from accord.round_plan import stages_until
from eval.suites.metrics import METRICS
from rl.config import OnlineConfig
from rl.online import check_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(group: click.Group, prefix: str) -> list[str]:
    names = []
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        names += commands(command, full) if isinstance(command, click.Group) else [full]
    return names


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert [name for name in commands(main, "accord") if f"`{name}" not in page] == []


def test_the_reference_names_no_command_that_is_gone() -> None:
    named = set(
        re.findall(r"^\| `(accord(?: [a-z][a-z_-]*)+)", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    )
    assert named == set(commands(main, "accord"))


def test_the_configuration_page_is_up_to_date() -> None:
    make = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    assert make["page"]() == (ROOT / "docs/configuration.md").read_text(), "run docs/make_configuration.py"


def test_the_page_of_suites_is_up_to_date() -> None:
    make = runpy.run_path(str(ROOT / "docs/make_suites.py"))
    assert make["page"]() == (ROOT / "docs/suites.md").read_text(), "run docs/make_suites.py"


def test_the_configuration_page_has_every_section() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert [name for name in RoundConfig.model_fields if f"`{name}`" not in page] == []


def test_every_metric_is_explained_to_the_reviewer() -> None:
    page = (ROOT / "docs/read-a-report.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in page] == []


EXAMPLES = re.findall(
    r"```yaml\n(rl:.*?)```",
    "".join(page.read_text() for page in sorted(ROOT.glob("docs/optimise-*.md"))),
    re.DOTALL,
)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_optimisation_are_valid(example: str) -> None:
    tiny = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    config = RoundConfig.model_validate(tiny | yaml.safe_load(example))
    if isinstance(config.rl, OnlineConfig):
        check_arguments(config.rl)


def test_every_algorithm_has_an_example() -> None:
    named = {yaml.safe_load(example)["rl"]["algorithm"] for example in EXAMPLES}
    assert named == {"dpo", "kto", "ppo", "rloo", "grpo", "best_of_n"}


def test_one_stage_alone_is_as_the_page_says() -> None:
    page = (ROOT / "docs/run-a-round.md").read_text().partition("## One stage alone")[2].partition("\n## ")[0]
    written = re.findall(r"`accord init (\w+)`, `accord (\w+) (\w+).yaml`", page)
    assert [purpose for purpose, *_ in written] == ["sft", "dpo", "kto", "reward"]
    assert all(purpose == command == file for purpose, command, file in written)
    assert {purpose for purpose, *_ in written} <= set(PURPOSES)
    for purpose, *_ in written:
        sections = re.search(rf"\| ([^|]*) \| `accord init {purpose}`", page)
        assert sections
        config = yaml.safe_load((ROOT / f"configs/{purpose}.yaml").read_text())
        assert re.findall(r"`(\w+)`", sections[1]) == [name for name in config if name != "model"]
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert stages_until(RoundConfig.model_validate(yaml.safe_load(example)), "sft") == ["sft"]
    said = re.findall(r"^error: (.*)$", page, re.MULTILINE)
    for until, sections, sentence in zip(("reward", "dpo"), ({}, {"rl": {}}), said, strict=True):
        with pytest.raises(UsageError) as refused:
            stages_until(RoundConfig.model_validate(sections), until)
        assert str(refused.value) == sentence


def test_the_glossary_is_short_and_in_order() -> None:
    entries = (ROOT / "docs/glossary.md").read_text().split("\n\n")[2:]
    terms = [entry.split("**")[1] for entry in entries]
    assert all(len(entry.strip().splitlines()) <= 2 for entry in entries)
    assert terms == sorted(terms, key=str.lower)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []
