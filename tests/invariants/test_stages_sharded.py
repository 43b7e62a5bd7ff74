"""Stages on TRL's trainers give in several processes, with whole weights or with shards, what they give in one."""

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ROW
from ppo_helpers import make_prompts, make_reward_model
from safetensors.torch import load_file
from stages_helpers import SHARDED, Stage, run_in_processes, start_processes
from training_helpers import assert_same, rows_without_times

from accord.compute.checkpoints import check_continues
from accord.errors import UsageError
from accord.models.references import Model
from accord.records import Comparison, Demonstration, Message, Preference, Ranking, Response
from accord.runs import Run, Runs
from accord.text_files import write_jsonl
from sft.adaptation import model_and_penalties
from sft.config import SFTConfig

pytestmark = pytest.mark.usefixtures("one_thread")

# 27 rows by 4: the last update of an epoch has 3, so that with two processes or four one has none in its last pass
SFT = {
    "epochs": 1.2, "learning_rate": 1e-3, "rows_per_update": 4, "rows_per_pass": 1, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 4, "evaluate_every_updates": 5, "heldout_fraction": 0.1, "seed": 3, "card": None,
}  # fmt: skip
PAIRS = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 2, "max_sequence_tokens": 300,
    "checkpoint_every_updates": 4, "evaluate_every_updates": 4, "seed": 3,
}  # fmt: skip
ONLINE = {
    "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 8, "rows_per_pass": 2, "num_generations": 2,
    "max_response_tokens": 48, "max_sequence_tokens": 300, "warmup_fraction": 0, "missing_eos_penalty": 4.0, "seed": 3,
}  # fmt: skip
BEST_OF_N = {
    "rounds": 2, "samples_per_prompt": 4, "epochs": 1, "learning_rate": 1e-3, "rows_per_update": 4, "rows_per_pass": 1,
    "max_response_tokens": 64, "max_sequence_tokens": 300, "warmup_fraction": 0, "lora": {"rank": 4, "alpha": 8},
    "seed": 3,
}  # fmt: skip
LORA = {"rank": 4, "alpha": 8}
PACKED = {"packing": True, "rows_per_update": 2, "epochs": 1, "kl_to_base": 0.1, "interpolate": [0.5, 1.0]}
REFUSED = [("sft lora packed", "zero3"), ("sft kl", "zero3")]
NO_DEEPSPEED = "DeepSpeed is not installed; pip install 'accord[zero]'"
WORDS = ("now", "so", "please", "please please please")

ZERO = ("zero2", "zero3")
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="DeepSpeed is not installed; pip install 'accord[zero]'"
)
MATRIX = ("sft", "sft lora packed", "sft kl", "reward", "dpo", "kto", "grpo", "best of n")
TOLERANCE = dict.fromkeys(MATRIX, 1e-5) | {"grpo": 2e-4}
"""Of weights. Adam divides a gradient by its size, so that in the first updates the sign of one that is nearly 0, which
the order of a sum decides, moves a weight by as much as the learning rate; the clipped answers of GRPO have such."""


@pytest.fixture(scope="module")
def stages(
    tiny_model: Model, preference_rows: list[Preference], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("material")
    demonstrations, preferences = folder / "demonstrations.jsonl", folder / "preferences.jsonl"
    write_jsonl(
        demonstrations,
        [
            Demonstration(
                messages=[
                    Message(role="user", content=f"{i} + 1?"),
                    Message(role="assistant", content="I" * (i % 7) + f"{i + 1}"),
                ]
            )
            for i in range(30)
        ],
    )
    write_jsonl(preferences, preference_rows)
    comparisons = folder / "comparisons.jsonl"
    write_jsonl(comparisons, [_comparison(i) for i in range(40)])
    prompts = make_prompts(folder / "prompts.jsonl", 12)
    reward_model = make_reward_model(tiny_model, folder / "reward-model")
    reward = {**PAIRS, "minimum_pairs": 4}
    return {
        "sft": Stage("sft", {**SFT, "card": {}}, demonstrations),
        "sft lora packed": Stage("sft", {**SFT, "lora": LORA, **PACKED}, demonstrations),
        "sft kl": Stage("sft", {**SFT, "kl_to_base": 0.1, "epochs": 0.5}, demonstrations),
        "sft lora dropout": Stage("sft", {**SFT, "lora": {**LORA, "dropout": 0.1}}, demonstrations),
        "reward": Stage(
            "reward", {**reward, "loss": "plackett_luce", "heads": 2, "length": "residual"}, comparisons
        ),
        "dpo": Stage("dpo", PAIRS, preferences),
        "kto": Stage("kto", {**PAIRS, "epochs": 0.5}, preferences),
        "best of n": Stage("best_of_n", BEST_OF_N, preferences, prompts, reward_model),
        "grpo": Stage("grpo", {**ONLINE, "checkpoint_every_updates": 1}, preferences, prompts, reward_model),
    }


def _comparison(i: int) -> Comparison:
    worth = [(i + 3 * j) % 4 for j in range(3)]
    truth = [1 + sum(other > each for other in worth) for each in worth]
    return Comparison(
        id=f"c-{i}",
        prompt=[Message(role="user", content=f"Ask {i}")],
        responses=[Response(text=f"{WORDS[each]} {i}", run="sft-0", seed=j) for j, each in enumerate(worth)],
        rankings=[
            Ranking(annotator=name, ranks=ranks)
            for name, ranks in (("a", truth), ("b", [min(r, 2) for r in truth]), ("c", truth))
        ],
    )


class Once(dict[Any, Any]):
    """Makes what is asked for, and keeps it."""

    def __init__(self, make: Callable[[Any], Any]):
        super().__init__()
        self.make = make

    def __missing__(self, key: Any) -> Any:
        self[key] = self.make(key)
        return self[key]


@pytest.fixture(scope="module")
def one(
    tiny_model: Model, stages: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """What one process gives."""
    runs = Runs(tmp_path_factory.mktemp("one"))
    return Once(lambda label: stages[label].run(tiny_model, runs))


@pytest.fixture(scope="module")
def several(
    tiny_model: Model, stages: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Runs]:
    """What several give, by sharding and number, all stages in the same processes one after another."""

    def run(way: tuple[str, int]) -> Runs:
        sharding, count = way
        labels = ["sft"] if count == 4 else [*MATRIX, "sft lora dropout"]
        found = [stages[label] for label in labels if (label, sharding) not in REFUSED]
        root = tmp_path_factory.mktemp(f"{sharding}-{count}")
        codes = run_in_processes(count, sharding, found, tiny_model, root, timeout=600)
        assert codes == [0] * count, way
        return Runs(root)

    return Once(run)


def differences(run: Run, other: Run) -> dict[str, float]:
    """The largest ones of losses, of gradient norms in parts of them, and of weights."""
    rows, others = rows_without_times(run), rows_without_times(other)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    losses = [
        abs(a[k] - b[k]) for a, b in zip(rows, others, strict=True) for k in ("loss", "eval_loss") if k in a
    ]
    norms = [
        abs(a["grad_norm"] - b["grad_norm"]) / a["grad_norm"]
        for a, b in zip(rows, others, strict=True)
        if "grad_norm" in a
    ]
    weights, theirs = (load_file(each.path / "model" / "model.safetensors") for each in (run, other))
    assert weights.keys() == theirs.keys()
    return {
        "losses": max(losses),
        "gradient norms": max(norms),
        "weights": max(float((weights[name] - theirs[name]).abs().max()) for name in weights),
    }


@pytest.mark.parametrize(
    ("label", "sharding", "count"),
    [
        *((label, sharding, 2) for sharding in ("none", "fsdp2", "zero2", "zero3") for label in MATRIX),
        ("sft", "fsdp2", 4),
    ],
)
def test_several_processes_equal_one(
    one: dict[str, Run], several: dict[tuple[str, int], Runs], label: str, sharding: str, count: int,
    stages: dict[str, Stage], tiny_model: Model, monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    row: list[object] = [label, sharding, count]
    if (label, sharding) in REFUSED:
        for name, value in SHARDED[sharding].items():
            monkeypatch.setenv(name, value)
        config = SFTConfig(demonstrations=[], **{**stages[label].config, "interpolate": []})
        with pytest.raises(UsageError, match=r"set that to none or zero2 or fsdp2") as raised:
            model_and_penalties(config, tiny_model)
        record_property(ROW, [*row, str(raised.value)])
        return
    if sharding in ZERO and not HAS_DEEPSPEED:
        record_property(ROW, [*row, NO_DEEPSPEED])
        pytest.skip(NO_DEEPSPEED)
    run, other = one[label], several[sharding, count].load(one[label].id)
    found = differences(run, other)
    record_property(ROW, [*row, *found.values()])
    assert found["losses"] < 1e-5
    assert found["gradient norms"] < 2e-5
    assert found["weights"] < TOLERANCE[label]
    assert other.record.hardware["processes"] == count
    assert other.record.hardware["sharding"] == sharding
    assert other.record.outputs.keys() == run.record.outputs.keys()
    for name, value in run.metrics.items():
        if isinstance(value, float):
            assert other.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("sharding", ["fsdp2", *(pytest.param(each, marks=needs_deepspeed) for each in ZERO)])
def test_weights_are_in_shards_and_accelerate_alone_would_leave_them_whole(
    tmp_path: Path, sharding: str, ours: bool
) -> None:
    """The second half fails when accelerate shards on CPUs by itself; accord/compute/on_cpu.py can go then."""
    start_processes(2, sharding, _write_what_is_held, (tmp_path, ours))
    whole = 64 * 64 + 64
    for rank in range(2):
        assert int((tmp_path / str(rank)).read_text()) == (whole // 2 if ours else whole)


def _write_what_is_held(folder: Path, ours: bool) -> None:
    """How many numbers of the weights this process has, or for ZeRO-2 of those that it optimises."""
    import accelerate

    from accord import parallel
    from accord.compute import sharding

    if ours:
        sharding.prepare()
    accelerator = accelerate.Accelerator(cpu=True)
    if accelerator.deepspeed_plugin is not None:
        accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    model: Any = torch.nn.Linear(64, 64)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    if parallel.sharding() == "zero2":
        held = [weight for group in optimizer.param_groups for weight in group["params"]]
    else:
        held = [getattr(p, "_local_tensor", getattr(p, "ds_tensor", p)) for p in model.parameters()]
    (folder / str(parallel.rank())).write_text(str(sum(part.numel() for part in held)))


@pytest.mark.parametrize(
    ("label", "sharding", "rank", "update"),
    [
        ("sft lora dropout", "none", 0, "6"),
        ("sft lora dropout", "fsdp2", 1, "7"),
        ("grpo", "fsdp2", 1, "3"),
        pytest.param("sft", "zero2", 1, "7", marks=needs_deepspeed),
        pytest.param("sft lora dropout", "zero3", 0, "7", marks=needs_deepspeed),
        pytest.param("sft lora dropout", "zero3", 1, "train_end", marks=needs_deepspeed),
    ],
)
def test_a_lost_process_costs_nothing(
    tiny_model: Model, stages: dict[str, Stage], several: dict[tuple[str, int], Runs], tmp_path: Path, label: str,
    sharding: str, rank: int, update: str,
) -> None:  # fmt: skip
    """The others notice and end with a sentence; run again, all ends with the very bytes of an uninterrupted run."""
    root = tmp_path / "runs"
    codes = run_in_processes(2, sharding, [stages[label]], tiny_model, root, kill=(rank, update))
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    if rank:  # where the first process is gone, the launcher says so
        said = (root / "said.txt").read_text()
        assert said.startswith(
            "another process of this run ended before its time; run the same command again"
        )
    (run,) = [each for each in Runs(root).all() if each.record.stage == stages[label].name]
    assert run.record.status != "done"
    assert run_in_processes(2, sharding, [stages[label]], tiny_model, root) == [0, 0]
    run = Runs(root).load(run.id)
    assert len(run.record.continued_at) == 1
    assert not (run.path / "checkpoints").exists()
    assert_same(run, several[sharding, 2].load(run.id))


def test_another_number_of_processes_continues(
    tiny_model: Model, stages: dict[str, Stage], one: dict[str, Run], tmp_path: Path
) -> None:
    """One process, then two with shards, then four of them, then two with whole weights, then one."""
    stage, root = stages["sft"], tmp_path / "runs"
    ways: list[tuple[int, str, str]] = [
        (1, "none", "3"),
        (2, "fsdp2", "5"),
        (4, "fsdp2", "7"),
        (2, "none", "9"),
    ]
    stage = Stage(stage.name, {**stage.config, "checkpoint_every_updates": 2}, stage.data)
    for count, sharding, update in ways:
        run_in_processes(count, sharding, [stage], tiny_model, root, kill=(count - 1, update))
    run = stage.run(tiny_model, Runs(root))
    assert len(run.record.continued_at) == 4
    found = differences(one["sft"], run)
    print("sft | 1, 2 fsdp2, 4 fsdp2, 2, 1 processes |", found)
    assert found["losses"] < 1e-5
    assert found["weights"] < 1e-5


@pytest.mark.parametrize(
    ("written_by", "continued_by", "says"),
    [
        ("zero2", "zero2", None),
        ("zero3", "zero3", None),
        ("none", "fsdp2", None),
        ("zero2", "none", "sharding: zero2, in 2 processes"),
        ("zero3", "zero2", "sharding: zero3, in 2 processes"),
        ("none", "zero2", "sharding: none or fsdp2"),
    ],
)
def test_deepspeed_continues_from_its_own_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_by: str, continued_by: str, says: str | None
) -> None:
    folder = tmp_path / "checkpoint-3" / "global_step3"
    folder.mkdir(parents=True)
    for rank in range(2 if written_by in ZERO else 0):
        (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        part = f"zero_pp_rank_{rank}_mp_rank_00" if written_by == "zero3" else "mp_rank_00"
        (folder / f"{part}_model_states.pt").touch()
    several = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**several, **SHARDED[continued_by]}.items():
        monkeypatch.setenv(name, value)
    if says is None:
        check_continues(folder.parent)
        monkeypatch.setenv("WORLD_SIZE", "4")
    if says or written_by in ZERO:
        with pytest.raises(UsageError, match=says or "in 2 processes, and DeepSpeed continues"):
            check_continues(folder.parent)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_what_is_not_installed_is_said_before_the_start(
    stages: dict[str, Stage], tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from accord.compute import sharding

    if HAS_DEEPSPEED:
        pytest.skip("DeepSpeed is installed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(UsageError) as raised:
        sharding.prepare()
    assert str(raised.value) == (
        f"compute.sharding: zero{stage} needs DeepSpeed; run `pip install 'accord[zero]'`, or set fsdp2"
    )
