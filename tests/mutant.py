"""What a deliberate fault is, and which tests are to find it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# First those that find most faults soonest.
OF_CUDA = (
    "bits/test_properties.py",
    "cuda/test_cuda_emulated.py",
    "cuda/test_cuda_groups.py",
    "cuda/test_cuda_norm.py",
)
OF_NORMS = (
    "bits/test_norm.py",
    "torch_compat/test_clipping.py",
    "torch_compat/test_clipping_refusals.py",
    "torch_compat/test_norms.py",
)
OF_EPILOGUE = (
    "torch_compat/test_averages.py",
    "torch_compat/test_averaged.py",
    "bits/test_epilogue.py",
)
OF_EPILOGUE_ON_CUDA = ("cuda/test_cuda_epilogue.py", "cuda/test_cuda_groups.py")
OF_SQUARES = ("cuda/test_cuda_norm.py", "torch_compat/test_clipping.py")
OF_STORAGE = (
    "bits/test_storage.py",
    "bits/test_fewer_bytes.py",
    "bits/test_codes.py",
    "torch_compat/test_refused_storage.py",
    "torch_compat/test_stored_checkpoints.py",
)
OF_EVERYTHING = (
    "torch_compat/test_refusals.py",
    "torch_compat/test_refused_inputs.py",
    *OF_CUDA,
    "bits/test_exact.py",
    "torch_compat/test_amp.py",
    "bits/test_layouts.py",
    "torch_compat/test_torch.py",
    "torch_compat/test_groups_and_states.py",
    "torch_compat/test_hooks.py",
    "torch_compat/test_modes.py",
    "bits/test_at_iterate.py",
    "bits/test_values.py",
    "native/test_attach.py",
    "native/test_plan.py",
    "native/test_reading.py",
    "bits/test_shared_memory.py",
    "bits/test_new_states.py",
    "test_python_code.py",
    "bits/test_formats.py",
    *OF_STORAGE,
    *OF_NORMS,
    *OF_EPILOGUE,
)
OF_RANKS = ("torch_compat/test_distributed.py::test_wrapped[norm_over_meshes-4]",)
OF_THREADS = ("native/test_forks.py",)
OF_THE_CUDA_ENGINE = (
    "cuda/test_cuda_engine.py",
    "cuda/test_cuda_engine_graphs.py",
    "cuda/test_cuda_engine_failures.py",
    "cuda/test_cuda_engine_norm.py",
)


@dataclass(frozen=True)
class Mutant:
    """A fault: in a file, the one place that says ``old`` says ``new`` instead."""

    name: str
    file: str
    old: str
    new: str
    found_by: tuple[str, ...] = ()  # where the file alone does not tell

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def applied_to(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self}: {self.old!r} is there {text.count(self.old)} times")
        return text.replace(self.old, self.new)

    @property
    def tests(self) -> tuple[str, ...]:
        if self.found_by:
            return self.found_by
        if self.file == "csrc/cpu/threads.cpp":
            return OF_THREADS
        if self.file in ("csrc/cuda/engine.cpp", "csrc/cuda/launch_memory.cpp"):
            return OF_THE_CUDA_ENGINE
        if self.file in ("csrc/core/decision.h", "csrc/core/reduction.h", "csrc/cpu/measure.cpp"):
            return OF_NORMS
        if self.file in ("csrc/cuda/squares.h", "csrc/cuda/square_plan.cpp"):
            return OF_SQUARES
        if self.file in ("csrc/core/codes.h", "csrc/core/random.h"):
            return (*OF_STORAGE, "cuda/test_cuda_groups.py")
        return OF_CUDA if self.file.startswith("csrc/cuda/") else OF_EVERYTHING


def rule(file: str, *faults: tuple[str, str, str], found_by: tuple[str, ...] = ()) -> list[Mutant]:
    """Faults of one file: the name of each, what is there, and what takes its place."""
    return [Mutant(name, file, old, new, found_by) for name, old, new in faults]
