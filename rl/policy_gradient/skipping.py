"""A transformer without some of its layers: those whose output is known, or not asked for, are not computed."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from accord.models.families import decoder_layers
from accord.packing import body_of


class Skipped(nn.Module):
    """Stands in a transformer for a layer that is not computed; all else about the layer is as it is."""

    def __init__(self, layer: nn.Module, output: Tensor | None = None) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # no submodule: its parameters belong to the transformer only
        self.__dict__["output"] = output
        self.__dict__["given"] = None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What is to be the layer's output, or else what goes into it."""
        self.__dict__["given"] = hidden_states
        return hidden_states if self.output is None else self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)  # its kind of attention, which the transformer asks for


@contextlib.contextmanager
def skipping(body: Any, first: int, after: int, output: Tensor | None = None) -> Iterator[list[Skipped]]:
    """A transformer without the layers from `first` up to `after`, the last of which has `output` as its own.

    Every other layer keeps its number, by which transformers choose its mask and its rotation.
    """
    layers = decoder_layers(body)[1]
    kept = list(layers)
    skipped = [Skipped(layer) for layer in kept[first:after]]
    skipped[-1].__dict__["output"] = output
    for number, each in enumerate(skipped, start=first):
        layers[number] = each
    try:
        yield skipped
    finally:
        for number, layer in enumerate(kept):
            layers[number] = layer


def frozen_layers(model: Any) -> int:
    """How many layers at the bottom have neither an adapter nor a trained weight, nor has anything beneath them."""
    body = body_of(model)
    path, layers = decoder_layers(body)
    for number, layer in enumerate(layers):
        if any(p.requires_grad or "lora_" in name for name, p in layer.named_parameters()):
            others = (name for name, p in body.named_parameters() if p.requires_grad or "lora_" in name)
            return number if all(name.startswith(f"{path}.") for name in others) else 0
    return 0
