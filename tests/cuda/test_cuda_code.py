"""The code of the CUDA kernels, as compiled: resources, width of accesses, no contraction.

Reads the built module with NVIDIA's ``cuobjdump``, which needs no GPU.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict

import pytest

from built_code import PTX_OF, SPEC, dump, ptx_texts
from fusedopt.checking.cases import DTYPES

if SPEC is None and shutil.which("nvcc") is None:
    pytest.skip("built without CUDA, for want of nvcc", allow_module_level=True)


def count_operations(text: str, function: str, operation: str) -> dict[str, Counter[str]]:
    """How often each operation occurs in each kernel."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kernel = None
    for line in text.splitlines():
        if header := re.search(function, line):
            kernel = header[1]
        elif kernel and (instruction := re.match(operation, line)):
            counts[kernel][instruction[1]] += 1
    return counts


def total(counts: Counter[str], *prefixes: str) -> int:
    return sum(n for operation, n in counts.items() if operation.startswith(prefixes))


@pytest.fixture(scope="module", params=PTX_OF)
def architecture(request) -> str:
    """Each that the module was built for."""
    if f".{request.param}." not in dump("--list-elf"):
        pytest.skip(f"this nvcc does not know {request.param}")
    return request.param


@pytest.fixture(scope="module")
def ptx(architecture) -> dict[str, Counter[str]]:
    """The virtual code that an architecture's machine code was made from."""
    text = "\n".join(ptx_texts()[PTX_OF[architecture]])
    return count_operations(text, r"\.entry (\w+)", r"\s*(?:@!?%p\d+\s+)?([a-z][\w.]+)\s")


@pytest.fixture(scope="module")
def sass(architecture) -> dict[str, Counter[str]]:
    """Its machine code."""
    return count_operations(
        dump("-sass", "-arch", architecture),
        r"Function : (\w+)",
        r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]+)",
    )


def test_cuda_was_built():
    assert SPEC is not None, "nvcc is there, but the package was built without CUDA"


SQUARES = -1  # of the measuring pass


def kind_of(kernel: str) -> int:
    """A KernelKind: small and large tables of usual formats, then any formats, in float or not."""
    kind = re.search(r"KernelKindE(\d)E", kernel)
    return int(kind[1]) if kind else SQUARES


def takes_usual_formats(kernel: str) -> bool:
    return kind_of(kernel) in (0, 1)


def test_a_kernel_for_every_rule_and_kind(ptx):
    from fusedopt import _emulated_cuda as emulated

    of_rules = dict.fromkeys(range(4), emulated.rules)
    assert Counter(map(kind_of, ptx)) == {**of_rules, SQUARES: 2}


def test_resources():
    """No stack, no spills, and the registers that the occupancy in tuning.h leaves."""
    from fusedopt import _emulated_cuda as emulated

    def most_registers(threads: int, blocks: int) -> int:
        # They are handed out by eights, and a thread has 255 at most.
        return min(65536 // (threads * blocks) // 8 * 8, 255)

    text = dump("-res-usage")
    usages = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    architectures = len(set(re.findall(r"arch = (sm_\d+)", text)))
    assert len(usages) == (4 * emulated.rules + 2) * architectures
    for kernel, registers, stack, local in usages:
        assert int(stack) == int(local) == 0, kernel
        if kind_of(kernel) == SQUARES:
            assert int(registers) <= most_registers(emulated.square_threads, emulated.square_blocks)
            continue
        blocks = emulated.min_blocks_per_multiprocessor[kind_of(kernel)]
        assert int(registers) <= most_registers(emulated.threads, blocks), kernel


def test_operations_are_rounded_as_ieee_754_says(ptx):
    for kernel, operations in ptx.items():
        for operation in operations:
            assert not re.search(r"^fma|approx|\.ftz|\.full", operation), (kernel, operation)
            if re.match(r"(add|sub|mul|div|sqrt)\..*f(32|64)$", operation):
                assert ".rn." in operation, (kernel, operation)


def test_no_product_is_fused_with_a_sum(ptx, sass):
    """Every sum and product of the virtual code is one of its own in the machine code.

    Fused multiply-adds that are there belong to the expansions of division and square root, which
    add operations and take none away.
    """
    for kernel, virtual in ptx.items():
        machine = sass[kernel]
        for suffix, letter in (("f32", "F"), ("f64", "D")):
            sums = virtual[f"add.rn.{suffix}"] + virtual[f"sub.rn.{suffix}"]
            products = virtual[f"mul.rn.{suffix}"]
            # A kernel that updates in float alone has what its rule derives in double, if anything;
            # one that measures adds in double alone.
            without = {"f32": SQUARES, "f64": 2}[suffix]
            assert (sums > 0 and products > 0) or kind_of(kernel) == without
            assert total(machine, f"{letter}ADD") >= sums, kernel
            assert total(machine, f"{letter}MUL") >= products, kernel


def test_packs_are_moved_by_128_bit_accesses(sass):
    """In the vector path of every dtype: at least the parameter and the gradient."""
    for kernel, operations in sass.items():
        if not takes_usual_formats(kernel):
            continue
        loads = sum(n for op, n in operations.items() if re.match(r"LD(G\.E)?\..*128", op))
        stores = sum(n for op, n in operations.items() if re.match(r"STG?\..*128", op))
        assert loads >= 2 * len(DTYPES), kernel
        assert stores >= len(DTYPES), kernel


def test_no_access_is_to_local_memory(sass):
    for kernel, operations in sass.items():
        assert not total(operations, "LDL", "STL"), kernel
