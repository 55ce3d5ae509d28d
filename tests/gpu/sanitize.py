"""A few steps of everything, small enough for ``compute-sanitizer`` to watch each access.

``compute-sanitizer --tool memcheck python tests/gpu/sanitize.py``; the exit status is 1 also if a
parameter differs from the CPU's.
"""

from __future__ import annotations

import itertools
import os
import sys

# Every tensor is an allocation of its own, so that a byte beyond its end is one beyond the memory.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from fusedopt.checking.cases import CASES, DTYPES, Case
from fusedopt.checking.verify import count_mismatches, to_array

SIZES = (0, 1, 7, 8, 9, 33, 513, 2049, 4097, 8193)
STEPS = 2


def parameters(sizes: tuple[int, ...], device: str) -> list[torch.nn.Parameter]:
    """Parameters of every size in every dtype, some transposed, some views at odd places."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for size, dtype in itertools.product(sizes, DTYPES):
        values = torch.randn(3, size + 1, generator=generator).to(dtype).to(device)
        for value in (
            values[0, 1:].clone(),
            values.clone()[0, 1:],
            values.clone().t(),
            values.clone()[:, ::2],
        ):
            params.append(torch.nn.Parameter(value))
            grad = torch.randn(value.shape, generator=generator).to(dtype)
            params[-1].grad = grad.to(device)
    return params


def run(case: Case, sizes: tuple[int, ...], capturable: bool) -> int:
    """Steps a case on the GPU and on the CPU.

    Returns:
        The number of elements that differ.
    """
    mine, expected = parameters(sizes, "cuda"), parameters(sizes, "cpu")
    lr = torch.tensor(0.01, device="cuda") if capturable else 0.01
    options = {**case.options, "lr": lr, "capturable": capturable}
    on_gpu = case.row.optimizer(mine, **options)
    on_cpu = case.row.optimizer(expected, **{**case.options, "lr": torch.tensor(0.01)})
    for optimizer in (on_gpu, on_cpu):
        if not capturable:
            optimizer.param_groups[0]["lr"] = 0.01
        for _ in range(STEPS):
            optimizer.step()
    pairs = zip(mine, expected, strict=True)
    return sum(count_mismatches(to_array(a.cpu()), to_array(b)) for a, b in pairs)


def graph() -> int:
    """Steps in a CUDA graph; returns the number of elements that differ."""
    case = next(case for case in CASES if case.row.name == "Adam")
    mine, expected = parameters((33,), "cuda"), parameters((33,), "cpu")
    on_gpu, on_cpu = case.row.optimizer(mine, capturable=True), case.row.optimizer(expected)
    on_gpu.step()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        on_gpu.step()
    captured.replay()
    for _ in range(2):
        on_cpu.step()
    pairs = zip(mine, expected, strict=True)
    return sum(count_mismatches(to_array(a.cpu()), to_array(b)) for a, b in pairs)


def main() -> int:
    """Runs everything; the exit status."""
    wrong = 0
    for case in CASES:
        for capturable in (False, True):
            wrong += run(case, (0, 1, 9, 2049), capturable)
    for name in ("Adam", "SGD"):
        case = next(c for c in CASES if c.row.name == name and c.options)
        wrong += run(case, SIZES, False)
        # More tensors than fit into a launch's parameters.
        wrong += run(case, tuple(range(1, 40)), True)
    if "--no-graph" not in sys.argv:
        wrong += graph()
    torch.cuda.synchronize()
    print(f"{wrong} elements differ from the CPU's")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
