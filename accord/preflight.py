"""Before a round starts: whatever its stages will need is looked at, and all that is wrong is said at once.

    check_round(config, runs, until="eval")

A typo in `eval.prompts` would otherwise show after hours. So files are read by the readers of the stages that will read
them, references are resolved, functions imported and servers asked; nothing is sampled, and no model is loaded. What
takes no time comes first. Only where that is all right are weights hashed and downloaded (once: later stages know the
digests) and the libraries imported that training needs anyway.

What only the doing of a stage needs, such as a server, is not asked for where a finished run has its settings.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord import parallel
from accord.bundled import data_path
from accord.config import Config
from accord.errors import AccordError, DataError, TamperedError, UsageError
from accord.models.base import examine_base, look_at_base
from accord.models.chat_templates import find_template
from accord.models.loading import check_fit
from accord.models.references import Model, locate, resolve
from accord.records import (
    Comparison,
    Demonstration,
    Message,
    Preference,
    Prompt,
    conversation_id,
    holds_comparisons,
    read_jsonl,
    read_text,
)
from accord.round_config import RoundConfig, StageName
from accord.rows import open_data
from accord.runs import DataFile, Run, Runs
from accord.sampling.config import SamplingConfig
from accord.sampling.vllm_engine import check_installed
from accord.training_config import TrainingConfig
from eval.config import EvalConfig, LmEval
from eval.measuring.annotators import Annotators, annotators_behind, check_formula_is_not_gated
from eval.measuring.answers import read_groups, read_prompts
from eval.measuring.lm_eval import files_of
from eval.measuring.lm_eval_samples import pair_samples, read_samples
from eval.measuring.lm_eval_tasks import find_task
from eval.review.take_over import ANSWERS_FOLLOW_FROM, finished_review
from eval.suites.suite import find_suite, read_items
from eval.verdict.margins import check_prompt_slices, check_slices, check_sources
from eval.verdict.signing import signing_key
from feedback.argilla.client import connect, owner_key
from feedback.argilla.people import configured_team
from feedback.argilla.server.process import check_can_start
from feedback.asking.plan import read_gold
from feedback.asking.prompts import read_prompts as read_prompts_to_answer
from feedback.config import FeedbackConfig
from reward.config import NO_RANKINGS
from reward.judge_models import LocalModel, ServedModel
from reward.scorers import Scorer, check_is_reward_model, scorer_of
from rl.algorithms import ALGORITHMS, algorithm_named
from rl.config import DPOConfig, OnlineConfig, PPOConfig

SECTIONS = ("sft", "feedback", "reward", "rl", "eval")
"""Of a round's configuration, in the order in which they are needed; all but rl are called as their stages."""
MISSING = {
    "sft": "without one, the model itself is aligned; add one, or run the next stage",
    "feedback": "its preferences come from `preferences`; add one, or run `accord reward CONFIG`",
}
Prompts = dict[str, list[Message]]


def check_round(config: RoundConfig, runs: Runs, until: StageName = "eval") -> None:
    """Look at whatever the stages up to `until` will need.

    Raises:
        UsageError: `until` is no stage of this configuration; or several things are wrong, a reference among them.
        DataError: data files are wrong, and nothing else is.
        AccordError: whatever else is wrong. The message of several has a line for each.
    """
    config = open_data(config, runs)
    sections = _sections(config, until)
    faults = _Faults()
    with faults.of("model"):
        look_at_base(config.model, runs)
    if config.chat_template:
        with faults.of("chat_template"):
            find_template(config.chat_template, runs)
    if config.sft and "sft" in sections:
        for file in config.sft.demonstrations:
            with faults.of("sft.demonstrations"):
                _read(file.path, Demonstration)
        if config.sft.heldout:
            with faults.of("sft.heldout"):
                _read(config.sft.heldout, Demonstration)
    if config.feedback and "feedback" in sections:
        _look_at_feedback(config.feedback, runs, faults)
    _look_at_sampling(config, runs, sections, faults)
    prompts = _look_at_evaluation(config.eval, runs, faults) if "eval" in sections else None
    if {"feedback", "reward"} & set(sections):
        _look_at_preferences(config, runs, sections, prompts, faults)
    if "eval" in sections:
        with faults.of("eval.gate"):
            check_formula_is_not_gated(config.eval.gate, _annotators(config, runs))
    if "reward" in sections:
        if config.reward.previous:
            with faults.of("reward.previous"):
                check_is_reward_model(locate(config.reward.previous, runs))
        if config.reward.demonstrations:
            with faults.of("reward.demonstrations"):
                _read(config.reward.demonstrations, Demonstration)
    if "rl" in sections:
        _look_at_algorithm(config, runs, faults)
    for name in sections:
        _look_at_trainer(name, getattr(config, name), faults)
    faults.report()

    _look_at_weights(config, runs, sections, faults)
    _look_at_amounts(config, runs, sections, faults)
    faults.report()


class _Faults:
    """What is wrong, by the key of the configuration that says so."""

    def __init__(self) -> None:
        self.found: list[tuple[str, AccordError]] = []

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Keeps an error instead of raising it."""
        try:
            yield
        except AccordError as error:
            self.found.append((key, error))

    def report(self) -> None:
        """Raise all that was found as one error."""
        if not self.found:
            return
        places = list(RoundConfig.model_fields)
        self.found.sort(key=lambda each: places.index(each[0].split(".")[0]))
        errors = [error for _, error in self.found]
        kind: type[AccordError] = AccordError
        if any(isinstance(error, UsageError) for error in errors):
            kind = UsageError
        else:
            for narrower in (DataError, TamperedError):
                if all(isinstance(error, narrower) for error in errors):
                    kind = narrower
        lines = list(dict.fromkeys(self._line(key, error) for key, error in self.found))
        if len(lines) == 1:
            raise kind(lines[0]) from errors[0]
        text = "".join(f"\n  {line}" for line in lines)
        raise kind(f"{len(lines)} things are wrong, and nothing was started:{text}") from errors[0]

    @staticmethod
    def _line(key: str, error: AccordError) -> str:
        text = " ".join(str(error).splitlines())
        return text if text.startswith(key) else f"{key}: {text}"


def _sections(config: RoundConfig, until: StageName) -> list[str]:
    """The sections of the stages up to one.

    Raises:
        UsageError: the configuration has no such stage.
    """
    section = until if until in SECTIONS else "rl"
    algorithm = algorithm_named(config.rl.algorithm).name
    if section == "rl" and until not in {*ALGORITHMS, algorithm}:
        stages = ", ".join([*(name for name in SECTIONS if name != "rl"), algorithm])
        raise UsageError(f"there is no stage '{until}'; name one of {stages}")
    if section == "rl" and until != algorithm:
        command = algorithm if config.rl.algorithm in ALGORITHMS else "round"
        raise UsageError(
            f"this configuration says rl.algorithm: {config.rl.algorithm}; run `accord {command}`, or change the "
            "algorithm"
        )
    if getattr(config, section) is None:
        raise UsageError(
            f"this configuration has no {section} section: {MISSING.get(section, 'add one, or run another stage')}"
        )
    wanted = SECTIONS[: SECTIONS.index(section) + 1]
    return [name for name in wanted if getattr(config, name) is not None]


def _read(reference: str, row_type: Any) -> list[Any]:
    return read_jsonl(data_path(reference), row_type)


def _is_finished(runs: Runs, stage: str, settings: Config) -> bool:
    """Whether a finished run of a stage has these settings."""
    wanted = settings.model_dump(mode="json")
    return any(
        run.is_done and run.record.stage == stage and run.record.config == wanted for run in runs.all()
    )


# --- what takes no time


def _look_at_feedback(config: FeedbackConfig, runs: Runs, faults: _Faults) -> None:
    with faults.of("feedback.prompts"):
        read_prompts_to_answer(data_path(config.prompts), config.max_prompts)
    if config.gold:
        with faults.of("feedback.gold"):
            read_gold(data_path(config.gold), config.responses_per_prompt)
    if config.guidelines:
        with faults.of("feedback.guidelines"):
            read_text(data_path(config.guidelines))
    if config.selection_reward_model:
        with faults.of("feedback.selection_reward_model"):
            check_is_reward_model(locate(config.selection_reward_model, runs))
    if _is_finished(runs, "feedback", config):
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


def _look_at_sampling(config: RoundConfig, runs: Runs, sections: Sequence[str], faults: _Faults) -> None:
    """The engine, where anything is still to be sampled."""
    stages: list[tuple[str, Config]] = []
    if config.feedback and "feedback" in sections:
        stages.append(("feedback", config.feedback))
    if isinstance(config.rl, PPOConfig) and "rl" in sections:
        stages.append(("ppo", config.rl))
    if "eval" in sections:
        stages.append(("eval", config.eval))
    if all(_is_finished(runs, stage, settings) for stage, settings in stages):
        return
    with faults.of("sampling.engine"):
        check_installed(config.sampling.engine)
    if config.sampling.engine == "server":
        with faults.of("sampling.server_url"):
            _ask_sampling_server(config.sampling, look_at_base(config.model, runs))


def _ask_sampling_server(config: SamplingConfig, model: Model) -> None:
    from accord.sampling.vllm_server import VLLMServerSampler

    VLLMServerSampler(model.folder, eos_token_id=0, config=config).close()


def _look_at_evaluation(config: EvalConfig, runs: Runs, faults: _Faults) -> Prompts | None:
    """Returns the prompts, where they can be read."""
    prompts: Prompts | None = None
    with faults.of("eval.prompts"):
        prompts = _prompts_of(config)
        groups = read_groups(data_path(config.prompts), config.prompt_group)
        with faults.of("eval.gate"):
            check_prompt_slices(config.rules, prompts, groups)
    for reference in config.suites:
        with faults.of("eval.suites"):
            suite = find_suite(reference)
            rows = read_items(suite, config.max_suite_items)
            clusters, groups_of_rows = [row.template or row.id for row in rows], [row.group for row in rows]
            with faults.of("eval.gate"):
                for name in config.gate.keys() & suite.metrics.keys():
                    check_slices(config.rules, name, clusters, groups_of_rows)
    for task, settings in config.lm_eval.items():
        with faults.of(f"eval.lm_eval.{task}"):
            _look_at_task(task, settings)
    if config.judge:
        with faults.of("eval.judge"):
            judge = scorer_of(config.judge, runs, find=locate)
            if judge.judge is None:
                raise UsageError(f"'{config.judge}' is no judge; write judge:<model reference>")
            if not _is_finished(runs, "eval", config):
                _ask_scoring_server(judge)
    if config.review:
        with faults.of("eval.review"):
            finished_review(config.review, runs, config.model_dump(include=set(ANSWERS_FOLLOW_FROM)))
    with faults.of("eval.gate"):
        check_sources(config, has_reward_model=True)
    with faults.of("eval"):
        signing_key()
    return prompts


def _prompts_of(config: EvalConfig) -> Prompts:
    return dict(list(read_prompts(data_path(config.prompts)).items())[: config.max_prompts])


def _look_at_task(task: str, settings: LmEval) -> None:
    if settings.folder:
        find_task(task, Path(settings.folder))
        return
    before, after = (read_samples(file) for file in files_of(task, settings).values())
    found = pair_samples(before, after, (str(settings.baseline), str(settings.candidate)))
    if missing := sorted(settings.metrics.keys() - found.keys()):
        raise DataError(f"{settings.baseline}: has no metric '{missing[0]}', only {', '.join(sorted(found))}")


def _ask_scoring_server(scorer: Scorer) -> None:
    if scorer.judge and isinstance(scorer.judge.model, ServedModel):
        scorer.judge.model.endpoint.check_answers()


def _look_at_preferences(
    config: RoundConfig, runs: Runs, sections: Sequence[str], prompts: Prompts | None, faults: _Faults
) -> None:
    """Those that are there already: a file, or a finished run, which may have judged what the gate measures."""
    if config.preferences is None:
        return
    if config.preferences.startswith("run:"):
        if "eval" not in sections:
            with faults.of("eval.prompts"):
                prompts = _prompts_of(config.eval)
        with faults.of("preferences"):
            check_unseen(finished_feedback(config.preferences, runs), prompts or {})
        return
    path = Path(config.preferences)
    with faults.of("preferences"):
        if not holds_comparisons(path):
            read_jsonl(path, Preference)
            if config.reward.loss == "plackett_luce":
                raise DataError(NO_RANKINGS)
            return
        read_jsonl(path, Comparison)
        if "rl" in sections:
            raise DataError(
                f"{path}: holds comparisons, which a reward model learns from; {config.rl.algorithm} reads pairs of a "
                "chosen and a rejected answer, so give a file of those, or a finished feedback run"
            )


def finished_feedback(reference: str, runs: Runs) -> Run:
    """The finished feedback run that `preferences` names.

    Raises:
        UsageError: there is no such run, or it is no feedback or not finished.
        TamperedError: its files are not the recorded ones.
    """
    run = runs.load(reference)
    if run.record.stage != "feedback":
        raise UsageError(f"preferences: {run.id} is no feedback run; `accord runs list` shows which are")
    run.output("comparisons.jsonl")
    runs.check(run)
    return run


def check_unseen(feedback: Run, prompts: Prompts) -> None:
    """Refuse an evaluation by prompts that were judged, and so trained on.

    Raises:
        UsageError: with how many were.
    """
    comparisons = read_jsonl(feedback.output("comparisons.jsonl"), Comparison)
    judged = {conversation_id(each.prompt) for each in comparisons if not each.is_probe}
    if seen := sum(conversation_id(prompt) in judged for prompt in prompts.values()):
        raise UsageError(
            f"{seen} of the evaluation's {len(prompts)} prompts were judged in {feedback.id}, so training would see "
            "what the gate measures; give eval.prompts a file without them"
        )


def _annotators(config: RoundConfig, runs: Runs) -> set[Annotators]:
    """Who judged, or will judge, what the round's models are made from."""
    references = (config.model, config.preferences or "")
    try:
        found = annotators_behind([each for each in references if each.startswith("run:")], runs)
    except UsageError:  # there is no such run, which is said where it is looked for
        found = set()
    if config.feedback:
        found.add(config.feedback.annotators)
    elif not str(config.preferences).startswith("run:"):
        found.add("unknown")
    return found


def _look_at_algorithm(config: RoundConfig, runs: Runs, faults: _Faults) -> None:
    """Whatever of these keys an algorithm has."""
    section: Any = config.rl
    if section.algorithm not in ALGORITHMS:  # a user's own
        with faults.of("rl"):
            algorithm_named(section.algorithm).check(section)
    if prompts := getattr(section, "prompts", None):
        with faults.of("rl.prompts"):
            _read(prompts, Prompt)
    if demonstrations := getattr(section, "demonstrations", None):
        with faults.of("rl.demonstrations"):
            _read(demonstrations, Demonstration)
    if function := getattr(section, "reward_function", None):
        with faults.of("rl.reward_function"):
            scorer = scorer_of(function, runs, find=locate)
            if not _is_finished(runs, section.algorithm, section):
                _ask_scoring_server(scorer)
    if isinstance(section, PPOConfig):
        if section.report_to:
            with faults.of("rl.report_to"):
                from rl.trackers import check_trackers

                check_trackers(section.report_to)
        if section.shared_base and config.reward.lora is None:
            with faults.of("rl.shared_base"):
                raise UsageError(
                    "needs a reward model that is trained with lora, and there is no reward.lora; set that, or "
                    "shared_base to false"
                )


def _look_at_trainer(name: str, section: Any, faults: _Faults) -> None:
    """Whether a stage's rows divide evenly, and TRL takes what the user passes on to it."""
    if not isinstance(section, TrainingConfig):
        return
    with faults.of(f"{name}.rows_per_update"):
        section.passes_per_update(processes=1)  # where there are several, these stages are finished
        if section.trainer:  # the import takes seconds
            with faults.of(f"{name}.trainer"):
                _check_trainer(name, section)


def _check_trainer(name: str, section: TrainingConfig) -> None:
    if isinstance(section, OnlineConfig):
        from rl.online import check_arguments as check_online

        check_online(section)
        return  # values depend on one another there, and TRL sees them all together
    check: Any
    target: Any
    if name == "sft":
        import sft.train

        check, target = sft.train.check_arguments, sft.train.TrlSFTConfig
    elif name == "reward":
        import reward.train

        check, target = reward.train.check_arguments, reward.train.TrlRewardConfig
    elif isinstance(section, DPOConfig):
        import rl.dpo

        check, target = rl.dpo.check_arguments, rl.dpo.TrlDPOConfig
    else:
        return
    from accord.training import build_arguments, trainer_arguments

    check(section.trainer)
    if parallel.count() == 1:
        build_arguments(name, target, trainer_arguments(section, None, evaluate=True))


# --- what takes a while


def _look_at_weights(config: RoundConfig, runs: Runs, sections: Sequence[str], faults: _Faults) -> None:
    """Download and hash what is not ours, and see whether the model can be trained as the sections say."""
    model = None
    with faults.of("model"):
        model = examine_base(config.model, runs, config.chat_template)
    if "feedback" in sections and config.feedback and config.feedback.selection_reward_model:
        with faults.of("feedback.selection_reward_model"):
            check_fit(resolve(config.feedback.selection_reward_model, runs))
    if "reward" in sections and config.reward.previous:
        with faults.of("reward.previous"):
            check_fit(resolve(config.reward.previous, runs))
    scorers = []
    if "rl" in sections and (function := getattr(config.rl, "reward_function", None)):
        scorers.append(("rl.reward_function", function))
    if "eval" in sections and config.eval.judge:
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
        if model and lora and (lora.top_layers is not None or lora.quantize_base):
            from accord.models.adapters import peft_config
            from accord.training import quantization

            with faults.of(f"{name}.lora"):
                peft_config(model, lora, "CAUSAL_LM")
                quantization(lora)


def _look_at_amounts(config: RoundConfig, runs: Runs, sections: Sequence[str], faults: _Faults) -> None:
    """Whether there are enough rows, as far as they are known and none is too long."""
    pairs: list[Preference] = []
    if config.preferences and not config.feedback and "reward" in sections:
        from reward.data import split_by_prompt
        from reward.train import check_enough

        source: Run | DataFile
        if config.preferences.startswith("run:"):
            source = finished_feedback(config.preferences, runs)
            name, path = source.id, source.output("preferences.jsonl")
        else:
            source = DataFile(Path(config.preferences))
            name, path = str(source.path), source.path
        if not holds_comparisons(path):
            with faults.of("preferences"):
                pairs = read_jsonl(path, Preference)
                check_enough(name, *split_by_prompt(pairs, config.reward.heldout_fraction), config.reward)
    if "rl" in sections and isinstance(config.rl, OnlineConfig):
        heldout: set[str] = set()
        if pairs:
            heldout = {
                conversation_id(row.prompt) for row in split_by_prompt(pairs, config.rl.heldout_fraction)[1]
            }
        with faults.of("rl.prompts"):
            rows = _read(config.rl.prompts, Prompt)
            left = sum(conversation_id(row.prompt) not in heldout for row in rows)
            config.rl.check_enough_prompts(left, data_path(config.rl.prompts))
