"""Fixtures for all tests. Models are either the real bundled one or a tiny random one; nothing needs a hub."""

import os
import shutil
import signal

import spread

# A shell that starts tests in the background has SIGINT ignored in all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Under pytest-xdist each process has its share of the cores: more threads than cores wait for one another. `vllm serve`
# would take all cores nevertheless, and pin its threads to them.
if "PYTEST_XDIST_WORKER" in os.environ:
    threads = max(1, spread.cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from collections.abc import Iterator
from pathlib import Path

import pytest
import shapes  # noqa: F401  (what is imported after it has its shapes checked)
from matrix import pytest_terminal_summary  # noqa: F401  (a hook)
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from spread import (  # noqa: F401  (hooks)
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
from tiny_model import make_tiny_model

from accord import bundled
from accord.models.references import Model, resolve
from accord.records import Demonstration, Message, Preference
from accord.runs import Runs
from accord.text_files import write_jsonl


@pytest.fixture(scope="session", autouse=True)
def own_signing_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verdicts are signed by a key of the tests, not by that of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCORD_KEY", str(tmp_path_factory.mktemp("keys") / "key"))
        yield


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture(scope="session")
def bundled_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """SmolLM2-135M-Instruct; converted on first use (about 40 s), then from accord's cache."""
    return resolve(bundled.MODEL, Runs(tmp_path_factory.mktemp("no-runs")))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The one of `make_tiny_model`."""
    folder = tmp_path_factory.mktemp("tiny-model")
    make_tiny_model(folder)
    return resolve(str(folder), Runs(folder / "no-runs"))


@pytest.fixture(scope="session")
def small_model(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model with heads as wide as vLLM's attention on CPU wants them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from accord.models.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("small-model")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_model.folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 32
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return resolve(str(folder), Runs(folder / "no-runs"))


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """Thirty short conversations of differing lengths, some with a system message or a second turn."""
    rows = []
    for i in range(30):
        messages = [
            Message(role="user", content=f"{i} + 1?"),
            Message(role="assistant", content="I" * (i % 7) + f"{i + 1}"),
        ]
        if i % 5 == 0:
            messages.insert(0, Message(role="system", content="Count."))
        if i % 4 == 0:
            messages += [Message(role="user", content="Sure?"), Message(role="assistant", content="Yes.")]
        rows.append(Demonstration(messages=messages))
    write_jsonl(tmp_path / "demonstrations.jsonl", rows)
    return tmp_path / "demonstrations.jsonl"


@pytest.fixture(scope="session")
def preference_rows() -> list[Preference]:
    """Forty pairs on twenty prompts; the chosen answer is the one that says please."""
    return [
        Preference(
            prompt=[Message(role="user", content=f"Ask {i % 20}")],
            chosen=[Message(role="assistant", content="please " * (1 + i // 20) + str(i))],
            rejected=[Message(role="assistant", content="now" * (1 + i % 3) + str(i))],
        )
        for i in range(40)
    ]


@pytest.fixture
def preferences(tmp_path: Path, preference_rows: list[Preference]) -> Path:
    """The same as a file."""
    write_jsonl(tmp_path / "preferences.jsonl", preference_rows)
    return tmp_path / "preferences.jsonl"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are taken in the same order in every process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that logs its console and every request."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1400,1000",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()
