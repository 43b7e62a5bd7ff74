"""Every file that some command of accord reads, a good one of each, its damages, and the command.

make damage      # tests/damaged_input.py: all of them, as a table
"""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from damaged_files import (
    ANY,
    BINARY,
    CSV,
    EMPTY,
    JSON,
    JSON_LINES,
    KEYS,
    LONG,
    PACKED,
    PARQUET,
    RIGHT,
    TEMPLATE,
    TEXT,
    VALUES,
    YAML,
    Damage,
    Rows,
    as_csv,
    as_parquet,
    as_zst,
    in_the_head,
    lines,
    wrong_values,
)  # fmt: skip

YES = {"role": "assistant", "content": "Yes, it is."}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


DEMONSTRATIONS: Rows = [{"messages": [*user(f"Is {i} a prime?"), YES]} for i in range(12)]
PROMPTS: Rows = [{"prompt": user(f"Is {i} even?"), "topic": "numbers"} for i in range(16)]
HELD_OUT: Rows = [{"id": f"h{i}", "prompt": user(f"Held out {i}?"), "topic": "numbers"} for i in range(16)]
PAIRS: Rows = [
    {"prompt": user(f"Is {i} odd?"), "chosen": assistant(f"Yes, {i} is."), "rejected": assistant(f"No, {i}.")}
    for i in range(30)
]
COMPARISONS: Rows = [
    {
        "id": f"c{i}", "prompt": user(f"Is {i} odd?"),
        "responses": [{"text": text, "run": "r", "seed": 0} for text in ("Yes.", "No.")],
        "rankings": [{"annotator": "ann", "ranks": [1, 2]}],
    }
    for i in range(30)
]  # fmt: skip
LABELS: Rows = [{"prompt": user(f"Is {i} odd?"), "completion": [YES], "label": i % 2 == 0} for i in range(30)]
GOLD: Rows = [{"prompt": user(f"{i} + 1?"), "responses": ["2", "3"], "ranks": [1, 2]} for i in range(4)]
TEXTS: Rows = [{"text": f"Sentence {i} is about primes."} for i in range(8)]
ITEMS: Rows = [
    {"id": f"i{i}", "prompt": f"Is {i} even?", "reference": "yes" if i % 2 else "no"} for i in range(12)
]
SAMPLES: Rows = [
    {"doc_id": i, "doc_hash": f"h{i}", "metrics": ["acc"], "acc": float(i % 2)} for i in range(12)
]
SUITE = """---
pretty_name: Even numbers
license: mit
accord:
  kind: labelled
  family: quality
  source: ours
---

**What it measures.** Whether numbers are even.
"""
HELD_CHATS: Rows = [{"messages": [*user(f"Held {i}?"), YES]} for i in range(4)]


ASKED = [{"instruction": f"Is {i} a prime?", "output": "Yes, it is."} for i in range(12)]

TEMPLATE_TEXT = b"""{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFnd7/qmnY4brV8fvOIkkqp3DmHfSqZlYnvHDjqBzjyz somebody\n"
OTHER = "config check base.yaml 'sft={demonstrations: good.jsonl}' model=other"


def prepare(folder: Path) -> None:
    """All that the commands read besides the damaged file, in the working folder.

    What a `Place` has no good content for is made here.
    """
    import datasets
    from tiny_model import make_tiny_model

    from accord.config import Config
    from accord.runs import Runs

    for name in ("suite", "keys"):
        (folder / name).mkdir(mode=0o700)
    make_tiny_model(folder / "model")
    shutil.copytree(folder / "model", folder / "other")
    (folder / "base.yaml").write_text("model: model\nsampling: {engine: transformers}\n")
    files = {
        "good": DEMONSTRATIONS,
        "prompts": PROMPTS,
        "held": HELD_OUT,
        "samples": SAMPLES,
        "suite/items": ITEMS,
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_bytes(lines(content))
    (folder / "suite" / "README.md").write_text(SUITE)
    (folder / "reward.py").write_text(
        "def brevity(prompts, completions, **_):\n    return [1.0 for each in completions]\n"
    )
    datasets.Dataset.from_list(DEMONSTRATIONS).save_to_disk(str(folder / "saved"))
    with Runs(folder / "runs").begin("sft", Config(), {}) as run:
        (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        run.finish({"loss": 1.0})
    (folder / "RUN").symlink_to(run.path)


# --- where they are read


@dataclass(frozen=True)
class Place:
    """A file that a command reads."""

    kind: str
    """In the table."""
    file: str
    """Its name, which stands in the command's message about it."""
    good: bytes
    command: str
    """Its words. With the good file, it ends with 0."""
    damages: Mapping[str, Damage]
    right: Mapping[str, Damage] = field(default_factory=dict)
    """What is unusual, and no damage: the command ends with 0."""
    said: str = ""
    """What a message about it must hold; its name, if not given."""
    takes_good: bool = True
    """Whether the good file is there to be read, too."""


CHECK = "config check base.yaml"
SFT = f"{CHECK} 'sft={{demonstrations: FILE}}'"
ARROW = f"{CHECK} 'sft={{demonstrations: saved}}'"
GOOD_SFT = f"{CHECK} 'sft={{demonstrations: good.jsonl}}'"
EVAL = f"{GOOD_SFT} 'eval={{prompts: held.jsonl, suites: [], gate: {{eos_rate: {{margin: 1}}}}}}'"
MORE = {
    "chosen": "an_empty_text",
    "rejected": "an_empty_text",
    "completion": "an_empty_text",
    "label": "true",
}
"""An empty answer is one, which a model may give."""


def rows(kind: str, good: Rows, command: str, *not_wrong: str, **right: str) -> Place:
    """A file of JSON Lines, each key of which is damaged, too; `not_wrong` are damages that are none of this one."""
    damages = JSON_LINES | wrong_values(good, **{key: right.get(key, MORE.get(key, "")) for key in good[0]})
    damages = {name: damage for name, damage in damages.items() if name not in not_wrong}
    return Place(kind, "damaged.jsonl", lines(good), command, damages, RIGHT | LONG)


def without(damages: Mapping[str, Damage], *names: str) -> dict[str, Damage]:
    return {name: damage for name, damage in damages.items() if name not in names}


ANYTHING = " ".join(name.replace(" ", "_") for name in VALUES)
"""Of a column that is kept as it is."""
PLACES: list[Place] = [
    Place(
        "configuration", "damaged.yaml",
        b"model: model\nsampling: {engine: transformers}\nsft: {demonstrations: good.jsonl}\n", "config check FILE",
        YAML, RIGHT,
    ),
    Place(
        "configuration of --against", "damaged.yaml",
        b"model: model\neval: {prompts: held.jsonl, suites: [], gate: {eos_rate: {margin: 1}}}\n",
        "data check good.jsonl --quality --against FILE", YAML, RIGHT,
    ),
    rows("demonstrations: data check", DEMONSTRATIONS, "data check --as demonstrations FILE"),
    rows("demonstrations: convert", DEMONSTRATIONS, "data convert FILE --output out.jsonl"),
    rows("demonstrations", DEMONSTRATIONS, SFT),
    rows("demonstrations held out", HELD_CHATS, f"{CHECK} 'sft={{demonstrations: good.jsonl, heldout: FILE}}'"),
    rows("demonstrations to retain", DEMONSTRATIONS, f"{CHECK} 'sft={{demonstrations: good.jsonl, retention: FILE}}'"),
    rows("replayed", DEMONSTRATIONS, f"{CHECK} 'sft={{demonstrations: good.jsonl, replay: {{source: FILE}}}}'"),
    Place("JSON array", "damaged.json", json.dumps(DEMONSTRATIONS).encode(), SFT, JSON),
    Place("CSV", "damaged.csv", as_csv(ASKED), SFT, CSV, without(RIGHT, "empty lines") | EMPTY),
    Place("CSV: data check", "damaged.csv", as_csv(ASKED), "data check --as demonstrations FILE", CSV),
    Place("TSV", "damaged.tsv", as_csv(ASKED).replace(b",", b"\t"), SFT, CSV, without(RIGHT, "empty lines") | EMPTY),
    Place("Parquet", "damaged.parquet", as_parquet(ASKED), SFT, PARQUET),
    Place("Parquet: data check", "damaged.parquet", as_parquet(ASKED), "data check --as demonstrations FILE", PARQUET),
    Place("Arrow", "saved/data-00000-of-00001.arrow", b"", ARROW, BINARY, said="saved"),
    Place("Arrow's state", "saved/state.json", b"", ARROW, JSON, said="saved"),
    Place("gzip", "damaged.jsonl.gz", gzip.compress(lines(DEMONSTRATIONS), mtime=0), SFT, PACKED),
    Place("Zstandard", "damaged.jsonl.zst", as_zst(lines(DEMONSTRATIONS)), SFT, PACKED),
    rows("documents", TEXTS, f"{CHECK} 'sft={{documents: FILE}}'"),
    Place(
        "documents of text", "damaged.txt", b"This is a text.\nIt is about primes.\n" * 20,
        f"{CHECK} 'sft={{documents: FILE, heldout_fraction: 0}}'", TEXT, RIGHT,
    ),
    rows("preferences, reward", PAIRS, f"{CHECK} preferences=FILE 'reward={{}}'"),
    rows("preferences, dpo", PAIRS, f"{CHECK} preferences=FILE 'rl={{algorithm: dpo}}'"),
    rows(
        "comparisons", COMPARISONS, f"{CHECK} preferences=FILE 'reward={{}}'", "no id", "no rankings",
        id="a_number", rankings="nothing an_empty_list",
    ),
    rows("answers with labels", LABELS, f"{CHECK} 'rl={{algorithm: kto, feedback: FILE}}'"),
    rows(
        "prompts of rl", PROMPTS,
        f"{CHECK} 'rl={{algorithm: grpo, prompts: FILE, rows_per_update: 8, reward_function: reward.py:brevity}}'",
        "no topic", topic=ANYTHING,
    ),
    rows("prompts of feedback", PROMPTS, f"{CHECK} 'feedback={{prompts: FILE}}'", "no topic", topic=ANYTHING),
    rows(
        "prompts of eval", HELD_OUT, EVAL.replace("held.jsonl", "FILE"), "no topic", "no id", topic=ANYTHING,
        id="nothing a_number",
    ),
    rows("gold", GOLD, f"{CHECK} 'feedback={{prompts: prompts.jsonl, responses_per_prompt: 2, gold: FILE}}'"),
    Place(
        "guidelines", "damaged.md", b"# Guidelines\n\nThis is what to do.\n",
        f"{CHECK} 'feedback={{prompts: prompts.jsonl, guidelines: FILE}}'", TEXT, RIGHT,
    ),
    Place(
        "people", "damaged.yaml", b"users:\n- {name: dana, role: admin}\n- {name: eli}\n- {name: fay}\n",
        f"{CHECK} 'feedback={{prompts: prompts.jsonl, annotators: human, annotators_per_record: 1, users: FILE}}'",
        YAML, RIGHT,
    ),
    Place(
        "suite's page", "suite/README.md", SUITE.encode(), EVAL.replace("[]", "[./suite]"),
        ANY | {name: in_the_head(YAML[name]) for name in without(YAML, *ANY, "white space", "two documents")},
        without(RIGHT, "empty lines"),
    ),
    dataclasses.replace(
        rows("suite's items", ITEMS, EVAL.replace("[]", "[./suite]")), file="suite/items.jsonl"
    ),
    rows(
        "lm-eval's samples", SAMPLES,
        EVAL.replace(
            "suites: []", "suites: [], lm_eval: {t: {metrics: {acc: higher}, baseline: samples.jsonl, candidate: FILE}}"
        ),
        acc="a_number a_fraction true",
    ),
    Place("chat template", "damaged.jinja", TEMPLATE_TEXT, f"{GOOD_SFT} chat_template=FILE", TEMPLATE),
    Place("config.json", "other/config.json", b"", OTHER, JSON, said="other"),
    Place("tokenizer.json", "other/tokenizer.json", b"", OTHER, JSON, said="other"),
    Place("tokenizer_config.json", "other/tokenizer_config.json", b"", OTHER, without(JSON, "missing")),
    Place("generation_config.json", "other/generation_config.json", b"", OTHER, without(JSON, "missing")),
    rows("rows to score", DEMONSTRATIONS, "reward score FILE --model reward.py:brevity"),
    rows("pairs to score", PAIRS, "reward score FILE --model reward.py:brevity"),
    rows("held out by --against", HELD_OUT, "data check good.jsonl --quality --against FILE", "no id", "no topic",
         id="nothing a_number", topic=ANYTHING),
    Place(
        "judge's rubric", "damaged.md", b"# Rubric\n\nShort answers are good.\n",
        EVAL.replace("suites", "judge: judge@FILE:model, suites"), TEXT, RIGHT,
    ),
    Place("keys of others", "keys/trusted_keys", PUBLIC_KEY, "keys show", KEYS),
    Place("a key to trust", "damaged.pub", PUBLIC_KEY, "keys trust FILE", KEYS | {"empty": lambda _: b""}),
    Place("own key", "keys/key", b"", "keys show", without(BINARY, "missing")),
    Place("backup of Argilla", "damaged.db", b"", "feedback restore FILE --force", BINARY, takes_good=False),
    Place("a run's record", "RUN/record.json", b"", "runs show sft", without(JSON, "missing")),
    Place("a run's figures", "RUN/metrics.json", b"", "report sft --output page.html", JSON),
    Place("a run's rows of figures", "RUN/metrics.jsonl", b"", "report sft --output page.html", JSON),
    Place(
        "promotions", "runs/promoted.json", b"[]", "runs verify", without(JSON, "missing", "a list"), takes_good=False
    ),
]  # fmt: skip
