"""A real `vllm serve`, started by the command that the documentation gives."""

import contextlib
import copy
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import PreTrainedModel
from vllm_serving import Server, end, serve

from accord.errors import AccordError, SamplerGoneError, UsageError
from accord.models import loading
from accord.models.references import Model
from accord.sampling import SamplingConfig, vllm_server
from accord.sampling.shared import SharedSampler
from accord.sampling.verify import FLOAT32_BOUND, verify
from accord.sampling.vllm_engine import vllm_is_installed
from accord.sampling.vllm_server import VLLMServerSampler
from rl.policy_gradient.rollout import PolicySampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed"),
]

KEY = "a key of this test"
PROMPTS = [[1, 5 + i, 40, 41 + i] * (1 + i) for i in range(8)]
EOS = 2


@contextmanager
def serving(small_model: Model, log: Path) -> Iterator[Server]:
    """`vllm serve` as docs/run-a-round.md starts it on a CPU."""
    page = (Path(__file__).parents[2] / "docs/run-a-round.md").read_text()
    command, for_cpu = re.findall(r"```bash\n((?:VLLM_SERVER_DEV_MODE| +--enforce).*?)```", page, re.DOTALL)
    words = f"{command} {for_cpu}".replace("\\\n", " ").split()
    variables = dict(word.split("=") for word in words if word.startswith("VLLM_"))
    arguments = [word for word in words if not word.startswith("VLLM_")]
    with serve(arguments, small_model.folder, log, variables | {"VLLM_API_KEY": KEY}) as found:
        yield found


@pytest.fixture(scope="module")
def server(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(small_model, tmp_path_factory.mktemp("server") / "log") as found:
        yield found


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setattr(vllm_server, "SECONDS_BETWEEN_TRIES", (0.1, 0.1))


@pytest.fixture
def config(server: Server, tmp_path: Path) -> SamplingConfig:
    return SamplingConfig(engine="server", server_url=server.url, server_weights_folder=tmp_path)


@pytest.fixture
def policy(small_model: Model) -> PreTrainedModel:
    return loading.load_policy(small_model)


@pytest.fixture
def sampler(small_model: Model, config: SamplingConfig, policy: PreTrainedModel) -> VLLMServerSampler:
    sampler = VLLMServerSampler(small_model.folder, EOS, config)
    sampler.sync(policy)
    return sampler


def perturbed(policy: PreTrainedModel, spread: float = 0.01) -> PreTrainedModel:
    other = copy.deepcopy(policy)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter += spread * parameter.std() * torch.randn(parameter.shape, generator=noise)
    return other


def test_server_and_trainer_agree_before_and_after_a_sync(
    sampler: VLLMServerSampler, policy: PreTrainedModel, tmp_path: Path
) -> None:
    assert verify(sampler, policy, PROMPTS, FLOAT32_BOUND).max_difference < 1e-4
    other = perturbed(policy)
    sampler.sync(other)
    assert verify(sampler, other, PROMPTS, FLOAT32_BOUND).max_difference < 1e-4
    with pytest.raises(AccordError, match="does not have the trainer's weights"):
        verify(sampler, policy, PROMPTS, FLOAT32_BOUND)
    assert not list(tmp_path.iterdir()), "weights were left behind"


def test_an_answer_depends_on_its_seed_and_ends_with_eos(sampler: VLLMServerSampler) -> None:
    together = sampler.sample(PROMPTS * 8, range(64), 40)
    again = sampler.sample(PROMPTS[::-1], range(7, -1, -1), 40)
    assert [answer.token_ids for answer in again[::-1]] == [answer.token_ids for answer in together[:8]]
    assert len({tuple(answer.token_ids) for answer in together[::8]}) == 8  # one prompt, eight seeds
    assert {answer.finish for answer in together} == {"eos", "length"}
    for answer in together:
        assert len(answer.log_probabilities) == len(answer.token_ids)
        if answer.finish == "eos":
            assert answer.token_ids.index(EOS) == len(answer.token_ids) - 1
        else:
            assert len(answer.token_ids) == 40 and EOS not in answer.token_ids


def test_temperature(sampler: VLLMServerSampler, policy: PreTrainedModel) -> None:
    with torch.no_grad():
        logits = policy(torch.tensor([PROMPTS[3]])).logits[0, -1]
    (warm,) = sampler.sample([PROMPTS[3]], [1], 1, temperature=2.0)
    expected = torch.log_softmax(logits / 2, -1)[warm.token_ids[0]].item()
    assert warm.log_probabilities[0] == pytest.approx(expected, abs=1e-4)
    (likeliest,) = sampler.sample([PROMPTS[3]], [1], 1, temperature=0)
    assert likeliest.token_ids == [logits.argmax().item()]
    assert likeliest.log_probabilities[0] == pytest.approx(
        torch.log_softmax(logits, -1).max().item(), abs=1e-4
    )


def test_a_round_uses_it_and_begins_with_its_own_weights(
    small_model: Model, config: SamplingConfig, sampler: VLLMServerSampler, policy: PreTrainedModel
) -> None:
    sampler.sync(perturbed(policy, 0.5))  # what an earlier round left in the server
    with SharedSampler(config) as shared:
        assert isinstance(shared.use(small_model), VLLMServerSampler)
    with pytest.raises(SamplerGoneError, match="no longer has the weights"):
        sampler.sample(PROMPTS, range(8), 4)  # another program has used the server


def test_ppo_hands_the_weights_over_again_when_the_server_lost_them(
    small_model: Model, config: SamplingConfig, policy: PreTrainedModel
) -> None:
    trained = perturbed(policy)
    with SharedSampler(config) as shared:
        ppo = PolicySampler(shared, small_model, lambda: contextlib.nullcontext(trained))
        before = ppo.sample(PROMPTS, range(8), 16, 1.0)
        VLLMServerSampler(small_model.folder, EOS, config).sync(policy)
        after = ppo.sample(PROMPTS, range(8), 16, 1.0)
    assert ppo.restarts == 1
    assert [answer.token_ids for answer in after] == [answer.token_ids for answer in before]


def test_weights_that_do_not_fit_or_are_not_seen_are_errors(
    sampler: VLLMServerSampler, small_model: Model, config: SamplingConfig, policy: PreTrainedModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = sampler._call_workers

    async def elsewhere(http: httpx.AsyncClient, method: str, arguments: Any = None) -> list[Any]:
        return await real(http, method, {**arguments, "weights_path": "/not/there"} if arguments else None)

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "_call_workers", elsewhere)
        with pytest.raises(AccordError, match=r"sees no folder /not/there.*server_weights_folder"):
            sampler.sync(policy)
    with pytest.raises(SamplerGoneError, match="no longer has the weights"):
        sampler.sample(PROMPTS, range(8), 4)
    sampler.sync(policy)
    sampler.sample(PROMPTS, range(8), 4)

    with pytest.raises(UsageError, match="create it where trainer and server both see it"):
        VLLMServerSampler(
            small_model.folder, EOS, config.model_copy(update={"server_weights_folder": tmp_path / "no"})
        )


def test_what_does_not_fit_the_server_is_an_error(
    tiny_model: Model, small_model: Model, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AccordError, match=r"another kind of model: its num_attention_heads is 2, that of"):
        VLLMServerSampler(tiny_model.folder, EOS, config)
    with pytest.raises(
        AccordError, match=r"started with --dtype float32; `sampling` asks for --dtype bfloat16"
    ):
        VLLMServerSampler(small_model.folder, EOS, config.model_copy(update={"dtype": "bfloat16"}))
    with pytest.raises(AccordError, match=r"--max-model-len 1024; `sampling` asks for --max-model-len 2000"):
        VLLMServerSampler(small_model.folder, EOS, config.model_copy(update={"max_sequence_tokens": 2000}))
    monkeypatch.setenv("VLLM_API_KEY", "another")
    with pytest.raises(AccordError, match="set VLLM_API_KEY"):
        VLLMServerSampler(small_model.folder, EOS, config)


def test_a_server_without_the_extension_or_the_endpoint_is_an_error(
    small_model: Model, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server answers to a method and to paths that it does not have stands in for one without them."""
    call, request = VLLMServerSampler._call_workers, VLLMServerSampler._request

    async def call_another(self: Any, http: httpx.AsyncClient, method: str, arguments: Any = None) -> Any:
        return await call(self, http, f"no_{method}", arguments)

    async def request_elsewhere(
        self: Any, http: httpx.AsyncClient, method: str, path: str, *more: Any
    ) -> Any:
        return await request(self, http, method, path.replace("/collective", "/no-collective"), *more)

    with monkeypatch.context() as patch:
        patch.setattr(VLLMServerSampler, "_call_workers", call_another)
        with pytest.raises(AccordError, match="start it with --worker-extension-cls accord"):
            VLLMServerSampler(small_model.folder, EOS, config)
    with monkeypatch.context() as patch:
        patch.setattr(VLLMServerSampler, "_request", request_elsewhere)
        with pytest.raises(AccordError, match="start it with VLLM_SERVER_DEV_MODE=1 in its environment"):
            VLLMServerSampler(small_model.folder, EOS, config)
    elsewhere = config.model_copy(update={"server_url": f"{config.server_url}/elsewhere"})
    with pytest.raises(AccordError, match="refused a request"):
        VLLMServerSampler(small_model.folder, EOS, elsewhere)


def test_a_server_that_is_killed_is_gone(
    server: Server, sampler: VLLMServerSampler, small_model: Model, config: SamplingConfig
) -> None:
    """The last test: it kills the server of all others, in the middle of a long sampling."""
    killer = threading.Timer(2, end, [server.process])
    killer.start()
    with pytest.raises(SamplerGoneError, match=r"does not answer.*docs/run-a-round\.md"):
        sampler.sample(PROMPTS * 100, range(800), 800)
    killer.join()
    with pytest.raises(SamplerGoneError, match=r"does not answer \(ConnectError.*the same command again"):
        VLLMServerSampler(small_model.folder, EOS, config)
