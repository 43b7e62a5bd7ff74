"""Settings of policy optimisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config import Config, LoraConfig, Seed
from accord.errors import DataError
from accord.optimizers import OptimizerName
from accord.records import Demonstration, Prompt, Row, UnpairedFeedback
from accord.training_config import SaveDtype, TrainingConfig

NO_RATINGS = (
    "holds pairs, and rl.labels: ratings reads comparisons with annotators' ratings; give a file of those, a feedback "
    "run that asked for ratings, or set rl.labels to pairs"
)


class AlgorithmConfig(Config):
    """What the settings of every algorithm have."""

    algorithm: str
    """Which one: a name of accord's, or `file.py:NAME` for one in a file of yours."""

    @model_validator(mode="after")
    def _leaves_the_reference(self) -> Self:
        lora = getattr(self, "lora", None)
        if isinstance(lora, LoraConfig) and lora.start != "zero":
            raise ValueError(
                f"lora.start must be zero here: the reference is the policy without its adapter, and {lora.start} "
                "takes a part of that out"
            )
        return self


class DPOConfig(TrainingConfig, AlgorithmConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); a row is a pair."""

    algorithm: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=1e-6, gt=0, le=10)
    kl_coefficient: float = Field(default=0.1, gt=0)
    """The paper's beta: how dearly the policy pays for leaving the reference; for ipo the tau of its paper."""
    loss: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    """sigmoid: the paper's. ipo: the squared distance of the log-ratios' difference, averaged over an answer's tokens,
    from 1 / (2 * kl_coefficient), which stops pushing pairs apart that are apart already (Azar et al. 2023,
    https://arxiv.org/abs/2310.12036). robust: sigmoid, corrected for labels that are wrong (Chowdhury et al. 2024,
    https://arxiv.org/abs/2403.00409)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """For robust: the share of the pairs whose label is taken to be wrong; that paper recommends 0.1."""
    length_desensitisation: float | None = Field(default=None, ge=0, le=1)
    """For sigmoid and robust: the weight of the log-probability of those tokens by which an answer is longer than the
    other one of its pair; 1 is the plain loss, 0 leaves them out (LD-DPO: Liu et al. 2024,
    https://arxiv.org/abs/2409.06411)."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose pairs are held out, for the curves; the reward model's choice by default."""

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(
                f"label_smoothing acts on loss: robust only, and loss is {self.loss}; set it to 0 or change the loss"
            )
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("loss: robust needs a label_smoothing above 0; without it, it is loss: sigmoid")
        if self.length_desensitisation is not None and self.loss == "ipo":
            raise ValueError(
                "length_desensitisation does not go with loss: ipo, which averages over an answer's tokens anyway; "
                "leave it out"
            )
        return self


class KTOConfig(TrainingConfig, AlgorithmConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306) of answers that are
    desirable or not, each by itself; a row is an answer.
    """

    row_files: ClassVar[Mapping[str, type[Row]]] = {"feedback": UnpairedFeedback}
    algorithm: Literal["kto"]
    feedback: str | None = None
    """A file of answers, each with a prompt and a label: true where it is desirable. Left out: the round's preferences
    are used, as `labels` says."""
    labels: Literal["pairs", "ratings"] = "pairs"
    """What makes an answer of the round's preferences desirable. pairs: each chosen one is, each rejected one is not.
    ratings: one whose ratings by annotators average 4 of 5 or more is, one of 2 or less, or that most of them flagged
    as harmful, is not, and the others are left out, and counted."""
    learning_rate: float = Field(default=1e-6, gt=0, le=10)
    rows_per_update: int = Field(default=8, ge=2, le=10_000_000)
    """Answers that make one optimiser step."""
    rows_per_pass: int = Field(default=8, ge=2, le=10_000_000)
    """Answers computed at a time. They also give the reference point of the loss: the KL from the reference, estimated
    by giving each prompt the answer of the row before it. So the result depends on this a little; more is better."""
    kl_coefficient: float = Field(default=0.1, gt=0)
    """The paper's beta: how dearly the policy pays for leaving the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Of the desirable rows' loss. The weighted numbers of desirable and undesirable rows should be between 1:1 and
    4:3."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Of the others'."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose rows are held out, for the curves; the reward model's choice by default."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.feedback and self.labels == "ratings":
            raise ValueError(
                "labels: ratings is about the round's preferences, and feedback names a file in their place; leave one "
                "out"
            )
        return self


class PPOConfig(AlgorithmConfig):
    """Proximal policy optimisation (Schulman et al. 2017) of the reward model's score, as in Huang et al. 2024.

    In an update the policy answers `prompts_per_update` prompts once each, and learns from these answers
    `epochs_per_update` times.
    """

    not_identity = frozenset({"report_to"})
    row_files: ClassVar[Mapping[str, type[Row]]] = {"prompts": Prompt, "demonstrations": Demonstration}
    needed_files = ("prompts",)
    algorithm: Literal["ppo"] = "ppo"
    prompts: str = ""
    """A file of prompts; those whose preferences are held out are taken out of it."""
    updates: int = Field(default=100, ge=1, le=10_000_000)
    """How often answers are sampled and learned from."""
    prompts_per_update: int = Field(default=64, ge=1, le=10_000_000)
    """How many prompts are answered for an update, once each."""
    epochs_per_update: int = Field(default=4, ge=1, le=1000)
    """How often an update learns from its answers."""
    minibatches_per_epoch: int = Field(default=1, ge=1)
    """Optimiser steps an epoch; each takes an equal part of the answers."""
    max_response_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """The longest answer."""
    max_sequence_tokens: int = Field(default=1024, ge=2, le=10_000_000)
    """The longest prompt and answer together; longer prompts are dropped, and counted."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of sampling; the logits of policy and reference are divided by it everywhere."""
    overlap_updates: Literal[0, 1] = 0
    """1: the next update's answers are sampled while an update is learned from, so they are by the policy of one update
    before; what that changes is evened out by truncated importance weights. For a sampler that has GPUs of its own."""
    learning_rate: float = Field(default=3e-6, gt=0, le=10)
    """Of policy and critic at the first update; it falls linearly to zero. LoRA wants ten to a hundred times that."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients of policy and critic are each cut to this norm."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """What a nat of distance from the reference costs, in the reward model's units."""
    kl_target_nats: float | None = Field(default=None, gt=0)
    """Move the coefficient so that an answer's KL from the reference comes near this (Ziegler et al. 2019)."""
    kl_horizon_answers: int = Field(default=10_000, ge=1)
    """How slowly it moves: after about so many answers it has followed."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Gamma: what a reward is worth one token earlier."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation; 0 trusts the critic wholly, 1 not at all."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far a token's probability may move, relatively, before its gradient ends."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of unlikely tokens whose probability grew, as a multiple of their advantage (Ye et al. 2020)."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far the critic's prediction may move in an update, in the reward model's units."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Weight of the critic's loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy, which keeps the policy exploring."""
    importance_weight_cap: float = Field(default=2.0, ge=1)
    """Tokens are weighted by how much likelier the trainer finds them than the sampler did, at most so much."""
    whiten_rewards: bool = False
    """Scale the rewards of an update's tokens to unit variance."""
    score_clip: float | None = Field(default=None, gt=0)
    """Scores are cut to plus or minus this."""
    demonstrations: str | None = None
    """A file of demonstrations: scores are shifted so that these score 0 on average."""
    reward_function: str | None = None
    """What gives the scores in place of the reward model: a Python function as `file.py:function` or `module:function`,
    which is called as TRL's trainers call theirs, or a judge as `judge:<model reference>` or
    `judge:https://host/v1#model-name`. The critic still starts from the reward model, with a new head. Neither policy
    nor critic learns from an answer on which a function returns None."""
    ensemble: Literal["mean", "minimum", "mean_minus_deviation"] = "mean"
    """What the score is, where the reward model is an ensemble (`reward.heads`); the last two trust it less where its
    heads disagree."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """An answer without EOS gets minus the penalty as its score, or the penalty subtracted from it."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """In the reward model's units."""
    length_penalty_per_token: float = 0.0
    """Subtracted from the score for every token of an answer."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose preferences are held out for evaluation; the reward model's choice by default."""
    evaluate_every_updates: int | None = Field(default=None, ge=1)
    """How often the policy is evaluated on held-out prompts and preferences; the best of these policies is the result.
    Left out: once, after the last update, whose policy is the result."""
    stop_at_kl_nats: float = Field(default=100.0, gt=0)
    """Stop after an update whose answers are farther from the reference than this, on average."""
    stop_at_length_factor: float = Field(default=4.0, gt=1)
    """Stop after an update whose answers are so many times longer than the first update's, on average."""
    stop_after_worse_evaluations: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row with a higher held-out score and a worse held-out preference loss than
    the best one's: the sign that the policy exploits the reward model."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """As for the other training stages."""
    optimizer: OptimizerName = "adamw"
    """As for the other training stages."""
    save_dtype: SaveDtype = "auto"
    """As for the other training stages."""
    lora: LoraConfig | None = None
    """Train adapters of policy and critic instead of all weights; the reference is then the policy without its own."""
    shared_base: bool = False
    """With lora: policy, critic and reward model are adapters of one base. The reward model must have been trained from
    this policy, with lora."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    tokens_per_pass: int = Field(default=1024, ge=1)
    """How many tokens, padding included, are computed at a time; a GPU is faster with more, memory permitting."""
    checkpoint_every_updates: int = Field(default=1, ge=1)
    """A kill costs at most so many updates."""
    report_to: list[str] = Field(default=[])
    """Trackers that get the rows of metrics, too, as accelerate names them: tensorboard, wandb, trackio, mlflow, ..."""
    seed: Seed = 0
    """Of the order of the prompts, the answers and new weights."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prompts_per_update % self.minibatches_per_epoch:
            raise ValueError("prompts_per_update must be a multiple of minibatches_per_epoch")
        if self.max_response_tokens >= self.max_sequence_tokens:
            raise ValueError("max_sequence_tokens must leave room for a prompt beside max_response_tokens")
        if self.lora and self.lora.dropout:
            raise ValueError("lora.dropout must be 0 for PPO, whose ratios compare the policy with itself")
        if self.lora and self.lora.quantize_base:
            raise ValueError(
                "lora.quantize_base does not work with PPO, whose sampler takes the merged weights"
            )
        if self.shared_base and not self.lora:
            raise ValueError("shared_base needs lora")
        if self.reward_function and self.demonstrations:
            raise ValueError("demonstrations shift the reward model's scores, which reward_function replaces")
        if self.stop_after_worse_evaluations and not self.evaluate_every_updates:
            raise ValueError("stop_after_worse_evaluations needs evaluate_every_updates")
        return self


class OnlineConfig(TrainingConfig, AlgorithmConfig):
    """The reward model's score, optimised by TRL's RLOO or GRPO; a row is an answer.

    In an update the policy answers `rows_per_update / num_generations` prompts `num_generations` times each, and learns
    once from these answers. What an answer is worth is its score beside those of the other answers to its prompt, so no
    critic is needed.
    """

    row_files: ClassVar[Mapping[str, type[Row]]] = {"prompts": Prompt}
    needed_files = ("prompts",)
    algorithm: Literal["rloo", "grpo"]
    """rloo: score minus KL, above the mean of the prompt's other answers (Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740). grpo: score above the mean of all, in standard deviations, and the KL in the loss
    (Shao et al. 2024, https://arxiv.org/abs/2402.03300)."""
    prompts: str = ""
    """A file of prompts; those whose preferences are held out are taken out of it."""
    learning_rate: float = Field(default=1e-6, gt=0, le=10)
    rows_per_update: int = Field(default=64, ge=2, le=10_000_000)
    """Answers that make one optimiser step; all of them are sampled at a time."""
    num_generations: int = Field(default=4, ge=2, le=10_000)
    """Answers to a prompt in an update."""
    max_response_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """The longest answer."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """TRL's beta: what a nat of distance from the reference costs, in the reward model's units; with 0 no reference is
    kept. For rloo it is paid for the whole answer, for grpo for its mean token."""
    reward_function: str | None = None
    """What gives the scores in place of the reward model, which then is not used: a Python function as
    `file.py:function` or `module:function`, which is called as TRL's trainers call theirs, or a judge as
    `judge:<model reference>` or `judge:https://host/v1#model-name`. An answer on which a function returns None is left
    out of what the others are compared with, and its advantage is 0."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """An answer that max_response_tokens cuts off gets minus this as its score."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose preferences are held out; the reward model's choice by default. Without preferences,
    which a reward function needs none of, share of the prompts that are. They are answered once before the first update
    and once whenever it is evaluated."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.rows_per_update % self.num_generations:
            raise ValueError("rows_per_update must be a multiple of num_generations")
        if self.max_response_tokens >= self.max_sequence_tokens:
            raise ValueError("max_sequence_tokens must leave room for a prompt beside max_response_tokens")
        if self.lora and self.lora.dropout:
            raise ValueError("lora.dropout must be 0 for rloo and grpo, which compare the policy with itself")
        return self

    def check_enough_prompts(self, prompts: int, file: Path) -> None:
        """Refuse fewer prompts than an update takes.

        Raises:
            DataError: with both numbers.
        """
        prompts_per_update = self.rows_per_update // self.num_generations
        if prompts < prompts_per_update:
            raise DataError(
                f"{file}: leaves {prompts} prompts, and an update takes {prompts_per_update}; add prompts or lower "
                "rl.rows_per_update"
            )


class BestOfNConfig(TrainingConfig, AlgorithmConfig):
    """Rejection-sampling fine-tuning (Touvron et al. 2023, https://arxiv.org/abs/2307.09288; RAFT: Dong et al. 2023,
    https://arxiv.org/abs/2304.06767): the policy learns the best of its own answers; a row is an answer.

    In a round the policy answers every prompt `samples_per_prompt` times; the answer of each prompt that scores highest
    becomes a demonstration, and the policy is fine-tuned on these. Answers that max_response_tokens cuts off and blank
    ones are never learned.
    """

    row_files: ClassVar[Mapping[str, type[Row]]] = {"prompts": Prompt}
    needed_files = ("prompts",)
    algorithm: Literal["best_of_n"]
    prompts: str = ""
    """A file of prompts; those whose preferences are held out are taken out of it."""
    rounds: int = Field(default=1, ge=1, le=1000)
    """How often answers are sampled, from the policy as it is by then, and learned; `epochs` and `learning_rate` are
    each round's."""
    samples_per_prompt: int = Field(default=8, ge=2, le=10_000)
    """The n of best of n."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of sampling."""
    max_response_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """The longest answer."""
    keep_fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the prompts' best answers, the share that is learned: those with the highest scores."""
    least_gain: float | None = Field(default=None, ge=0)
    """Learn a best answer only if it scores at least so much above the mean of the prompt's other answers."""
    reward_function: str | None = None
    """What gives the scores in place of the reward model, which then is not used: a Python function as
    `file.py:function` or `module:function`, which is called as TRL's trainers call theirs, or a judge as
    `judge:<model reference>` or `judge:https://host/v1#model-name`. An answer on which a function returns None is left
    out."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts whose preferences are held out; the reward model's choice by default. Without preferences,
    which a reward function needs none of, share of the prompts that are. They are answered as often as the others,
    before the first round and after the last one."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_response_tokens >= self.max_sequence_tokens:
            raise ValueError("max_sequence_tokens must leave room for a prompt beside max_response_tokens")
        if self.evaluate_every_updates is not None:
            raise ValueError(
                "evaluate_every_updates is about a held-out loss, and best_of_n holds prompts out, which it answers "
                "before and after; leave it out"
            )
        return self
