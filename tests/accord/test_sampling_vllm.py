"""vLLM and the real model: one engine for all tests of this file, which is most of their time.

Some of these pin facts about vLLM that accord works around; when one fails after an upgrade, look whether the
work-around can go.
"""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest
import torch
from scipy import stats
from tiny_families import make_family
from training_helpers import run_stage
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from accord.chat.tokens import encode_prompt
from accord.errors import AccordError, SyncError
from accord.models import loading
from accord.models.references import Model, resolve
from accord.preload import libraries
from accord.records import Demonstration, Message
from accord.runs import Runs
from accord.sampling import SamplingConfig
from accord.sampling.shared import SharedSampler
from accord.sampling.transformers_sampler import TransformersSampler
from accord.sampling.verify import FLOAT32_BOUND, verify
from accord.sampling.vllm_engine import VLLMSampler, vllm_is_installed
from accord.text_files import write_jsonl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
]

QUESTIONS = [
    "Name three fruits.",
    "Why do cats purr? Answer in one sentence.",
    "Write a haiku about rain.",
    "What is 7 times 8?",
    "How do I boil an egg?",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSampler]:
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    with SharedSampler(SamplingConfig(engine="vllm", max_sequence_tokens=256), log) as sharing:
        yield sharing
        process = cast(VLLMSampler, sharing._sampler).process
    assert process.returncode == 0


@pytest.fixture
def sampler(shared: SharedSampler, bundled_model: Model) -> VLLMSampler:
    sampler = shared.use(bundled_model)
    assert isinstance(sampler, VLLMSampler)
    return sampler


@pytest.fixture(scope="module")
def policy(bundled_model: Model) -> PreTrainedModel:
    return loading.load_policy(bundled_model)


@pytest.fixture(scope="module")
def perturbed(policy: PreTrainedModel) -> PreTrainedModel:
    """The policy after a step of training, so to speak: every weight moved by 1% of its tensor's spread."""
    other = copy.deepcopy(policy)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter += 0.01 * parameter.std() * torch.randn(parameter.shape, generator=noise)
    return other


@pytest.fixture(scope="module")
def prompts(bundled_model: Model) -> list[list[int]]:
    tokenizer = loading.load_tokenizer(bundled_model)
    return [encode_prompt(tokenizer, [Message(role="user", content=question)]) for question in QUESTIONS]


def test_sampler_and_trainer_agree_before_and_after_a_sync(
    sampler: VLLMSampler, policy: PreTrainedModel, perturbed: PreTrainedModel, prompts: list[list[int]]
) -> None:
    assert verify(sampler, policy, prompts, FLOAT32_BOUND).max_difference < 1e-3
    sampler.sync(perturbed)
    assert verify(sampler, perturbed, prompts, FLOAT32_BOUND).max_difference < 1e-3
    with pytest.raises(SyncError):
        verify(sampler, policy, prompts, FLOAT32_BOUND)


def reload_by_itself(sampler: VLLMSampler, policy: PreTrainedModel, folder: Path) -> None:
    """By vLLM's `reload_weights`, without what `accord.sampling.weight_transfer` does at the end of an update."""
    policy.save_pretrained(folder)
    sampler._call("collective_rpc", method="reload_weights", kwargs={"weights_path": str(folder)})


def test_a_stale_output_head_is_detected(
    sampler: VLLMSampler, perturbed: PreTrainedModel, prompts: list[list[int]], tmp_path: Path
) -> None:
    """vLLM's own `reload_weights` returns success on CPU, and leaves a tied head as it was."""
    sampler.sync_count += 1  # so that the next test has the model's weights again
    reload_by_itself(sampler, perturbed, tmp_path)
    with pytest.raises(SyncError):
        verify(sampler, perturbed, prompts, FLOAT32_BOUND)


def test_weights_are_saved_for_a_sync_only(sampler: VLLMSampler, policy: PreTrainedModel) -> None:
    sampler.sync(policy)
    assert not list(Path("/dev/shm").glob("accord-weights-*"))


def test_an_answer_depends_on_its_seed_and_not_on_its_neighbours(
    sampler: VLLMSampler, prompts: list[list[int]]
) -> None:
    together = sampler.sample(prompts, range(5), 32)
    again = sampler.sample([*prompts[::-1], prompts[0]], [4, 3, 2, 1, 0, 7], 32)
    (alone,) = sampler.sample(prompts[1:2], [1], 32)
    assert [a.token_ids for a in again[4::-1]] == [a.token_ids for a in together]
    assert alone.token_ids == together[1].token_ids
    assert again[5].token_ids != together[0].token_ids


def test_the_transformers_sampler_does_so_too(bundled_model: Model, prompts: list[list[int]]) -> None:
    sampler = TransformersSampler(bundled_model.folder, 2, SamplingConfig())
    together = sampler.sample(prompts, range(5), 16)
    (alone,) = sampler.sample(prompts[1:2], [1], 16)
    assert alone.token_ids == together[1].token_ids


def test_an_answer_ends_with_its_first_eos_or_has_the_greatest_length(
    sampler: VLLMSampler, bundled_model: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The end of a sentence stands in for EOS, which this model seldom comes to within so few tokens.
    (stop,) = loading.load_tokenizer(bundled_model).encode(".")
    monkeypatch.setattr(sampler, "eos_token_id", stop)
    answers = sampler.sample(prompts * 4, range(20), 24)
    assert {answer.finish for answer in answers} == {"eos", "length"}
    for answer in answers:
        assert len(answer.log_probabilities) == len(answer.token_ids)
        if answer.finish == "eos":
            assert answer.token_ids.index(stop) == len(answer.token_ids) - 1
        else:
            assert stop not in answer.token_ids
            assert len(answer.token_ids) == 24


def test_temperature(sampler: VLLMSampler, policy: PreTrainedModel, prompts: list[list[int]]) -> None:
    with torch.no_grad():
        logits = policy(torch.tensor([prompts[0]])).logits[0, -1]
    (warm,) = sampler.sample([prompts[0]], [1], 1, temperature=2.0)
    expected = torch.log_softmax(logits / 2, -1)[warm.token_ids[0]].item()
    assert warm.log_probabilities[0] == pytest.approx(expected, abs=1e-3)
    (likeliest,) = sampler.sample([prompts[0]], [1], 1, temperature=0)
    assert likeliest.token_ids == [logits.argmax().item()]
    assert likeliest.log_probabilities[0] == pytest.approx(
        torch.log_softmax(logits, -1).max().item(), abs=1e-3
    )


def test_first_token_frequencies_are_the_softmax(sampler: VLLMSampler, policy: PreTrainedModel) -> None:
    """One seed a draw, as everywhere in accord: vLLM's noise has to be independent between seeds too."""
    draws, prompt = 600, [1, 9690]
    answers = sampler.sample([prompt] * draws, range(draws), 1)
    with torch.no_grad():
        p = torch.softmax(policy(torch.tensor([prompt])).logits[0, -1].double(), -1)
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=len(p))
    common = p * draws >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    expected = [*(p[common] * draws).tolist(), (p[~common].sum() * draws).item()]
    assert common.sum() >= 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_engine_preloads_its_libraries(sampler: VLLMSampler) -> None:
    environment = psutil.Process(sampler.process.pid).environ()
    maps = Path(f"/proc/{sampler.process.pid}/maps").read_text()
    for library in libraries():
        assert library in environment["LD_PRELOAD"]
        assert Path(library).name in maps


def test_the_idle_engine_leaves_the_cores_to_the_trainer(
    sampler: VLLMSampler, prompts: list[list[int]]
) -> None:
    sampler.sample(prompts, range(5), 4)
    process = psutil.Process(sampler.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(4)
    assert sum(process.cpu_times()[:2]) - before < 0.4


def test_little_memory_and_long_prompts_change_nothing_and_a_dead_engine_is_an_error(
    small_model: Model, tmp_path: Path
) -> None:
    """More prompt tokens than vLLM takes on in a step, and answers that it must set aside for want of memory.

    Pins two facts: vLLM on CPU cannot split the prompt of a request with a seed over two steps ("CPU Generator does
    not use offset"), and a request that was set aside goes on with its own random numbers.
    """
    config = SamplingConfig(max_sequence_tokens=512, kv_cache_gib=0.004)
    sampler = VLLMSampler(small_model.folder, 2, config, tmp_path / "vllm.log")
    prompts = [[5 + i] * 250 for i in range(40)]  # two blocks of 128 tokens each, growing to three
    together = sampler.sample(prompts, range(40), 60)
    assert [sampler.sample([prompts[i]], [i], 60)[0].token_ids for i in (0, 17, 39)] == [
        together[i].token_ids for i in (0, 17, 39)
    ]
    verify(sampler, loading.load_policy(small_model), prompts, FLOAT32_BOUND)
    os.kill(sampler.process.pid, signal.SIGKILL)
    with pytest.raises(AccordError, match=r"ended while it was needed.*sampling\.engine=transformers"):
        sampler.sample([[5, 6]], [1], 4)
    sampler.close()


def test_a_trainer_keeps_its_process_and_no_engine_outlives_it(small_model: Model, tmp_path: Path) -> None:
    """vLLM patches torch, sets environment variables and freezes the number of threads wherever it is imported."""
    script = f"""
import os, sys, torch
from pathlib import Path
from accord.sampling import SamplingConfig
from accord.sampling.vllm_engine import VLLMSampler
before = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
sampler = VLLMSampler(Path({str(small_model.folder)!r}), 2, SamplingConfig(), Path({str(tmp_path / "log")!r}))
sampler.sample([[5, 6]], [1], 4)
assert before == (dict(os.environ), torch.get_num_threads(), torch.set_num_threads)
assert "LD_PRELOAD" not in os.environ and "vllm" not in sys.modules
print(sampler.process.pid, flush=True)
sampler.sample([[5, 6]] * 2000, range(2000), 1000)
"""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert trainer.stdout
    engine = psutil.Process(int(trainer.stdout.readline()))
    time.sleep(2)
    assert engine.cpu_percent(interval=1) > 10  # in the middle of the long sampling
    trainer.kill()
    trainer.wait()
    engine.wait(timeout=10)


def test_vllm_that_cannot_start_names_its_log(small_model: Model, tmp_path: Path) -> None:
    config = SamplingConfig(engine="vllm", kv_cache_gib=1e6)
    with (
        SharedSampler(config, tmp_path / "vllm.log") as sharing,
        pytest.raises(AccordError, match=r"did not start.*vllm\.log.*sampling\.engine=transformers"),
    ):
        sharing.use(small_model)
    assert "Available memory" in (tmp_path / "vllm.log").read_text()


def test_experts_have_new_weights_after_each_sync(tmp_path: Path) -> None:
    """vLLM packs experts for a CPU when it loads them, and not when it loads them again."""
    model = make_family("qwen3_moe", tmp_path / "model", num_attention_heads=2, intermediate_size=64)
    moved = loading.load_policy(model)
    with SharedSampler(
        SamplingConfig(engine="vllm", max_sequence_tokens=256), tmp_path / "vllm.log"
    ) as sharing:
        sampler = sharing.use(model)
        assert isinstance(sampler, VLLMSampler)
        for _ in range(2):
            with torch.no_grad():
                for parameter in moved.parameters():
                    parameter *= 1.1
            sampler.sync(moved)
            assert (
                verify(sampler, moved, [[5, 6, 7], list(range(3, 60))], FLOAT32_BOUND).max_difference < 1e-3
            )
        reload_by_itself(sampler, moved, tmp_path / "moved")
        with pytest.raises(SyncError):
            verify(sampler, moved, [[5, 6, 7]], FLOAT32_BOUND)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_says_in_vllm_what_it_says_in_transformers(
    small_model: Model, tmp_path: Path, runs: Runs, dtype: str
) -> None:
    """Its greedy answers are those that it was taught, and end where it was taught to, by its folder alone."""
    taught = {"Sea?": "Salt.", "Sky?": "Blue.", "Sun?": "Warm."}
    rows = [
        Demonstration(
            messages=[Message(role="user", content=question), Message(role="assistant", content=text)]
        )
        for question, text in taught.items()
    ]
    write_jsonl(tmp_path / "taught.jsonl", rows)
    settings = {"epochs": 40, "learning_rate": 1e-2, "rows_per_update": 3, "rows_per_pass": 3, "heldout_fraction": 0,
                "checkpoint_every_updates": 100, "save_dtype": dtype}  # fmt: skip
    model = resolve(run_stage("sft", settings, small_model, tmp_path / "taught.jsonl", runs), runs)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    asked = [encode_prompt(tokenizer, [Message(role="user", content=question)]) for question in taught]
    in_transformers = AutoModelForCausalLM.from_pretrained(model.folder)
    greedy = [
        in_transformers.generate(torch.tensor([ids]), max_new_tokens=20)[0, len(ids) :] for ids in asked
    ]
    with SharedSampler(
        SamplingConfig(engine="vllm", max_sequence_tokens=256), tmp_path / "vllm.log"
    ) as sharing:
        answers = sharing.use(model).sample(asked, [0, 0, 0], 20, 0.0)
    assert [each.token_ids for each in answers] == [each.tolist() for each in greedy]
    assert [tokenizer.decode(each.token_ids) for each in answers] == [
        f"{text}{tokenizer.eos_token}" for text in taught.values()
    ]
