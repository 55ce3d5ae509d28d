"""An optimizer that goes through everything at random, and twins that are stepped beside it.

A twin is an optimizer of one parameter, too small to be stepped by several threads. Both have to
agree, as integers: what the soak test (``tests/soak.py``) is made of.
"""

from __future__ import annotations

import copy
import pickle
import random

import torch

from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import count_mismatches, to_array
from helpers import scaled_step

# Too small for a step to take several threads; a few of them are enough.
LARGEST_SHAPE = (100, 150)
STEPS = 25  # of a training


class InterruptedStepError(Exception):
    """What the signal handler raises in the midst of a step."""


def lay_out(tensor, rng):
    """The same elements, next to each other, in another order or with gaps."""
    kind = rng.randrange(3)
    if kind == 0:
        return tensor.clone()
    if kind == 1:
        return tensor.t().contiguous().t()
    rows, columns = tensor.shape
    return tensor.new_zeros(rows, 2 * columns)[:, ::2].copy_(tensor)


class Training:
    """An optimizer and its twins, which are stepped beside it."""

    def __init__(self, seed, figures):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.figures = figures
        self.row = self.rng.choice(ROWS)
        self.options = dict(self.rng.choice(self.row.options))
        self.twins = []
        self.optimizer = None
        self.optimizer = self.row.optimizer([self.new_group()], **self.options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        self.scaler.scale(torch.ones(()))  # makes its tensors

    def new_group(self):
        """Parameters of one group; each has a twin, with an optimizer of its own."""
        params = []
        for _ in range(self.rng.randint(1, 12)):
            shape = tuple(self.rng.randint(1 + size // 2, size) for size in LARGEST_SHAPE)
            values = torch.randn(shape, generator=self.generator).to(self.rng.choice(DTYPES))
            params.append(torch.nn.Parameter(lay_out(values, self.rng)))
            self.twins.append(self.row.optimizer([values.clone()], **self.options))
            if self.optimizer is not None:  # a group that is added has no state, Adagrad's neither
                self.twins[-1].state.clear()
        return {"params": params}

    def pairs(self):
        """(group, parameter, twin) of every parameter."""
        twins = iter(self.twins)
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                yield group, param, next(twins)

    def set_gradients(self, scale=1.0, with_inf=False):
        """New ones, the same for both; returns whether an infinity is in them."""
        found_inf = False
        for _, param, twin in self.pairs():
            grad = torch.randn(param.shape, generator=self.generator) * scale
            if with_inf:
                grad[0, 0] = float("inf")
            param.grad = lay_out(grad.to(param.dtype), self.rng)
            twin.param_groups[0]["params"][0].grad = grad.to(param.dtype)
            found_inf = found_inf or not param.grad.isfinite().all()
        return found_inf

    def disagreements(self):
        """How many elements of parameters and states differ."""
        count = 0
        for _, param, twin in self.pairs():
            (other,) = twin.param_groups[0]["params"]
            states, expected = self.optimizer.state.get(param, {}), twin.state.get(other, {})
            count += len(states.keys() ^ expected.keys())
            both = states.keys() & expected.keys()
            tensors = [(param, other), *((states[name], expected[name]) for name in both)]
            count += sum(count_mismatches(to_array(a), to_array(b)) for a, b in tensors)
        return count

    def check(self):
        if count := self.disagreements():
            raise AssertionError(f"{count} elements of {self.row.name} {self.options} differ")

    def step(self):
        """One step of the optimizer and its twins, with or without a scaler."""
        self.figures["steps"] += 1
        if self.rng.random() < 0.3:
            scale = self.scaler.get_scale()
            found_inf = self.set_gradients(scale, self.rng.random() < 0.2)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            for twin in self.twins:
                scaled_step(twin, scale, float(found_inf))
            self.figures["scaled steps"] += 1
            return
        self.set_gradients()
        self.optimizer.step()
        for twin in self.twins:
            twin.step()

    def interrupted_step(self, signals):
        """A step that a signal may interrupt: it is done then, or not begun and done again."""
        self.set_gradients()
        while True:
            try:
                with signals:
                    self.optimizer.step()
                break
            except InterruptedStepError:
                self.figures["interrupted steps"] += 1
                if self.disagreements():
                    break  # it was done
        for twin in self.twins:
            twin.step()
        self.check()
        self.figures["steps"] += 1

    def refuse(self):
        """A step that cannot be done, for its last parameter, and changes nothing."""
        self.set_gradients()
        group = self.optimizer.param_groups[-1]
        param = group["params"][-1]
        if self.rng.random() < 0.5:
            param.grad = param.grad.to_sparse()
        else:
            lr, group["lr"] = group["lr"], -1.0
        try:
            self.optimizer.step()
        except (RuntimeError, ValueError):
            self.figures["refused steps"] += 1
        else:
            raise AssertionError(f"{self.row.name} was not refused")
        if group["lr"] == -1.0:
            group["lr"] = lr
        self.check()

    def save_and_load(self):
        """Through a checkpoint, a copy or a pickle."""
        way = self.rng.randrange(3)
        if way == 0:
            self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        elif way == 1:
            self.optimizer = copy.deepcopy(self.optimizer)
        else:
            self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        self.figures["checkpoints"] += 1

    def change_options(self):
        group = self.rng.choice(self.optimizer.param_groups)
        changed = {"lr": self.rng.random() / 100, "weight_decay": self.rng.random() / 10}
        for of, _, twin in self.pairs():
            if of is group:
                twin.param_groups[0].update(changed)
        group.update(changed)

    def run(self, steps=STEPS):
        if len(self.optimizer.param_groups) < 3 and self.rng.random() < 0.5:
            self.optimizer.add_param_group(self.new_group())
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.3:
                self.rng.choice([self.refuse, self.save_and_load, self.change_options])()
        self.check()
