"""A whole round made up without any model: the runs that a page is built from."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.config import Config
from accord.models import Model
from accord.records import write_jsonl
from accord.runs import DataFile, Run, Runs, Source
from eval.answers import distinct_bigrams, read_prompts
from eval.config import EvalConfig
from eval.evaluate import conclude
from eval.gate import SUITE, Compared
from eval.log_likelihood import LogLikelihood
from eval.rows import MeasuredAnswer, Outcome, Sample, SuiteItem
from eval.suites.kinds.sentence_pairs import KIND
from eval.suites.suite import find_suite, read_items

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


def make_round(
    root: Path, utility_change: float = 0.1, prompts: int = 40, annotators: str = "simulated", seed: int = 0,
    gate: Mapping[str, Any] | None = None, text: str = XSS, stop_reason: str | None = None,
) -> tuple[Run, Runs]:  # fmt: skip
    """A finished evaluation in `root/runs`, whose utility changes by `utility_change` on average."""
    chance = random.Random(seed)
    runs = Runs(root / "runs")
    demonstrations, file = root / "demonstrations.jsonl", root / "prompts.heldout.jsonl"
    demonstrations.write_text('{"messages": []}\n')
    asked = root / "prompts.train.jsonl"
    asked.write_text('{"prompt": [{"role": "user", "content": "Which bread keeps longest in summer?"}]}\n')
    write_jsonl(
        file,
        [
            {"id": f"h{i:03}", "prompt": [{"role": "user", "content": f"{QUESTIONS[i % 6]} ({i})"}]}
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
    config = EvalConfig.model_validate({"prompts": str(file), "gate": gate or GATE})
    suite = find_suite("sentence_pairs")
    sources: dict[str, Source] = {
        "baseline": sft, "candidate": dpo, "reward_model": reward, "prompts": DataFile(file),
        SUITE + suite.name: DataFile(suite.file),
    }  # fmt: skip
    with runs.begin("eval", config, sources) as run:
        samples = []
        for name, prompt in read_prompts(file).items():
            for k in range(2):
                utility = chance.uniform(0.5, 0.8)
                base = _answer(
                    name, k, "Put some lemon juice on the cut side. It keeps the air out.", utility, chance
                )
                after = utility + chance.gauss(utility_change, 0.08)
                said = (
                    text
                    if name == "h000"
                    else f"Brush it with lemon juice and wrap it well. {'It helps. ' * (k + 1)}"
                )
                cand = _answer(name, k, said, after, chance)
                samples.append(Sample(id=name, sample=k, prompt=prompt, baseline=base, candidate=cand))
        items = []
        for pair in read_items(suite):
            gap = chance.gauss(0.6, 2.5)
            more, other = chance.gauss(-40, 4), gap + chance.gauss(0, 0.5)
            before, after = (
                [[LogLikelihood(nats=nats, tokens=9, greedy=False) for nats in (more, more - by)]]
                for by in (gap, other)
            )
            items.append(
                SuiteItem(
                    suite=suite.name, id=pair.id, template=pair.template, group=pair.group,
                    item=pair.model_dump(exclude={"id", "template", "group"}),
                    baseline=Outcome(id=pair.id, scores=before, values=dict(KIND.values(pair, before))),
                    candidate=Outcome(id=pair.id, scores=after, values=dict(KIND.values(pair, after))),
                )
            )  # fmt: skip
        conclude(config, run, runs, samples, items, Compared(model(sft), model(dpo), model(reward)))
    return run, runs


def _answer(name: str, sample: int, text: str, utility: float, chance: random.Random) -> MeasuredAnswer:
    ends = int(name[1:]) % 10 != 3
    return MeasuredAnswer(
        prompt_id=name, sample=sample, seed=1, text=text, tokens=len(text.split()), finish="eos" if ends else "length",
        utility=utility, reward=4 * utility - 2 + chance.gauss(0, 0.3), distinct_bigrams=distinct_bigrams(text),
    )  # fmt: skip
