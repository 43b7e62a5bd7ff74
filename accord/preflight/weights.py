"""A look at weights and amounts, which takes a while."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accord.bundled import data_path
from accord.models.base import examine_base
from accord.models.loading import check_fit
from accord.models.references import resolve
from accord.preflight.preferences import finished_feedback
from accord.preflight.shared import Faults, read_rows
from accord.records import Preference, Prompt, holds_comparisons, question_id, read_jsonl
from accord.round_config import RoundConfig
from accord.round_plan import has_preferences
from accord.runs import DataFile, Run, Runs
from reward.judge_models import LocalModel
from reward.scorers import scorer_of
from rl.config import KTOConfig, OnlineConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def look_at_weights(
    config: RoundConfig, runs: Runs, sections: Sequence[str], faults: Faults
) -> "PreTrainedTokenizerBase | None":
    """Download and hash what is not ours, and see whether the model can be trained as the sections say.

    Returns its tokenizer, with the chat template that it will have.
    """
    model = tokenizer = None
    with faults.of("model"):
        model, tokenizer = examine_base(config.model, runs, config.chat_template)
    if "feedback" in sections and config.feedback and config.feedback.selection_reward_model:
        with faults.of("feedback.selection_reward_model"):
            check_fit(resolve(config.feedback.selection_reward_model, runs))
    if config.reward and "reward" in sections and config.reward.previous:
        with faults.of("reward.previous"):
            check_fit(resolve(config.reward.previous, runs))
    scorers = []
    if "rl" in sections and (function := getattr(config.rl, "reward_function", None)):
        scorers.append(("rl.reward_function", function))
    if config.eval and "eval" in sections and config.eval.judge:
        scorers.append(("eval.judge", config.eval.judge))
    for key, reference in scorers:
        with faults.of(key):
            scorer = scorer_of(reference, runs)
            if scorer.judge and isinstance(scorer.judge.model, LocalModel):
                _ = scorer.judge.model.tokenizer
    if "eval" in sections and (runs.root / "promoted.json").exists():
        from eval.promotion import read_entries

        with faults.of("eval"):
            read_entries(runs)
    for name in sections:
        lora = getattr(getattr(config, name), "lora", None)
        if lora and lora.quantize_base:
            from accord.training import quantization

            with faults.of(f"{name}.lora"):
                quantization(lora)
    if model:
        from accord.preflight.families import family_faults
        from accord.preflight.methods import look_at_method

        for key, error in family_faults(model, config, sections):
            with faults.of(key):
                raise error
        if config.sft and "sft" in sections:
            look_at_method(config.sft, model, faults)
    return tokenizer


def look_at_amounts(config: RoundConfig, runs: Runs, sections: Sequence[str], faults: Faults) -> None:
    """Whether there are enough rows, as far as they are known and none is too long."""
    pairs: list[Preference] = []
    if config.preferences and not config.feedback and {"reward", "rl"} & set(sections):
        source: Run | DataFile
        if config.preferences.startswith("run:"):
            source = finished_feedback(config.preferences, runs)
            name, path = source.id, source.output("preferences.jsonl")
        else:
            source = DataFile(data_path(config.preferences))
            name, path = str(source.path), source.path
        if not holds_comparisons(path):
            with faults.of("preferences"):
                pairs = read_jsonl(path, Preference)
                if config.reward and "reward" in sections:
                    from reward.data import split_by_prompt
                    from reward.train import check_enough

                    check_enough(name, *split_by_prompt(pairs, config.reward.heldout_fraction), config.reward)
    if "rl" in sections and isinstance(config.rl, KTOConfig):
        _look_at_labels(config, config.rl, runs, faults)
    if "rl" in sections and isinstance(config.rl, OnlineConfig):
        heldout: set[str] = set()
        if pairs:
            from reward.data import split_by_prompt

            heldout = {
                question_id(row.prompt) for row in split_by_prompt(pairs, config.rl.heldout_fraction)[1]
            }
        with faults.of("rl.prompts"):
            rows = read_rows(config.rl.prompts, Prompt)
            if not has_preferences(config):
                from reward.data import split_by_prompt

                rows = split_by_prompt(rows, config.rl.heldout_fraction)[0]
            left = sum(question_id(row.prompt) not in heldout for row in rows)
            config.rl.check_enough_prompts(left, data_path(config.rl.prompts))


def _look_at_labels(config: RoundConfig, section: KTOConfig, runs: Runs, faults: Faults) -> None:
    """Whether both kinds of answers are there, unless people are still to be asked."""
    if not section.feedback and config.feedback:
        return
    from rl.unpaired import read_feedback

    source: Run | DataFile | None = None
    if not section.feedback:
        reference = str(config.preferences)
        is_run = reference.startswith("run:")
        source = finished_feedback(reference, runs) if is_run else DataFile(data_path(reference))
    with faults.of("rl.feedback" if section.feedback else "preferences"):
        read_feedback(section, source)
