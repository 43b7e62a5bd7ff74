"""A reward model's folder is served by vLLM as docs/score-answers.md says, and scores there as it does here."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ppo_helpers import make_reward_model
from safetensors.torch import load_file
from vllm_serving import serve

from accord import endpoint
from accord.chat.tokens import answer, encode_conversation
from accord.errors import AccordError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Message
from accord.runs import Runs
from accord.sampling.vllm_engine import vllm_is_installed
from reward.score import save_heads, score
from reward.scorers import scorer_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
]

PAGE = (Path(__file__).parents[2] / "docs/score-answers.md").read_text()
SHIFT = 0.75


@pytest.fixture(scope="module")
def reward_model(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An ensemble of two heads, with a shift that makes demonstrations score 0; neither is known to vLLM."""
    folder = make_reward_model(small_model, tmp_path_factory.mktemp("reward-model")).folder
    head = load_file(folder / "model.safetensors")["score.weight"]
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    save_heads(folder, torch.cat([head + noise, head - noise]))  # their mean is the one head that is served
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reward_shift": SHIFT}))
    return resolve(str(folder), Runs(folder / "no-runs"))


@pytest.fixture(scope="module")
def url(reward_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command of the page."""
    (command,) = re.findall(r"```bash\n(vllm serve .*?)```", PAGE, re.DOTALL)
    (for_cpu,) = re.findall(r"on a CPU with `(.*?)`", PAGE)
    assert "`python -m vllm.entrypoints.openai.api_server --model` in place of `vllm serve`" in PAGE
    log = tmp_path_factory.mktemp("server") / "log"
    with serve(f"{command} {for_cpu}".split(), reward_model.folder, log) as server:
        yield server.url


def conversations() -> list[list[Message]]:
    """Forty of very different lengths, several of which begin alike."""
    system = Message(role="system", content="Be brief. " * 20)
    questions = [Message(role="user", content=f"Ask {i % 7}") for i in range(40)]
    return [
        [*([system] if i % 3 else []), question, *answer("please " * (i * i % 37) + f"{i}")]
        for i, question in enumerate(questions)
    ]


def test_the_request_of_the_page_gives_the_score(url: str, reward_model: Model) -> None:
    (request,) = [
        body
        for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
        if "input" in (body := json.loads(text))
    ]
    tokenizer = load_tokenizer(reward_model)
    request["input"] = [encode_conversation(tokenizer, each).input_ids for each in conversations()]
    expected = score(reward_model, conversations())
    assert max(expected) - min(expected) > 0.1  # they do differ
    for _ in range(2):  # and again, when the server remembers what they begin with
        data: Any = httpx.post(f"{url}/classify", json=request, trust_env=False, timeout=60).json()["data"]
        found = [each["probs"][0] - SHIFT for each in sorted(data, key=lambda each: each["index"])]
        print(f"largest difference {max(abs(a - b) for a, b in zip(found, expected, strict=True)):.1e}")
        assert found == pytest.approx(expected, abs=1e-5)
    del request["use_activation"]
    data = httpx.post(f"{url}/classify", json=request, trust_env=False, timeout=60).json()["data"]
    assert all(0 < each["probs"][0] < 1 for each in data)  # the sigmoid


def test_a_scorer_on_the_server(url: str, reward_model: Model, runs: Runs) -> None:
    scorer = scorer_of(f"vllm:{url}#{reward_model.reference}", runs, conversations_at_a_time=7)
    assert scorer.score(conversations()) == pytest.approx(score(reward_model, conversations()), abs=1e-5)
    assert scorer.digest == f"{reward_model.digest} served:{url}"
    assert scorer.score([]) == []


def test_a_server_that_is_no_reward_model_s(
    url: str, reward_model: Model, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "SECONDS_BETWEEN_TRIES", (0.01,))
    with pytest.raises(AccordError, match=r"/v1/classify refused a request \(HTTP 404"):
        scorer_of(f"vllm:{url}/v1#{reward_model.reference}", runs).score(conversations()[:1])
    with pytest.raises(AccordError, match=r"does not answer .*2 tries"):
        scorer_of(f"vllm:http://127.0.0.1:9#{reward_model.reference}", runs).score(conversations()[:1])
