"""What model families differ in: where their layers are, how they attend, and what they can be made into.

Families are told apart by what their code does, never by a list of names, but where a library has one.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def decoder_layers(body: Any) -> "tuple[str, nn.ModuleList]":
    """The layers of a transformer and their place in it, such as `layers`, `h` or `decoder.layers`.

    Of a model that sees, too, those that read the text.

    Raises:
        UsageError: they cannot be told.
    """
    from torch import nn

    count = body.config.get_text_config().num_hidden_layers
    reader = body.get_decoder()
    within = next((path for path, module in body.named_modules() if module is reader), "")
    for path, module in body.named_modules():
        if path.startswith(within) and isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise UsageError(f"lora.top_layers: {type(body).__name__} has no list of layers; leave top_layers out")


def context_length(config: Any) -> float:
    """The most tokens that a model reads; infinite where its positions have no end."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found or math.inf


def attention_for(folder: Path, wanted: str) -> str:
    """The attention implementation to load a causal model with: `wanted`, or "eager" where that would be another model.

    torch's own attention, "sdpa", knows neither soft caps nor sinks.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.from_pretrained(folder)
    has_cap = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    supported = getattr(family, f"_supports_{wanted}", True)
    return wanted if supported and not has_cap else "eager"


def reward_model_class(config: Any) -> Any:
    """The class of a family's models with a scalar head, `score`, on the last hidden state.

    Many families have one in transformers. For another, this is what transformers' own are: its base model under the
    name that it has in the causal one, so that either's weights load, and a linear layer without bias.

    Raises:
        UsageError: the family has no base model of text.
    """
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
    )

    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[kind]
    if kind not in MODEL_MAPPING or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{config.model_type} models cannot be given a reward model's head; take another family"
        )
    base: Any = MODEL_MAPPING[kind]
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    above = base.__mro__[: base.__mro__.index(PreTrainedModel)]
    family = next(each for each in reversed(above) if issubclass(each, PreTrainedModel))
    name = f"{base.__name__.removesuffix('Model')}ForSequenceClassification"
    # By the module, transformers tells its own classes, whose buffers it computes anew when it loads them.
    settings = {
        "base_model_prefix": causal.base_model_prefix,
        "__module__": base.__module__,
        "forward": _scores_at_ends,
    }
    return type(name, (GenericForSequenceClassification, family), settings)


def _scores_at_ends(self: Any, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
    """The forward pass of such a class: scores [batch, heads] at each row's last token that the mask shows."""
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    options = {
        key: value
        for key, value in options.items()
        if value is not None and key not in ("labels", "return_dict")
    }
    body = getattr(self, self.base_model_prefix)
    scores = self.score(body(input_ids, attention_mask=attention_mask, **options).last_hidden_state)
    if attention_mask is None:
        return SequenceClassifierOutput(logits=scores[:, -1])
    places = torch.arange(scores.shape[1], device=scores.device)
    last = (places * attention_mask).argmax(dim=1)
    return SequenceClassifierOutput(logits=scores[torch.arange(len(last), device=last.device), last])
