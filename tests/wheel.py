"""What `make wheel` has built is what it should be, and works where nothing else is installed.

    python tests/wheel.py DIST

DIST has one wheel and one sdist. The wheel is installed in a new virtual environment and tried
outside of the checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 3_000_000  # bytes, without CUDA

# Steps as the reference does, to the bit, with torch's OpenMP runtime and no other.
TRIAL = """
import torch
import fusedopt
from fusedopt import reference

model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 256))
optimizer = fusedopt.AdamW(model.parameters(), lr=1e-2)
states = {}
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(32, 64)).square().mean().backward()
    expected = []
    for param in model.parameters():
        value, states[param] = reference.adam(
            param.detach().numpy().copy(), param.grad.numpy(), states.get(param, {}),
            lr=1e-2, weight_decay=1e-2, decoupled_weight_decay=True,
        )
        expected.append(torch.from_numpy(value))
    optimizer.step()
    assert all(map(torch.equal, model.parameters(), expected)), "not the reference's bits"

with open("/proc/self/maps") as maps:
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line}
print(fusedopt.__file__, torch.__version__, *runtimes, sep="\\n")
assert len(runtimes) == 1, "two OpenMP runtimes"
assert torch.__path__[0] in runtimes.pop(), "not torch's OpenMP runtime"
"""


def check_wheel(path: Path) -> None:
    """Size, tag and contents; libgomp is torch's, so it must not be inside."""
    names = set(zipfile.ZipFile(path).namelist())
    print(f"{path.name}: {path.stat().st_size} bytes, {len(names)} entries")
    assert path.stat().st_size < LIMIT, f"larger than {LIMIT} bytes"
    assert "manylinux" in path.name
    (metadata,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    libraries = {name for name in names if re.search(r"\.so\b", name)}
    assert len(libraries) == 1, f"only the native module was expected: {libraries}"
    assert libraries.pop().startswith("fusedopt/_native.")
    wanted = {"fusedopt/py.typed", "fusedopt/benchmarks/run.py", f"{metadata}/licenses/LICENSE"}
    assert wanted <= names
    unexpected = {n for n in names if not n.startswith(("fusedopt/", metadata)) or "results" in n}
    assert not unexpected, unexpected


def check_sdist(path: Path) -> None:
    """What git has, all of it and nothing else."""
    with tarfile.open(path) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = set(listed.stdout.splitlines())
    print(f"{path.name}: {path.stat().st_size} bytes, {len(names)} files")
    assert names - {"PKG-INFO"} == tracked, sorted((names - {"PKG-INFO"}) ^ tracked)


def try_wheel(path: Path) -> None:
    """Installs and runs it in an environment of its own, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = Path(folder, "venv", "bin")
        venv.create(bin_folder.parent, with_pip=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

        def run(command: str, *arguments: str | Path) -> None:
            subprocess.run(
                [bin_folder / command, *arguments], cwd=folder, env=environment, check=True
            )

        constraints = ("--constraint", ROOT / "constraints.txt")
        run("pip", "install", "--quiet", *constraints, f"{path}[cli]")
        run("python", "-W", "error", "-c", TRIAL)
        for command in ("--version", "info", "verify"):
            run("fusedopt", command)


def main(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    try_wheel(wheel)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
