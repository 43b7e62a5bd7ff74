"""The base model of a configuration as every stage takes it: a plain folder with all its weights and a chat template.

    base = prepare_base(config.model, runs, config.chat_template)

Most models are that already. A PEFT adapter is merged with its base; a model gets the chat template that was asked for,
with its control tokens; and a padding token, where it has none to spare. What is made so is a run of the stage "base",
of which `accord runs lineage` tells like of any other.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord import parallel
from accord.chat.tokenizer import prepare_tokenizer
from accord.config import Config
from accord.errors import UsageError
from accord.models.chat_templates import Template, find_template, give
from accord.models.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    check_is_policy,
    header,
    names,
    read_settings,
    stored_dtype,
)
from accord.models.loading import (
    check_can_be_trained,
    check_fit,
    check_tokens_have_rows,
    load_policy,
    read_tokenizer,
)
from accord.models.references import Model, locate, resolve
from accord.models.saving import write_model
from accord.models.weights import without_load_report
from accord.runs import Runs, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("accord.models")

CHAT = logging.getLogger("accord.chat")
STAGE = "base"


class BaseConfig(Config):
    """What identifies a base run, beside the model and the adapter."""

    chat_template: str | None = None
    """As it was asked for."""
    template: str | None = None
    """Its text."""


@dataclass(frozen=True)
class _Plan:
    """What becomes of a model that was found."""

    found: Model
    base: Model
    """Whose weights are taken: the adapter's base, or the model itself."""
    template: Template | None
    had_template: bool
    tokenizer: "PreTrainedTokenizerBase"
    new_tokens: tuple[str, ...]

    @property
    def changes_nothing(self) -> bool:
        return self.found is self.base and not self.new_tokens and self.template is None


def prepare_base(reference: str, runs: Runs, chat_template: str | None = None) -> Model:
    """Find a model, and make of it what every stage can take, if it is not that already.

    Args:
        reference: as in `accord.models.references`, or a PEFT adapter's folder or hub id.
        runs: where the run is kept.
        chat_template: chatml, llama3, zephyr, mistral, gemma, a Jinja file, or a model whose template it shall have.

    Raises:
        UsageError: there is no such model, adapter, base or template, or they do not fit together.
    """
    found = resolve(reference, runs, adapter_too=True)
    plan = _plan(found, runs, chat_template)
    if plan.changes_nothing:
        return found
    check_can_be_trained(found)
    sources: dict[str, Source] = {"base": plan.base}
    if plan.found is not plan.base:
        sources["adapter"] = plan.found
    config = BaseConfig(chat_template=chat_template, template=plan.template.text if plan.template else None)
    with runs.begin(STAGE, config, sources, shared=True) as run, without_load_report():
        if not run.is_done:
            if parallel.is_first():
                _make(plan, run.path / "model")
            run.finish({"new_tokens": len(plan.new_tokens)})
    return resolve(run, runs)


def look_at_base(reference: str, runs: Runs) -> Model:
    """What `prepare_base` would find, in no time; returns the model whose architecture it has.

    Raises:
        UsageError: as there.
    """
    found = locate(reference, runs, adapter_too=True)
    base = _base_of_adapter(found, runs, locate) if found.is_adapter else found
    check_is_policy(base.reference, base.folder)
    return base


def examine_base(
    reference: str, runs: Runs, chat_template: str | None = None
) -> "tuple[Model, PreTrainedTokenizerBase]":
    """The same, with weights and tokenizer: whether they fit, and the template takes a conversation. Makes nothing.

    Returns the model, and the tokenizer as it will be, with its chat template.

    Raises:
        UsageError: as `prepare_base`.
    """
    plan = _plan(resolve(reference, runs, adapter_too=True), runs, chat_template)
    if plan.changes_nothing:
        check_tokens_have_rows(plan.base, plan.tokenizer)
    check_fit(plan.base)
    return plan.base, plan.tokenizer


def _plan(found: Model, runs: Runs, chat_template: str | None) -> _Plan:
    base = _base_of_adapter(found, runs, resolve) if found.is_adapter else found
    check_is_policy(base.reference, base.folder)
    has_own = found.is_adapter and list(found.folder.glob("tokenizer.*"))
    tokenizer = read_tokenizer(found.folder if has_own else base.folder)
    before = (tokenizer.get_vocab(), tokenizer.chat_template)
    template = find_template(chat_template, runs) if chat_template else None
    name = found.reference
    if template:
        name += f" with the chat template {template.name}"
        give(template, tokenizer, name)
    level = CHAT.level
    CHAT.setLevel(logging.WARNING)  # what becomes EOS and padding is said by who makes or loads the model
    try:
        prepare_tokenizer(tokenizer, name, add_padding=True)
    finally:
        CHAT.setLevel(level)
    new = sorted(tokenizer.get_vocab().keys() - before[0].keys(), key=tokenizer.convert_tokens_to_ids)
    if not found.is_adapter and not new and tokenizer.chat_template == before[1]:
        template = None  # it has it already
    return _Plan(found, base, template, bool(before[1]), tokenizer, tuple(new))


def _base_of_adapter(adapter: Model, runs: Runs, find: Any) -> Model:
    """The model that an adapter was trained on.

    Raises:
        UsageError: it is an adapter of another kind than for language models, or cannot be merged, or has no base here.
    """
    settings = read_settings(adapter.folder / ADAPTER)
    task, kind = settings.get("task_type"), settings.get("peft_type")
    if task not in ("CAUSAL_LM", None):
        raise UsageError(
            f"{adapter.reference} is an adapter for {task}, and a policy is a language model (CAUSAL_LM); name "
            "another one"
        )
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT"):
        raise UsageError(
            f"{adapter.reference} is an adapter of the kind {kind}, which cannot be merged into weights; train one "
            "with LoRA, or name a whole model"
        )
    if (revision := settings.get("revision")) not in (None, "main"):
        raise UsageError(
            f"{adapter.reference} was trained on the revision {revision} of {settings.get('base_model_name_or_path')}; "
            f"download that one and write its folder into base_model_name_or_path in {adapter.folder / ADAPTER}, "
            "without the revision"
        )
    name = settings.get("base_model_name_or_path")
    if not name:
        raise UsageError(
            f"{adapter.folder / ADAPTER} does not say of which model it is an adapter; write a folder, a hub id or "
            "run:<id> there as base_model_name_or_path"
        )
    folder = Path(name)
    if folder.name == "model" and folder.parent.parent.resolve() == runs.root.resolve():
        name = f"run:{folder.parent.name}"
    try:
        return find(name, runs)  # type: ignore[no-any-return]
    except UsageError as error:
        raise UsageError(
            f"{adapter.reference} is an adapter of {name}, which cannot be had; if it is elsewhere, write that into "
            f"base_model_name_or_path in {adapter.folder / ADAPTER} ({error})"
        ) from None


def _make(plan: _Plan, folder: Path) -> None:
    """Write the model; says in a line what was done to it."""
    import torch

    dtype = getattr(torch, stored_dtype(plan.base.folder))
    model: Any = load_policy(plan.base, torch.float32 if plan.found.is_adapter else dtype)
    done = []
    if plan.found.is_adapter:
        model = _merged(model, plan.found)
        done.append(f"the adapter is merged with {plan.base.reference}")
    if plan.template:
        instead = " in place of its own" if plan.had_template else ""
        done.append(f"it has the chat template {plan.template.name}{instead}")
    rows = model.get_input_embeddings().weight.shape[0]
    if plan.new_tokens or plan.template:
        _grow(model, plan.tokenizer, plan.new_tokens)
    if plan.new_tokens:
        done.append(f"new control tokens are {', '.join(plan.new_tokens)}")
    if (now := model.get_input_embeddings().weight.shape[0]) > rows:
        done.append(f"the embeddings have {now:,} rows instead of {rows:,}")
    write_model(model, plan.tokenizer, folder, dtype)
    made = Model(plan.found.reference, folder, "")
    check_tokens_have_rows(made, plan.tokenizer)
    eos, pad = plan.tokenizer.eos_token, plan.tokenizer.pad_token
    logger.info("model %s: %s; EOS is %s, padding %s", plan.found.reference, "; ".join(done), eos, pad)


def _merged(model: Any, adapter: Model) -> Any:
    """The model with the adapter in its weights.

    Raises:
        UsageError: the adapter does not fit it.
    """
    import peft
    import torch
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    shapes = {name: each["shape"] for name, each in header(adapter.folder / ADAPTER_WEIGHTS).items()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        shape = shapes.get(f"base_model.model.{name}.weight")
        if shape and any(module is end for end in ends) and shape[0] != module.weight.shape[0]:
            model.resize_token_embeddings(shape[0], mean_resizing=False)  # the adapter brings all rows
    try:
        adapted: Any = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(str(adapter.folder)))
        weights = load_peft_weights(str(adapter.folder), device="cpu")
        result: Any = set_peft_model_state_dict(adapted, weights)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"the adapter {adapter.reference} does not fit its base: {why}") from None
    lost = [name for name in result.missing_keys if ".default" in name]
    # PEFT writes the modules that it saves whole twice, and reads them once.
    surplus = [name for name in result.unexpected_keys if ".modules_to_save." not in name]
    if lost or surplus:
        raise UsageError(
            f"the adapter {adapter.reference} does not fit its base: {len(lost)} of its weights are missing "
            f"({names(lost)}), {len(surplus)} have no place ({names(surplus)}); name the right base in "
            f"{adapter.folder / ADAPTER}"
        )
    merged = adapted.merge_and_unload()
    embeddings, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    if head is not embeddings and merged.config.tie_word_embeddings:  # trained whole, and so apart
        merged.config.tie_word_embeddings = torch.equal(head, embeddings)
        merged.tie_weights()
    return merged


def _grow(model: Any, tokenizer: Any, new_tokens: tuple[str, ...]) -> None:
    """Rows for new tokens, at the mean of those that were there, in the embeddings and in the output head."""
    import torch

    ids = [tokenizer.convert_tokens_to_ids(token) for token in new_tokens]
    rows = model.get_input_embeddings().weight.shape[0]
    before = min([rows, *ids])  # rows behind the last token, which some models have, were never trained
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    fresh = torch.tensor(sorted({*ids, *range(rows, needed)}), dtype=torch.long)
    with torch.no_grad():
        head = model.get_output_embeddings()
        tensors = {id(each): each for each in (model.get_input_embeddings().weight, head.weight)}
        if getattr(head, "bias", None) is not None:
            tensors[id(head.bias)] = head.bias
        for tensor in tensors.values():
            tensor[fresh] = tensor[:before].float().mean(dim=0).to(tensor.dtype)
