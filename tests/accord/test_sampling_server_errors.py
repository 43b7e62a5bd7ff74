"""Answers that a real server seldom gives; test_sampling_vllm_server.py has a real one."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from accord.errors import AccordError, SamplerGoneError
from accord.models.references import Model
from accord.sampling import SamplingConfig, vllm_server
from accord.sampling.replicas import Replicas
from accord.sampling.shared import SharedSampler
from accord.sampling.vllm_server import VLLMServerSampler

EOS = 2


class FakeServer:
    """Answers with the prompt's last token and the EOS; each test replaces what it is about."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.asked: list[tuple[str, Any]] = []
        self.complete: Callable[[dict[str, Any]], httpx.Response] = self.completion
        self.description: dict[str, Any] = {
            "config": {"num_hidden_layers": 2}, "dtype": "float32", "logprobs_mode": "processed_logprobs",
            "max_model_len": 1024, "device": "cuda", "chunked_prefill": True, "weight_transfer": "accord_files",
        }  # fmt: skip

    def completion(self, body: dict[str, Any], stop: int = EOS, finish: str = "stop") -> httpx.Response:
        choice = {
            "token_ids": [body["prompt"][-1], stop], "logprobs": {"token_logprobs": [-0.25, -0.5]},
            "finish_reason": finish,
        }  # fmt: skip
        return httpx.Response(200, json={"choices": [choice]})

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path
        self.asked.append((path, body))
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "a model"}]})
        if path == "/v1/completions":
            return self.complete(body)
        if path == "/reset_prefix_cache":
            return httpx.Response(200)  # as older versions
        if path == "/weight_info":
            return httpx.Response(200, json={"weight_version": self.version})
        if path == "/finish_weight_update":
            self.version = body["weight_version"]
        if path.endswith(("_weight_update", "_weights", "_transfer_engine")):
            return httpx.Response(200, json={})
        assert (path, body) == ("/collective_rpc", {"method": "describe_policy"})
        return httpx.Response(200, json={"results": [self.description]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(vllm_server, "SECONDS_BETWEEN_TRIES", (0, 0))
    monkeypatch.setattr(
        VLLMServerSampler,
        "_client",
        lambda self: httpx.AsyncClient(base_url=self.url, transport=httpx.MockTransport(server)),
    )
    return server


@pytest.fixture
def start(server: FakeServer, tmp_path: Path) -> Callable[[], VLLMServerSampler]:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')

    def start() -> VLLMServerSampler:
        config = SamplingConfig(engine="server", server_url="http://server", server_weights_folder=tmp_path)
        sampler = VLLMServerSampler(tmp_path, EOS, config)
        sampler.version = server.version = "1"  # as after a sync
        return sampler

    return start


def test_a_busy_server_is_asked_again_for_the_same_answers(server: FakeServer, start: Any) -> None:
    sampler, refused = start(), []

    def busy(body: dict[str, Any]) -> httpx.Response:
        if body["prompt"][-1] == 6 and len(refused) < 2:
            refused.append(body)
            if len(refused) == 1:
                raise httpx.ReadError("the connection broke")
            return httpx.Response(503, text="busy")
        return server.completion(body)

    server.complete = busy
    answers = sampler.sample([[5], [6]], [10, 11], 2)
    assert [answer.token_ids for answer in answers] == [[5, EOS], [6, EOS]]
    assert answers[1].log_probabilities == [-0.25, -0.5] and answers[1].finish == "eos"
    again = [body for path, body in server.asked if path == "/v1/completions" and body["prompt"] == [6]]
    assert len(again) == 3 and again[0] == again[1] == again[2] and again[0]["seed"] == 11


def test_two_servers_share_the_prompts_and_get_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=2,
                                         num_attention_heads=1))  # fmt: skip
    model.save_pretrained(tmp_path)
    servers = {"http://one": FakeServer(), "http://two": FakeServer()}
    monkeypatch.setattr(
        VLLMServerSampler,
        "_client",
        lambda self: httpx.AsyncClient(base_url=self.url, transport=httpx.MockTransport(servers[self.url])),
    )
    config = SamplingConfig(engine="server", server_url=list(servers), server_weights_folder=tmp_path)
    tokenizer: Any = SimpleNamespace(eos_token_id=EOS)
    both = SharedSampler(config)._start(Model("model", tmp_path, "digest"), tokenizer)
    assert isinstance(both, Replicas)
    both.sync(model)
    assert len({server.version for server in servers.values()}) == 1
    answers = both.sample([[4], [5], [6]], [1, 2, 3], 2)
    assert [answer.token_ids for answer in answers] == [[4, EOS], [5, EOS], [6, EOS]]
    asked = {
        url: sorted(body["prompt"][0] for path, body in server.asked if path == "/v1/completions")
        for url, server in servers.items()
    }
    assert asked == {"http://one": [4, 6], "http://two": [5]}
    files = [
        [body["update_info"]["path"] for path, body in server.asked if path == "/update_weights"]
        for server in servers.values()
    ]
    assert files[0] == files[1] and len(files[0]) == 1 and not list(tmp_path.glob("accord-weights-*"))
    servers["http://two"].version = "another"
    with pytest.raises(SamplerGoneError, match="http://two no longer has the weights"):
        both.sample([[4], [5], [6]], [1, 2, 3], 2)


def test_no_more_requests_are_under_way_than_answers_at_once(
    server: FakeServer, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, under_way, most = start(), 0, 0
    sampler.answers_at_once = 16

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return server(request)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(
        VLLMServerSampler, "_client", lambda self: httpx.AsyncClient(base_url=self.url, transport=transport)
    )
    answers = sampler.sample([[i] for i in range(300)], range(300), 2)
    assert [answer.token_ids for answer in answers] == [[i, EOS] for i in range(300)]
    assert most == 16


def test_a_server_that_stays_busy_is_gone(server: FakeServer, start: Any) -> None:
    sampler = start()
    server.complete = lambda body: httpx.Response(500, json={"error": {"message": "EngineCore died"}})
    with pytest.raises(SamplerGoneError, match=r"HTTP 500: EngineCore died.*run the same command again"):
        sampler.sample([[5]], [1], 2)


def test_answers_of_a_server_that_was_started_again_meanwhile_are_dropped(
    server: FakeServer, start: Any
) -> None:
    sampler = start()

    def restart(body: dict[str, Any]) -> httpx.Response:
        server.version = None
        return server.completion(body)

    server.complete = restart
    with pytest.raises(SamplerGoneError, match="no longer has the weights"):
        sampler.sample([[5]], [1], 2)


def test_an_answer_that_ended_for_another_reason_is_an_error(server: FakeServer, start: Any) -> None:
    sampler = start()
    server.complete = lambda body: server.completion(body, stop=9)
    with pytest.raises(AccordError, match=r"ended an answer with token 9.*--generation-config vllm"):
        sampler.sample([[5]], [1], 2)
    server.complete = lambda body: httpx.Response(400, json={"error": {"message": "too long"}})
    with pytest.raises(AccordError, match=r"refused a request \(HTTP 400: too long\)"):
        sampler.sample([[5]], [1], 2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"config": {"num_hidden_layers": 3}}, "its num_hidden_layers is 3, that of .* is 2"),
        ({"logprobs_mode": "raw_logprobs"}, "asks for --logprobs-mode processed_logprobs"),
        ({"weight_transfer": "nccl"}, "asks for --weight-transfer-config.backend accord_files"),
        ({"dtype": "bfloat16"}, "asks for --dtype float32"),
        (
            {"max_model_len": 512},
            "started with --max-model-len 512; `sampling` asks for --max-model-len 1024",
        ),
        ({"device": "cpu"}, "start it with --no-enable-chunked-prefill"),
    ],
)
def test_a_server_with_other_options_is_refused(
    server: FakeServer, start: Any, found: dict[str, Any], message: str
) -> None:
    server.description |= found
    with pytest.raises(AccordError, match=message):
        start()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "server", "server_weights_folder": "/shared"}, "needs server_url too"),
        ({"engine": "server", "server_url": "http://server"}, "needs server_weights_folder too"),
        ({"server_url": "http://server"}, "engine: server is needed for server_url to mean anything"),
        ({"engine": "server", "server_url": "server:8000", "server_weights_folder": "/shared"}, "server_url"),
    ],
)
def test_a_server_needs_its_settings_and_nothing_else_does(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplingConfig.model_validate(settings)
