"""How far a step here may be from the same step of another package."""

from __future__ import annotations

import io
import math

import torch

from fusedopt.reference.codes import code_values

# Half a unit in the last place, relative to a float32 number.
U = 2.0**-24


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 80), (30,), (8192,))
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def copies(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def set_grads(params, seed):
    for param in params:
        generator = torch.Generator().manual_seed(seed)
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def train(optimizer, steps, first=0):
    for step in range(first, first + steps):
        set_grads(optimizer.param_groups[0]["params"], step)
        optimizer.step()
    return optimizer.param_groups[0]["params"]


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def adam_terms(param, grad, states, group):
    """The magnitudes of what is added up in an update, as they are before the step."""
    (beta1, beta2), step = group["betas"], float(states["step"]) + 1
    moment, square = (states[name].double() for name in ("exp_avg", "exp_avg_sq"))
    if not group["decoupled_weight_decay"]:
        grad = grad.abs() + group["weight_decay"] * param.abs()
    square = beta2 * square + (1 - beta2) * grad.square()
    denom = square.sqrt() / math.sqrt(1 - beta2**step) + group["eps"]
    added = beta1 * moment.abs() + (1 - beta1) * grad.abs()
    # A bias correction is a difference, of which float32 keeps as much less as it is smaller.
    lost = 1 / (1 - beta1**step) + 1 / (1 - beta2**step)
    return (1 + lost) * float(group["lr"]) / (1 - beta1**step) * added / denom


def sgd_terms(param, grad, states, group):
    added = group["momentum"] * states["momentum_buffer"].double().abs()
    return group["lr"] * (added + grad.abs() + group["weight_decay"] * param.abs())


def rmsprop_terms(param, grad, states, group):
    decayed = grad + group["weight_decay"] * param
    square = group["alpha"] * states["square_avg"].double()
    square = square + (1 - group["alpha"]) * decayed.square()
    added = grad.abs() + group["weight_decay"] * param.abs()
    return group["lr"] * added / (square.sqrt() + group["eps"])


def adagrad_terms(param, grad, states, group):
    decayed = grad + group["weight_decay"] * param
    square = states["sum"].double() + decayed.square()
    added = grad.abs() + group["weight_decay"] * param.abs()
    return group["lr"] * added / (square.sqrt() + group["eps"])


TERMS = {
    "adam": adam_terms,
    "sgd": sgd_terms,
    "rmsprop": rmsprop_terms,
    "adagrad": adagrad_terms,
}


def bounds(optimizer):
    """For each parameter, how far apart one step may take it here and there.

    The numbers that are decoded differ by 2 units in the last place of the tables and one rounding
    on either side: 6 U. From there to the update each side does at most eight operations that round
    by U, and rounds its scalars; a root halves what it is given. So 32 U of the terms' magnitudes
    are enough. The decay and the subtraction round the parameter itself, twice on either side.
    """
    found = []
    group = optimizer.param_groups[0]
    for param in group["params"]:
        values, grad = param.detach().double(), param.grad.double()
        terms = TERMS[optimizer._rule](values, grad, decoded(optimizer, param), group)
        found.append(U * (4 * values.abs() + 32 * terms))
    return found


def decoded(optimizer, param):
    """The states of a parameter as numbers."""
    from fusedopt import _native
    from fusedopt.optimizers.storage import numbers_of

    states = optimizer.state[param]
    signs = _native.states(optimizer._rule)
    return {
        name: states[name] if name == "step" else numbers_of(name, states, signs[name])
        for name in states
        if name == "step" or name in signs
    }


def assert_near(ours, scales, theirs, their_scales, signed, grid=0.0):
    """Codes here and there of numbers that agree but for rounding, in relation to their scale.

    Both take the value nearest to the number, so it is at most half of the wider gap beside each
    value away from it; to that comes the grid to which a number is rounded first there.
    """
    # Scales are numbers of the step before they are stored.
    torch.testing.assert_close(scales.view(-1), their_scales, rtol=32 * U, atol=0)
    values = torch.from_numpy(code_values(signed).copy()).double()
    gaps = values.diff()
    wider = torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
    mine, other = ours.flatten().int(), theirs.flatten().int()
    apart = (values[mine] - values[other]).abs()
    assert (apart <= (wider[mine] + wider[other]) / 2 + grid + 32 * U).all()
    if not grid:  # only rounding decides otherwise
        assert (mine != other).float().mean() < 1e-3
