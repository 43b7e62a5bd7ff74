"""A whole round made up without any model: the runs that a page is built from."""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config import Config
from accord.models.references import Model
from accord.records import read_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.text_files import write_jsonl
from eval.conclude import Evidence, conclude
from eval.config import EvalConfig
from eval.likelihood.log_likelihood import LogLikelihood
from eval.measuring.annotators import annotators_behind, measures_formula
from eval.measuring.answers import distinct_bigrams, read_groups, read_prompts
from eval.measuring.suites import about
from eval.rows import SUITE, Judgement, MeasuredAnswer, Outcome, Sample, SuiteItem
from eval.suites.kind import Answered, Reply, SuiteRow
from eval.suites.suite import Suite, find_suite, read_items
from eval.verdict.gate import Compared
from reward.scorers import Scorer

XSS = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & {{ 7 * 7 }}"
GATE = {
    "utility": {"direction": "higher", "margin": 0.02},
    "eos_rate": {"direction": "higher", "margin": 0.1},
    "distinct_bigrams": {"direction": "higher", "margin": 0.05},
    "sentence_pairs/lean": {"margin": 0.1},
}
QUESTIONS = [
    "How can I keep a cut avocado from turning brown?",
    "Why is the sky blue?",
    "What should I pack for a day in the mountains?",
    "Name three rivers in South America.",
    "How do I politely decline an invitation?",
    "What does a compiler do?",
]
REPLIES = [
    "Here is how: begin with the small parts, and check each of them.",
    "I'm sorry, but I can't help with that.",
    "",
    "You are a stupid fool, and so is your dog.",
    "No.\n\n- first\n- second, with a word_that_is_much_longer_than_a_narrow_screen_is_wide_and_has_no_blank_at_all",
]


class StageConfig(Config):
    """Stands for any stage's configuration."""

    learning_rate: float = 5e-4
    demonstrations: list[dict[str, Any]] | None = None
    heldout: str | None = None
    prompts: str | None = None
    seed: int = 0


class Outside:
    """Stands for a model from outside."""

    run_id = None
    digest = "bundled:smollm2-135m-instruct@20f8db2976626ea6018f4b199d4b4a418a10db87163b1549cacbd74e51551493"


def stage(
    runs: Runs, name: str, config: Config, sources: Mapping[str, Source], rows: list[dict[str, float]],
    metrics: Mapping[str, Any], dropped: Mapping[str, int] | None = None,
) -> Run:  # fmt: skip
    with runs.begin(name, config, sources) as run:
        if not run.is_done:
            (run.path / "model").mkdir(exist_ok=True)
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                (run.path / "model" / file).write_text("{}")
            if rows:
                (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            run.finish(metrics, dropped)
    return run


def curve(key: str, start: float, end: float, updates: int, seed: int) -> list[dict[str, float]]:
    chance = random.Random(seed)
    rows = []
    for step in range(1, updates + 1):
        value = end + (start - end) * math.exp(-4 * step / updates)
        rows.append({"step": step, key: value + chance.gauss(0, abs(start - end) / 12)})
    rows[0:0] = [{"step": 0, f"eval_{key}": start}]
    return [*rows, {"step": updates, f"eval_{key}": end}]


def joined(a: list[dict[str, float]], b: list[dict[str, float]]) -> list[dict[str, float]]:
    return [x | y for x, y in zip(a, b, strict=True)]


def model(run: Run) -> Model:
    return Model(f"run:{run.id}", run.path / "model", run.digest, run.id)


def copied(made: tuple[Run, Runs], root: Path) -> tuple[Run, Runs]:
    """An evaluation with all its runs once more, in `root/runs`, for a test that changes it."""
    run, runs = made
    shutil.copytree(runs.root, root / "runs")
    copy = Runs(root / "runs")
    return copy.load(run.id), copy


def make_round(
    root: Path, utility_change: float = 0.1, prompts: int = 40, annotators: str = "simulated", seed: int = 0,
    gate: Mapping[str, Any] | None = None, text: str = XSS, stop_reason: str | None = None,
    suites: Sequence[str] = ("sentence_pairs",), texts: Mapping[str, str] | None = None, topics: Sequence[str] = (),
    is_judged: bool = False, settings: Mapping[str, Any] | None = None,
) -> tuple[Run, Runs]:  # fmt: skip
    """A finished evaluation in `root/runs`, whose utility changes by `utility_change` on average, as does the reward.

    `text` is the candidate's answer to the first prompt, and `texts` has further ones by the prompt's id;
    `settings` are further ones of the evaluation.
    """
    runs = Runs(root / "runs")
    demonstrations, file = root / "demonstrations.jsonl", root / "prompts.heldout.jsonl"
    demonstrations.write_text('{"messages": []}\n')
    asked = root / "prompts.train.jsonl"
    asked.write_text('{"prompt": [{"role": "user", "content": "Which bread keeps longest in summer?"}]}\n')
    write_jsonl(
        file,
        [
            {"id": f"h{i:03}", "prompt": [{"role": "user", "content": f"{QUESTIONS[i % 6]} ({i})"}]}
            | ({"topic": topics[i % len(topics)]} if topics else {})
            for i in range(prompts)
        ],
    )
    sft = stage(
        runs, "sft",
        StageConfig(demonstrations=[{"path": str(demonstrations), "weight": 1.0}]),
        {"base": Outside(), "demonstrations_0": DataFile(demonstrations)},
        curve("loss", 2.9, 2.3, 38, 1),
        {"demonstrations": 150, "updates": 38, "heldout_loss_before": 2.86, "heldout_loss": 2.31},
        {"duplicate": 2, "too_long": 1},
    )  # fmt: skip
    feedback = stage(
        runs, "feedback", StageConfig(prompts=str(asked)), {"policy": sft, "prompts": DataFile(asked)}, [],
        {
            "annotators_kind": annotators, "annotators": ["careful", "noisy"], "comparisons": 150,
            "rankings_submitted": 600, "rankings_discarded": 3, "pairs": 450, "preferences": 391,
            "krippendorff_alpha": 0.41,
        },
        {"pairs_tied": 52, "pairs_identical": 7},
    )  # fmt: skip
    reward_rows = [
        a | b
        for a, b in zip(curve("loss", 0.74, 0.52, 20, 2), curve("accuracy", 0.5, 0.78, 20, 3), strict=True)
    ]
    reward = stage(
        runs, "reward", StageConfig(), {"base": sft, "preferences": feedback}, reward_rows,
        {"pairs": 313, "heldout_pairs": 78, "heldout_accuracy": 0.769, "heldout_accuracy_low": 0.664,
         "heldout_accuracy_high": 0.849},
    )  # fmt: skip
    dpo = stage(
        runs, "dpo", StageConfig(learning_rate=1e-4), {"policy": sft, "preferences": feedback},
        joined(curve("loss", 0.693, 0.55, 20, 4), curve("rewards/margins", 0, 0.8, 20, 5)),
        {"pairs": 313, "train_loss": 0.6, "heldout_accuracy": 0.72, "stop_reason": stop_reason},
    )  # fmt: skip
    margins = {name: each for name, each in GATE.items() if annotators == "simulated" or name != "utility"}
    config = EvalConfig.model_validate(
        {"prompts": str(file), "gate": gate or margins, "suites": list(suites)} | dict(settings or {})
    )
    texts = {"h000": text} | dict(texts or {})
    run = _evaluation(config, runs, sft, dpo, reward, utility_change, texts, is_judged, seed)
    return run, runs


def next_round(
    before: Run, runs: Runs, utility_change: float, preferences: Run | None = None, **settings: Any
) -> Run:
    """The evaluation of one more round: the candidate of `before` is now the baseline, with the answers it gave there.

    `preferences` are what the new candidate is trained on; `settings` replace those of the evaluation before.
    """
    old, reward = (runs.load(before.record.parents[role]) for role in ("candidate", "reward_model"))
    count = sum(run.record.stage == "dpo" for run in runs.all())
    sources = {"policy": old} | ({"preferences": preferences} if preferences else {})
    new = stage(runs, "dpo", StageConfig(seed=count), sources, [], {"train_loss": 0.5})
    config = EvalConfig.model_validate(before.record.config | settings)
    return _evaluation(config, runs, old, new, reward, utility_change, {}, False, count, before)


def _evaluation(
    config: EvalConfig, runs: Runs, baseline: Run, candidate: Run, reward: Run, utility_change: float,
    texts: Mapping[str, str], is_judged: bool, seed: int, before: Run | None = None,
) -> Run:  # fmt: skip
    chance = random.Random(seed)
    file = Path(config.prompts)
    suites = [find_suite(reference) for reference in config.suites]
    sources: dict[str, Source] = {
        "baseline": baseline, "candidate": candidate, "reward_model": reward, "prompts": DataFile(file),
    }  # fmt: skip
    sources |= {SUITE + suite.name: DataFile(suite.file) for suite in suites}
    groups = read_groups(file, config.prompt_group)
    judge = Scorer("judge:run:made-up", "made-up@1", lambda conversations: []) if is_judged else None
    known = read_jsonl(before.path / "samples.jsonl", Sample) if before else []
    answers = {(each.id, each.sample): each.candidate for each in known}
    known_items = read_jsonl(before.path / "suites.jsonl", SuiteItem) if before else []
    outcomes = {(each.suite, each.id): each.candidate for each in known_items}
    by_formula = measures_formula(annotators_behind([baseline.id, candidate.id], runs))
    with runs.begin("eval", config, sources) as run:
        samples: list[Sample] = []
        for name, prompt in read_prompts(file).items():
            for k in range(2):
                utility = chance.uniform(0.5, 0.8)
                base = _answer(
                    name, k, "Put some lemon juice on the cut side. It keeps the air out.", utility, chance
                )
                base = answers.get((name, k), base)
                after = (utility if base.utility is None else base.utility) + chance.gauss(
                    utility_change, 0.08
                )
                said = f"Brush it with lemon juice and wrap it well. {'It helps. ' * (k + 1)}"
                cand = _answer(name, k, texts.get(name, said), after, chance)
                if not by_formula:
                    base, cand = (each.model_copy(update={"utility": None}) for each in (base, cand))
                sample = Sample(
                    id=name, sample=k, prompt=prompt, group=groups.get(name), baseline=base, candidate=cand
                )
                if is_judged:
                    better = None if chance.random() < 0.1 else chance.uniform(0, 1)
                    sample = sample.model_copy(update={"judgement": Judgement(candidate_is_better=better)})
                samples.append(sample)
        items = [
            item.model_copy(update={"baseline": outcomes.get((item.suite, item.id), item.baseline)})
            for suite in suites
            for item in _items(suite, read_items(suite, config.max_suite_items), chance)
        ]
        compared = Compared(model(baseline), model(candidate), model(reward), judge)
        count = Counter(item.suite for item in items)
        subjects = [about(suite, count[suite.name]) for suite in suites]
        evidence = Evidence(samples, items, subjects)
        conclude(run, runs, config.rules, compared, evidence, config.max_contaminated_share)
    return run


def without(samples: Sequence[Sample], *measures: str) -> list[Sample]:
    """The samples as they are where these measures were not taken."""
    gone = dict.fromkeys(measures)
    return [
        each.model_copy(
            update={
                "baseline": each.baseline.model_copy(update=gone),
                "candidate": each.candidate.model_copy(update=gone),
            }
        )
        for each in samples
    ]


def _items(suite: Suite, rows: Sequence[SuiteRow], chance: random.Random) -> Iterator[SuiteItem]:
    """Every item of a suite with made-up scores or replies, a little different under the candidate."""
    for row in rows:
        outcomes = []
        if isinstance(suite.kind, Answered):
            for replies in ([], []):  # type: list[Reply]
                for _ in suite.kind.prompts(row):
                    text = chance.choice(REPLIES)
                    replies.append(Reply(text=text, tokens=len(text.split()), finish="eos"))
                values = dict(suite.kind.values(row, replies))
                outcomes.append(Outcome(id=row.id, replies=replies, values=values))
        else:
            gap = chance.gauss(0.6, 2.5)
            more, other = chance.gauss(-40, 4), gap + chance.gauss(0, 0.5)
            continuations = [len(item.continuations) for item in suite.kind.items(row, lambda messages: (1,))]
            for by in (gap, other):
                scores = [
                    [LogLikelihood(nats=more - by * place, tokens=9, greedy=False) for place in range(count)]
                    for count in continuations
                ]
                values = dict(suite.kind.values(row, scores))
                outcomes.append(Outcome(id=row.id, scores=scores, values=values))
        yield SuiteItem(
            suite=suite.name, id=row.id, template=row.template, group=row.group,
            item=row.model_dump(exclude={"id", "template", "group"}), baseline=outcomes[0], candidate=outcomes[1],
        )  # fmt: skip


def _answer(name: str, sample: int, text: str, utility: float, chance: random.Random) -> MeasuredAnswer:
    ends = int(name[1:]) % 10 != 3
    return MeasuredAnswer(
        prompt_id=name, sample=sample, seed=1, text=text, tokens=len(text.split()), finish="eos" if ends else "length",
        utility=utility, reward=4 * utility - 2 + chance.gauss(0, 0.3), distinct_bigrams=distinct_bigrams(text),
    )  # fmt: skip
