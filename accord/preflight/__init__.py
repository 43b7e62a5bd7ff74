"""Before a round starts: whatever its stages will need is looked at, and all that is wrong is said at once.

    check_round(config, runs, until="eval")

A typo in `eval.prompts` would otherwise show after hours. So files are read by the readers of the stages that will read
them, references are resolved, functions imported and servers asked; nothing is sampled, and no model is loaded. What
takes no time comes first. Only where that is all right are weights hashed and downloaded (once: later stages know the
digests) and the libraries imported that training needs anyway.

Only the data of the fine-tuning are prepared right away, as a run, since reading millions of rows twice takes hours.
What only the doing of a stage needs, such as a server, is not asked for where a finished run has its settings.
"""

import os
from functools import partial

from accord.compute.launch import check_devices
from accord.data.rows import open_data
from accord.models.base import look_at_base
from accord.models.chat_templates import find_template
from accord.models.loading import check_can_be_trained
from accord.models.references import locate
from accord.preflight.data import look_at_data, look_at_files
from accord.preflight.evaluation import annotators_of, look_at_evaluation
from accord.preflight.feedback import look_at_feedback, look_at_sampling
from accord.preflight.methods import look_at_virtual_tokens
from accord.preflight.preferences import look_at_preferences
from accord.preflight.rendering import look_at_rendering
from accord.preflight.shared import Faults, read_rows
from accord.preflight.training import look_at_algorithm, look_at_trainer
from accord.preflight.weights import look_at_amounts, look_at_weights
from accord.records import Demonstration
from accord.round_config import RoundConfig, StageName
from accord.round_plan import stages_until
from accord.runs import Runs
from eval.measuring.annotators import check_formula_is_not_gated
from reward.scorers import check_is_reward_model
from sft.methods import check_sharding


def check_round(config: RoundConfig, runs: Runs, until: StageName | None = None) -> None:
    """Look at whatever the stages up to `until` will need; None: all stages that the configuration has.

    Raises:
        UsageError: `until` is no stage of this configuration, which lacks a section; or several things are wrong, a
            reference among them.
        DataError: data files are wrong, and nothing else is.
        AccordError: whatever else is wrong. The message of several has a line for each.
    """
    sections = stages_until(config, until)
    faults = Faults()
    config = open_data(config, runs, keep_fault=partial(faults.keep_unreadable, sections))
    with faults.of("model"):
        base = look_at_base(config.model, runs)
        if {"sft", "reward", "rl"} & set(sections):
            check_can_be_trained(base)
    if config.chat_template:
        with faults.of("chat_template"):
            find_template(config.chat_template, runs)
    if config.sft and "sft" in sections:
        look_at_files(config.sft, config.data, faults)
        look_at_virtual_tokens(config, sections, faults)
        if config.compute.processes > 1:
            with faults.of("compute.sharding"):
                check_sharding(config.sft, config.compute.sharding)
    if config.feedback and "feedback" in sections:
        look_at_feedback(config.feedback, runs, faults)
    look_at_sampling(config, runs, sections, faults)
    prompts = None
    if config.eval and "eval" in sections:
        prompts = look_at_evaluation(config.eval, runs, "reward" in sections, faults)
    if {"feedback", "reward", "rl"} & set(sections):
        look_at_preferences(config, runs, sections, prompts, faults)
    if config.eval and "eval" in sections:
        with faults.of("eval.gate"):
            check_formula_is_not_gated(config.eval.gate, annotators_of(config, runs))
    if config.reward and "reward" in sections:
        if config.reward.previous:
            with faults.of("reward.previous"):
                check_is_reward_model(locate(config.reward.previous, runs))
        if config.reward.demonstrations:
            with faults.of("reward.demonstrations"):
                read_rows(config.reward.demonstrations, Demonstration)
    if "rl" in sections:
        look_at_algorithm(config, runs, faults)
    processes = 1 if "LOCAL_RANK" in os.environ else config.compute.processes
    if {"sft", "reward", "rl"} & set(sections) and processes > 1:
        with faults.of("compute"):
            check_devices(config.compute)
    for name in sections:
        look_at_trainer(name, getattr(config, name), processes, faults)
    faults.report()

    tokenizer = look_at_weights(config, runs, sections, faults)
    look_at_amounts(config, runs, sections, faults)
    if tokenizer:
        look_at_rendering(config, tokenizer, sections, faults)
        if config.sft and "sft" in sections:
            look_at_data(config.sft, runs, tokenizer, config.data, faults)
    faults.report()
