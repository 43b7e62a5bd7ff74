"""Weights on their way to a sampler, and several engines that are one sampler."""

import contextlib
import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_families import make_family
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from accord.errors import DataError, SamplerGoneError, SyncError, UsageError
from accord.models import loading
from accord.models.references import Model
from accord.sampling import Completion, SamplingConfig
from accord.sampling.replicas import Replicas, parts
from accord.sampling.shared import SharedSampler
from accord.sampling.verify import FLOAT32_BOUND, verify
from accord.sampling.vllm_engine import VLLMSampler, gpus_of, vllm_is_installed
from accord.sampling.weights import FILE_BYTES, checkpoint_weights, merged, merged_weights, weight_files
from rl.policy_gradient.rollout import PolicySampler

real_vllm = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
]
PROMPTS = [[1, 5 + i, 40, 41 + i] * (1 + i) for i in range(7)]
EOS = 2


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


ADAPTERS: dict[str, Callable[[], Any]] = {
    "all layers": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "rank-stabilised": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "DoRA": lambda: peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "a saved norm": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    "a saved head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embeddings": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "some tokens": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4]),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT's, about adapters on tied weights
def test_weights_layer_by_layer_are_bitwise_those_of_the_merged_copy(
    name: str, tied: bool, tmp_path: Path
) -> None:
    policy: Any = peft.get_peft_model(tiny_llama(tied), ADAPTERS[name]())
    noise = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    before = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    merged(policy).save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    found = dict(checkpoint_weights(policy))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(torch.equal(before[key], tensor) for key, tensor in policy.state_dict().items())


def test_one_layer_is_copied_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = peft.get_peft_model(
        tiny_llama(True), peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    largest = max(p.numel() for p in policy.parameters())
    copied: list[int] = []
    real = copy.deepcopy

    def deepcopy(what: Any, *more: Any) -> Any:
        if isinstance(what, torch.nn.Module):
            copied.append(sum(p.numel() for p in what.parameters()))
        return real(what, *more)

    monkeypatch.setattr(copy, "deepcopy", deepcopy)
    assert sum(1 for _ in merged_weights(policy)) == 2 * 9 + 2
    assert len(copied) == 2 * 7
    assert max(copied) < 1.2 * largest


def test_files_of_weights_come_one_at_a_time_as_the_model_is_saved(tmp_path: Path) -> None:
    """Experts lie in one tensor in the module, and one by one in the files."""
    model = loading.load_policy(make_family("qwen3_moe", tmp_path / "model", num_attention_heads=2))
    model.save_pretrained(tmp_path / "saved")
    expected = load_file(tmp_path / "saved" / "model.safetensors")
    for file_bytes, least in ((20_000, 5), (FILE_BYTES, 1)):
        found: dict[str, torch.Tensor] = {}
        count = 0
        for path in weight_files(model, tmp_path, file_bytes):
            assert list(path.parent.iterdir()) == [path], "an earlier file is still there"
            found |= load_file(path)
            count += 1
        assert count >= least and (least > 1 or count == 1)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(tmp_path.glob("accord-weights-*"))


class Engine:
    """Answers with its number and the prompt, once all the others have been asked too."""

    max_sequence_tokens = 64
    shares_gpu = False

    def __init__(self, number: int, together: threading.Barrier) -> None:
        self.number, self.together = number, together
        self.name = f"engine {number}"
        self.sync_count = 0
        self.fails = False
        self.parts: list[str] = []
        self.closed = False

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], longest: int, temperature: float, update: Any
    ) -> list[Completion]:  # fmt: skip
        self.together.wait(timeout=10)
        update(len(prompts))
        if self.fails:
            raise SamplerGoneError(f"{self.name} ended")
        return [
            Completion([self.number, *p, s], [0.0] * (len(p) + 2), "length")
            for p, s in zip(prompts, seeds, strict=True)
        ]

    def start_weight_update(self) -> None:
        self.parts = []

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.parts += load_file(update_info["path"])

    def finish_weight_update(self, weight_version: str) -> None:
        self.version = weight_version

    def rest(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engines() -> list[Any]:
    together = threading.Barrier(3)
    return [Engine(number, together) for number in range(3)]


@pytest.fixture
def replicas(engines: list[Any]) -> Replicas:
    return Replicas([lambda each=each: each for each in engines])  # type: ignore[misc]


def test_prompts_go_round_and_answers_come_back_in_order(replicas: Replicas, engines: list[Any]) -> None:
    prompts = [[10 + i] for i in range(7)]
    answers = replicas.sample(prompts, range(100, 107), 4)
    assert [a.token_ids for a in answers] == [[i % 3, 10 + i, 100 + i] for i in range(7)]
    assert replicas.sample([], [], 4) == []
    engines[0].together = threading.Barrier(1)
    assert [a.token_ids for a in replicas.sample([[9]], [1], 4)] == [[0, 9, 1]]
    with pytest.raises(DataError, match="prompt 2 of 2 has no tokens"):
        replicas.sample([[1], []], [1, 2], 4)
    assert [name for name, _ in parts(replicas)][1] == "replica 2 of 3 of the sampler (engine 1)"


def test_one_that_ended_ends_the_sampling(replicas: Replicas, engines: list[Any]) -> None:
    engines[1].fails = True
    with pytest.raises(SamplerGoneError, match="engine 1 ended"):
        replicas.sample([[i + 1] for i in range(6)], range(6), 4)


def test_all_get_the_same_weights_by_one_version(replicas: Replicas, engines: list[Any]) -> None:
    policy = tiny_llama(True)
    replicas.sync(policy)
    names = [name for name, _ in checkpoint_weights(policy)]
    assert all(sorted(engine.parts) == sorted(names) for engine in engines)
    assert len({engine.version for engine in engines}) == 1 and replicas.sync_count == 1


def test_one_that_does_not_start_ends_the_others(engines: list[Any]) -> None:
    def fail() -> Any:
        raise UsageError("no memory")

    with pytest.raises(UsageError, match="no memory"):
        Replicas([lambda: engines[0], fail, lambda: engines[2]])
    assert [engine.closed for engine in engines] == [True, False, True]


@pytest.mark.parametrize(
    ("replicas", "each", "trainers", "gpus", "found"),
    [
        (1, 1, 1, 1, [([0], True)]),
        (1, 1, 1, 2, [([1], False)]),
        (2, 2, 4, 8, [([4, 5], False), ([6, 7], False)]),
        (2, 1, 1, 2, [([0], True), ([1], False)]),
        (2, 2, 8, 8, [([0, 1], True), ([2, 3], True)]),
    ],
)
def test_engines_have_gpus_beside_the_trainers_where_there_are_enough(
    replicas: int, each: int, trainers: int, gpus: int, found: list[tuple[list[int], bool]]
) -> None:
    config = SamplingConfig(replicas=replicas, tensor_parallel=each)
    assert [gpus_of(number, config, trainers, gpus) for number in range(replicas)] == found


def test_more_engines_than_gpus_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"replicas=2 with sampling\.tensor_parallel=4 needs 8 GPUs.*are 4"):
        gpus_of(0, SamplingConfig(replicas=2, tensor_parallel=4), 1, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "transformers", "replicas": 2}, "do not go with engine: transformers; set the engine to vllm"),
        ({"engine": "server", "tensor_parallel": 2}, "name several servers in server_url"),
        ({"engine": "server", "server_url": [], "server_weights_folder": "/x"}, "at least one server"),
        ({"engine": "server", "server_url": ["http://a"] * 2, "server_weights_folder": "/x"}, "each once"),
        ({"engine": "server", "server_url": ["http://a", "b:1"], "server_weights_folder": "/x"}, "server_url"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingConfig.model_validate(settings)


SETTINGS = {"engine": "vllm", "max_sequence_tokens": 256, "kv_cache_gib": 0.1}


@pytest.fixture(scope="module")
def perturbed(small_model: Model) -> PreTrainedModel:
    policy = loading.load_policy(small_model)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=noise)
    return policy


@pytest.fixture(scope="module")
def answers_of_one(
    small_model: Model, perturbed: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> list[list[list[int]]]:
    """What one engine of one process answers, before and after a change of weights."""
    if not vllm_is_installed():
        pytest.skip("vLLM is not installed")
    log = tmp_path_factory.mktemp("one") / "vllm.log"
    with SharedSampler(SamplingConfig.model_validate(SETTINGS), log) as shared:
        one = shared.use(small_model)
        before = one.sample(PROMPTS, range(50, 57), 32)
        one.sync(perturbed)
        after = one.sample(PROMPTS, range(50, 57), 32)
    return [[answer.token_ids for answer in answers] for answers in (before, after)]


@pytest.fixture(scope="module")
def shared(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSampler]:
    log = tmp_path_factory.mktemp("two") / "vllm.log"
    with SharedSampler(SamplingConfig.model_validate({**SETTINGS, "replicas": 2}), log) as found:
        found.use(small_model)
        assert {path.name for path in log.parent.iterdir()} == {"vllm-1.log", "vllm-2.log"}
        yield found


class TestTwoEngines:
    pytestmark: Any = real_vllm

    def test_their_answers_are_those_of_one(
        self, shared: SharedSampler, small_model: Model, perturbed: PreTrainedModel, answers_of_one: Any
    ) -> None:
        two = shared.use(small_model)
        assert isinstance(two, Replicas)
        assert len({each.process.pid for each in two.replicas if isinstance(each, VLLMSampler)}) == 2
        before, after = answers_of_one
        assert [a.token_ids for a in two.sample(PROMPTS, range(50, 57), 32)] == before
        two.sync(perturbed)
        assert verify(two, perturbed, PROMPTS, FLOAT32_BOUND).max_difference < 1e-4
        assert [a.token_ids for a in two.sample(PROMPTS, range(50, 57), 32)] == after
        assert before != after

    def test_a_stale_one_is_named(
        self, shared: SharedSampler, small_model: Model, perturbed: PreTrainedModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        two: Any = shared.use(small_model)
        stale = two.replicas[1]
        with monkeypatch.context() as patch:
            patch.setattr(stale, "update_weights", lambda part: None)
            two.sync(perturbed)
        wrong = rf"^replica 2 of 2 of the sampler \(vLLM's process {stale.process.pid}\) does not have the trainer's"
        with pytest.raises(SyncError, match=wrong):
            verify(two, perturbed, PROMPTS, FLOAT32_BOUND)
        two.sync(perturbed)
        verify(two, perturbed, PROMPTS, FLOAT32_BOUND)

    def test_engines_that_slept_wake_up_to_answer_and_for_new_weights(
        self, shared: SharedSampler, small_model: Model, perturbed: PreTrainedModel, answers_of_one: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """On a CPU vLLM stops its scheduler alone, and keeps its memory."""
        two: Any = shared.use(small_model)
        for replica in two.replicas:
            monkeypatch.setattr(replica, "_sleeps", True)
        two.rest()
        two.rest()
        assert [a.token_ids for a in two.sample(PROMPTS, range(50, 57), 32)] == answers_of_one[0]
        two.rest()
        two.sync(perturbed)
        assert [a.token_ids for a in two.sample(PROMPTS, range(50, 57), 32)] == answers_of_one[1]

    def test_one_that_is_killed_is_started_again_with_the_policys_weights(
        self, shared: SharedSampler, small_model: Model, perturbed: PreTrainedModel, answers_of_one: Any
    ) -> None:
        ppo = PolicySampler(shared, small_model, lambda: contextlib.nullcontext(perturbed))
        ppo.sync()
        two: Any = ppo._sampler
        os.kill(two.replicas[1].process.pid, signal.SIGKILL)
        answers = ppo.sample(PROMPTS, range(50, 57), 32, 1.0)
        assert ppo.restarts == 1
        assert [answer.token_ids for answer in answers] == answers_of_one[1]
        assert two.replicas[0].process.returncode is not None, "the other one of the old ones still runs"


class TestTensorParallel:
    pytestmark: Any = real_vllm

    def test_a_model_over_two_processes_answers_as_one(
        self, small_model: Model, perturbed: PreTrainedModel, answers_of_one: Any, tmp_path: Path
    ) -> None:
        config = SamplingConfig.model_validate({**SETTINGS, "tensor_parallel": 2})
        with SharedSampler(config, tmp_path / "vllm.log") as found:
            spread = found.use(small_model)
            before, after = answers_of_one
            assert [a.token_ids for a in spread.sample(PROMPTS, range(50, 57), 32)] == before
            spread.sync(perturbed)
            assert verify(spread, perturbed, PROMPTS, FLOAT32_BOUND).max_difference < 1e-4
            assert [a.token_ids for a in spread.sample(PROMPTS, range(50, 57), 32)] == after
