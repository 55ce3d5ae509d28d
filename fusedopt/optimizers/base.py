"""What all optimizers of this package share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import torch
from torch.autograd import forward_ad
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fusedopt import _native
from fusedopt.hooks import observed_once, stepping, untraced
from fusedopt.modes import visible
from fusedopt.optimizers import epilogue, foreign, masters, storage
from fusedopt.optimizers.clipping import Clipping, refuse_options_of_group
from fusedopt.optimizers.epilogue import check_epilogue
from fusedopt.optimizers.excursions import Excursions
from fusedopt.optimizers.group_options import GroupOptions
from fusedopt.optimizers.loading import Loading
from fusedopt.optimizers.storage import check_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Asked at every step, so they are looked up once.
_profiler_enabled = torch._C._autograd._profiler_enabled
_count_modes = torch._C._len_torch_dispatch_stack
_are_transforms_active = torch._C._are_functorch_transforms_active


def check_group(group: dict[str, Any], index: int, name: str) -> None:
    """Refuses a parameter group that no step of this package can do.

    Raises:
        NotImplementedError: the group asks for ``differentiable=True``.
        ValueError, TypeError: an option that says how something is stored, or what follows a step,
            does not fit; or one is of the optimizer.
    """
    if group.get("differentiable"):
        raise NotImplementedError(
            f"parameter group {index}: differentiable=True is not supported by {name}"
        )
    refuse_options_of_group(group, index)
    check_storage(group, index)
    check_epilogue(group, index)


def refuse_fused_with_foreach(fused: bool | None, foreach: bool | None) -> None:
    """The check of torch's constructors, for those of classes that torch has without ``fused``.

    Raises:
        RuntimeError: both are true.
    """
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


class InBackward(Protocol):
    """What an optimizer tells the object that steps its parameters in the backward pass."""

    def attach(self) -> None:
        """There are other parameters now."""

    def begin(self) -> None:
        """Gradients have been dropped."""

    def refuse_scaler(self) -> NoReturn:
        """A gradient scaler is about to unscale or to skip."""

    def finish(self, closure: object) -> None:
        """``step`` has been called."""


class FusedOptimizer(Clipping, Excursions, GroupOptions, torch.optim.Optimizer):
    """Base of the optimizers: steps all parameter groups in one native call.

    A subclass names its rule. The native side reads groups, gradients and state again at every
    step, asks ``_create_state`` for state that does not exist yet, refuses a step that cannot be
    done before anything is written, and tells autograd which parameters changed.

    ``foreach`` and ``fused`` select no implementation, because there is only one. As in torch, step
    counts are on the parameter's device with ``fused=True``, and the constructor refuses both at
    once with ``RuntimeError``. ``differentiable=True`` is not supported and raises
    ``NotImplementedError``.

    All classes have four more options, keyword-only and for each parameter group, which say how
    parameters and states are stored. They are keys of a group only where they are not their
    defaults. A DTensor whose shards are not in one piece or cut unevenly twice raises
    ``NotImplementedError`` with them.

    - ``state_bits``: None keeps states in the parameter's dtype, as torch does. 32 is float32; 16
      is bfloat16, rounded stochastically; 8 is a code for each element and a scale for each block
      of 256, or float32 for a parameter of fewer than 4,096 elements.
    - ``stochastic_rounding``: bfloat16 parameters are rounded stochastically, so that updates too
      small for them count in the mean.
    - ``master_weights``: a bfloat16 parameter keeps the lower half of a float32 master in the state
      ``param_remainder`` (int16); together they are that float32. Needs bfloat16 parameters.
    - ``seed``: of the stochastic rounding, an integer of 64 bits. Its random bits are a function of
      the seed, the number of the parameter, the state, the step count and the element's place in
      memory, so they are the same after a resume and on any number of threads. A rule that counts
      no steps gets a state ``step`` for that.

    Two options of a group say what follows a step. They, too, are keys only where they are not
    their defaults.

    - ``l1``: a decoupled L1 penalty, ``param = sign(param) * max(abs(param) - lr * l1, 0)``, which
      makes parameters exactly zero (the proximal operator; Parikh, Boyd, 2014, section 6.5.2).
    - ``ema_decay``: the state ``ema``, float32 or wider, is ``decay * ema + (1 - decay) * param``
      of the parameter as the step has left it; at first a copy. With 1 it is the mean of all of
      them (Polyak, Juditsky, 1992), which the state ``ema_step`` counts. ``averaged`` puts
      averages into the parameters.

    Two more are options and attributes of the optimizer, not of a group. Pickles and copies have
    them, ``state_dict()`` has not.

    - ``max_grad_norm``: gradients are clipped inside of the step to this 2-norm of all of them, as
      by ``torch.nn.utils.clip_grad_norm_``; in memory they stay as they are. ``grad_norm`` is the
      norm before clipping; ``float("inf")`` only measures it.
    - ``skip_nonfinite``: a step with an infinity or a NaN in any gradient changes nothing, creates
      no state and counts no step; ``skipped`` says so. On a GPU new states hold their initial
      values then, and step counts are kept there, because nothing waits for what it finds.

    ``torch.amp.GradScaler`` leaves unscaling and skipping to ``step``, which reads the scaler's
    tensors where they are. Gradients are unscaled in place, as torch's fused optimizers do it. With
    ``fused=False`` in a group the scaler unscales and skips by itself, as it does for torch's
    unfused optimizers; Lightning insists on that where it clips gradients.
    """

    _rule: ClassVar[str]
    # What steps each parameter in the backward pass, if anything does (fusedopt/backward.py).
    _in_backward: InBackward | None = None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What GradScaler asks for. Assigned by some trainers, and by torch for ``fused=True``."""
        if self._in_backward is not None:
            self._in_backward.refuse_scaler()
        asked_for = getattr(self, "_amp_scaling", None)
        if asked_for is not None:
            return bool(asked_for)
        return all(group.get("fused") is not False for group in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self._amp_scaling = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self.__dict__.get("_loading")
        if loading is not None:
            loading.keep_options(state["param_groups"])
        for index, group in enumerate(state.get("param_groups", ())):
            check_group(group, index, type(self).__name__)  # a checkpoint may ask for anything
        if loading is not None:
            loading.unwrap(state, _native.states(self._rule))
        super().__setstate__(state)
        # A checkpoint of torch's class may lack an option that ours has.
        for name in {"capturable", "fused"} & self.defaults.keys():
            for group in self.param_groups:
                group.setdefault(name, self.defaults[name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint, as ``torch.optim.Optimizer.load_state_dict`` does.

        Where a group has ``state_bits``, ``stochastic_rounding`` or ``master_weights``, states keep
        their dtype; those that are not stored as the options ask, such as those of a checkpoint of
        ``torch.optim``, are converted, with one warning. The options are those of the checkpoint;
        those that it does not name stay what they are.

        Checkpoints of bitsandbytes and torchao are loaded, too, by the class with their formula.
        Codes of 8 bits stay what they are with ``state_bits=8``, if their blocks and their values
        are those of this package.

        Raises:
            ValueError, NotImplementedError: a checkpoint that asks for what is not supported, or
                whose entries do not map. Nothing is changed then.
        """
        self._refuse_away("load_state_dict()")
        outer = self.__dict__.get("_loading")
        translate = functools.partial(foreign.translated, self._rule, self.param_groups)
        self._loading = Loading(self.param_groups, translate)
        last_hook = self.register_load_state_dict_pre_hook(self._loading.wrap)
        try:
            super().load_state_dict(state_dict)
        finally:
            last_hook.remove()
            if outer is None:
                del self._loading
            else:
                self._loading = outer

    def master_params(self) -> list[torch.Tensor]:
        """The parameters in float32 or wider, in the order of ``state_dict()``.

        A parameter with ``master_weights`` is the float32 number that it and its remainder make;
        any other is a copy, in float32 unless it is in float64.
        """
        self._refuse_away("master_params()")
        return masters.masters_of(self)

    def load_master_params(self, values: Iterable[torch.Tensor]) -> None:
        """Writes float32 values into the parameters, and into the remainders of masters.

        Args:
            values: one of each parameter's shape, in the order of ``state_dict()``, of any floating
                dtype and on any device. For a DTensor the whole on every process, or a DTensor.

        Raises:
            RuntimeError: parameters are away, in ``averaged``.
            ValueError: there are more or fewer values than parameters, or one has another shape, no
                floating dtype or another device mesh. Nothing is changed then.
        """
        self._refuse_away("load_master_params()")
        masters.write_masters(self, list(values))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as ``torch.optim.Optimizer.add_param_group`` does.

        Raises:
            NotImplementedError: the group asks for ``differentiable=True``.
            ValueError, TypeError: one of its options of storage or of what follows a step is out
                of bounds, or does not fit one of its parameters.
        """
        self._refuse_away("add_param_group()")
        self.defaults.update(self.__dict__.pop("_asked_for", {}))
        super().add_param_group(param_group)
        try:
            check_group(param_group, len(self.param_groups) - 1, type(self).__name__)
            if self._in_backward is not None:
                self._in_backward.attach()
        except Exception:
            self.param_groups.pop()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, as ``torch.optim.Optimizer.zero_grad`` does."""
        super().zero_grad(set_to_none)
        if self._in_backward is not None:
            self._in_backward.begin()

    def _create_state(
        self, name: str, param: torch.Tensor, group: dict[str, Any]
    ) -> torch.Tensor | tuple[torch.Tensor, float] | None:
        """A new state tensor, on the parameter's device and in its memory format.

        Its dtype is the parameter's, unless the group's ``state_bits`` says otherwise. With 8 of
        them the scales of a state are asked for after it, under its name with ``_scale``, and None
        says that it has none; a master's remainder is ``param_remainder``.

        A step count is one number, on the CPU unless the device has to count. Of any other state
        the memory holds nothing yet: with it comes the number that all of its elements are, for
        the first step to start from. A subclass may as well return a tensor that holds what it is
        to begin with.

        Raises:
            MemoryError: there is no memory for it.
        """
        try:
            return self._empty_state(name, param, group)
        except RuntimeError as error:  # what torch makes of its allocator's, and of C++'s
            if not any(said in str(error) for said in ("can't allocate memory", "bad_alloc")):
                raise
            raise MemoryError(f"no memory for state {name!r}: {error}") from error

    def _empty_state(
        self, name: str, param: torch.Tensor, group: dict[str, Any]
    ) -> torch.Tensor | tuple[torch.Tensor, float] | None:
        """Memory for :meth:`_create_state`, which says what is returned."""
        if name in ("step", epilogue.AVERAGED):
            # Where only the device knows whether, or how often, a step is carried out.
            on_device = group.get("capturable") or group.get("fused") or self._may_skip
            device = param.device if on_device else torch.device("cpu")
            if name == epilogue.AVERAGED:
                return epilogue.new_count(device)
            in_double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
            return torch.zeros(
                (), dtype=torch.float64 if in_double else torch.float32, device=device
            )
        if name == epilogue.AVERAGE:
            return epilogue.empty_average(param), 0.0
        memory = storage.empty_state(name, param, group)
        return None if memory is None else (memory, self._initial_value(name, group))

    def _initial_value(self, name: str, group: dict[str, Any]) -> float:
        """What the elements of a new state are."""
        return 0.0

    def _step(
        self, closure: Callable[[], Any] | None = None, only: tuple[int, int] | None = None
    ) -> Any:
        """Steps all parameters, or the one at a place: the index of its group, and that in it."""
        attributes = self.__dict__
        if "_excursion" in attributes:
            self._refuse_away("step()")
        if only is None and self._in_backward is not None:
            return self._in_backward.finish(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self._refuse_away("step()")
        step = _native.step
        if _count_modes() or _are_transforms_active() or forward_ad._current_level >= 0:
            step = visible(step, self.param_groups, self.state, only)
        measures = "_clipping" in attributes
        measurement = self._begin_measurement() if measures else None
        step(
            self._rule,
            self.param_groups,
            self.state,
            self._create_state,
            attributes.get("grad_scale"),
            attributes.get("found_inf"),
            measurement,
            only,
        )
        if measures:
            self._end_measurement(measurement)
        return loss

    @property
    def _may_skip(self) -> bool:
        """Whether the gradients decide on this step: a scaler sets an attribute and deletes it."""
        return self.skip_nonfinite or self.__dict__.get("found_inf") is not None

    @torch.optim.Optimizer.profile_hook_step
    def _observed_step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._step(closure)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients enabled, and returns the loss.

        Returns:
            What ``closure`` returned, or None without one.

        Raises:
            RuntimeError: a parameter, gradient or state that cannot be used: sparse, complex or
                integer, of another shape, dtype or device than the parameter, with a tangent of
                forward-mode AD. Inside ``torch.func.grad``, ``vjp`` or ``jvp``, and under a mode
                that fakes or traces operations, any step.
            ValueError, TypeError, KeyError: an option or state that is out of bounds, of the wrong
                type or missing.
            NotImplementedError: a parameter on a device for which there is no engine.
            AssertionError: ``capturable=True`` with a parameter or a step count on the CPU.

        All of these leave parameters and state untouched. The message names the parameter group and
        the parameter, where the error belongs to one of them.
        """
        try:
            if self._is_observed():
                return self._observed_step(closure)
            return self._step(closure)
        except BaseException:
            # A gradient scaler deletes its tensors only after a step that returns, and would find
            # them in the next one. No call in here, so that Ctrl-C cannot come in between.
            if stepping.optimizer is not self:
                attributes = self.__dict__
                if "grad_scale" in attributes:
                    del attributes["grad_scale"]
                if "found_inf" in attributes:
                    del attributes["found_inf"]
            raise

    # torch wraps a step that is not marked so for hooks and the profiler at every call, which takes
    # longer than updating a small network.
    step.hooked = True  # type: ignore[attr-defined]
    untraced(step)

    def _patch_step_function(self) -> None:
        """Called by torch for every new object: has hooks see the ``step`` of a subclass."""
        cls: Any = type(self)
        if not getattr(cls.step, "hooked", False):
            cls.step = observed_once(cls.step)
        super()._patch_step_function()

    def _is_observed(self) -> object:
        """Whether a hook or the profiler has to see this step, and has not seen it yet."""
        return (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        ) and stepping.optimizer is not self
