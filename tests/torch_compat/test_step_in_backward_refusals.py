"""Steps in the backward pass: what is refused, and what an error leaves."""

from __future__ import annotations

import pytest
import torch
from distributed_in_backward import ddp
from in_backward_helpers import Network, both, loss_of, train
from torch.utils.checkpoint import checkpoint

import fusedopt
from helpers import bits, snapshot


def test_replicas_are_refused(run):
    """DDP reduces gradients after the hooks of parameters have seen them."""
    run(ddp, 2)


def test_a_reentrant_checkpoint_of_a_shared_parameter_is_refused():
    """Each of them is a backward pass of its own, after which the gradient is not complete."""

    class Reentrant(Network):
        def forward(self, x, number=0):
            block = lambda y: torch.tanh(self.twice(y))  # noqa: E731
            x = checkpoint(block, x.requires_grad_(), use_reentrant=True)
            return self.last(checkpoint(block, x, use_reentrant=True))

    *_, released, _, _ = both(model=Reentrant)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss_of(released, 0).backward()


def test_a_second_gradient_of_one_step_is_refused():
    *_, released, optimizer, _ = both()
    loss_of(released, 0).backward()
    before = [bits(param).copy() for param in released.parameters()]
    with pytest.raises(RuntimeError, match=r"group 1, parameter \d: has another gradient after"):
        loss_of(released, 1).backward()
    with pytest.raises(RuntimeError, match="has another gradient after it was updated"):
        optimizer.step()
    for param, was in zip(released.parameters(), before, strict=True):
        assert (bits(param) == was).all()
    optimizer.zero_grad()
    loss_of(released, 1).backward()


def test_a_graph_is_not_used_again():
    """Autograd notices that the parameters have changed."""
    *_, released, optimizer, _ = both()
    loss = loss_of(released, 0)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_error_leaves_the_others_as_they_were():
    """What is refused names its place, and keeps its gradient."""
    *_, released, optimizer, _ = both()
    train(released, optimizer, 1)
    before = snapshot(optimizer)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"parameter group 0.*lr"):
        loss_of(released, 0).backward()
    after = snapshot(optimizer)
    stepped = {place for place in before if before[place]["param"] != after[place]["param"]}
    assert stepped
    assert all(group == 1 for group, _ in stepped)
    left = [param for param in released.parameters() if param.grad is not None]
    assert left
    assert {*map(id, left)} <= {*map(id, optimizer.param_groups[0]["params"])}
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert all(param.grad is None for param in released.parameters())


def test_an_interruption_after_an_update_frees_the_gradient():
    """What a signal raises is held back until a step is done, so that it is not done again."""

    class Interrupted(dict):
        def __setitem__(self, key, value):
            is_first = key not in self
            super().__setitem__(key, value)
            if is_first:
                raise KeyboardInterrupt

    *_, released, optimizer, _ = both()
    optimizer.state = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        loss_of(released, 0).backward()
    (stepped,) = optimizer.state
    assert optimizer.state[stepped]["step"] == 1
    assert stepped.grad is None


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_what_needs_all_gradients_is_refused():
    model = Network()
    for option in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
        optimizer = fusedopt.AdamW(model.parameters(), **option)
        with pytest.raises(RuntimeError, match=next(iter(option))):
            fusedopt.step_in_backward(optimizer)
    optimizer = fusedopt.AdamW(model.parameters())
    with fusedopt.step_in_backward(optimizer):
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="closure"):
            optimizer.step(lambda: pytest.fail("it is called"))
        optimizer.max_grad_norm = 1.0
        with pytest.raises(RuntimeError, match="max_grad_norm"):
            loss_of(model, 0).backward()
        optimizer.max_grad_norm = None
        optimizer.zero_grad()
        with pytest.raises(RuntimeError, match="create_graph"):
            loss_of(model, 0).backward(create_graph=True)
        optimizer.zero_grad()
        assert snapshot(optimizer) == before
        optimizer.found_inf = torch.tensor(0.0)
        with pytest.raises(RuntimeError, match="gradient scaler"):
            loss_of(model, 0).backward()


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_scaler_is_refused(fused):
    model = Network()
    optimizer = fusedopt.AdamW(model.parameters(), fused=fused)
    fusedopt.step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="gradient scaler"):
        scaler.step(optimizer)


def test_other_optimizers_and_a_second_handle_are_refused():
    class Own(fusedopt.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    model = Network()
    with pytest.raises(TypeError, match=r"torch\.optim"):
        fusedopt.step_in_backward(torch.optim.AdamW(model.parameters()))
    with pytest.raises(NotImplementedError, match="Own has a step"):
        fusedopt.step_in_backward(Own(model.parameters()))
    optimizer = fusedopt.AdamW(model.parameters())
    fusedopt.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="already"):
        fusedopt.step_in_backward(optimizer)


def test_a_parameter_taken_out_of_the_optimizer_is_refused():
    *_, released, optimizer, _ = both()
    assert optimizer.param_groups[1]["params"].pop(1) is released.last.weight
    with pytest.raises(RuntimeError, match="taken out"):
        loss_of(released, 0).backward()
