"""Which families give right results, and which get a sentence: `python tests/family_matrix.py [family ...]`.

Every cell compares a part of accord with the plain model: unpacked, one sequence at a time, in float32. A figure is
the largest difference that was found; for PPO, of policy, reference, critic and reward model. A cell that is wrong or
ends in a traceback is marked, and the exit code is 1. PPO alone may refuse a family, in a sentence below the table.
"""

import copy
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from tiny_families import FAMILIES, make_family
from training_helpers import run_stage
from transformers import AutoConfig

from accord.chat.tokens import answer as said
from accord.chat.tokens import encode_conversation
from accord.config import LoraConfig
from accord.errors import AccordError
from accord.models.adapters import peft_config
from accord.models.families import decoder_layers
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model, resolve
from accord.packing import Packed, body_of, compute_packed_rows, hidden_states
from accord.preflight.families import check_balance
from accord.records import Demonstration, Message, Preference
from accord.runs import Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.verify import FLOAT32_BOUND, verify
from accord.text_files import write_jsonl
from accord.training import quiet_libraries
from eval.likelihood.log_likelihood import Item, log_likelihoods
from eval.likelihood.token_trees import reads_trees
from reward.score import load_scorer, score, score_ids
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.layouts import load_actors
from rl.policy_gradient.rows import Rows
from rl.policy_gradient.settings import Layout

PARTS = (
    "log p", "sampler", "eval", "lora", "lora top 2", "head", "packed", "ppo full", "ppo lora", "ppo top 2",
    "ppo shared", "ppo shared top 2", "stages",
)  # fmt: skip
RANK = {"rank": 2, "alpha": 4}
RIGHT = 2e-3
"""Differences beyond this are no rounding in these models, whose logits spread by about 4."""


def sequences_for(vocabulary: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers, of 32 to 60 tokens together: several times the windows."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    front = tokens(20)
    prompts = [front + tokens(6), front + tokens(9), tokens(24)]
    return prompts, [tokens(30), tokens(12), [*tokens(20), 2]]


@dataclass
class Family:
    """A tiny model, and what is made of it when it is first needed."""

    policy: Model
    folder: Path
    made: dict[Any, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        if "tokenizer" not in self.made:
            self.made["tokenizer"] = load_tokenizer(self.policy)
        return self.made["tokenizer"]

    def reward_model(self, lora: LoraConfig | None = None) -> Model:
        """A reward model of this policy, with random weights in its head and in its adapters, which are merged."""
        if lora not in self.made:
            model: Any = load_reward_model(self.policy, new_head=True)
            torch.nn.init.normal_(model.score.weight, std=0.1)
            folder = self.folder / f"reward-{len(self.made)}"
            if lora:
                adapted = peft.get_peft_model(model, peft_config(self.policy, lora, "SEQ_CLS"))
                randomise(adapted, seed=1)
                adapted.save_pretrained(folder / "adapter")
                model = adapted.merge_and_unload()
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self.made[lora] = Model(f"{self.policy.reference}, reward", folder, "reward")
        found: Model = self.made[lora]
        return found


def randomise(adapted: Any, seed: int, name: str = "default") -> None:
    """Adapters that change something."""
    torch.manual_seed(seed)
    for key, p in adapted.named_parameters():
        if "lora_B" in key and f".{name}." in key:
            torch.nn.init.normal_(p, std=0.2)


def furthest(found: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The largest difference; infinite where one is no number."""
    pairs = zip(found, right, strict=True)
    largest = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return largest if math.isfinite(largest) else math.inf


@torch.no_grad()
def plain_log_p(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> list[torch.Tensor]:
    """By the model itself, one sequence at a time."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        log_p = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
        found.append(log_p[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).squeeze(1))
    return found


@torch.no_grad()
def plain_states(body: Any, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """The last hidden states of each sequence."""
    return [body(torch.tensor([ids]), use_cache=False).last_hidden_state[0] for ids in sequences]


def log_p(family: Family) -> str:
    model = load_policy(family.policy).eval()
    prompts, answers = sequences_for(259)
    return figure(
        furthest(token_log_probabilities(model, prompts, answers), plain_log_p(model, prompts, answers))
    )


def sampler(family: Family) -> str:
    prompts, _ = sequences_for(259)
    policy = load_policy(family.policy).eval()
    config = SamplingConfig(engine="transformers", max_sequence_tokens=128)
    engine = TransformersSampler(family.policy.folder, 2, config)
    first = verify(engine, policy, prompts, FLOAT32_BOUND)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.05)
    engine.sync(policy)
    return figure(max(first.max_difference, verify(engine, policy, prompts, FLOAT32_BOUND).max_difference))


def evaluation(family: Family) -> str:
    policy = load_policy(family.policy).eval()
    texts = (" over the quick brown dog.", " over the lazy dog and the hen.", " under it.")
    items = [
        Item("The fox that lives in the wood near the village jumps", texts),
        Item("A much shorter one", texts[:2]),
    ]
    found = log_likelihoods(policy, family.tokenizer, items)
    worst = 0.0
    for item, scores in zip(items, found, strict=True):
        prefix = [0, *family.tokenizer(item.prefix)["input_ids"]]
        for text, each in zip(item.continuations, scores, strict=True):
            ids = family.tokenizer(text)["input_ids"]
            (right,) = plain_log_p(policy, [prefix], [ids])
            worst = max(worst, abs(each.nats - float(right.double().sum())) / len(ids))
    with torch.inference_mode(), reads_trees(policy, 90) as trees:
        return f"{figure(worst)} {'tree' if trees else 'padded'}"


def adapters(family: Family, lora: LoraConfig) -> str:
    """What is merged from the saved adapter computes what the adapter did; and it is where it should be."""
    adapted = peft.get_peft_model(load_policy(family.policy), peft_config(family.policy, lora, "CAUSAL_LM"))
    randomise(adapted, seed=2)
    adapted.eval()
    ids = torch.tensor([sequences_for(259)[0][0]])
    folder = family.folder / f"adapter-{lora.top_layers}"
    adapted.save_pretrained(folder)
    merged = peft.PeftModel.from_pretrained(load_policy(family.policy), str(folder)).merge_and_unload().eval()
    with torch.no_grad():
        found, right = merged(ids).logits, adapted(ids).logits
        if torch.equal(right, load_policy(family.policy).eval()(ids).logits):
            raise AssertionError("the adapters change nothing")
    check_places(body_of(adapted), lora.top_layers)
    return figure(furthest([found], [right]))


def check_places(body: Any, top_layers: int | None) -> None:
    """Adapters on whatever is a matrix in the layers that have any, and on nothing beneath them."""
    path, layers = decoder_layers(body)
    adapted = {name for name, p in body.named_parameters() if "lora_A" in name}
    first = len(layers) - top_layers if top_layers else 0
    for number in range(len(layers)):
        here = [name for name in adapted if name.startswith(f"{path}.{number}.")]
        assert bool(here) == (number >= first), f"layer {number} has {len(here)} adapters"
    for name, p in body.named_parameters():
        is_matrix = (
            p.ndim >= 2 and "lora_" not in name and not name.startswith("embed") and "conv" not in name
        )
        numbers = [int(part) for part in name.removeprefix(path).split(".") if part.isdigit()]
        if is_matrix and numbers and numbers[0] >= first and name.startswith(path):
            assert p.requires_grad is False, name
            stem = name.removesuffix(".weight").split(".base_layer")[0]
            assert any(each.startswith(stem) or stem.rsplit(".", 1)[0] + "." in each for each in adapted), (
                f"{name} has no adapter"
            )


def head(family: Family) -> str:
    reward_model = family.reward_model()
    prompts, answers = sequences_for(259)
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    rows[0][10] = rows[1][-1] = 0  # what pads may stand in a text
    scorer = load_scorer(reward_model)
    states = plain_states(body_of(load_reward_model(reward_model).eval()), rows)
    right = [each[-1] @ load_reward_model(reward_model).score.weight[0].detach() for each in states]
    at_once, alone = (
        torch.tensor(score_ids(scorer, family.tokenizer, rows, rows_per_batch=n)) for n in (16, 1)
    )
    return figure(max(furthest([at_once], [torch.stack(right)]), furthest([alone], [torch.stack(right)])))


def packed(family: Family) -> str:
    body = body_of(load_reward_model(family.policy, new_head=True).eval())
    prompts, answers = sequences_for(259)
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    right = plain_states(body, rows)
    if not compute_packed_rows(body, 128):
        return "padded"
    arranged = Packed.of(rows)
    with torch.no_grad():
        states = hidden_states(body, arranged)
    return figure(furthest([states[arranged.places(row, len(ids))] for row, ids in enumerate(rows)], right))


def stages(family: Family) -> str:
    """SFT, a reward model and DPO with adapters, each a whole run; the figure is of the reward model that was saved."""
    runs = Runs(family.folder / "runs")
    words = ("one", "two", "six", "ten", "red", "sun")
    asked = [[Message(role="user", content=f"Say {word}.")] for word in words]
    long = [said(f"Of course, with pleasure: {word}.") for word in words]
    demonstrations, pairs = family.folder / "demonstrations.jsonl", family.folder / "pairs.jsonl"
    conversations = [[*prompt, *right] for prompt, right in zip(asked, long, strict=True)]
    write_jsonl(demonstrations, [Demonstration(messages=each) for each in conversations])
    write_jsonl(
        pairs,
        [
            Preference(prompt=prompt, chosen=right, rejected=said("No."))
            for prompt, right in zip(asked, long, strict=True)
        ],
    )
    training: dict[str, Any] = {
        "lora": RANK,
        "rows_per_update": 4,
        "rows_per_pass": 2,
        "max_sequence_tokens": 250,
    }
    training |= {"heldout_fraction": 0.3, "learning_rate": 1e-3}
    note, trainer = "", {}
    try:
        check_balance(AutoConfig.from_pretrained(family.policy.folder), "sft", trainer)
    except AccordError:
        note, trainer = " without balance loss", {"router_aux_loss_coef": 0.0}
    of_policy = training | {"trainer": trainer}
    tuned = resolve(run_stage("sft", of_policy, family.policy, demonstrations, runs), runs)
    reward_model = resolve(run_stage("reward", training | {"minimum_pairs": 2}, tuned, pairs, runs), runs)
    run_stage("dpo", of_policy, tuned, pairs, runs)
    rows = [encode_conversation(family.tokenizer, each).input_ids for each in conversations]
    model: Any = load_reward_model(reward_model).eval()
    right = torch.stack(
        [states[-1] @ model.score.weight[0].detach() for states in plain_states(body_of(model), rows)]
    )
    return figure(furthest([torch.tensor(score(reward_model, conversations))], [right])) + note


def ppo(family: Family, lora: LoraConfig | None, is_shared: bool = False) -> str:
    reward_model = family.reward_model(lora if is_shared else None)
    layout = Layout(lora, reward_model.folder / "adapter" if is_shared else None)
    actors = load_actors(family.tokenizer, family.policy, reward_model, 128, layout)
    if lora:
        randomise(actors.policy, 3)
        randomise(actors.critic, 4, "critic" if is_shared else "default")
    prompts, answers = sequences_for(259)
    rows = Rows.of(prompts, answers)
    once = actors.beneath(rows)
    with torch.no_grad():
        ours = (
            actors.policy_statistics(once, 31, 1.0).log_probabilities,
            actors.reference_statistics(once, 31, 1.0).log_probabilities,
            actors.values(once, 31),
            actors.scores(once)[:, 0],
        )
    policy, reference, critic, scorer = plain_actors(family, reward_model, actors, lora)
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    differences = []
    for found, model in zip(ours[:2], (policy, reference), strict=True):
        right = plain_log_p(model, prompts, answers)
        differences.append(
            furthest([row[: len(each)] for row, each in zip(found, right, strict=True)], right)
        )
    weight = load_reward_model(reward_model).score.weight[0].detach()
    values = [
        states[len(prompt) - 1 :] @ weight
        for states, prompt in zip(plain_states(critic, sequences), prompts, strict=True)
    ]
    differences.append(
        furthest([row[: len(each)] for row, each in zip(ours[2], values, strict=True)], values)
    )
    scores = torch.stack([states[-1] @ weight for states in plain_states(scorer, sequences)])
    differences.append(furthest([ours[3]], [scores]))
    beneath = f" ({min(actors.frozen_layers.values())} once)" if lora and lora.top_layers else ""
    return "/".join(map(figure, differences)) + beneath


def plain_actors(
    family: Family, reward_model: Model, actors: Actors, lora: LoraConfig | None
) -> tuple[Any, Any, Any, Any]:
    """Policy, reference, and the bodies of critic and reward model, as transformers and PEFT have them."""
    reference = load_policy(family.policy).eval()
    scorer = body_of(load_reward_model(reward_model).eval())
    if lora is None:
        return reference, reference, scorer, scorer
    policy = with_weights_of(
        actors.policy, "default", load_policy(family.policy), family.policy, lora, "CAUSAL_LM"
    )
    if actors.has_shared_base:
        critic = body_of(
            with_weights_of(
                actors.policy, "critic", load_policy(family.policy), family.policy, lora, "CAUSAL_LM"
            )
        )
    else:
        body = body_of(load_reward_model(reward_model))
        critic = with_weights_of(actors.critic, "default", body, reward_model, lora, "FEATURE_EXTRACTION")
    return policy, reference, critic, scorer


def with_weights_of(trained: Any, name: str, fresh: Any, model: Model, lora: LoraConfig, task: str) -> Any:
    """A fresh model with a trained one's adapter of a name."""
    adapted = peft.get_peft_model(fresh, peft_config(model, lora, task)).eval()
    weights = copy.deepcopy(get_peft_model_state_dict(trained, adapter_name=name))
    result: Any = set_peft_model_state_dict(adapted, weights)
    assert not result.unexpected_keys
    return adapted


def figure(difference: float) -> str:
    """Marked where it is no rounding."""
    return f"{difference:.0e}" if difference <= RIGHT else f"WRONG {difference:.1e}"


def cells(name: str, parts: Sequence[str] = PARTS) -> dict[str, str]:
    """By part, a figure, a sentence or what is wrong."""
    lora, top = LoraConfig(**RANK), LoraConfig(**RANK, top_layers=2)
    compute: dict[str, Callable[[Family], str]] = {
        "log p": log_p, "sampler": sampler, "eval": evaluation, "head": head, "packed": packed, "stages": stages,
        "lora": lambda family: adapters(family, lora), "lora top 2": lambda family: adapters(family, top),
        "ppo full": lambda family: ppo(family, None), "ppo lora": lambda family: ppo(family, lora),
        "ppo top 2": lambda family: ppo(family, top), "ppo shared": lambda family: ppo(family, lora, True),
        "ppo shared top 2": lambda family: ppo(family, top, True),
    }  # fmt: skip
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        try:
            family = Family(make_family(name, Path(folder) / "policy"), Path(folder))
        except Exception as error:
            traceback.print_exc()
            return dict.fromkeys(parts, f"TRACEBACK {type(error).__name__}: {error}"[:120])
        for part in parts:
            try:
                found[part] = compute[part](family)
            except AccordError as error:
                found[part] = f"{'refused' if part.startswith('ppo') else 'WRONG refusal'}: {error}"
            except Exception as error:
                traceback.print_exc()
                found[part] = f"TRACEBACK {type(error).__name__}: {str(error)[:120]}"
    return found


def main(names: Sequence[str]) -> int:
    """Print a table; 1 where a cell is wrong."""
    torch.set_num_threads(1)
    print("| family |", " | ".join(PARTS), "|")
    print("|---" * (len(PARTS) + 1) + "|")
    sentences: dict[str, int] = {}
    is_wrong = False
    for name in names or FAMILIES:
        row = cells(name)
        is_wrong |= any("WRONG" in each or "TRACEBACK" in each for each in row.values())
        for part, cell in row.items():
            if cell.startswith("refused"):
                row[part] = f"[{sentences.setdefault(cell, len(sentences) + 1)}]"
        print(f"| {name} |", " | ".join(row.values()), "|", flush=True)
    for sentence, number in sentences.items():
        print(f"[{number}] {sentence}")
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
