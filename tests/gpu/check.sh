#!/usr/bin/env bash
# Everything that needs a GPU: `make gpu-check`. Builds without a package registry and without a
# virtual environment, from what the Python in PYTHON has (torch, pybind11, scikit-build-core, cmake,
# ninja, pytest, rich, typer), into build/gpu/site. A check that fails does not keep those after it
# from running; a summary comes last, and the exit status says whether all passed.
#
#   tests/gpu/check.sh [phase...]    phases: build tests memcheck racecheck bench; all by default
set -uo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
RESULTS_DIR=${RESULTS_DIR:-benchmarks/results}
SITE=$PWD/build/gpu/site
PATH=$PATH:/usr/local/cuda/bin

# The installed package, not the checkout's folder of the same name.
export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

build() {
    rm -rf "$SITE" # or pip would leave an older installation as it is
    "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --no-index --target "$SITE" . \
        --config-settings=cmake.define.FUSEDOPT_CUDA=ON
}

tests() {
    # Warnings are shown and fail nothing: those of a GPU's torch are not known ahead.
    "$PYTHON" -m pytest -q -W default -p no:cacheprovider --durations=10 \
        -o python_files='check_*.py' tests/gpu
}

sanitize() {
    if ! command -v compute-sanitizer > /dev/null; then
        echo "compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin"
        return 1
    fi
    compute-sanitizer --error-exitcode 1 "$@" "$PYTHON" tests/gpu/sanitize.py
}

# Errors of API calls are not memory errors, and torch provokes some of them on purpose.
memcheck() { sanitize --tool memcheck --report-api-errors no; }

racecheck() { sanitize --tool racecheck; }

bench() {
    mkdir -p "$RESULTS_DIR"
    "$PYTHON" -m fusedopt bench --device cuda --json "$RESULTS_DIR"
}

summary=()
failed=0
for phase in "${@:-all}"; do
    case $phase in
        all) phases=(build tests memcheck racecheck bench) ;;
        build | tests | memcheck | racecheck | bench) phases=("$phase") ;;
        *) echo "no phase $phase: build, tests, memcheck, racecheck or bench" >&2; exit 2 ;;
    esac
    for name in "${phases[@]}"; do
        echo "== $name"
        SECONDS=0
        if "$name"; then outcome=passed; else outcome=FAILED failed=1; fi
        summary+=("$(printf '%-10s %s, %d s' "$name" "$outcome" "$SECONDS")")
        # Without a package, whatever an earlier build left would be checked in its place.
        [[ $name = build && $outcome = FAILED ]] && break 2
    done
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit "$failed"
