"""Whether a model's weights are those that its architecture needs.

transformers makes up at random what is missing, leaves out what it has no use for, and says so in a log only. Here
both are refused, with names, by what transformers itself found to fit: renamed, fused and tied weights are among it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError
from accord.models.files import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep back what transformers says of weights that do not fit: `refuse_misfits` says it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars back where nothing takes long."""
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def refuse_misfits(
    reference: str, model: "PreTrainedModel", info: dict[str, Any], new_head: bool = False
) -> None:
    """Refuse a model that was loaded with weights made up, left out or of other shapes.

    Args:
        reference: of the model, for the message.
        model: that was loaded.
        info: transformers' `output_loading_info`.
        new_head: whatever is outside the model's body may be new, and what was there before may be left out.

    Raises:
        UsageError: with the names of up to three weights of each kind.
    """
    body = f"{model.base_model_prefix}."

    def of(kind: str) -> list[str]:
        found = [each if isinstance(each, str) else str(each[0]) for each in info[kind]]
        return [name for name in found if name.startswith(body)] if new_head else found

    missing, unexpected, misshapen = of("missing_keys"), of("unexpected_keys"), of("mismatched_keys")
    missing = [name for name in missing if name not in misshapen]
    parts = [
        f"{len(found)} {what} ({names(found)})"
        for found, what in (
            (missing, "of its weights are missing"),
            (unexpected, "in the folder are none of its"),
            (misshapen, "have another shape than config.json says"),
        )
        if found
    ]
    if parts:
        raise UsageError(
            f"the weights of {reference} do not fit its architecture {type(model).__name__}: {', '.join(parts)}; "
            f"{_way_out(missing, unexpected)}"
        )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and head is not None
    if tied and not head.weight.is_meta and head.weight is not embeddings.weight:
        raise UsageError(
            f"the config.json of {reference} ties the output head to the embeddings, and its weights hold two "
            "different ones; set tie_word_embeddings to false there if the head is the right one, or remove the "
            "head from the weights"
        )


def _way_out(missing: list[str], unexpected: list[str]) -> str:
    if any("base_layer" in name or name.startswith("base_model.") for name in unexpected):
        return "they were saved within an adapter's wrapper; load both there and save `merge_and_unload()`"
    if unexpected == ["score.weight"]:
        return "they are a reward model's, which writes no text; name the language model that it was trained from"
    if missing:
        return "what is missing would be made up at random; copy or save the whole model again"
    return "what is left over may be an adapter's, or another model's; save the model again without it"
