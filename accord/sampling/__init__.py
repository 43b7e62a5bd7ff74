"""Sampling answers from a policy: token ids in, token ids and log-probabilities out."""

from accord.sampling.config import SamplingConfig
from accord.sampling.protocol import Completion, Sampler

__all__ = ["Completion", "Sampler", "SamplingConfig"]
