import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from accord import bundled
from accord.config import Config
from accord.errors import TamperedError, UsageError
from accord.models.loading import load_policy, load_reward_model, load_tokenizer
from accord.models.references import Model, locate, resolve
from accord.runs import Run, Runs

ROOT = Path(__file__).parents[2]


def policy_run(runs: Runs, model: Model) -> Run:
    with runs.begin("sft", Config(), {"base": model}) as run:
        shutil.copytree(model.folder, run.path / "model")
        run.finish({})
    return run


def test_a_run_is_found_by_id_and_by_prefix(runs: Runs, tiny_model: Model) -> None:
    run = policy_run(runs, tiny_model)
    for reference in (f"run:{run.id}", f"run:{run.id[:-3]}", f"run:{run.id.removeprefix('sft-')[:6]}"):
        model = resolve(reference, runs)
        assert model == Model(f"run:{run.id}", run.path / "model", run.digest, run.id)
    assert load_tokenizer(model).eos_token == "<|im_end|>"
    with pytest.raises(UsageError, match="no run in"):
        resolve("run:dpo-123", runs)


def test_a_run_without_a_model(runs: Runs) -> None:
    with runs.begin("feedback", Config(), {}) as run:
        (run.path / "preferences.jsonl").write_text("{}\n")
        run.finish({})
    with pytest.raises(UsageError, match=r"holds no 'model'; `accord runs show"):
        resolve(f"run:{run.id}", runs)


def test_an_unfinished_run_is_no_model(runs: Runs) -> None:
    with pytest.raises(KeyError), runs.begin("sft", Config(), {}) as run:
        raise KeyError
    with pytest.raises(UsageError, match="is failed, not done; finish it first"):
        resolve(f"run:{run.id}", runs)


def test_a_folder_is_identified_by_its_content(runs: Runs, tiny_model: Model, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model.folder, copy)
    assert resolve(str(copy), runs).digest == tiny_model.digest
    assert resolve(str(copy), runs).run_id is None
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert resolve(str(copy), runs).digest != tiny_model.digest


def test_the_bundled_model(runs: Runs, bundled_model: Model) -> None:
    assert bundled_model.reference == "bundled:smollm2-135m-instruct"
    assert bundled_model.digest == resolve(bundled.MODEL, runs).digest
    assert bundled_model.run_id is None
    with pytest.raises(UsageError, match="'bundled:gpt-7' is not bundled; bundled:smollm2-135m-instruct is"):
        resolve("bundled:gpt-7", runs)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (
            "no/such-model",
            "it was not downloaded before, and HF_HUB_OFFLINE says not to ask the hub; unset it",
        ),
        ("nothing", "it was not downloaded before, and HF_HUB_OFFLINE says not to ask the hub; unset it"),
        ("no such model!", "and a hub id is written in another way"),
        ("/no/such/folder", "and a hub id is written in another way"),
        ("models/mine/final", "and a hub id is written in another way"),
    ],
)
def test_an_unknown_name_lists_what_can_be_given(runs: Runs, reference: str, says: str) -> None:
    for find in (resolve, locate):
        with pytest.raises(UsageError) as caught:
            find(reference, runs)
        message = str(caught.value)
        assert message.startswith(f"'{reference}': there is no folder of this name here")
        for way in (says, "run:<id>", "an existing folder", "hub id", bundled.MODEL):
            assert way in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "RepoNotFound", "neither a folder here nor the hub has this name; check the spelling"),
        (404, "RepoNotFound", "neither a folder here nor the hub has this name; check the spelling"),
        (
            403,
            "GatedRepo",
            "it is for those who accept its terms; do so at {url}/some/model, then log in with `hf auth",
        ),
        (503, None, "the hub at {url} cannot be reached (HfHubHTTPError)"),
        (None, None, "the hub at {url} cannot be reached (ConnectError)"),
    ],
)
def test_what_the_hub_says(status: int | None, code: str | None, says: str, tmp_path: Path) -> None:
    """By the command, in its own process: the hub's client reads its address when it is imported."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status or 0)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "accord", "--runs", str(tmp_path / "runs"), "sft",
             str(ROOT / "configs" / "demo.yaml"), "model=some/model"],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        if status is not None:
            server.shutdown()
    assert done.returncode == 2
    assert done.stderr.startswith("error: model: 'some/model': ")
    assert says.format(url=url) in done.stderr
    assert done.stderr.count("\n") == 1


def test_to_locate_a_model_reads_no_weights(runs: Runs, tiny_model: Model, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model.folder, copy)
    (copy / "model.safetensors").chmod(0)
    assert locate(str(copy), runs) == Model(str(copy), copy, "")
    run = policy_run(runs, tiny_model)
    (run.path / "model" / "model.safetensors").write_bytes(b"others")
    assert locate(f"run:{run.id}", runs).digest == run.digest
    with pytest.raises(TamperedError, match=r"model/model\.safetensors was changed"):
        resolve(f"run:{run.id}", runs)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer; save it there with `tokenizer.save_pretrained`"),
        ("model.safetensors", "has no safetensors weights (accord loads no pickled ones)"),
    ],
)
def test_a_folder_that_lacks_something(
    runs: Runs, tiny_model: Model, tmp_path: Path, missing: str, says: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model.folder, copy)
    (copy / missing).unlink()
    with pytest.raises(UsageError) as caught:
        resolve(str(copy), runs)
    assert says in str(caught.value)


def test_pickled_weights_are_refused_unread(runs: Runs, tiny_model: Model, tmp_path: Path) -> None:
    copy, proof = tmp_path / "copy", tmp_path / "executed"
    shutil.copytree(tiny_model.folder, copy)
    (copy / "model.safetensors").unlink()

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (proof,))  # type: ignore[return-value]

    torch.save({"model.norm.weight": Attack()}, copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match="loads no pickled ones"):
        resolve(str(copy), runs)
    # Even past the check, loading takes safetensors only.
    with pytest.raises(OSError, match="safetensors"):
        load_policy(Model("copy", copy, ""))
    assert not proof.exists()


def test_code_that_comes_with_a_model_is_not_run(runs: Runs, tiny_model: Model, tmp_path: Path) -> None:
    copy, proof = tmp_path / "copy", tmp_path / "executed"
    shutil.copytree(tiny_model.folder, copy)
    (copy / "attack.py").write_text(f"import pathlib; pathlib.Path({str(proof)!r}).touch()\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "attack",
        "auto_map": {"AutoConfig": "attack.C", "AutoModelForCausalLM": "attack.M"},
    }
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="custom code"):
        load_policy(resolve(str(copy), runs))
    assert not proof.exists()


def test_models_load_in_float32_by_default_and_with_one_reward(tiny_model: Model) -> None:
    assert {p.dtype for p in load_policy(tiny_model).parameters()} == {torch.float32}
    assert {p.dtype for p in load_policy(tiny_model, torch.bfloat16).parameters()} == {torch.bfloat16}
    reward_model = load_reward_model(tiny_model, new_head=True)
    assert reward_model.score.weight.shape == (1, 64)  # one reward from 64 hidden units
    assert reward_model.score.bias is None
