"""A look at what asking people will need, and at the engine that samples what they are shown."""

from collections.abc import Sequence

from accord.bundled import data_path
from accord.config import Config
from accord.models.base import look_at_base
from accord.models.references import Model, locate
from accord.preflight.shared import Faults, is_finished
from accord.round_config import RoundConfig
from accord.runs import Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.vllm_engine import check_installed
from feedback.argilla.client import connect, owner_key
from feedback.argilla.people import configured_team
from feedback.argilla.server.process import check_can_start
from feedback.argilla.tasks import read_guidelines
from feedback.asking.plan import read_gold
from feedback.asking.prompts import read_prompts as read_prompts_to_answer
from feedback.config import FeedbackConfig
from reward.scorers import check_is_reward_model
from rl.config import PPOConfig


def look_at_feedback(config: FeedbackConfig, runs: Runs, faults: Faults) -> None:
    """Prompts, people, and the server that they use."""
    with faults.of("feedback.prompts"):
        read_prompts_to_answer(data_path(config.prompts), config.max_prompts)
    if config.gold:
        with faults.of("feedback.gold"):
            read_gold(data_path(config.gold), config.responses_per_prompt)
    if config.guidelines:
        with faults.of("feedback.guidelines"):
            read_guidelines(data_path(config.guidelines))
    if config.selection_reward_model:
        with faults.of("feedback.selection_reward_model"):
            check_is_reward_model(locate(config.selection_reward_model, runs))
    if is_finished(runs, "feedback", config):
        return
    with faults.of("feedback.users" if config.users else "feedback"):
        configured_team(config)
    if config.argilla_url:
        with faults.of("feedback.argilla_url"):
            connect(config.argilla_url, owner_key(config.argilla_url))
    else:
        with faults.of("feedback.port"):
            # programs need the page for moments only, and later
            port = config.port if config.annotators == "human" else None
            check_can_start(runs.root / "argilla", port)


def look_at_sampling(config: RoundConfig, runs: Runs, sections: Sequence[str], faults: Faults) -> None:
    """The engine, where anything is still to be sampled."""
    stages: list[tuple[str, Config]] = []
    if config.feedback and "feedback" in sections:
        stages.append(("feedback", config.feedback))
    if isinstance(config.rl, PPOConfig) and "rl" in sections:
        stages.append(("ppo", config.rl))
    if config.eval and "eval" in sections:
        stages.append(("eval", config.eval))
    if all(is_finished(runs, stage, settings) for stage, settings in stages):
        return
    with faults.of("sampling.engine"):
        check_installed(config.sampling.engine)
    if config.sampling.engine == "server":
        with faults.of("sampling.server_url"):
            _ask_sampling_server(config.sampling, look_at_base(config.model, runs))


def _ask_sampling_server(config: SamplingConfig, model: Model) -> None:
    from accord.sampling.vllm_server import VLLMServerSampler

    for url in config.server_urls:
        VLLMServerSampler(model.folder, eos_token_id=0, config=config, url=url).close()
