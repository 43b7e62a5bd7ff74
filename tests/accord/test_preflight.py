"""Before anything starts: every fault of every later stage, in one message, in little time."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from accord.errors import AccordError, DataError, UsageError
from accord.models.references import Model, resolve
from accord.preflight import check_round
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Runs
from accord.text_files import write_jsonl
from feedback.config import FeedbackConfig

ROOT = Path(__file__).parents[2]
ACCORD = str(Path(sys.executable).with_name("accord"))
DEMO = ROOT / "configs" / "demo.yaml"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """One good file of every kind, by kind."""
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"messages": user(f"{i}?") + assistant("Yes.")} for i in range(8)],
        "prompts": [{"prompt": user(f"Is {i} even?")} for i in range(12)],
        "eval_prompts": [{"prompt": user(f"Held out {i}?"), "topic": "numbers"} for i in range(12)],
        "preferences": [
            {"prompt": user(f"Is {i} odd?"), "chosen": assistant(f"No, not {i}."), "rejected": assistant("Yes.")}
            for i in range(30)
        ],
        "comparisons": [
            {
                "id": f"c{i}", "prompt": user(f"Is {i} odd?"),
                "responses": [{"text": text, "run": "r", "seed": 0} for text in ("Yes.", "No.")],
                "rankings": [{"annotator": "ann", "ranks": [1, 2]}],
            }
            for i in range(30)
        ],
        "gold": [{"prompt": user("1 + 1?"), "responses": ["2", "3"], "ranks": [1, 2]}],
    }  # fmt: skip
    for name, kind in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", kind)
    (tmp_path / "rewards.py").write_text("def brevity(prompts, completions, **_):\n    return [0.0]\n")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


@pytest.fixture
def good(tiny_model: Model, files: dict[str, str]) -> dict[str, Any]:
    """A configuration with nothing wrong; it takes everything from files."""
    return {
        "model": str(tiny_model.folder),
        "sampling": {"engine": "transformers"},
        "sft": {"demonstrations": [{"path": files["demonstrations"]}], "heldout_fraction": 0},
        "preferences": files["preferences"],
        "reward": {"demonstrations": files["demonstrations"]},
        "rl": {"algorithm": "ppo", "prompts": files["prompts"], "demonstrations": files["demonstrations"]},
        "eval": {"prompts": files["eval_prompts"], "gate": {"eos_rate": {"margin": 0.1}}},
    }


def changed(config: dict[str, Any], changes: dict[str, Any]) -> RoundConfig:
    """A configuration with other values under dotted keys; None takes the key away."""
    values = json.loads(json.dumps(config))
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        place = values
        for key in parents:
            place = place.setdefault(key, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return RoundConfig.model_validate(values)


def faults_of(config: RoundConfig, runs: Runs, until: Any = "eval") -> list[str]:
    """The lines of all that is wrong; none, where nothing is."""
    try:
        check_round(config, runs, until)
    except AccordError as error:
        first, *lines = str(error).splitlines()
        if not lines:
            return [first]
        assert first == f"{len(lines)} things are wrong, and nothing was started:"
        return [line.removeprefix("  ") for line in lines]
    return []


# --- the command


def test_three_wrong_references_in_three_later_stages_are_said_within_five_seconds(
    tmp_path: Path, bundled_model: Model
) -> None:
    runs = tmp_path / "runs"
    wrong = [
        "reward.previous=run:reward-0123456789ab",
        "rl.prompts=trian.jsonl",
        "eval.prompts=heldout.jsonl",
    ]
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [ACCORD, "--runs", str(runs), "round", str(DEMO), *wrong],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds.append(time.monotonic() - started)
        if seconds[-1] < 5:
            break
    print(f"three wrong references: {min(seconds):.1f} s")
    error, *lines = [line for line in done.stderr.splitlines() if "a key to sign" not in line]
    assert (done.returncode, error) == (2, "error: 3 things are wrong, and nothing was started:")
    assert [line.split(":")[0].strip() for line in lines] == ["reward.previous", "rl.prompts", "eval.prompts"]
    assert "trian.jsonl: no such file; check the path" in lines[1]
    assert not list(runs.glob("*-*"))
    assert min(seconds) < 5


def test_one_fault_is_one_line_and_a_bad_file_alone_exits_with_1(
    tmp_path: Path, bundled_model: Model
) -> None:
    (tmp_path / "half.jsonl").write_text('{"prompt": [{"role": "user", "con')
    command = [ACCORD, "--runs", str(tmp_path / "runs"), "round", str(DEMO), "eval.prompts=half.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: eval.prompts: half.jsonl:1: not valid JSON")


def test_a_stage_alone_looks_at_what_it_will_run(runs: Runs, good: dict[str, Any]) -> None:
    config = changed(good, {"eval.prompts": "gone", "rl.prompts": "gone", "reward.previous": "run:reward-1"})
    assert faults_of(config, runs, "sft") == []
    assert [line.split(":")[0] for line in faults_of(config, runs, "reward")] == ["reward.previous"]
    assert [line.split(":")[0] for line in faults_of(config, runs, "ppo")] == [
        "reward.previous",
        "rl.prompts",
    ]
    assert len(faults_of(config, runs, "eval")) == 3


def test_python_is_told_before_anything_is_written(runs: Runs, good: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^eval\.prompts: gone\.jsonl: no such file"):
        run_round(changed(good, {"eval.prompts": "gone.jsonl"}), runs)
    assert not list(runs.root.glob("*-*"))


def test_a_good_configuration_is_good_and_weights_are_hashed_once(
    runs: Runs, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = hashlib.file_digest

    def counting(file: Any, algorithm: str) -> Any:
        hashed.append(Path(file.name).name)
        return real(file, algorithm)

    monkeypatch.setattr("hashlib.file_digest", counting)
    monkeypatch.setattr("accord.digests._digests", {})
    check_round(changed(good, {}), runs)
    resolve(good["model"], runs)
    assert hashed.count("model.safetensors") == 1


@pytest.mark.parametrize("name", ["demo.yaml", "tiny.yaml", "tiny-ppo.yaml"])
def test_what_accord_ships_is_good(name: str, runs: Runs, bundled_model: Model) -> None:
    from accord.config import load_config

    check_round(load_config(ROOT / "configs" / name, RoundConfig), runs)


# --- every key


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "/no/such/folder"}, "model: '/no/such/folder': there is no folder of this name here"),
        ({"sft.demonstrations": [{"path": "x.jsonl"}]}, "sft.demonstrations: x.jsonl: no such file"),
        ({"sft.heldout": "x.jsonl"}, "sft.heldout: x.jsonl: no such file"),
        ({"sft.rows_per_update": 7, "sft.rows_per_pass": 2}, "sft.rows_per_update: rows_per_update (7) must be"),
        ({"preferences": "x.jsonl"}, "preferences: x.jsonl: no such file"),
        ({"preferences": "run:feedback-1"}, "preferences: no run in"),
        ({"reward.previous": "run:reward-1"}, "reward.previous: no run in"),
        ({"reward.demonstrations": "x.jsonl"}, "reward.demonstrations: x.jsonl: no such file"),
        ({"reward.loss": "plackett_luce"}, "preferences: reward.loss is plackett_luce"),
        ({"reward.minimum_pairs": 29}, "preferences: {preferences}: leaves 24 pairs to train on and 6 held out"),
        ({"reward.trainer": {"weight_dcay": 1}}, "reward.trainer.weight_dcay: RewardConfig has no such argument"),
        ({"reward.trainer": {"lr_scheduler_type": "cosin"}}, "reward.trainer: cosin is not a valid"),
        ({"reward.trainer": {"report_to": ["dvclive"]}}, "reward.trainer: DVCLiveCallback requires dvclive"),
        ({"reward.lora": {"top_layers": 3}}, "reward.lora: lora.top_layers is 3, and {model} has 2 layers"),
        ({"rl.prompts": "x.jsonl"}, "rl.prompts: x.jsonl: no such file"),
        ({"rl.demonstrations": "x.jsonl"}, "rl.demonstrations: x.jsonl: no such file"),
        ({"rl.report_to": ["tensorbord"]}, "rl.report_to: accelerate knows no tracker 'tensorbord'"),
        ({"rl.shared_base": True, "rl.lora": {}}, "rl.shared_base: needs a reward model that is trained with lora"),
        ({"rl": {"algorithm": "grpo", "prompts": "{prompts}"}}, "rl.prompts: {prompts}: leaves 12 prompts, and an"),
        ({"rl": {"algorithm": "dpo", "trainer": {"beta": 1}}}, "rl.trainer.beta: accord sets this one"),
        ({"rl": {"algorithm": "rloo", "prompts": "{prompts}", "rows_per_update": 8, "trainer": {"x_y": 1}}},
         "rl.trainer.x_y: RLOOConfig has no such argument"),
        ({"eval.prompts": "x.jsonl"}, "eval.prompts: x.jsonl: no such file"),
        ({"eval.gate.eos_rate.slices": {"letters": 0.1}},
         "eval.gate: the gate has a margin for 'eos_rate' in 'letters', and there is no such group; there are:"),
        ({"eval.gate.sentence_pairs/lean": {"margin": 0.1, "slices": {"nobody": 0.1}}},
         "eval.gate: the gate has a margin for 'sentence_pairs/lean' in 'nobody', and there is no such group"),
        ({"eval.gate.eos_rate": {"at_least": 0.999}},
         "eval.gate: the gate asks 'eos_rate' to be at least 0.999, and there are"),
        ({"eval.gate.sentence_pairs/lean": {"at_most": -0.45}},
         "eval.gate: the gate asks 'sentence_pairs/lean' to be at most -0.45, and there are"),
        ({"eval.gate.adjudicated": {"at_least": 0.5}}, "eval.gate: the gate has a floor for 'adjudicated', so it"),
        ({"eval.gate.adjudicated": {"margin": 0.1}}, "eval.gate: the gate has a margin for 'adjudicated', so it needs"),
        ({"eval.gate.judge_unparsed": {"margin": 0.1}}, "eval.gate: the gate has a margin for 'judge_unparsed', so it"),
        ({"eval.judge": "{rewards}:brevity"}, "eval.judge: '{rewards}:brevity' is no judge"),
        ({"eval.judge": "judge:run:sft-1"}, "eval.judge: no run in"),
        ({"eval.raters": {"refusals": {"by": "{model}"}}}, "eval.raters.refusals: {model} is no text classifier"),
        ({"eval.raters": {"toxicity": {"by": "judge:http://127.0.0.1:9#m", "labelled": "x.jsonl"}}},
         "eval.raters.toxicity: x.jsonl: no such file"),
        ({"eval.review": "run:feedback-1"}, "eval.review: no run in"),
        ({"eval.lm_eval": {"task": {"metrics": {"acc": "higher"}, "baseline": "b.jsonl", "candidate": "c.jsonl"}}},
         "eval.lm_eval.task: b.jsonl: no such file"),
        ({"eval.lm_eval": {"task": {"metrics": {"acc": "higher"}, "folder": "gone"}}}, "eval.lm_eval.task: "),
    ],
)  # fmt: skip
def test_each_key(
    changes: dict[str, Any], says: str, runs: Runs, good: dict[str, Any], files: dict[str, str]
) -> None:
    def filled(value: Any) -> Any:
        text = json.dumps(value)
        for name, path in {**files, "model": good["model"]}.items():
            text = text.replace(f"{{{name}}}", path)
        return json.loads(text)

    (line,) = faults_of(changed(good, filled(changes)), runs)
    assert line.startswith(filled(says)), line


def test_ppo_shards_by_fsdp2_only(runs: Runs, good: dict[str, Any]) -> None:
    """Besides, DeepSpeed may not be installed."""
    lines = faults_of(changed(good, {"compute": {"devices": 2, "sharding": "zero3"}}), runs)
    assert [
        line for line in lines if line.startswith("compute.sharding: is zero3, and PPO shards by fsdp2 only")
    ]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("gone.py:brevity", "gone.py cannot be loaded"),
        ("{rewards}:brevty", "has no 'brevty'"),
        ("no_such_module:brevity", "there is no module no_such_module"),
        ("{folder}/broken.py:f", "ZeroDivisionError"),
        ("{rewards}", "names no function; write"),
        ("judge:http://127.0.0.1:9", "names no model"),
        ("judge@gone.txt:run:sft-1", "the rubric gone.txt: no such file"),
    ],
)
def test_reward_functions(
    reference: str, says: str, runs: Runs, good: dict[str, Any], files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    reference = reference.replace("{rewards}", files["rewards"]).replace("{folder}", str(tmp_path))
    config = changed(good, {"rl.demonstrations": None, "rl.reward_function": reference})
    (line,) = faults_of(config, runs)
    assert line.startswith("rl.reward_function: ") and says in line
    fine = changed(good, {"rl.demonstrations": None, "rl.reward_function": f"{files['rewards']}:brevity"})
    assert faults_of(fine, runs) == []


def test_a_file_of_comparisons_trains_a_reward_model_and_no_policy(
    runs: Runs, good: dict[str, Any], files: dict[str, str]
) -> None:
    config = changed(good, {"preferences": files["comparisons"], "reward.loss": "plackett_luce"})
    assert faults_of(config, runs, "reward") == []
    (line,) = faults_of(config, runs)
    assert "holds comparisons, which a reward model learns from; ppo reads pairs" in line


def test_held_out_prompts_are_not_counted(runs: Runs, good: dict[str, Any], files: dict[str, str]) -> None:
    rows = [json.loads(line) for line in Path(files["preferences"]).read_text().splitlines()]
    # thirty, of which a fifth is held out
    write_jsonl(Path(files["prompts"]), [{"prompt": row["prompt"]} for row in rows])
    rl = {"algorithm": "rloo", "prompts": files["prompts"], "num_generations": 2, "rows_per_pass": 2}
    assert faults_of(changed(good, {"rl": {**rl, "rows_per_update": 48}}), runs) == []
    (line,) = faults_of(changed(good, {"rl": {**rl, "rows_per_update": 50}}), runs)
    assert "leaves 24 prompts, and an update takes 25" in line


def test_a_model_that_is_no_reward_model(runs: Runs, good: dict[str, Any]) -> None:
    (line,) = faults_of(changed(good, {"reward.previous": good["model"]}), runs)
    assert line.startswith("reward.previous: ") and "is no reward model" in line


def test_suites_are_read(runs: Runs, good: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\npretty_name: Mine\nlicense: mit\naccord: {kind: sentence_pairs, family: bias, source: me}\n---\n"
    )
    (folder / "items.jsonl").write_text('{"id": "1"}\n')
    (line,) = faults_of(changed(good, {"eval.suites": [str(folder)]}), runs)
    assert line.startswith(f"eval.suites: {folder / 'items.jsonl'}:1: ")


# --- what is asked of people and servers


@pytest.fixture
def with_people(good: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    del good["preferences"]
    return {**good, "feedback": {"prompts": files["prompts"], "responses_per_prompt": 2}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feedback.prompts": "x.jsonl"}, "feedback.prompts: x.jsonl: no such file"),
        ({"feedback.gold": "{gold}", "feedback.responses_per_prompt": 3}, "feedback.gold: {gold}: row 1 has 2"),
        ({"feedback.guidelines": "x.md"}, "feedback.guidelines: x.md: no such file"),
        ({"feedback.users": "x.yaml", "feedback.annotators": "human"}, "feedback.users: x.yaml: no such file"),
        ({"feedback.annotators": "human", "feedback.human_annotators": ["a b"]}, "feedback.human_annotators or adj"),
        ({"feedback.assignment": "balanced", "feedback.annotators_per_record": 99},
         "feedback.annotators_per_record is 99, but there are only"),
        ({"feedback.argilla_url": "http://127.0.0.1:9"}, "feedback.argilla_url: set ARGILLA_API_KEY to an owner's key"),
        ({"feedback.selection": "uncertainty", "feedback.max_comparisons": 3,
          "feedback.selection_reward_model": "run:reward-1"}, "feedback.selection_reward_model: no run in"),
    ],
)  # fmt: skip
def test_feedback(
    changes: dict[str, Any], says: str, runs: Runs, with_people: dict[str, Any], files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    monkeypatch.setenv("ACCORD_ARGILLA_PYTHON", sys.executable)
    text = json.dumps([changes, says]).replace("{gold}", files["gold"])
    changes, says = json.loads(text)
    (line,) = faults_of(changed(with_people, changes), runs)
    assert line.startswith(says), line


def test_prompts_with_one_id(runs: Runs, with_people: dict[str, Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "two.jsonl", [{"prompt": user(text), "id": "same"} for text in "ab"])
    lines = faults_of(
        changed(with_people, {"feedback.prompts": str(tmp_path / "two.jsonl")}), runs, "feedback"
    )
    assert any("feedback.prompts: " in line and "'same' stands in" in line for line in lines)


def test_the_key_of_a_running_argilla_is_tried(
    runs: Runs, with_people: dict[str, Any], monkeypatch: pytest.MonkeyPatch, serving: Callable[[int], str]
) -> None:
    monkeypatch.setenv("ARGILLA_API_KEY", "wrong")
    (line,) = faults_of(changed(with_people, {"feedback.argilla_url": serving(401)}), runs)
    assert line.startswith("feedback.argilla_url: Argilla at 127.0.0.1 refuses the log-in")


def test_a_finished_stage_needs_no_server(
    runs: Runs, with_people: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    config = changed(with_people, {"feedback.argilla_url": "http://127.0.0.1:9"})
    assert len(faults_of(config, runs)) == 1
    assert isinstance(config.feedback, FeedbackConfig)
    with runs.begin("feedback", config.feedback, {}) as run:
        run.finish({})
    assert faults_of(config, runs) == []


def test_what_a_named_run_judged_is_no_evaluation_and_other_faults_are_said_beside(
    runs: Runs, good: dict[str, Any], files: dict[str, str]
) -> None:
    rows = [json.loads(line) for line in Path(files["comparisons"]).read_text().splitlines()]
    judged = [json.loads(line) for line in Path(files["eval_prompts"]).read_text().splitlines()][:3]
    rows = [row | {"prompt": each["prompt"]} for row, each in zip(rows, judged, strict=False)]
    with runs.begin("feedback", FeedbackConfig(prompts="p"), {}) as run:
        write_jsonl(run.path / "comparisons.jsonl", rows)
        (run.path / "preferences.jsonl").write_text(Path(files["preferences"]).read_text())
        run.finish({})
    lines = faults_of(changed(good, {"preferences": f"run:{run.id}", "rl.prompts": "x.jsonl"}), runs)
    assert [line.split(":")[0] for line in lines] == ["preferences", "rl.prompts"]
    assert f"3 of the evaluation's 12 prompts were judged in {run.id}" in lines[0]


@pytest.fixture
def serving() -> Iterator[Callable[[int], str]]:
    """Starts servers that answer every request with one status; gives their URLs."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_judge_s_server_is_asked_once(
    runs: Runs, good: dict[str, Any], serving: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")

    def judged_by(url: str) -> list[str]:
        return faults_of(changed(good, {"eval.judge": f"judge:{url}/v1#name"}), runs)

    (line,) = judged_by(serving(401))
    assert line.startswith("eval.judge: ") and "wants another API key than the one in OPENAI_API_KEY" in line
    (line,) = judged_by("http://127.0.0.1:9")
    assert "http://127.0.0.1:9/v1 does not answer (ConnectError" in line
    assert judged_by(serving(404)) == judged_by(serving(200)) == []  # some have no list of models


def test_the_sampling_engine(
    runs: Runs, good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.sampling.vllm_server.SECONDS_BETWEEN_TRIES", ())
    server = {"engine": "server", "server_url": "http://127.0.0.1:9", "server_weights_folder": str(tmp_path)}
    (line,) = faults_of(changed(good, {"sampling": server}), runs)
    assert line.startswith("sampling.server_url: the vLLM server at http://127.0.0.1:9 does not answer")
    assert (
        faults_of(changed(good, {"sampling": server}), runs, "reward") == []
    )  # nothing is sampled until then
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name))
    (line,) = faults_of(changed(good, {"sampling": {"engine": "vllm"}}), runs)
    assert line.startswith("sampling.engine=vllm, but vLLM is not installed")


def test_a_signing_key_that_others_can_read(
    runs: Runs, good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch(0o644)
    monkeypatch.setenv("ACCORD_KEY", str(tmp_path / "key"))
    (line,) = faults_of(changed(good, {}), runs)
    assert line.startswith("eval: the private key") and "chmod 600" in line


# --- kinds of errors, and stages that are not there


def test_the_exit_code_is_that_of_what_is_wrong(runs: Runs, good: dict[str, Any]) -> None:
    files = {"eval.prompts": "x", "rl.prompts": "y"}
    with pytest.raises(DataError, match="2 things are wrong"):
        check_round(changed(good, files), runs)
    with pytest.raises(UsageError, match="3 things are wrong"):
        check_round(changed(good, {**files, "reward.previous": "run:reward-1"}), runs)


@pytest.mark.parametrize(
    ("until", "changes", "says"),
    [
        (
            "sft",
            {"sft": None},
            "this configuration has no sft section, which `accord sft` needs; add one with sft.demonstrations",
        ),
        (
            "feedback",
            {},
            "this configuration has no feedback section, which `accord feedback pull` needs; its preferences come",
        ),
        ("dpo", {}, "this configuration says rl.algorithm: ppo; run `accord ppo`, or change the algorithm"),
    ],
)
def test_a_stage_that_is_not_there(
    until: Any, changes: dict[str, Any], says: str, runs: Runs, good: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        run_round(changed(good, changes), runs, until=until)
    assert not list(runs.root.glob("*-*"))


# --- methods of fine-tuning

PREFIX = {"sft.adapter": {"method": "prefix"}, "preferences": None, "reward": None, "rl": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sft.adapter": {"method": "prefix"}},
            "sft.adapter: prefix tuning leaves .* reward and rl would train",
        ),
        (
            {"sft.adapter": {"method": "prompt"}, "rl.shared_base": True, "rl.lora": {}, "reward.lora": {}},
            "sft.adapter: prompt tuning leaves .*and rl.shared_base needs adapters of one base",
        ),
        (
            {**PREFIX, "eval.lm_eval": {"task": {"folder": ".", "metrics": {"acc": "higher"}}}},
            "sft.adapter: lm-evaluation-harness pads",
        ),
        ({"sft.train_only": {"names": ["*.w_proj"]}}, "sft.train_only.names: no weight of .* has the name"),
        ({"sft.train_only": {"last_layers": 9}}, "sft.train_only.last_layers is 9, and .* has 2 layers"),
        ({"sft.lora": {"rank": 64, "start": "olora"}}, r"sft.lora: lora.rank is 64, and start: olora"),
        ({"sft.retention": "nowhere.jsonl"}, "sft.retention: .*nowhere.jsonl"),
        ({"sft.trainer": {"loss_type": "dft"}}, "sft.trainer.loss_type: accord sets this one"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_before_the_start(
    good: dict[str, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    lines = faults_of(changed(good, changes), Runs(tmp_path / "runs"))
    assert any(re.match(said, line) for line in lines), lines


def test_who_samples_virtual_tokens_is_said_before_the_start(
    good: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for method in ("ia3", "prompt", "prefix"):
        config = changed(good, {**PREFIX, "sft.adapter": {"method": method}, "sampling.engine": "auto"})
        assert faults_of(config, Runs(tmp_path / "runs")) == []
        said = f"{method} tuning leaves virtual tokens, which cannot be merged into weights, so vLLM cannot sample"
        assert (said in caplog.text) == (method != "ia3")


def test_dropout_needs_a_place_in_the_architecture(tiny_model: Model, tmp_path: Path) -> None:
    from transformers import BloomConfig, MambaConfig

    from sft.adaptation import dropout_options

    assert dropout_options(tiny_model, 0.1) == {"attention_dropout": 0.1}
    assert dropout_options(tiny_model, 0.0) == {}
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2).save_pretrained(tmp_path / "bloom")
    found = dropout_options(Model("bloom", tmp_path / "bloom", ""), 0.1)
    assert found == {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    with pytest.raises(
        UsageError, match="the architecture of mamba has no dropout; train with lora and lora"
    ):
        dropout_options(Model("mamba", tmp_path / "mamba", ""), 0.1)
