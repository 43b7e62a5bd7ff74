"""AdamW in 8 bit: what it keeps, and where it is refused. That it continues bitwise: test_ppo_resume, test_methods."""

import sys

import pytest
import torch
from torch import nn

from accord import parallel
from accord.errors import UsageError
from accord.optimizers import build_optimizer, check_optimizer, make_room, moments, set_moments


class Model(nn.Module):
    """Something of every kind: an embedding, a large weight and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        self.large = nn.Linear(64, 256, bias=False)
        self.small = nn.Linear(64, 4, bias=False)


def trained(name: str, steps: int) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Model()
    optimizer = build_optimizer(name, list(model.parameters()), [model], 1e-2, 1e-8)  # type: ignore[arg-type]
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape)
        optimizer.step()
    return model, optimizer


def test_moments_take_a_quarter_and_embeddings_keep_theirs() -> None:
    model, optimizer = trained("adamw_8bit", 1)
    dtypes = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert dtypes == {
        "embedding.weight": torch.float32, "large.weight": torch.uint8, "small.weight": torch.float32,
    }  # fmt: skip
    kept = moments(optimizer, model.large.weight)
    assert sum(each.nbytes for each in kept.values() if each.ndim) == 16_384 * (2 + 8 / 256)


def test_it_steps_as_adamw_does_but_for_rounding() -> None:
    """The first step of AdamW is the sign of the gradient times the learning rate, with any moments."""
    for name in ("adamw", "adamw_8bit"):
        before, _ = trained(name, 0)
        after, _ = trained(name, 1)
        moved = after.large.weight - before.large.weight
        assert moved.abs().mean().item() == pytest.approx(1e-2, rel=0.02)
    exact, rounded = trained("adamw", 20)[0], trained("adamw_8bit", 20)[0]
    torch.testing.assert_close(rounded.embedding.weight, exact.embedding.weight, atol=1e-4, rtol=0)
    difference = (rounded.large.weight - exact.large.weight).norm() / exact.large.weight.norm()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_state_is_read_back(name: str) -> None:
    model, optimizer = trained(name, 3)
    other, fresh = trained(name, 0)
    make_room(fresh, other.parameters())
    for p, own in zip(other.parameters(), model.parameters(), strict=True):
        set_moments(fresh, p, {key: value.clone() for key, value in moments(optimizer, own).items()})
        p.data.copy_(own.data)
    for each, using in ((model, optimizer), (other, fresh)):
        torch.manual_seed(1)
        for p in each.parameters():
            p.grad = torch.randn(p.shape)
        using.step()
    for p, own in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, own)


def test_where_it_does_not_work_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optimizer("adamw_8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_optimizer("adamw")
    with pytest.raises(UsageError, match="needs a bitsandbytes that works on this machine"):
        check_optimizer("adamw_8bit")
    monkeypatch.setattr(parallel, "sharding", lambda: "fsdp2")
    with pytest.raises(UsageError, match="takes whole weights"):
        check_optimizer("adamw_8bit")
