"""accord as a library: the stages of a round, their settings and what they return. docs/use-from-python.md is the tour.

    import accord

    runs = accord.Runs("runs")
    base = accord.resolve("bundled:smollm2-135m-instruct", runs)
    run = accord.fine_tune(accord.SFTConfig(epochs=1), runs, base, demonstrations=rows)

A name is imported at its first use, so that `import accord` costs nothing and `accord --help` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "accord.config": "LoraConfig load_config",
    "accord.errors": "AccordError DataError SamplerGoneError SyncError TamperedError UsageError "
    "WaitingForAnnotatorsError",
    "accord.models.base": "prepare_base",
    "accord.models.references": "Model resolve",
    "accord.records": "Comparison Demonstration Message Preference Prompt UnpairedFeedback read_jsonl",
    "accord.round": "run_round",
    "accord.round_config": "RoundConfig",
    "accord.data.rows": "Rows keep_rows",
    "accord.runs": "DataFile Run Runs",
    "accord.sampling.config": "SamplingConfig",
    "accord.sampling.shared": "SharedSampler",
    "accord.text_files": "write_jsonl",
    "eval.config": "EvalConfig Margin",
    "eval.evaluate": "evaluate",
    "eval.promotion": "promote",
    "eval.verdict.gate": "Verdict read_verdict",
    "feedback.config": "FeedbackConfig",
    "feedback.stage": "gather_preferences",
    "reward.config": "RewardConfig",
    "reward.score": "score",
    "reward.scorers": "Scorer scorer_of",
    "reward.train": "train_reward_model",
    "rl.best_of_n": "train_best_of_n",
    "rl.config": "BestOfNConfig DPOConfig KTOConfig OnlineConfig PPOConfig",
    "rl.dpo": "train_dpo",
    "rl.kto": "train_kto",
    "rl.online": "train_online",
    "rl.ppo": "train_ppo",
    "sft.config": "SFTConfig WeightedFile",
    "sft.train": "fine_tune",
}
"""What is public, by the module that it stands in."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

if TYPE_CHECKING:
    from accord.config import LoraConfig as LoraConfig
    from accord.config import load_config as load_config
    from accord.data.rows import Rows as Rows
    from accord.data.rows import keep_rows as keep_rows
    from accord.errors import AccordError as AccordError
    from accord.errors import DataError as DataError
    from accord.errors import SamplerGoneError as SamplerGoneError
    from accord.errors import SyncError as SyncError
    from accord.errors import TamperedError as TamperedError
    from accord.errors import UsageError as UsageError
    from accord.errors import WaitingForAnnotatorsError as WaitingForAnnotatorsError
    from accord.models.base import prepare_base as prepare_base
    from accord.models.references import Model as Model
    from accord.models.references import resolve as resolve
    from accord.records import Comparison as Comparison
    from accord.records import Demonstration as Demonstration
    from accord.records import Message as Message
    from accord.records import Preference as Preference
    from accord.records import Prompt as Prompt
    from accord.records import UnpairedFeedback as UnpairedFeedback
    from accord.records import read_jsonl as read_jsonl
    from accord.round import run_round as run_round
    from accord.round_config import RoundConfig as RoundConfig
    from accord.runs import DataFile as DataFile
    from accord.runs import Run as Run
    from accord.runs import Runs as Runs
    from accord.sampling.config import SamplingConfig as SamplingConfig
    from accord.sampling.shared import SharedSampler as SharedSampler
    from accord.text_files import write_jsonl as write_jsonl
    from eval.config import EvalConfig as EvalConfig
    from eval.config import Margin as Margin
    from eval.evaluate import evaluate as evaluate
    from eval.promotion import promote as promote
    from eval.verdict.gate import Verdict as Verdict
    from eval.verdict.gate import read_verdict as read_verdict
    from feedback.config import FeedbackConfig as FeedbackConfig
    from feedback.stage import gather_preferences as gather_preferences
    from reward.config import RewardConfig as RewardConfig
    from reward.score import score as score
    from reward.scorers import Scorer as Scorer
    from reward.scorers import scorer_of as scorer_of
    from reward.train import train_reward_model as train_reward_model
    from rl.best_of_n import train_best_of_n as train_best_of_n
    from rl.config import BestOfNConfig as BestOfNConfig
    from rl.config import DPOConfig as DPOConfig
    from rl.config import KTOConfig as KTOConfig
    from rl.config import OnlineConfig as OnlineConfig
    from rl.config import PPOConfig as PPOConfig
    from rl.dpo import train_dpo as train_dpo
    from rl.kto import train_kto as train_kto
    from rl.online import train_online as train_online
    from rl.ppo import train_ppo as train_ppo
    from sft.config import SFTConfig as SFTConfig
    from sft.config import WeightedFile as WeightedFile
    from sft.train import fine_tune as fine_tune
else:  # a type checker knows the names, and no others
    __all__ = sorted(_MODULES)

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'accord' has no attribute '{name}'")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
