"""PPO and DPO reach reference * exp(r / b) / Z, the best policy for a reward r at KL coefficient b, where that can be
enumerated. (Derived in Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, appendix A.1.)
"""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import run_stage
from transformers import LlamaConfig, LlamaForCausalLM

from accord.chat.tokens import answer, encode_prompt
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message, Preference
from accord.runs import Runs
from accord.sampling.log_probabilities import token_log_probabilities
from accord.text_files import write_jsonl
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.learner import experience, hear, learn
from rl.policy_gradient.rollout import Rollout
from rl.policy_gradient.rows import Rows
from rl.policy_gradient.settings import Estimation, Objective, Passes, Steps

pytestmark = pytest.mark.usefixtures("one_thread")

EOS, WORDS, LONGEST = 3, 4, 3
PROMPT = [0]
ANSWERS = [
    [*beginning, *end]
    for length in range(LONGEST + 1)
    for beginning in itertools.product(range(EOS), repeat=length)
    for end in ([[]] if length == LONGEST else [[EOS]])
]
"""Every answer there is: ended by EOS, or cut off after three tokens."""


def distribution(actors: Actors) -> torch.Tensor:
    rows = Rows.of([PROMPT] * len(ANSWERS), ANSWERS)
    with torch.no_grad():
        return actors.policy_statistics(rows, LONGEST, 1.0).log_probabilities.sum(dim=1).exp()


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()


@pytest.fixture
def actors() -> Actors:
    """Policy, critic and their frozen copies: Llamas of one layer over four words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    policy, critic = LlamaForCausalLM(config), LlamaForCausalLM(config).model
    frozen: list[Any] = [LlamaForCausalLM(config), LlamaForCausalLM(config).model]
    frozen[0].load_state_dict(policy.state_dict())
    for model in frozen:
        model.requires_grad_(False)
    return Actors(policy, critic, torch.nn.Linear(32, 1), *frozen)


def test_ppo_reaches_the_best_policy(actors: Actors) -> None:
    assert len(ANSWERS) == 1 + 3 + 9 + 27
    generator = torch.Generator().manual_seed(1)
    reward, b = torch.randn(len(ANSWERS), generator=generator), 0.5
    before = distribution(actors)
    assert before.sum().item() == pytest.approx(1, abs=1e-5)
    best = before * (reward / b).exp()
    best /= best.sum()
    assert total_variation(before, best) > 0.5

    trained = [*actors.policy_parameters.values(), *actors.critic_parameters.values()]
    optimiser = torch.optim.AdamW(trained, lr=3e-3, eps=1e-5, weight_decay=0.0)
    updates, passes = 60, Passes(tokens_per_pass=4096)
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - update / updates)
        chosen = torch.multinomial(distribution(actors), 256, replacement=True, generator=generator).tolist()
        responses = [ANSWERS[i] for i in chosen]
        log_p = distribution_by_token(actors)
        rollout = Rollout(
            [PROMPT] * 256, responses, [log_p[i] for i in chosen], [r[-1] == EOS for r in responses]
        )
        opinions = hear(actors, rollout, passes)
        learned_from = experience(opinions, reward[chosen], b, Estimation(trace=0.95))
        learn(
            actors, optimiser, rollout, learned_from, Objective(value_coefficient=1.0), Steps(epochs=4), passes,
            seed=str(update),
        )  # fmt: skip
    after = distribution(actors)
    assert total_variation(after, best) < 0.05
    value = (after * (reward - b * (after / before).log())).sum().item()
    assert value == pytest.approx(b * math.log((before * (reward / b).exp()).sum().item()), abs=0.02)


def distribution_by_token(actors: Actors) -> list[list[float]]:
    rows = Rows.of([PROMPT] * len(ANSWERS), ANSWERS)
    with torch.no_grad():
        log_p = actors.policy_statistics(rows, LONGEST, 1.0).log_probabilities.tolist()
    return [row[: len(ids)] for row, ids in zip(log_p, ANSWERS, strict=True)]


def test_dpo_reaches_the_same_on_all_preferences_that_the_reward_implies(
    tiny_model: Model, tmp_path: Path
) -> None:
    """Five answers to one prompt, and of each pair as many preferences either way as exp(r) says (Bradley-Terry).

    What DPO learns of these answers is their odds, so the distribution is the one over the five. Their log-odds must
    move by r / b, which is far for a model this small: so r is small beside b.
    """
    texts, reward, b = ["a", "b", "c", "d", "e"], [0.4, 0.8, -0.8, 0.0, -0.4], 0.5
    prompt = [Message(role="system", content="s"), Message(role="user", content="0")]
    rows = []
    for i, j in itertools.permutations(range(5), 2):
        count = round(12 / (1 + math.exp(reward[j] - reward[i])))
        rows += [
            Preference(prompt=prompt, chosen=answer(texts[i]), rejected=answer(texts[j]), id=f"{i}{j}{n}")
            for n in range(count)
        ]
    # The split holds a prompt out; this one is there for that.
    rows.append(
        Preference(prompt=[Message(role="user", content="HELD")], chosen=answer("a"), rejected=answer("b"))
    )
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = {
        "epochs": 14, "learning_rate": 2e-3, "kl_coefficient": b, "rows_per_update": 32, "rows_per_pass": 32,
        "heldout_fraction": 0.01, "checkpoint_every_updates": 1000, "max_sequence_tokens": 300,
    }  # fmt: skip
    run = run_stage("dpo", config, tiny_model, tmp_path / "pairs.jsonl", Runs(tmp_path / "runs"))
    assert run.metrics["pairs"] > 100, "the wrong prompt is held out"

    tokenizer = load_tokenizer(tiny_model)
    ids = [tokenizer(text + tokenizer.eos_token).input_ids for text in texts]

    def odds(model: Model) -> torch.Tensor:
        scored = token_log_probabilities(load_policy(model), [encode_prompt(tokenizer, prompt)] * 5, ids)
        return torch.stack([log_p.sum() for log_p in scored]).softmax(0)

    before = odds(tiny_model)
    best = before * (torch.tensor(reward) / b).exp()
    best /= best.sum()
    assert total_variation(before, best) > 0.2
    assert total_variation(odds(Model("", run.path / "model", "")), best) < 0.05
