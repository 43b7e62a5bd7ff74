"""Sampling with transformers, scoring, verification and the shared sampler, on models of a few thousand weights."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from accord.errors import DataError, SyncError, UsageError
from accord.models import loading
from accord.models.references import Model
from accord.sampling import SamplingConfig, shared, vllm_engine
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.shared import SharedSampler
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.verify import FLOAT32_BOUND, verify

EOS = 3
CONFIG = SamplingConfig(engine="transformers", answers_at_once=5, max_sequence_tokens=64)


def tiny_model(seed: int, vocabulary: int = 16, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def policy() -> LlamaForCausalLM:
    return tiny_model(seed=0)


@pytest.fixture
def sampler(policy: LlamaForCausalLM, tmp_path: Path) -> TransformersSampler:
    policy.save_pretrained(tmp_path)
    return TransformersSampler(tmp_path, EOS, CONFIG)


def naive_log_probabilities(
    model: LlamaForCausalLM, prompt: list[int], answer: list[int], temperature: float
) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0] / temperature
    return torch.stack(
        [torch.log_softmax(logits[len(prompt) + t - 1], -1)[token] for t, token in enumerate(answer)]
    )


def test_first_token_frequencies_are_the_softmax(
    sampler: TransformersSampler, policy: LlamaForCausalLM
) -> None:
    draws, temperature, prompt = 4000, 0.7, [1, 5, 9]
    sampler.answers_at_once = 1000
    answers = sampler.sample([prompt] * draws, range(draws), 1, temperature)
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=16)
    with torch.no_grad():
        expected = (
            torch.softmax(policy(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1) * draws
        )
    common = expected >= 5  # the chi-square approximation needs that many; the rare ones are pooled
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    assert common.sum() >= 4
    assert (
        stats.chisquare(observed[: 16 if wanted[-1] else -1], wanted[: 16 if wanted[-1] else -1]).pvalue
        > 1e-3
    )


def test_log_probabilities_are_those_of_the_policy(
    sampler: TransformersSampler, policy: LlamaForCausalLM
) -> None:
    prompts = [[1, 5], [1, 2, 9, 7, 7, 4], [8]]
    for prompt, answer in zip(prompts, sampler.sample(prompts, [1, 2, 3], 12, 1.3), strict=True):
        expected = naive_log_probabilities(policy, prompt, answer.token_ids, 1.3)
        torch.testing.assert_close(torch.tensor(answer.log_probabilities), expected, atol=1e-5, rtol=0)


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours(sampler: TransformersSampler) -> None:
    prompts = [[1, *range(4, 4 + n)] for n in (3, 9, 1, 6, 2, 8, 3)]
    together = sampler.sample(prompts, range(7), 20)
    backwards = sampler.sample(prompts[::-1], range(7)[::-1], 20)[::-1]
    for index, prompt in enumerate(prompts):
        (alone,) = sampler.sample([prompt], [index], 20)
        assert alone.token_ids == together[index].token_ids == backwards[index].token_ids
    assert together[0].token_ids != together[6].token_ids  # one prompt, two seeds


def test_an_answer_ends_with_its_first_eos_or_has_the_greatest_length(sampler: TransformersSampler) -> None:
    answers = sampler.sample([[1, 5]] * 60, range(60), 8)
    assert {answer.finish for answer in answers} == {"eos", "length"}
    for answer in answers:
        assert len(answer.log_probabilities) == len(answer.token_ids)
        if answer.finish == "eos":
            assert answer.token_ids.index(EOS) == len(answer.token_ids) - 1
        else:
            assert EOS not in answer.token_ids
            assert len(answer.token_ids) == 8


def test_temperature_zero_takes_the_likeliest(sampler: TransformersSampler, policy: LlamaForCausalLM) -> None:
    (answer,) = sampler.sample([[1, 5]], [0], 6, temperature=0)
    ids = [1, 5]
    for token in answer.token_ids:
        with torch.no_grad():
            assert policy(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)
    expected = naive_log_probabilities(policy, [1, 5], answer.token_ids, 1.0)
    torch.testing.assert_close(torch.tensor(answer.log_probabilities), expected, atol=1e-5, rtol=0)


def test_a_folder_that_cuts_the_distribution_does_not(policy: LlamaForCausalLM, tmp_path: Path) -> None:
    policy.generation_config.do_sample = True
    policy.generation_config.top_k = 1
    policy.generation_config.repetition_penalty = 5.0
    policy.save_pretrained(tmp_path)
    sampler = TransformersSampler(tmp_path, EOS, CONFIG)
    (answer,) = sampler.sample([[1, 5, 5]], [4], 12)
    expected = naive_log_probabilities(policy, [1, 5, 5], answer.token_ids, 1.0)
    torch.testing.assert_close(torch.tensor(answer.log_probabilities), expected, atol=1e-5, rtol=0)


def test_sync_of_an_adapter_leaves_the_policy_bitwise_as_it_was(
    sampler: TransformersSampler, policy: LlamaForCausalLM
) -> None:
    import peft

    adapted = peft.get_peft_model(policy, peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    with pytest.raises(SyncError, match=r"does not have the trainer's weights.*run the same command"):
        verify(sampler, adapted, [[1, 5]], FLOAT32_BOUND)
    sampler.sync(adapted)
    assert verify(sampler, adapted, [[1, 5]], FLOAT32_BOUND).max_difference < 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.state_dict().items())


@pytest.mark.parametrize("sequences_at_once", [1, 2, 16])
def test_token_log_probabilities_are_the_naive_ones(policy: LlamaForCausalLM, sequences_at_once: int) -> None:
    prompts = [[1, 5], [1, 2, 9, 7, 7, 4], [8], [1, 4]]
    answers = [[4, 4, 3], [6], [5, 6, 7, 8, 9, 10], []]
    scored = token_log_probabilities(policy, prompts, answers, 0.6, sequences_at_once)
    for prompt, answer, row in zip(prompts, answers, scored, strict=True):
        assert row.shape == (len(answer),)
        if answer:
            torch.testing.assert_close(row, naive_log_probabilities(policy, prompt, answer, 0.6))


def test_verify_fails_on_a_nan(sampler: TransformersSampler, policy: LlamaForCausalLM) -> None:
    with torch.no_grad():
        policy.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SyncError):
        verify(sampler, policy, [[1, 5]], FLOAT32_BOUND)


def test_requests_that_cannot_be_answered_are_refused(sampler: TransformersSampler) -> None:
    with pytest.raises(DataError, match="prompt 2 of 2 has no tokens"):
        sampler.sample([[1], []], [1, 2], 4)
    with pytest.raises(DataError, match=r"prompt 1 of 1 has 60 tokens .* sampling\.max_sequence_tokens=64"):
        sampler.sample([[1] * 60], [1], 5)
    with pytest.raises(ValueError, match="2 prompts need as many seeds, not 1"):
        sampler.sample([[1], [2]], [1], 4)


def test_vllm_asked_for_and_not_installed(monkeypatch: pytest.MonkeyPatch, tiny_models: list[Model]) -> None:
    for module in (shared, vllm_engine):
        monkeypatch.setattr(module, "vllm_is_installed", lambda: False)
    with pytest.raises(UsageError, match=r"sampling\.engine=transformers"):
        SharedSampler(SamplingConfig(engine="vllm")).use(tiny_models[0])
    with SharedSampler(SamplingConfig(engine="auto")) as automatic:
        assert isinstance(automatic.use(tiny_models[0]), TransformersSampler)


@pytest.fixture
def tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """Two models of one architecture, and one with another layer; all with a stand-in for a tokenizer."""

    class Tokenizer:
        eos_token_id = EOS
        added_tokens_decoder: ClassVar[dict[int, object]] = {}
        all_special_tokens: tuple[str, ...] = ()

        def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
            return messages[0]["content"]

        def __call__(self, text: str, **options: object) -> dict[str, list[object]]:
            return {"input_ids": [1, 4 + len(text) % 10], "offset_mapping": [(0, 0), (0, len(text))]}

    monkeypatch.setattr(shared, "load_tokenizer", lambda model: Tokenizer())
    found = []
    for seed, layers in ((0, 2), (1, 2), (0, 3)):
        folder = tmp_path / f"{seed}-{layers}"
        tiny_model(seed, layers=layers).save_pretrained(folder)
        found.append(Model(folder.name, folder, f"digest of {folder.name}"))
    return found


def test_the_shared_sampler_starts_once_and_changes_weights(tiny_models: list[Model]) -> None:
    first, second, deeper = tiny_models
    with SharedSampler(SamplingConfig(engine="transformers")) as sharing:
        sampler = sharing.use(first)
        assert sharing.use(first) is sampler
        assert sampler.sync_count == 0
        assert sharing.use(second) is sampler
        assert sampler.sync_count == 1
        verify(sampler, loading.load_policy(second), [[1, 5]], FLOAT32_BOUND)
        # A trainer that syncs its own weights makes the sampler forget which model it has.
        sampler.sync(loading.load_policy(first))
        assert sharing.use(second) is sampler
        verify(sampler, loading.load_policy(second), [[1, 5]], FLOAT32_BOUND)
        assert sharing.use(deeper) is not sampler


def test_the_shared_sampler_stops_on_stale_weights(
    tiny_models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SharedSampler(SamplingConfig(engine="transformers")) as sharing:
        sharing.use(tiny_models[0])
        monkeypatch.setattr(TransformersSampler, "sync", lambda self, policy: None)
        with pytest.raises(SyncError):
            sharing.use(tiny_models[1])
        with pytest.raises(SyncError):  # and does not take them for the right ones the second time
            sharing.use(tiny_models[1])


def test_auto_takes_transformers_where_vllm_computes_a_model_otherwise(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does Cohere2 on a CPU; with engine: vllm, the sentence says so."""

    class Wrong(TransformersSampler):
        def __init__(self, folder: Path, eos_token_id: int, config: SamplingConfig, log: Path) -> None:
            super().__init__(folder, eos_token_id, config)
            with torch.no_grad():
                self.model.model.layers[1].self_attn.q_proj.weight.mul_(1.5)

    monkeypatch.setattr(shared, "VLLMSampler", Wrong)
    monkeypatch.setattr(shared, "vllm_is_installed", lambda: True)
    monkeypatch.setattr(shared, "check_installed", lambda engine: None)
    with (
        SharedSampler(SamplingConfig(engine="vllm", max_sequence_tokens=256)) as sharing,
        pytest.raises(
            SyncError, match=r"computes this model otherwise than the trainer.*engine=transformers"
        ),
    ):
        sharing.use(tiny_model)
    caplog.set_level("INFO")
    with SharedSampler(SamplingConfig(max_sequence_tokens=256)) as sharing:
        assert type(sharing.use(tiny_model)) is TransformersSampler
    assert "answers of it are sampled with transformers" in caplog.text
