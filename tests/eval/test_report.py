"""The page: the same bytes when rebuilt, nothing from outside, and what a reader sees in a browser."""

import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markupsafe import escape
from synthetic_round import StageConfig, make_round, next_round, stage, without

from accord.errors import AccordError
from accord.page.plots import line_plot
from accord.page.render import run_page
from accord.page.words import FIGURES, day, duration, number
from accord.records import read_jsonl
from accord.runs import Run, Runs
from eval.config import Margin, metrics_of
from eval.page.answers import measures_of, sample_views
from eval.page.drift import chain
from eval.page.metrics import Axis, MetricRow, explain, families, gated_rows, p_text, reading
from eval.page.report import page, rebuild
from eval.page.suites import columns
from eval.promotion import promote
from eval.rows import Judgement, Sample
from eval.statistics.paired import PairedDifference
from eval.verdict.gate import read_verdict
from eval.verdict.rule import conclude_metric, correct

ALL = metrics_of(["sentence_pairs"])


def change(low: float, difference: float, high: float) -> PairedDifference:
    return PairedDifference(0.5, 0.5 + difference, difference, low, high, 0.5, 160, 80)


# --- words and numbers


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.0, 0.5, -0.25, 1.234, 56.78, 1234.5, 12345, None, "x")] == [
        "0.000", "0.500", "−0.250", "1.23", "56.8", "1,234", "12,345", "–", "x",
    ]  # fmt: skip
    assert number(0.5, signed=True) == "+0.500"
    assert number(1e-6) == "1e−06"
    assert [number(x) for x in (0.00042, 0.00001)] == ["0.0004", "0.00001"]
    assert number(float("nan")) == "nan"


def test_times_read_well() -> None:
    assert day("2026-11-02T01:42:25+00:00") == "2 November 2026, 01:42 UTC"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T01:42:30+00:00") == "5 s"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T01:45:30+00:00") == "3 min 5 s"
    assert duration("2026-11-22T01:42:25+00:00", "2026-11-22T03:45:30+00:00") == "2 h 3 min"


def test_explanations() -> None:
    fall = Margin(direction="higher", margin=0.1)
    assert explain(conclude_metric(ALL["utility"], change(-0.05, 0.01, 0.07), fall), 0.95) == (
        "Simulated annotators' utility: from 0.500 to 0.510. With 95% confidence the change is between −0.050 and "
        "+0.070; the margin tolerates a fall by up to 0.100. Even the worst of these changes is within it."
    )
    assert explain(conclude_metric(ALL["eos_rate"], change(-0.4, -0.3, -0.2), fall), 0.9) == (
        "Answers that end by themselves: from 50.0% to 20.0%. With 90% confidence the change is between "
        "−40.0 points and −20.0 points; the margin tolerates a fall by up to 10.0 points. Even the mildest of these "
        "changes is worse than that."
    )
    undecided = explain(conclude_metric(ALL["utility"], change(-0.11, 0, 0.11), fall), 0.95)
    assert undecided.endswith("about 200 prompts would decide, and there were 80.")
    assert "0.500, as before." in undecided
    lean = Margin(direction="closer_to_zero", margin=0)
    assert "no move away from 50%" in explain(
        conclude_metric(ALL["sentence_pairs/lean"], change(0.1, 0.2, 0.3), lean), 0.95
    )


def test_axis_puts_better_on_the_right_and_the_margin_at_one() -> None:
    metric = conclude_metric(
        ALL["utility"], change(-0.05, 0.01, 0.07), Margin(direction="higher", margin=0.1)
    )
    axis = Axis.around([metric])
    assert (axis.worst, axis.best) == pytest.approx((1.7, 1.2))
    row = MetricRow.of(metric, axis)
    # 1.7 + 1.2 = 2.9 margins wide; the fall of 0.05 is half a margin to the left of zero, which is at 1.7
    assert row.left == pytest.approx(100 * (1.7 - 0.5) / 2.9, abs=0.01)
    assert row.right == pytest.approx(100 * (1.7 + 0.7) / 2.9, abs=0.01)
    lower = conclude_metric(ALL["response_tokens"], change(-5, 1, 20), Margin(direction="lower", margin=10))
    row = MetricRow.of(lower, Axis.around([lower]))
    assert row.left < axis.x(1) and row.dot is not None and row.left < row.dot < row.right
    huge = conclude_metric(ALL["utility"], change(-3, -2, -1), Margin(direction="higher", margin=0.01))
    row = MetricRow.of(huge, Axis.around([huge]))
    assert row.beyond_left and row.dot is None


@pytest.mark.parametrize(("reason", "times"), [("answers grew & grew", 1), (None, 0)])
def test_the_page_says_why_a_stage_stopped_early(tmp_path: Path, reason: str | None, times: int) -> None:
    run, _ = make_round(tmp_path, stop_reason=reason)
    page = (run.path / "report.html").read_text()
    assert page.count("<strong>Stopped early:</strong>") == times
    assert page.count("answers grew &amp; grew.") == times


def test_plots_are_the_same_bytes_and_have_words() -> None:
    series = {"training": [(0.0, 1.0), (1.0, 0.5)], "held out": [(0.0, 1.1), (1.0, 0.7)]}
    plot = line_plot("a", "Loss <of> sft", "falls & rises", series)
    assert plot == line_plot("a", "Loss <of> sft", "falls & rises", series)
    assert '<title id="a.title">Loss &lt;of&gt; sft</title>' in plot
    assert "falls &amp; rises" in plot
    assert ">update</text>" in plot  # text, not paths
    assert "<?xml" not in plot and "<metadata" not in plot
    ids = re.findall(r'\bid="([^"]+)"', plot)
    assert len(ids) == len(set(ids)) and all(name.startswith("a.") for name in ids)
    assert all(
        f'id="{name}"' in plot for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot)[0] if name
    )


# --- the file


def test_rebuilding_gives_the_same_bytes(failed_round: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = failed_round
    own = run.path / "report.html"
    before = own.read_bytes()
    assert rebuild(run, runs) == own
    assert rebuild(run, Runs(runs.root), tmp_path / "copy.html").read_bytes() == before == own.read_bytes()
    run.check_outputs()


def test_a_page_by_another_version_is_kept(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, prompts=10)
    (run.path / "report.html").write_text("older")
    with pytest.raises(AccordError, match="--output"):
        rebuild(run, runs)
    assert (run.path / "report.html").read_text() == "older"


def test_other_runs_have_a_page_too(failed_round: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = failed_round
    sft = runs.load(run.record.parents["baseline"])
    page = run_page(sft, runs)
    assert "Supervised fine-tuning" in page and "<svg" in page and "demonstrations.jsonl" in page
    assert rebuild(sft, runs, tmp_path / "sft.html").read_text() == page
    with pytest.raises(AccordError, match="--output"):
        rebuild(sft, runs)


class Links(HTMLParser):
    """Every address in a page, and whether its tags are balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "input", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action") and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_asks_nothing_of_the_network(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    page = (run.path / "report.html").read_text()
    links = Links(page)
    assert links.open == []
    assert len(links.ids) == len(set(links.ids))
    assert [a for a in links.addresses if not a.startswith(("#", "data:,"))] == []
    assert {a[1:] for a in links.addresses if a.startswith("#")} <= set(links.ids)
    assert (
        "default-src 'none'" in html.unescape(page)
        and "@import" not in page
        and not re.search(r"url\((?!#)", page)
    )


def test_page_says_what_a_reviewer_must_know(failed_round: tuple[Run, Runs]) -> None:
    run, runs = failed_round
    page = (run.path / "report.html").read_text()
    assert "The candidate must not replace the baseline." in page
    assert "No people were asked." in page
    for each in runs.lineage(run):
        assert each.id in page
        for digest in each.record.inputs.values():
            assert digest.split("@")[-1][:12] in page
    for digest in json.loads((run.path / "verdict.json").read_text())["files"].values():
        assert digest in page
    assert "52 pairs tied" in page and "2 duplicate" in page
    assert "76.9%" in page  # the reward model's held-out accuracy


def test_the_page_says_how_sure_one_can_be(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    verdict = read_verdict(run)
    page = (run.path / "report.html").read_text()
    metrics = page.split('<section id="metrics">')[1].split("</section>")[0]
    for metric in verdict.metrics:
        if metric.margin is not None:
            assert metric.pass_chance is not None and f"{100 * metric.pass_chance:.0f}%" in metrics
            assert p_text(metric.p_beyond_corrected) in metrics and f"family: {metric.family}" in metrics
    assert "(Holm) for all gated metrics of one family (quality)" in metrics  # the bias family has one
    # 8 groups of sentence pairs with 4 templates each, and prompts without groups
    suites = page.split('<section id="suites">')[1].split("</section>")[0]
    assert "Gender<small>4 sentence templates</small>" in suites and "Answers by group" not in metrics
    assert suites.count(">too small to say<") == 3 * 8
    assert [p_text(p) for p in (None, 0.0004, 0.0213, 0.7)] == ["", "below 0.001", "0.021", "above 0.5"]


def test_a_metric_that_cannot_decide_is_explained() -> None:
    still = PairedDifference(1.0, 1.0, 0.0, 0.0, 0.0, 0.1, 160, 80, p_above=0.01, p_below=0.99)
    stuck = conclude_metric(ALL["eos_rate"], still, Margin(direction="higher", margin=0.1))
    assert "It cannot decide: both models are at the best value" in explain(stuck, 0.95)
    beyond = PairedDifference(0.6, 0.4, -0.2, -0.3, -0.11, 0.5, 160, 80, p_above=0.98, p_below=0.02)
    one = conclude_metric(ALL["utility"], beyond, Margin(direction="higher", margin=0.1))
    first, _ = correct([one, one.model_copy(update={"p_beyond": 0.4})])
    assert "one of several metrics may be so by chance (p 0.040, corrected" in explain(first, 0.95)


def test_metrics_stand_in_the_order_of_their_verdicts_and_the_others_fold_by_family(
    failed_round: tuple[Run, Runs],
) -> None:
    run, _ = failed_round
    verdict = read_verdict(run)
    axis = Axis.around([metric for metric in verdict.metrics if metric.verdict])
    rows = gated_rows(verdict.metrics, axis)
    assert [row.rank for row in rows] == sorted(row.rank for row in rows) and rows[0].row.verdict == "FAIL"
    for one, two in pairwise(rows):
        assert one.rank < two.rank or one.worst >= two.worst
    page = (run.path / "report.html").read_text()
    places = [page.index(f'data-key="{escape(row.row.label)}"') for row in rows]
    assert places == sorted(places)
    found = families(verdict, axis)
    assert [family.name for family in found] == ["bias", "quality"]
    assert {each.row.name for family in found for each in family.rows} == {
        metric.name for metric in verdict.metrics if metric.verdict is None
    }
    assert "Bias: 2 metrics" in page


def test_a_metric_without_a_margin_is_drawn_with_better_on_the_right(failed_round: tuple[Run, Runs]) -> None:
    run, _ = failed_round
    verdict = read_verdict(run)
    axis = Axis.around([metric for metric in verdict.metrics if metric.verdict])
    rows = {each.row.name: each for family in families(verdict, axis) for each in family.rows}
    # the reward follows the utility, which fell: left of the middle, and the end further away is 46% from it
    reward = rows["reward"]
    assert reward.says == "worse" and reward.left == 50 - 46 and reward.left < reward.dot < reward.right < 50
    assert not rows["response_tokens"].is_directed and rows["response_tokens"].says in ("lower", "either way")
    assert [reading("lower", *each) for each in ((-2, -1), (-1, 1), (1, 2))] == [
        "better",
        "either way",
        "worse",
    ]
    assert reading(None, 1, 2) == "higher"


def test_an_item_reads_without_a_programs_marks() -> None:
    assert columns({"prompt": "Say yes.", "checks": [{"check": "words_at_most", "n": 3}], "prefix": None}) == {
        "prompt": ["Say yes."], "checks": ["Check: words_at_most, N: 3"],
    }  # fmt: skip
    assert columns({"answers": ["a cat", "a hen"], "label": 1}) == {
        "answers": ["a cat", "a hen"], "right_answer": ["a hen"],
    }  # fmt: skip
    assert columns({"prompt": [{"role": "user", "content": "<b>Hi"}]}) == {"prompt": ["User: <b>Hi"]}


def test_the_page_adds_up_the_rounds_and_is_the_same_bytes_after_the_next(tmp_path: Path) -> None:
    gate = {"utility": {"margin": 0.1}, "sentence_pairs/lean": {"margin": 0.2}}
    first, runs = make_round(tmp_path, -0.06, prompts=20, gate=gate)
    second = next_round(first, runs, -0.06)
    text = (second.path / "report.html").read_text()
    utilities = [
        next(metric for metric in read_verdict(run).metrics if metric.name == "utility")
        for run in (first, second)
    ]
    fall = sum(metric.difference for metric in utilities)
    assert fall < -0.1 < min(metric.difference for metric in utilities)
    assert "Small steps have added up." in text and f"add up to {number(fall, signed=True)}." in text
    assert text.count("over the rounds</title>") == 2 and f'href="../{first.id}/report.html"' in text
    # an evaluation that came later changes no page from before
    third = next_round(second, runs, 0.0)
    assert rebuild(second, Runs(runs.root)).read_text() == text
    assert "Small steps" not in (first.path / "report.html").read_text()
    assert [each.id for each in chain(third, runs).runs] == [first.id, second.id, third.id]
    # an earlier verdict that was changed is not believed
    (first.path / "verdict.json").write_text("{}")
    cut = chain(third, runs)
    assert cut.left_out == first.id and [each.id for each in cut.runs] == [second.id, third.id]


def test_the_page_says_what_the_training_data_hold_and_what_rose_with_the_reward(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, prompts=10)
    text = page(run, runs)
    assert "None of these was found there" in text and "The gain in reward looks suspicious" not in text
    for each in read_verdict(run).audit.findings:
        assert str(escape(each.sentence)) in text
    path = run.path / "verdict.json"
    verdict = json.loads(path.read_text())
    match = {
        "item": "h003", "text": "Why <b>is", "how": "exact", "share": 0.75, "source": "demonstrations of sft",
        "line": 12, "matching": "why b is",
    }  # fmt: skip
    verdict["contamination"]["suites"][0] |= {
        "exact": 1, "near": 1, "rate": 0.2, "contaminated": ["h003", "h004"], "worst": [match],
    }  # fmt: skip
    finding = {
        "name": "wins", "label": "Wins that length explains", "value": 0.1, "low": 0.05, "high": 0.2, "unit": "share",
        "threshold": 0.0, "suspicious": True, "noted": False, "sentence": "Longer answers won & won.",
    }  # fmt: skip
    verdict["audit"] = {"impossible": None, "findings": [finding]}
    path.write_text(json.dumps(verdict))
    text = page(run, runs)
    assert "2 of these were found there, word for word or nearly" in text and "20.0%" in text
    assert "Held-out prompts: 1 of 2 that were found" in text and "word for word, 75.0% of it" in text
    assert "Why &lt;b&gt;is" in text and "demonstrations of sft, line 12" in text
    assert text.count("Longer answers won &amp; won.") == 2 and "The gain in reward looks suspicious." in text
    verdict["audit"] = {"impossible": "there was no reward model", "findings": []}
    path.write_text(json.dumps(verdict))
    assert "There was nothing to audit: there was no reward model." in page(run, runs)


def test_people_are_not_called_simulated(tmp_path: Path) -> None:
    run, _ = make_round(tmp_path, annotators="human", prompts=10)
    page = (run.path / "report.html").read_text()
    assert "No people were asked" not in page
    assert "People ranked the baseline's answers in Argilla." in page


def test_the_formula_of_programs_is_on_no_page_of_a_round_with_people(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, annotators="human", prompts=10)
    feedback = next(each for each in runs.all() if each.record.stage == "feedback")
    recorded = (feedback.path / "metrics.json").read_text()
    (feedback.path / "metrics.json").write_text(json.dumps(feedback.metrics | {"mean_utility": 0.61}))
    text = page(run, runs)
    (feedback.path / "metrics.json").write_text(recorded)
    assert "utility" not in text.lower()
    assert {metric.name for metric in read_verdict(run).metrics} == {
        "reward", "win_rate", "win_rate_length_controlled", "response_tokens", "eos_rate", "distinct_bigrams",
        "sentence_pairs/lean", "sentence_pairs/gap", "sentence_pairs/absolute_gap",
    }  # fmt: skip
    assert "independent_utility" not in {each.name for each in read_verdict(run).audit.findings}
    assert "By the reward the candidate's answer is better in" in text
    views = sample_views(read_jsonl(run.path / "samples.jsonl", Sample))
    gains = [(v.sample.candidate.reward or 0) - (v.sample.baseline.reward or 0) for v in views]
    assert gains == sorted(gains) and {tuple(each.by for each in v.changes) for v in views} == {("reward",)}
    promote(run, runs, "these few answers will do here")
    assert "utility" not in next(runs.root.glob("promoted/*/README.md")).read_text().lower()


def test_answers_are_ordered_by_what_measured_them(tmp_path: Path) -> None:
    run, _ = make_round(tmp_path, annotators="human", prompts=4, is_judged=True)
    samples = read_jsonl(run.path / "samples.jsonl", Sample)
    bare = without(samples, "reward")
    assert list(measures_of(samples)) == ["reward", "judge"] and list(measures_of(bare)) == ["judge"]
    sure = [
        each.model_copy(update={"judgement": Judgement(candidate_is_better=better)})
        for each, better in zip(bare, (0.5, None, 0.2, 0.9, 0.1, 0.4, 0.6, 0.3), strict=True)
    ]
    judged = [
        view.sample.judgement.candidate_is_better for view in sample_views(sure) if view.sample.judgement
    ]
    assert judged == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, None]
    unmeasured = [each.model_copy(update={"judgement": None}) for each in reversed(bare)]
    assert measures_of(unmeasured) == {}
    assert [view.sample.id for view in sample_views(unmeasured)] == [each.id for each in samples]


def test_people_and_programs_are_told_apart(tmp_path: Path) -> None:
    """A round with people after one with programs, whose judgements are joined."""
    first, runs = make_round(tmp_path, prompts=10)
    programs = next(each for each in runs.all() if each.record.stage == "feedback")
    of_people = {"annotators_kind": "human"}
    people = stage(runs, "feedback", StageConfig(seed=7), {"evaluation": first}, [], of_people)
    joined = {"feedback_0": people, "feedback_1": programs}
    of_both = {"annotators_kind": "simulated", "annotators": ["ann", "careful"], "mean_utility": 0.61}
    both = stage(runs, "feedback", StageConfig(seed=8), joined, [], of_both)
    run = next_round(first, runs, 0.0, both, gate={"eos_rate": {"margin": 0.1}})
    text = (run.path / "report.html").read_text()
    assert (
        "Not only people were asked." in text
        and "People, and simulated annotators, which are programs" in text
    )
    assert "utility" not in text.lower()
    assert "No people were asked." in (first.path / "report.html").read_text()


def reward_section(run: Run, runs: Runs) -> str:
    return page(run, runs).split('<section id="reward">')[1].split("</section>")[0]


def test_the_reward_model_has_a_few_figures_and_a_link_to_its_own_page(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, prompts=10)
    reward = runs.load(run.record.parents["reward_model"])
    # a run from before the report card: no page to link to, and only the figures that it has
    plain = reward_section(run, runs)
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", plain) == [
        ("Pairs it was trained on", "313"), ("Held-out pairs", "78"),
    ]  # fmt: skip
    assert "report card" not in plain and Links(plain).addresses == []

    few = {
        "heldout_prompts": 41, "prefer_longer_accuracy": 0.551, "length_only_accuracy": 0.449,
        "annotator_agreement": 0.702, "heldout_ece_after_temperature": 0.033,
        "score_length_correlation_within_prompts": 0.211, "disagreement_auroc": 0.605, "best_of_n_gain": 0.144,
    }  # fmt: skip
    more = {"temperature": 1.987, "heldout_brier": 0.189, "previous_mcnemar_p": 0.876}
    (reward.path / "metrics.json").write_text(json.dumps(reward.metrics | more | few))
    (reward.path / "report.html").write_text("its page")
    reward.record.outputs["report.html"] = "of its page"
    reward.save()
    full = reward_section(run, runs)
    figures = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", full))
    assert list(figures.values()) == ["313", "78", *(number(each) for each in few.values())]
    assert list(figures) == [FIGURES[key] for key in ("training_pairs", "heldout_pairs", *few)]
    assert not any(number(each) in full for each in more.values())
    (address,) = Links(full).addresses
    assert (run.path / address).resolve() == (reward.path / "report.html").resolve()
