"""PPO with its models in shards over processes gives what one process gives, continues exactly, and ends together."""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ROW
from ppo_helpers import Job, make_prompts, make_reward_model, run_ppo, run_ppo_in_processes
from safetensors.torch import load_file
from training_helpers import assert_same, rows_without_times, run_stage
from transformers import LlamaConfig, LlamaForCausalLM

from accord.errors import AccordError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.parallel import Sharding
from accord.records import Preference
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from rl.policy_gradient.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = {
    "updates": 2, "prompts_per_update": 6, "epochs_per_update": 2, "max_response_tokens": 8, "max_sequence_tokens": 300,
    "learning_rate": 3e-4, "missing_eos": "subtract", "kl_target_nats": 0.5, "kl_horizon_answers": 20,
    "evaluate_every_updates": None, "seed": 3,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}
LAYOUTS: dict[str, dict[str, Any]] = {
    # answers are a pass each, so that one process has more passes than the other
    "separate": {"tokens_per_pass": 1, "prompts_per_update": 5},
    "separate, untied head, checkpointing": {"gradient_checkpointing": True},
    "lora": {"lora": LORA, "learning_rate": 1e-3, "updates": 3},
    # a minibatch is one answer, so that in every step all processes but one have nothing to learn from
    "lora, top layers": {"lora": {**LORA, "top_layers": 1}, "minibatches_per_epoch": 6, "learning_rate": 1e-3},
    # in four processes, one has no answer
    "shared base, top layers": {
        "lora": {**LORA, "top_layers": 1}, "shared_base": True, "learning_rate": 1e-3, "prompts_per_update": 3
    },
    "shared base, bfloat16, checkpointing": {
        "lora": LORA, "shared_base": True, "learning_rate": 1e-3, "precision": "bfloat16",
        "gradient_checkpointing": True,
    },
}  # fmt: skip
ENGINES: dict[str, tuple[int, Sharding]] = {
    "2 processes": (2, "none"), "2 processes, fsdp2": (2, "fsdp2"), "4 processes, fsdp2": (4, "fsdp2"),
}  # fmt: skip
TRIED = [
    *((layout, "2 processes") for layout in LAYOUTS if "checkpointing" not in layout),
    *((layout, "2 processes, fsdp2") for layout in LAYOUTS),
    ("separate", "4 processes, fsdp2"),
    ("shared base, top layers", "4 processes, fsdp2"),
]
SUMS = 1e-5
"""How far what is summed in another order may be from one process's, in float32."""
SUMS_IN_BFLOAT16 = 0.1


class Table:
    """Runs of all layouts, by one process and by several."""

    def __init__(self, folder: Path, tiny_model: Model, preferences: Path) -> None:
        self.folder, self.preferences, self.tiny_model = folder, preferences, tiny_model
        self.prompts = make_prompts(folder / "prompts.jsonl")
        self.reward_model = make_reward_model(tiny_model, folder / "reward-model")
        config = LlamaConfig.from_pretrained(tiny_model.folder, tie_word_embeddings=False)
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder / "untied")
        load_tokenizer(tiny_model).save_pretrained(folder / "untied")
        self.untied = resolve(str(folder / "untied"), Runs(folder))
        rewards = {
            "lora": {"rank": 2, "alpha": 4, "top_layers": 1}, "learning_rate": 1e-3, "max_sequence_tokens": 300,
            "minimum_pairs": 4,
        }  # fmt: skip
        run = run_stage("reward", rewards, tiny_model, preferences, Runs(folder / "reward"))
        self.adapter_of_policy = run

    def job(self, layout: str, engine: str, sharding: Sharding = "none", **more: Any) -> Job:
        """A run of a layout, in a folder of its own."""
        config = {**CONFIG, **LAYOUTS[layout], "prompts": str(self.prompts), **more}
        root = self.folder / f"{layout}, {engine}"
        root.mkdir(exist_ok=True)
        policy = self.untied if "untied" in layout else self.tiny_model
        reward_model = self.reward_model
        if config.get("shared_base"):
            run = self.adapter_of_policy
            (root / run.id).exists() or shutil.copytree(run.path, root / run.id)
            reward_model = resolve(f"run:{run.id}", Runs(root))
        return Job(config, policy, reward_model, self.preferences, root, sharding)

    def run(self, layout: str, engine: str) -> Run:
        """The run that was made of that job."""
        return ppo_run(self.folder / f"{layout}, {engine}")


@pytest.fixture(scope="module")
def table(
    tiny_model: Model, tmp_path_factory: pytest.TempPathFactory, preference_rows: list[Preference]
) -> Table:
    folder = tmp_path_factory.mktemp("sharded")
    write_jsonl(folder / "preferences.jsonl", preference_rows)
    table = Table(folder, tiny_model, folder / "preferences.jsonl")
    with one_thread_only():
        for layout in LAYOUTS:
            job = table.job(layout, "1 process")
            run_ppo(job.config, job.policy, job.reward_model, job.preferences, Runs(job.root))
    for processes in (2, 4):
        jobs = [
            table.job(layout, engine, ENGINES[engine][1])
            for layout, engine in TRIED
            if ENGINES[engine][0] == processes
        ]
        assert run_ppo_in_processes(jobs, processes) == [0] * processes
    return table


def ppo_run(root: Path) -> Run:
    (run,) = (run for run in Runs(root).all() if run.record.stage == "ppo")
    return run


@contextlib.contextmanager
def one_thread_only() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("layout", "engine"), TRIED)
def test_several_processes_give_what_one_gives(
    table: Table, layout: str, engine: str, record_property: Callable[[str, object], None]
) -> None:
    """Losses, gradient norms, every other figure of every row, and the weights in the end."""
    one, several = table.run(layout, "1 process"), table.run(layout, engine)
    assert several.id == one.id and several.record.status == "done"
    bound = SUMS_IN_BFLOAT16 if "bfloat16" in layout else SUMS
    off = differences(one, several)
    losses = max(off["policy_loss"], off["value_loss"])
    norms = max(off["policy_gradient_norm"], off["critic_gradient_norm"])
    count, sharding = ENGINES[engine]
    record_property(ROW, [f"ppo {layout}", sharding, count, losses, norms, off["weights"]])
    assert max(off.values()) < bound, off
    assert max(row.get("ratio_max", 0) for row in one.metric_rows()) > 1.005, "nothing was learned"
    for name in ("updates", "kept_update", "stop_reason"):
        assert one.metrics[name] == several.metrics[name]


@pytest.mark.parametrize(("layout", "engine"), TRIED)
def test_each_process_holds_its_part_of_every_model(table: Table, layout: str, engine: str) -> None:
    processes, sharding = ENGINES[engine]
    root = table.folder / f"{layout}, {engine}"
    held = [json.loads((root / f"held-{rank}.json").read_text()) for rank in range(processes)]
    assert {"policy", "critic"} <= held[0].keys()
    assert ("reference" in held[0]) == ("separate" in layout)
    for name in held[0]:
        parts, (total,) = [each[name][0] for each in held], {each[name][1] for each in held}
        assert sum(parts) == total
        assert (total == 0) == (sharding == "none")
        assert max(parts) <= 1.1 * total / processes  # not every adapter's rows can be divided
    assert len({(root / f"weights-{rank}.txt").read_text() for rank in range(processes)}) == 1


def test_a_killed_worker_ends_all_and_the_run_continues_exactly(table: Table) -> None:
    job = table.job("separate", "killed", "fsdp2")
    # in the middle of the second update; an update has four steps
    assert run_ppo_in_processes([job], kill_at="6", killed=[1]) == [1, -signal.SIGKILL]
    said = (job.root / "said.txt").read_text()
    assert (
        said == "another process of this run ended before its time; run the same command again to continue\n"
    )
    assert ppo_run(job.root).record.status == "failed"
    assert run_ppo_in_processes([job]) == [0, 0]
    assert len(ppo_run(job.root).record.continued_at) == 1
    assert_same(ppo_run(job.root), table.run("separate", "2 processes, fsdp2"))


def test_other_numbers_of_processes_continue_a_run(table: Table) -> None:
    """Two, which lose their sampler and are killed in the second update; four, killed in the third; then one."""
    job = table.job("lora", "2, 4, 1", "fsdp2")
    assert run_ppo_in_processes([job], kill_at="6", lose_sampler=True) == [-signal.SIGKILL] * 2
    assert run_ppo_in_processes([job], processes=4, kill_at="6") == [-signal.SIGKILL] * 4
    run = run_ppo(job.config, job.policy, job.reward_model, job.preferences, Runs(job.root))
    assert len(run.record.continued_at) == 2
    off = differences(table.run("lora", "1 process"), run)
    assert off.pop("sampler_restarts") == 1
    print(
        f"\n| lora | 2, 4, 1 processes | all figures {max(off.values()):.1e} | weights {off['weights']:.1e} |"
    )
    assert max(off.values()) < SUMS, off


def differences(one: Run, other: Run) -> dict[str, float]:
    """The largest one of each figure over all rows, and of the weights."""
    rows, others = rows_without_times(one), rows_without_times(other)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    off = {
        name: max(abs(row[name] - same[name]) for row, same in zip(rows, others, strict=True) if name in row)
        for name in {name for row in rows for name in row}
    }
    weights, same_weights = (load_file(run.path / "model" / "model.safetensors") for run in (one, other))
    assert weights.keys() == same_weights.keys()
    return off | {"weights": max(float((weights[key] - same_weights[key]).abs().max()) for key in weights)}


def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    old = tmp_path / "checkpoint-3"
    old.mkdir()
    for name, text in (("state.pt", ""), ("trainer_state.json", "{}")):
        (old / name).write_text(text)
    with pytest.raises(
        AccordError, match=r"checkpoint-3 was written by an earlier version of accord.* delete "
    ):
        load_checkpoint(tmp_path, *([None] * 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_is_refused(
    table: Table, monkeypatch: pytest.MonkeyPatch, stage: str, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    job = table.job("separate", "deepspeed")
    with pytest.raises(UsageError, match=r"set compute\.sharding: fsdp2") as raised:
        run_ppo(job.config, job.policy, job.reward_model, job.preferences, Runs(job.root))
    assert not Runs(job.root).all()
    record_property(ROW, ["ppo", f"zero{stage}", 2, str(raised.value)])
