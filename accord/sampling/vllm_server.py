"""Sampling with a `vllm serve` that somebody started, on this machine or on another one, over HTTP.

docs/run-a-round.md has the command that starts it. Two things make it more than a server of completions:

- vLLM's own weight transfer (`/start_weight_update` and so on), with files in a folder that both sides see
  (`weight_transfer`). Its endpoints exist in vLLM's development mode alone, together with `/collective_rpc`, over which
  anyone can call any method of vLLM's worker; no API key protects them, so the server belongs on the loopback interface
  or into a network where everyone is trusted.
- a version, which `sync` gives to the weights and which is asked for before and after every sampling. A server that was
  started again, or that somebody else gave other weights, has another one, and its answers are never used.

Requests meet in the server in an order that no one decides, so sums are taken in another order from time to time: a
continued run equals an uninterrupted one but for rounding, and not token by token as with `vllm_engine`.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from accord.errors import AccordError, SamplerGoneError, UsageError
from accord.progress import progress
from accord.sampling.config import SamplingConfig
from accord.sampling.protocol import Completion, check_request
from accord.sampling.transfer import hand_over
from accord.sampling.weights import NOT_ARCHITECTURE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

API_KEY = "VLLM_API_KEY"
"""The environment variable; the server reads its own from a variable of the same name."""

SECONDS_BETWEEN_TRIES = (1, 2, 4, 8)
SECONDS_TO_CONNECT = 10
SECONDS_FOR_AN_ANSWER = 3600
"""From sending a request to its answer; the server may make it wait for all others."""

TRANSIENT = {429, 502, 503, 504}
"""HTTP status codes that a busy server, or a proxy before it, gives."""

START = "the command that starts one is in docs/run-a-round.md"


class VLLMServerSampler:
    """A `Sampler` on a vLLM server; nobody else may use the server at the same time."""

    shares_gpu = False
    """Not that we knew: weights come in files."""

    def __init__(
        self, folder: Path, eos_token_id: int, config: SamplingConfig, url: str | None = None
    ) -> None:
        """Look whether the server fits; it does not have the weights of `folder` before a first `sync`.

        Args:
            folder: of the model.
            eos_token_id: what ends an answer.
            config: what the server must fit.
            url: which of the config's servers; by default the first one.

        Raises:
            SamplerGoneError: nothing answers.
            AccordError: the server serves another architecture, or was started without an option that is needed.
            UsageError: the folder for weights is not there.
        """
        assert config.server_weights_folder
        self.sync_count = 0
        self.eos_token_id = eos_token_id
        self.max_sequence_tokens = config.max_sequence_tokens
        self.answers_at_once = config.answers_at_once
        self.url = (url or config.server_urls[0]).rstrip("/")
        self.weights_folder = config.server_weights_folder.absolute()
        self.version = "none"
        """Of the weights that the latest `sync` handed over."""
        if not self.weights_folder.is_dir():
            raise UsageError(
                f"sampling.server_weights_folder={self.weights_folder} is no folder here; create it where trainer and "
                "server both see it"
            )
        self.served_name = asyncio.run(self._look_at_the_server(folder, config))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_response_tokens: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """One answer for each prompt; see `Sampler.sample`.

        Raises:
            SamplerGoneError: the server does not answer, or its weights are not those of the latest `sync`.
        """
        check_request(prompts, seeds, max_response_tokens, self.max_sequence_tokens)
        with progress("sampling answers", len(prompts)) as update:
            return self.answer(prompts, seeds, max_response_tokens, temperature, update)

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, temperature: float,
        update: Callable[[float], None],
    ) -> list[Completion]:  # fmt: skip
        """As `sample`, where somebody else has checked the request and shows how far it is."""
        return asyncio.run(self._sample_all(prompts, seeds, max_response_tokens, temperature, update))

    def sync(self, policy: "PreTrainedModel") -> None:
        """Take over the policy's weights; see `Sampler.sync`."""
        self.sync_count += 1
        hand_over(policy, [self], self.weights_folder)

    def start_weight_update(self) -> None:
        """Before the first part of new weights; an update that a lost trainer began is ended first."""
        self.version = "none"
        asyncio.run(self._start_update())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a part of new weights.

        Raises:
            AccordError: the server does not see the file, or the weights do not fit.
        """
        asyncio.run(self._transfer("/update_weights", {"update_info": update_info}))

    def finish_weight_update(self, weight_version: str) -> None:
        """After the last part of new weights: the server forgets what it computed with older ones.

        Raises:
            AccordError: somebody else uses the server.
        """
        asyncio.run(self._finish_update(weight_version))
        self.version = weight_version

    def rest(self) -> None:
        """Nothing: the server's devices are its own."""

    @property
    def name(self) -> str:
        """To tell it from its like."""
        return self.url

    def close(self) -> None:
        """Nothing: the server is not ours to end."""

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get(API_KEY)
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(SECONDS_FOR_AN_ANSWER, connect=SECONDS_TO_CONNECT, pool=None),
            limits=httpx.Limits(max_connections=self.answers_at_once),
            # a proxy from the environment is left out for a server on this machine
            trust_env=httpx.URL(self.url).host not in ("127.0.0.1", "localhost", "::1"),
        )

    async def _look_at_the_server(self, folder: Path, config: SamplingConfig) -> str:
        """Check that the server fits the model in `folder`; returns the name that it serves its model under."""
        async with self._client() as http:
            models = await self._request(http, "GET", "/v1/models")
            try:
                described: dict[str, Any] = (await self._call_workers(http, "describe_policy"))[0]
            except _RefusedError as error:
                missing = (
                    "VLLM_SERVER_DEV_MODE=1 in its environment"
                    if error.status in (404, 405)
                    else "--worker-extension-cls accord.sampling.weight_transfer.PolicyLoader"
                )
                raise AccordError(
                    f"the vLLM server at {self.url} cannot take over weights ({error.reason}); start it with "
                    f"{missing}: {START}"
                ) from None
        ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for key, value in described["config"].items():
            if key in ours.keys() - NOT_ARCHITECTURE and not key.endswith("token_id") and ours[key] != value:
                raise AccordError(
                    f"the vLLM server at {self.url} serves another kind of model: its {key} is {value!r}, that of "
                    f"{folder} is {ours[key]!r}; start it with this model: {START}"
                )
        wanted = {
            "--weight-transfer-config.backend": (described["weight_transfer"], "accord_files"),
            "--dtype": (described["dtype"], config.dtype),
            "--logprobs-mode": (described["logprobs_mode"], "processed_logprobs"),
            "--max-model-len": (min(described["max_model_len"], self.max_sequence_tokens), self.max_sequence_tokens),
        }  # fmt: skip
        for option, (found, needed) in wanted.items():
            if found != needed:
                raise AccordError(
                    f"the vLLM server at {self.url} was started with {option} {found}; `sampling` asks for "
                    f"{option} {needed}"
                )
        if described["device"] == "cpu" and described["chunked_prefill"]:
            raise AccordError(
                f"the vLLM server at {self.url} splits prompts, which fails on CPU for answers with a seed; start it "
                "with --no-enable-chunked-prefill"
            )
        return str(models["data"][0]["id"])

    async def _sample_all(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_response_tokens: int, temperature: float,
        update: Callable[[float], None],
    ) -> list[Completion]:  # fmt: skip
        done = 0
        # httpx goes through all requests that wait for a connection at every answer: minutes for a few thousand
        free = asyncio.Semaphore(self.answers_at_once)

        async def sample_one(prompt: Sequence[int], seed: int) -> Completion:
            nonlocal done
            async with free:
                completion = await self._sample_one(http, prompt, seed, max_response_tokens, temperature)
            done += 1
            update(done)
            return completion

        async with self._client() as http:
            await self._check_version(http)
            tasks = [
                asyncio.ensure_future(sample_one(prompt, seed))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                completions = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()  # the server drops what nobody waits for
            await self._check_version(http)
        return completions

    async def _sample_one(
        self, http: httpx.AsyncClient, prompt: Sequence[int], seed: int, max_response_tokens: int, temperature: float
    ) -> Completion:  # fmt: skip
        body = {
            "model": self.served_name, "prompt": list(prompt), "seed": seed, "temperature": temperature,
            "max_tokens": max_response_tokens, "logprobs": 0, "return_token_ids": True,
            "return_tokens_as_token_ids": True, "stop_token_ids": [self.eos_token_id], "ignore_eos": True,
            # all that a server may have other defaults for
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }  # fmt: skip
        # 500 is how a server answers whose engine has just died; the next try then tells.
        response = await self._request(http, "POST", "/v1/completions", body, TRANSIENT | {500})
        (choice,) = response["choices"]
        tokens, log_probabilities = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        at_eos = tokens[-1] == self.eos_token_id
        if choice["finish_reason"] != ("stop" if at_eos else "length"):
            raise AccordError(
                f"the vLLM server at {self.url} ended an answer with token {tokens[-1]} for the reason "
                f"'{choice['finish_reason']}'; start it with --generation-config vllm, so that nothing but "
                f"{self.eos_token_id} ends one"
            )
        return Completion(tokens, log_probabilities, "eos" if at_eos else "length")

    async def _transfer(self, path: str, body: dict[str, Any] | None = None) -> None:
        async with self._client() as http:
            try:
                await self._request(http, "POST", path, body or {})
            except _RefusedError as error:
                raise AccordError(
                    f"the vLLM server at {self.url} did not take over the weights ({error.reason}); it must see "
                    f"sampling.server_weights_folder={self.weights_folder} under this path and be allowed to read it"
                ) from None

    async def _start_update(self) -> None:
        async with self._client() as http:
            await self._request(http, "POST", "/init_weight_transfer_engine", {"init_info": {}})
            try:
                await self._request(http, "POST", "/start_weight_update", {})
                return
            except _RefusedError:  # one is under way
                await self._request(http, "POST", "/finish_weight_update", {"weight_version": "abandoned"})
        await self._transfer("/start_weight_update")

    async def _finish_update(self, version: str) -> None:
        await self._transfer("/finish_weight_update", {"weight_version": version})
        async with self._client() as http:
            for seconds in (*SECONDS_BETWEEN_TRIES, None):
                reset = await self._request(http, "POST", "/reset_prefix_cache")
                if reset is None or reset["success"]:  # older versions say nothing
                    return
                if seconds is not None:
                    await asyncio.sleep(seconds)
        raise AccordError(
            f"the vLLM server at {self.url} cannot forget what it computed with older weights, because it is at work "
            "for somebody else; give this run a server of its own"
        )

    async def _check_version(self, http: httpx.AsyncClient) -> None:
        if (await self._request(http, "GET", "/weight_info"))["weight_version"] != self.version:
            raise SamplerGoneError(
                f"the vLLM server at {self.url} no longer has the weights that it was given: it was started again, or "
                "somebody else uses it too; run the same command again to continue"
            )

    async def _call_workers(self, http: httpx.AsyncClient, method: str) -> list[Any]:
        """Call a method of every worker of the server; returns what each returned."""
        response = await self._request(http, "POST", "/collective_rpc", {"method": method})
        return list(response["results"])

    async def _request(
        self, http: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None,
        transient: set[int] = TRANSIENT,
    ) -> Any:  # fmt: skip
        """The JSON that the server answers, None if it is empty. All that is asked for here may be asked for twice.

        Raises:
            SamplerGoneError: no answer after several tries.
            AccordError: the API key is wrong.
            _RefusedError: another answer than 200.
        """
        reason = ""
        for seconds in (*SECONDS_BETWEEN_TRIES, None):
            try:
                response = await http.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if response.status_code == 200:
                    return response.json() if response.content else None
                if response.status_code == 401:
                    raise AccordError(
                        f"the vLLM server at {self.url} wants another API key; set {API_KEY} to the server's own"
                    )
                reason = f"HTTP {response.status_code}: {_message(response)}"
                if response.status_code not in transient:
                    raise _RefusedError(self.url, response.status_code, reason)
            if seconds is not None:
                await asyncio.sleep(seconds)
        raise SamplerGoneError(
            f"the vLLM server at {self.url} does not answer ({reason}); look whether it runs, {START}, then run "
            "the same command again to continue"
        )


class _RefusedError(AccordError):
    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(f"the vLLM server at {url} refused a request ({reason}); its own log may say more")
        self.status, self.reason = status, reason


def _message(response: httpx.Response) -> str:
    """What a refusal says: vLLM's own errors are {"error": {"message": ...}}."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
