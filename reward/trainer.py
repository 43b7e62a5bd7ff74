"""TRL's RewardTrainer with accord's rows: a prompt with all its answers, and choices between them.

What TRL's loss does not suffice for: choices of more than two and weights (`reward.loss`), an ensemble of heads, and
a prompt that is computed once for all its answers (`accord.packing`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer

from accord.compute.passes import Passes
from accord.packing import Packed, compute_packed_rows
from reward.loss import Choices, centering_penalty, choice_losses, choice_margins

COLUMNS = ("answers", "chosen", "chosen_offsets", "alternatives", "offsets", "weights", "head_weights")


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `reward.data.encode_choices` as a batch: a list of tensors for each column, one a row."""
    batch: dict[str, Any] = {
        "rows": torch.zeros(len(examples))
    }  # transformers asks a tensor for the batch's size
    batch["answers"] = [[torch.tensor(ids) for ids in example["answers"]] for example in examples]
    for column in COLUMNS[1:]:
        batch[column] = [torch.tensor(example[column], dtype=torch.float32) for example in examples]
    return batch


class GroupRewardTrainer(Passes, RewardTrainer):
    """The loss is the mean over rows of the weighted sum of their choices' losses, and over the heads.

    `centering_coefficient` times the mean of `centering_penalty` is added. The model's `score` may have several
    outputs, one a head.
    """

    def __init__(self, *, centering_coefficient: float = 0.0, **options: Any) -> None:
        """Like TRL's; a model whose attention does not compute packed rows is given padded ones."""
        super().__init__(data_collator=collate, **options)
        self.centering_coefficient = centering_coefficient
        self.is_packed = compute_packed_rows(self.model, getattr(self.args, "max_length", None) or 64)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = list(COLUMNS)

    def compute_loss(  # noqa: D102
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        counts = [len(answers) for answers in inputs["answers"]]
        sequences = [ids for answers in inputs["answers"] for ids in answers]
        scores = self.scores(model, sequences).split(counts)
        losses, penalties, margins = [], [], []
        for row, of_row in enumerate(scores):
            choices = Choices(*(inputs[column][row] for column in COLUMNS[1:5]))
            nats = choice_losses(of_row, choices)
            weights = inputs["weights"][row][:, None] * inputs["head_weights"][row]
            losses.append((weights * nats).sum(dim=0).mean())
            penalties.append((inputs["head_weights"][row] * centering_penalty(of_row)).mean())
            margins.append(choice_margins(of_row.mean(dim=1, keepdim=True), choices))
        loss = torch.stack(losses).mean() + self.centering_coefficient * torch.stack(penalties).mean()
        self._record(model, sequences, torch.cat(margins), torch.cat(scores))
        return (loss, {}) if return_outputs else loss

    def scores(self, model: Any, sequences: Sequence[Tensor]) -> Tensor:
        """The scores [sequences, heads] at the last tokens of sequences of token ids."""
        return self._at_last_tokens(model, sequences)[1]

    def states(self, sequences: Sequence[Tensor]) -> Tensor:
        """The states [sequences, d] that the heads read the scores from, without gradients."""
        model: Any = self.model
        model.eval()
        with torch.no_grad():
            return self._at_last_tokens(model, sequences)[0]

    def _at_last_tokens(self, model: Any, sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What goes into the heads, and what comes out.

        Both are caught at the head, since the model itself returns one row of a batch's last token.
        """
        device = sequences[0].device
        inputs: dict[str, Any]
        if self.is_packed:
            packed = Packed.of([ids.tolist() for ids in sequences], device)
            inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "packed": packed}
            last = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
            place = (torch.zeros_like(last), packed.place(torch.arange(len(last), device=device), last))
        else:
            tokenizer: Any = self.processing_class
            rows = {"input_ids": [ids.tolist() for ids in sequences]}
            inputs = dict(tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(device))
            last = inputs["attention_mask"].sum(dim=1) - 1
            place = (torch.arange(len(last), device=device), last)
        caught: list[Tensor] = []
        head = self.accelerator.unwrap_model(model).score
        hook = head.register_forward_hook(lambda _, states, scores: caught.extend([states[0], scores]))
        try:
            model(**inputs, use_cache=False)
        finally:
            hook.remove()
        return caught[0][place].float(), caught[1][place].float()

    def _record(self, model: Any, sequences: Sequence[Tensor], margins: Tensor, scores: Tensor) -> None:
        """What TRL logs, under its names, of the heads' mean; `accuracy` is the share of choices that it makes, too."""
        mode = "train" if model.training else "eval"
        metrics = self._metrics[mode]
        if mode == "train":
            tokens = torch.tensor(sum(len(ids) for ids in sequences), device=scores.device)
            self._total_train_tokens += int(self.accelerator.gather_for_metrics(tokens).sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        mean = scores.detach().mean(dim=1)
        for name, value in (
            ("accuracy", (margins > 0).float().mean()), ("margin", margins.mean()), ("min_reward", mean.min()),
            ("mean_reward", mean.mean()), ("max_reward", mean.max()),
        ):  # fmt: skip
            metrics[name].append(float(self.accelerator.gather_for_metrics(value).mean()))


def initialise_heads(head: torch.nn.Linear, seed: int) -> None:
    """Draw every scalar head from N(0, 1 / (d + 1)), d the hidden size, so that first rewards are of order one.

    Source: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325.
    """
    deviation = 1 / math.sqrt(head.in_features + 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * deviation)
