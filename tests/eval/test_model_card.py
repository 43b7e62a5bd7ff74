"""The card of a promoted model: one of the hub, with the figures, and whatever texts it has to show."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from synthetic_round import make_round

from accord.cli.main import main
from accord.page.markdown import code, one_line, table
from accord.page.words import number, percent
from accord.runs import Runs
from eval.page.model_card import file_name
from eval.promotion import (
    promote,
)
from eval.verdict.gate import (
    Subject,
    read_verdict,
)
from eval.verdict.signing import sign

NASTY = (
    "</code></pre>| `x` | \n---\n# **owned** <script>alert(1)</script> [a](http://b.c) \x1b[31m\u202e ``` end"
)


def accord(runs: Runs, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *arguments])


def rendered(card: str) -> tuple[str, list[str]]:
    """A card's Markdown as HTML, and the types of its tokens, as a page that allows HTML would show it."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [
        inner for token in markdown.parse(card) for inner in [token, *(token.children or [])] if inner.type
    ]
    return markdown.render(card), [token.type for token in tokens]


def test_the_card_is_one_of_the_hub_and_has_the_figures(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, 0.1)
    result = accord(runs, "promote", run.id)
    candidate = run.record.parents["candidate"]
    path = runs.root / "promoted" / candidate / "README.md"
    assert f"card:     {path}" in result.stdout
    card = ModelCard.load(path)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["accord", "rlhf", "gate-pass"]
    verdict = read_verdict(run)
    found = {each.metric_type: each for each in card.data.eval_results or []}
    assert set(found) == {metric.name for metric in verdict.metrics}
    for metric in verdict.metrics:
        assert found[metric.name].metric_value == metric.candidate
        arguments = found[metric.name].metric_args or {}
        assert (arguments["low"], arguments["high"]) == (metric.low, metric.high)
        assert arguments.get("margin") == metric.margin
    html, _ = rendered(card.text)
    rows = re.findall(r"<tr>\s*(.*?)\s*</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in rows]
    utility = next(row for row in cells if row[0].startswith("Simulated annotators"))
    metric = verdict.metrics[0]
    assert utility == [
        "Simulated annotators' utility", number(metric.baseline), number(metric.candidate),
        number(metric.difference, signed=True),
        f"{number(metric.low, signed=True)} to {number(metric.high, signed=True)}", "a fall by up to 0.020", "PASS",
        "40 prompts",
    ]  # fmt: skip
    assert next(row for row in cells if row[0].startswith("Answers that end"))[1] == percent(0.9)
    for digest in (*verdict.files.values(), verdict.candidate.digest, sign("any", {}).fingerprint):
        assert digest in card.text
    for each in (
        "2 simulated (programs)",
        "600",
        "391",
        "0.410",
        "2 duplicate",
        candidate,
        run.id,
        "95% interval",
    ):
        assert each in card.text
    assert str(tmp_path) not in card.content  # no folder of this machine
    assert "override" not in card.text.lower()


def test_people_are_called_people(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, 0.1, annotators="human")
    promote(run, runs)
    text = next(runs.root.glob("promoted/*/README.md")).read_text()
    assert "2 people" in text and "Programs with a formula" not in text


def test_texts_cannot_break_the_card(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, -0.1)
    promote(run, runs, NASTY)
    path = next(runs.root.glob("promoted/*/README.md"))
    card = ModelCard.load(path)
    html, types = rendered(card.text)
    assert "html_block" not in types and "html_inline" not in types and "link_open" not in types
    assert html.count("<h1>") == 1 and "\x1b" not in path.read_text() and "\u202e" not in path.read_text()
    shown = re.search(r"for this reason:</p>\s*<p><code>(.*?)</code>", html, re.DOTALL)
    assert shown is not None
    import html as escaping

    assert escaping.unescape(shown[1]) == one_line(NASTY)


@pytest.mark.parametrize(
    "text", [NASTY, "`", "``a`", " ", "a|b", "a\\|b", "|", "plain", "日本 é", "<b>&amp;</b>"]
)
def test_code_shows_any_text_in_a_table_cell(text: str) -> None:
    import html as escaping

    page, types = rendered(table(["a", "b"], [[code(text), "end"]]))
    assert types.count("td_open") == 2 and "html_inline" not in types
    cell = re.search(r"<td><code>(.*?)</code></td>", page, re.DOTALL)
    assert cell is not None
    assert escaping.unescape(cell[1]).strip() == one_line(text)


def test_names_without_the_folders_of_a_machine() -> None:
    assert [file_name(each) for each in ("/home/ada/x.jsonl", "../models/m", "judge:/srv/m", "~/m")] == [
        "x.jsonl", "m", "judge:m", "m",
    ]  # fmt: skip
    for each in ("bundled:demo/prompts.jsonl", "org/model", "run:sft-0", "judge:https://host/v1#m"):
        assert file_name(each) == each


def test_a_card_of_a_model_that_no_run_made(tmp_path: Path) -> None:
    """Nothing is known of its training, and the card says so."""
    from eval.page.model_card import model_card

    run, runs = make_round(tmp_path, 0.1)
    verdict = read_verdict(run)
    outside = Subject(reference="/home/ada/models/mine", digest="sha256:0")
    text = model_card(run, runs, verdict.model_copy(update={"candidate": outside}), "SHA256:x")
    card = ModelCard(text)
    assert "# `mine`" in text and "/home/ada" not in text
    assert card.data.license is None and "how it was trained is not known here" in text
