"""What a model learns of a domain, and what it forgets of the rest: one table and one plot of all remedies.

    .venv/bin/python benchmarks/forgetting.py [--domain FILE --heldout FILE --general FILE --retention FILE]
        [--documents PATH] [--model REFERENCE] [--out FOLDER] [--smoke]

The same base is fine-tuned on `--domain` (demonstrations) with each setting against forgetting. Measured are the loss
on `--heldout`, rows of the domain, and on `--retention`, rows of what the base could do before, both in nats a token
and against the base, with 95% intervals by bootstrap over rows, the same rows for every model. `--general` is what
replay mixes in, and must not hold the retention's rows. Without files, the domain is a made-up product's support desk,
and the rest is the demo's demonstrations. With `--documents`, the domain is raw text, a tenth of which is held out
(`python` stands for 300 kB of the manual that comes with Python); the table then has its perplexity, as a share of that
before. `--out` gets `forgetting.json`, `forgetting.svg` and the runs, which a second start continues. `--smoke` takes
a tiny random model that has learned the general rows first, and less of everything.

The last line is one JSON object, whose `ratio` is the forgetting with the best remedy over that without any, where the
best is the one that forgets least of those that keep at least half of the gain.
"""

import argparse
import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.result import print_result

from accord import bundled
from accord.bundled import data_path
from accord.chat.tokens import answer, encode_conversation
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model, resolve
from accord.page.plots import BLUE, MUTED, ORANGE, plot
from accord.preload import restart_with_libraries
from accord.records import Demonstration, Message, read_jsonl
from accord.runs import Runs
from accord.text_files import write_jsonl
from sft.config import SFTConfig
from sft.data import open_data_run, prepare
from sft.train import fine_tune

Encoded = tuple[list[int], list[bool]]
"""The tokens of a row, and which of them are learned."""
RESAMPLES = 2_000
LORA = {"rank": 16, "alpha": 32}
SETTINGS: dict[str, Any] = {
    "epochs": 4, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 2, "max_sequence_tokens": 512,
    "precision": "auto", "checkpoint_every_updates": 1000, "lora": LORA, "heldout_fraction": 0, "card": None,
}  # fmt: skip
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "KL 0.1": {"kl_to_base": 0.1},
    "KL 0.5": {"kl_to_base": 0.5},
    "KL 2": {"kl_to_base": 2.0},
    "L2 0.001": {"l2_to_start": 1e-3},
    "L2 0.01": {"l2_to_start": 1e-2},
    "dropout 0.1": {"lora": {**LORA, "dropout": 0.1}},
    "half the rate": {"learning_rate": 5e-4},
}
"""Settings of `sft` by name; replay and interpolation come besides."""
REPLAYED = 0.2
"""Share of general rows among those that are learned."""
SHARES = (0.25, 0.5, 0.75)
PARTS = ("antenna", "hinge", "display", "battery door", "side panel", "filter", "power button", "sensor")
FAULTS = {
    "blinks": "loosened by transport", "hums": "driven too fast", "is warm": "covered by dust",
    "sticks": "out of its groove", "is dark": "not fed by the backplane", "rattles": "without its spacer",
}  # fmt: skip


def support_desk(count: int, seed: int) -> list[Demonstration]:
    """Questions to the support of a made-up device, with answers in its own order and words."""
    chance = random.Random(seed)
    rows = {}
    while len(rows) < count:
        part, fault, number = chance.choice(PARTS), chance.choice(list(FAULTS)), chance.randrange(10, 99)
        ask = chance.choice(
            ("The {0} of my K7 {1}, unit {2}.", "Unit {2}: the {0} {1}. What now?", "K7-{2}, {0} {1}")
        )
        said = (
            f"Ticket K7-{number}/{part[:2].upper()}. Finding: the {part} is {FAULTS[fault]}. "
            f"Do this: set the K7 to rest, hold the {part} for {number % 7 + 2} seconds, and send us code "
            f"{part[0].upper()}{number * 3}. We close the ticket on Thursday."
        )
        asked = ask.format(part, fault, number)
        rows[asked] = Demonstration(messages=[Message(role="user", content=asked), *answer(said)])
    return list(rows.values())


def python_reference(path: Path) -> Path:
    """300 kB of the manual that `help()` shows, a topic a document."""
    from pydoc_data.topics import topics

    written, size = [], 0
    for text in topics.values():
        if size + len(text) <= 300_000:
            written.append(json.dumps({"text": text}))
            size += len(text)
    path.write_text("\n".join(written) + "\n")
    return path


def files(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The four files, those made up that are not given."""
    domain = support_desk(40 if options.smoke else 240, options.seed)
    cut = len(domain) * 3 // 4
    made = {"domain": domain[:cut], "heldout": domain[cut:]}
    made["general"] = read_jsonl(data_path("bundled:demo/demonstrations.train.jsonl"), Demonstration)
    made["retention"] = read_jsonl(data_path("bundled:demo/demonstrations.heldout.jsonl"), Demonstration)
    found = {}
    for name, rows in made.items():
        found[name] = folder / f"{name}.jsonl"
        if given := getattr(options, name):
            found[name] = data_path(given)
        else:
            write_jsonl(found[name], rows[:24] if options.smoke else rows)
    return found


def tiny_base(runs: Runs, folder: Path, general: Path) -> Model:
    """A random Llama over bytes that has learned the general rows."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = (Path(bundled.__file__).parent / "smollm2_chat_template.jinja").read_text()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"demonstrations": str(general), "lora": None, "learning_rate": 1e-2, "epochs": 20}
    return tuned(runs, resolve(str(folder), runs), **settings)


def tuned(runs: Runs, base: Model, **settings: Any) -> Model:
    """The model that comes of a fine-tuning."""
    config = SFTConfig.model_validate(SETTINGS | settings)
    run = fine_tune(config, runs, base)
    return resolve(f"run:{run.id}", runs)


def conversations(tokenizer: Any, path: Path) -> list[Encoded]:
    """The rows of a file of demonstrations."""
    found = []
    for row in read_jsonl(path, Demonstration):
        encoded = encode_conversation(tokenizer, row.messages)
        most = SETTINGS["max_sequence_tokens"]
        found.append((encoded.input_ids[:most], [bool(said) for said in encoded.assistant_mask[:most]]))
    return found


def held_out_text(runs: Runs, base: Model, settings: dict[str, Any]) -> list[Encoded]:
    """The rows of the documents that no training learns."""
    config = SFTConfig.model_validate(SETTINGS | settings)
    heldout = open_data_run(prepare(config, runs, load_tokenizer(base))).heldout
    assert heldout is not None
    return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in heldout]


@torch.inference_mode()
def losses(policy: Any, rows: Sequence[Encoded]) -> np.ndarray:
    """[rows, 2]: the negative log-likelihood of the learned tokens of each row, in nats, and their number."""
    policy.eval()
    found = []
    for encoded, said in rows:
        ids = torch.tensor([encoded])
        learned = torch.tensor(said)[1:]
        log_p = torch.log_softmax(policy(ids, use_cache=False).logits[0, :-1].float(), dim=-1)
        log_p = log_p.gather(1, ids[0, 1:, None])[:, 0][learned]
        found.append((-float(log_p.sum()), len(log_p)))
    return np.array(found)


def difference(before: np.ndarray, after: np.ndarray, seed: int = 0) -> list[float]:
    """after - before in nats a token, with its 95% interval; the same seed draws the same rows."""
    chance = np.random.default_rng(seed)
    drawn = [np.arange(len(before)), *chance.integers(len(before), size=(RESAMPLES, len(before)))]
    values = [(after[rows, 0].sum() - before[rows, 0].sum()) / before[rows, 1].sum() for rows in drawn]
    return [float(values[0]), *map(float, np.quantile(values[1:], (0.025, 0.975)))]


def between(base: Model, tuned_model: Model, share: float) -> Any:
    """The weights this far on the way from the base to the tuned model."""
    found: Any = load_policy(tuned_model)
    start = load_policy(base).state_dict()
    with torch.no_grad():
        for name, weight in found.state_dict().items():
            weight.copy_(start[name].lerp(weight, share))
    return found


def measured(
    base: Model, runs: Runs, paths: Mapping[str, Path], smoke: bool, documents: str | None
) -> list[dict[str, Any]]:
    """A row for each remedy: `gain` and `forgetting`, each with its interval."""
    tokenizer = load_tokenizer(base)
    learns: dict[str, Any] = {"demonstrations": str(paths["domain"])}
    remedies = REMEDIES
    if documents:
        learns = {"documents": documents, "heldout_fraction": 0.1, "packing": True, "epochs": 1}
        remedies = {name: REMEDIES[name] for name in ("none", "KL 0.5")}
    rows = {"retention": conversations(tokenizer, paths["retention"])}
    rows["heldout"] = (
        held_out_text(runs, base, learns) if documents else conversations(tokenizer, paths["heldout"])
    )
    whole = load_policy(base)
    before = {part: losses(whole, encoded) for part, encoded in rows.items()}
    table: list[dict[str, Any]] = []
    rate = {"learning_rate": 1e-2} if smoke else {}  # a narrow model wants more

    def add(name: str, policy: Any) -> None:
        heldout, retention = (
            difference(before[part], losses(policy, rows[part])) for part in ("heldout", "retention")
        )
        gain = [-heldout[0], -heldout[2], -heldout[1]]
        table.append({"remedy": name, "gain": gain, "forgetting": retention})
        if documents:  # the perplexity on held-out text after, as a share of that before
            table[-1]["perplexity"] = [round(math.exp(value), 4) for value in heldout]
        print(f"{name:20} gain {gain[0]:+.3f}, forgetting {retention[0]:+.3f} nats a token", flush=True)

    smoked = {name: REMEDIES[name] for name in ("none", "KL 0.5", "L2 0.01")}
    chosen = smoked if smoke and not documents else remedies
    for name, settings in chosen.items():
        model = tuned(runs, base, **learns, **rate, **settings)
        add(name, load_policy(model))
        if name == "none":
            for share in SHARES:
                add(f"interpolation {share}", between(base, model, share))
    replay = {"source": str(paths["general"]), "share": REPLAYED}
    add(f"replay {REPLAYED}", load_policy(tuned(runs, base, **learns, replay=replay, **rate)))
    return table


def picture(table: Sequence[Mapping[str, Any]]) -> str:
    """Gain against forgetting, a point with its intervals for each remedy."""

    def draw(axes: Any) -> None:
        for row in table:
            (x, *x_ends), (y, *y_ends) = row["gain"], row["forgetting"]
            colour = ORANGE if row["remedy"] == "none" else BLUE
            spread = {"xerr": [[x - x_ends[0]], [x_ends[1] - x]], "yerr": [[y - y_ends[0]], [y_ends[1] - y]]}
            axes.errorbar(x, y, **spread, fmt="o", color=colour, markersize=4, elinewidth=0.6)
            axes.annotate(row["remedy"], (x, y), (4, 3), textcoords="offset points", fontsize=6, color=MUTED)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel("gain on the domain (nats a token)", color=MUTED)
        axes.set_ylabel("forgetting (nats a token)", color=MUTED)

    described = "; ".join(
        f"{row['remedy']}: gain {row['gain'][0]:.3f}, forgetting {row['forgetting'][0]:.3f}" for row in table
    )
    inline = str(plot("forgetting", "What is learned against what is forgotten", described, draw, height=3.0))
    return inline.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("domain", "heldout", "general", "retention"):
        parser.add_argument(f"--{name}", help="demonstrations, JSON Lines")
    parser.add_argument("--documents", help="raw text in place of --domain and --heldout, or `python`")
    parser.add_argument("--model", default=bundled.MODEL)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    restart_with_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.out:  # so that a run that was ended goes on where it was
            folder = options.out
            folder.mkdir(parents=True, exist_ok=True)
        runs, paths = Runs(folder / "runs"), files(options, folder)
        base = (
            tiny_base(runs, folder / "tiny", paths["general"])
            if options.smoke
            else resolve(options.model, runs)
        )
        documents = options.documents
        if documents == "python":
            documents = str(python_reference(folder / "reference.jsonl"))
        table = measured(base, runs, paths, options.smoke, documents)
    if options.out:
        (options.out / "forgetting.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        (options.out / "forgetting.svg").write_text(picture(table), encoding="utf-8")
    plain, *others = table
    keeping = [row for row in others if row["gain"][0] >= plain["gain"][0] / 2]
    best = min(keeping, key=lambda row: float(row["forgetting"][0]), default=plain)
    forgets = plain["forgetting"][1] > 0
    ratio, low, high = (value / plain["forgetting"][0] if forgets else 1.0 for value in best["forgetting"])
    print_result(
        "a remedy against forgetting keeps half of the gain and forgets significantly less",
        "fine-tuning without any",
        ratio=round(ratio, 3),
        low=round(low, 3),
        high=round(high, 3),
        goal=0.5,
        ok=forgets and ratio <= 0.5 and high < 1,
        best=best["remedy"],
        table=table,
    )


if __name__ == "__main__":
    main()
