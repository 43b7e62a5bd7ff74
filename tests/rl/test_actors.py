"""The four models give the numbers of plain transformers, in every layout, and gradients reach what is trained only."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_helpers import make_reward_model
from training_helpers import run_stage

from accord import parallel
from accord.chat.tokens import encode_conversation
from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Message
from accord.runs import Runs
from reward.score import combine, disagreement, save_heads, score, score_by_head
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.layouts import load_actors
from rl.policy_gradient.rows import Rows, micro_batches, share_passes
from rl.policy_gradient.settings import Computation, Layout

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraConfig(rank=4, alpha=8)
DORA = LoraConfig(rank=4, alpha=8, dora=True, rank_stabilized=True)
LAYOUTS: dict[str, tuple[LoraConfig | None, dict[str, Any] | None]] = {
    "separate": (None, None),
    "lora": (LORA, None),
    "dora": (DORA, None),
    "shared base": (LORA, {}),
    "shared base of dora": (DORA, {"dora": True}),
    "shared base, reward model from pissa": (LORA, {"start": "pissa"}),
}
"""By name, the policy's adapters, and what those of the reward model have on a shared base."""
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
RESPONSES = [[20, 21, 2], [22, 2], [23, 24, 25, 26, 27]]


def rows() -> Rows:
    return Rows.of(PROMPTS, RESPONSES)


def plain_log_p(model: Any, temperature: float) -> list[torch.Tensor]:
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            log_p = (model(torch.tensor([prompt + response])).logits[0] / temperature).log_softmax(-1)
        found.append(torch.stack([log_p[len(prompt) - 1 + t, token] for t, token in enumerate(response)]))
    return found


@pytest.fixture(scope="module")
def reward_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_reward_model(tiny_model, tmp_path_factory.mktemp("reward-model"))


def load(policy: Model, reward_model: Model, layout: Layout = Layout(), **options: Any) -> Actors:  # noqa: B008
    return load_actors(load_tokenizer(policy), policy, reward_model, 300, layout, **options)


def shared(
    tiny_model: Model, preferences: Path, tmp_path: Path, options: Any = None, lora: LoraConfig = LORA
) -> tuple[Actors, Model]:
    """Actors on one base, and the reward model of that adapter, merged."""
    runs = Runs(tmp_path / "runs")
    config = {
        "lora": {"rank": 2, "alpha": 8, **(options or {})},
        "learning_rate": 1e-2,
        "max_sequence_tokens": 300,
        "minimum_pairs": 4,
    }
    run = run_stage("reward", config, tiny_model, preferences, runs)
    merged = resolve(f"run:{run.id}", runs)
    return load_actors(
        load_tokenizer(tiny_model), tiny_model, merged, 300, Layout(lora, run.path / "adapter")
    ), merged


@pytest.mark.parametrize(("lora", "reward_options"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_model_s_numbers_are_those_of_plain_transformers(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    tmp_path: Path,
    lora: LoraConfig | None,
    reward_options: dict[str, Any] | None,
) -> None:
    if reward_options is not None and lora:
        actors, reward_model = shared(tiny_model, preferences, tmp_path, reward_options, lora)
    else:
        actors = load(tiny_model, reward_model, Layout(lora))
    actors.score_shift = 0.25
    policy, plain = load_policy(tiny_model).eval(), load_reward_model(reward_model).eval()
    expected = plain_log_p(policy, temperature=0.8)
    for statistics in (
        actors.policy_statistics(rows(), 7, 0.8), actors.reference_statistics(rows(), 7, 0.8),
    ):  # fmt: skip
        for row, right in zip(statistics.log_probabilities.detach(), expected, strict=True):
            torch.testing.assert_close(row[: len(right)], right, atol=2e-5, rtol=0)
            assert not row[len(right) :].any()
    values = actors.values(rows(), 7).detach()
    any_plain: Any = plain
    scores = actors.scores(rows())[:, 0]
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            states = any_plain.model(torch.tensor([prompt + response])).last_hidden_state[0]
            everywhere = any_plain.score(states)[:, 0]
        right = everywhere[len(prompt) - 1 :]
        torch.testing.assert_close(values[i, : len(response) + 1], right - 0.25, atol=2e-5, rtol=0)
        assert not values[i, len(response) + 1 :].any()
        # The critic starts as the reward model: its last prediction is the (shifted) score.
        assert scores[i].item() == pytest.approx(right[-1].item(), abs=2e-5)


@pytest.mark.parametrize(("lora", "reward_options"), LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_reach_what_is_trained_and_a_step_leaves_reference_and_reward_alone(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    tmp_path: Path,
    lora: LoraConfig | None,
    reward_options: dict[str, Any] | None,
) -> None:
    if reward_options is not None and lora:
        actors, _ = shared(tiny_model, preferences, tmp_path, reward_options, lora)
        assert actors.has_shared_base
    else:
        actors = load(tiny_model, reward_model, Layout(lora))

    def opinions() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (
                actors.reference_statistics(rows(), 7, 1.0).log_probabilities, actors.scores(rows()),
                actors.policy_statistics(rows(), 7, 1.0).log_probabilities, actors.values(rows(), 7),
            )  # fmt: skip

    before = opinions()
    trained = [*actors.policy_parameters.values(), *actors.critic_parameters.values()]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):  # LoRA's first matrices get a gradient once the second ones are not 0
        optimiser.zero_grad()
        actors.policy_statistics(rows(), 7, 1.0).log_probabilities.sum().backward()
        assert all(p.grad is None for p in actors.critic_parameters.values())
        policy_gradients = {
            name: p.grad.clone() for name, p in actors.policy_parameters.items() if p.grad is not None
        }
        with actors.adapter("critic"):
            actors.values(rows(), 7).square().sum().backward()
        for name, gradient in policy_gradients.items():
            torch.testing.assert_close(actors.policy_parameters[name].grad, gradient, rtol=0, atol=0)
        optimiser.step()
    assert all(p.grad is not None and p.grad.any() for p in actors.policy_parameters.values())
    assert all(p.grad is not None and p.grad.any() for p in actors.critic_parameters.values())
    after = opinions()
    for i in (0, 1):
        torch.testing.assert_close(after[i], before[i], rtol=0, atol=0)
    for i in (2, 3):
        assert not torch.allclose(after[i], before[i], atol=1e-3)


def test_checkpointing_activations_changes_no_gradient(tiny_model: Model, reward_model: Model) -> None:
    gradients = []
    for checkpointing in (False, True):
        actors = load(tiny_model, reward_model, computation=Computation(gradient_checkpointing=checkpointing))
        actors.policy_statistics(rows(), 7, 1.0).log_probabilities.sum().backward()
        actors.values(rows(), 7).square().sum().backward()
        assert actors.policy.training == checkpointing
        gradients.append(
            [p.grad for p in [*actors.policy_parameters.values(), *actors.critic_parameters.values()]]
        )
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


def test_dropout_is_off_even_where_training_mode_is_on(
    tiny_model: Model, reward_model: Model, tmp_path: Path
) -> None:
    """Checkpointing needs training mode; a model whose configuration asks for dropout still gives one answer."""
    shutil.copytree(tiny_model.folder, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text()) | {"attention_dropout": 0.5}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    model = resolve(str(tmp_path / "model"), Runs(tmp_path))
    plain: Any = load_policy(model).train()
    assert plain_log_p(plain, 1.0)[0].tolist() != plain_log_p(plain, 1.0)[0].tolist()
    actors = load(model, reward_model, computation=Computation(gradient_checkpointing=True))
    assert actors.policy.training
    found = actors.policy_statistics(rows(), 7, 1.0).log_probabilities.detach()
    for row, right in zip(found, plain_log_p(load_policy(tiny_model).eval(), 1.0), strict=True):
        torch.testing.assert_close(row[: len(right)], right, atol=2e-5, rtol=0)


def test_scores_are_those_of_the_reward_stage(tiny_model: Model, reward_model: Model) -> None:
    """`reward.score` tokenises a conversation; PPO has its tokens already."""
    actors = load(tiny_model, reward_model)
    conversation = [Message(role="user", content="Why?"), Message(role="assistant", content="Because.")]
    tokenizer = load_tokenizer(tiny_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    response = tokenizer("Because.<|im_end|>").input_ids
    ours = actors.scores(Rows.of([prompt], [response])).item()
    assert ours == pytest.approx(score(reward_model, [conversation])[0], abs=1e-5)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
def test_an_ensemble_s_scores_are_those_of_its_heads(
    tiny_model: Model, tmp_path: Path, lora: LoraConfig | None
) -> None:
    ensemble = make_reward_model(tiny_model, tmp_path / "ensemble")
    heads = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)) / 8
    save_heads(ensemble.folder, heads)
    settings = json.loads((ensemble.folder / "config.json").read_text()) | {"reward_shift": 0.75}
    (ensemble.folder / "config.json").write_text(json.dumps(settings))
    conversation = [Message(role="user", content="Why?"), Message(role="assistant", content="Because.")]
    ids = encode_conversation(load_tokenizer(tiny_model), conversation).input_ids
    actors = load(tiny_model, ensemble, Layout(lora), ensemble="minimum")
    assert actors.ensemble == "minimum"
    assert actors.score_shift == 0.75
    found = actors.scores(Rows.of([ids[:-1]], [ids[-1:]]))[0]
    by_head = torch.tensor(score_by_head(ensemble, [conversation])[0])
    torch.testing.assert_close(found - 0.75, by_head, atol=1e-5, rtol=0)


def test_an_ensemble_is_combined() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combine(scores, "mean").tolist() == [2.0, 2.0]
    assert combine(scores, "minimum").tolist() == [1.0, 2.0]
    torch.testing.assert_close(combine(scores, "mean_minus_deviation"), torch.tensor([2 - math.sqrt(2), 2.0]))
    assert combine(scores[:, :1], "mean_minus_deviation").tolist() == [1.0, 2.0]
    assert disagreement(scores[:, :1]).tolist() == [0.0, 0.0]


def test_micro_batches_hold_their_budget_and_every_sequence_once() -> None:
    lengths = [7, 3, 9, 3, 30, 4, 8]
    batches = micro_batches(lengths, 16)
    assert batches == [[1, 3, 5], [0, 6], [2], [4]]  # 3 x 4, 2 x 8, 9, 30
    assert micro_batches(lengths, 10_000) == [[1, 3, 5, 0, 6, 2, 4]]


def test_processes_in_shards_read_equally_often_and_every_answer_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = [9, 4, 12, 4, 7]
    monkeypatch.setattr(parallel, "count", lambda: 6)
    monkeypatch.setattr(parallel, "is_sharded", lambda: True)
    for among in (None, [2, 4], [0]):
        of_each = []
        for rank in range(6):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            of_each.append(share_passes(lengths, 10, among))
        assert len({len(passes) for passes in of_each}) == 1
        counted = [i for passes in of_each for index, counts in passes if counts for i in index]
        assert sorted(counted) == (among or list(range(5)))
        # one that has no answer at all reads the first, and every other one its own
        assert of_each[5] == [([0], False)]
        for rank, passes in enumerate(of_each[:5]):
            assert {i for index, _ in passes for i in index} == set(parallel.share(lengths, rank))


def test_another_tokenizer_is_refused(tiny_model: Model, reward_model: Model, tmp_path: Path) -> None:
    """The same ids would mean other words."""
    model: Any = load_reward_model(reward_model)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(tmp_path / "other")
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["please"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="has another tokenizer or chat template than the policy"):
        load(tiny_model, resolve(str(tmp_path / "other"), Runs(tmp_path)))


def test_a_longer_context_than_the_models_read_is_refused(tiny_model: Model, reward_model: Model) -> None:
    with pytest.raises(
        UsageError, match="max_sequence_tokens is 2000, and policy and reward model read at most 1024"
    ):
        load_actors(load_tokenizer(tiny_model), tiny_model, reward_model, 2000)


def test_a_model_that_changes_its_logits_is_refused(
    tmp_path: Path, tiny_model: Model, reward_model: Model
) -> None:
    """Gemma 2 caps them: its output layer's product is not what it samples from."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.1, initializer_range=1.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "gemma")
    with pytest.raises(UsageError, match="Gemma2ForCausalLM changes them after it"):
        load(resolve(str(tmp_path / "gemma"), Runs(tmp_path)), reward_model)


@pytest.mark.parametrize("layout", ["lora", "shared base"])
def test_layers_beneath_the_adapters_are_computed_once_and_change_nothing(
    tiny_model: Model,
    reward_model: Model,
    preferences: Path,
    tmp_path: Path,
    layout: str,
) -> None:
    """With adapters in the last layer of two, numbers and gradients are those of whole passes."""
    lora = LoraConfig(rank=4, alpha=8, top_layers=1)
    if layout == "shared base":
        actors, reward_model = shared(tiny_model, preferences, tmp_path, {"top_layers": 1}, lora)
    else:
        actors = load(tiny_model, reward_model, Layout(lora))
    assert actors.frozen_layers == {"policy": 1, "critic": 1}
    adapted = {*actors.policy_parameters, *actors.critic_parameters}
    assert not any(".layers.0." in name for name in adapted) and any(".layers.1." in name for name in adapted)
    for p in (*actors.policy_parameters.values(), *actors.critic_parameters.values()):
        torch.nn.init.normal_(p, std=0.1)

    def numbers(rows: Rows) -> list[torch.Tensor]:
        policy = actors.policy_statistics(rows, 7, 0.8).log_probabilities
        policy.sum().backward()
        with actors.adapter("critic"):
            values = actors.values(rows, 7)
            values.square().sum().backward()
        gradients = [p.grad for p in (*actors.policy_parameters.values(), *actors.critic_parameters.values())]
        for p in (*actors.policy_parameters.values(), *actors.critic_parameters.values()):
            p.grad = None
        reference = actors.reference_statistics(rows, 7, 0.8).log_probabilities
        return [policy, values, reference, actors.scores(rows), *(g for g in gradients if g is not None)]

    once = actors.beneath(rows())
    assert set(once.beneath) == {"policy", "critic"}
    assert (once.beneath["policy"] is once.beneath["critic"]) == (layout == "shared base")
    for ours, right in zip(numbers(once), numbers(rows()), strict=True):
        torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-5)
    plain = plain_log_p(load_policy(tiny_model).eval(), 0.8)
    for row, right in zip(actors.reference_statistics(once, 7, 0.8).log_probabilities, plain, strict=True):
        torch.testing.assert_close(row[: len(right)], right, atol=2e-5, rtol=0)


def test_more_top_layers_than_layers(tiny_model: Model, reward_model: Model) -> None:
    with pytest.raises(UsageError, match=r"lora.top_layers is 3, and .* has 2 layers"):
        load(tiny_model, reward_model, Layout(LoraConfig(top_layers=3)))


def test_parts_that_do_not_give_the_same_are_not_used(
    tiny_model: Model, reward_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of a percent is no rounding; the wrong rotation of a layer is more."""
    whole = Actors._beneath
    monkeypatch.setattr(Actors, "_beneath", lambda *given: whole(*given) * 1.001)
    actors = load(tiny_model, reward_model, Layout(LoraConfig(rank=4, top_layers=1)))
    assert actors.frozen_layers == {"policy": 0, "critic": 0}
