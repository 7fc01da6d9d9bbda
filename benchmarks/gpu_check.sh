#!/usr/bin/env bash
# One command for a host with a GPU and no network: makes an environment beside what the host has, asks the GPU, writes
# one JSON file. See docs/gpu.md for the wheels.
#
#   benchmarks/gpu_check.sh [--wheels DIR] [--output FILE] [--quick] [--no-compile]
#   PYTHON=/opt/python3 benchmarks/gpu_check.sh ...     another Python than python3; it should have torch with CUDA
set -euo pipefail

wheels=""
options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels)
            if [ $# -lt 2 ] || [ ! -d "$2" ]; then
                echo "gpu_check: --wheels needs a folder, got '${2:-}'" >&2
                exit 2
            fi
            wheels=$(cd "$2" && pwd)
            shift 2
            ;;
        *) options+=("$1"); shift ;;
    esac
done

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=$folder/venv

# Without pip, which some distributions leave out of venv: that of the host installs into it.
"$python" -m venv --system-site-packages --without-pip "$venv"
# Where the host's python is itself a virtual environment, --system-site-packages does not reach its packages.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sys; print(*[path for path in sys.path if path.endswith("-packages")], sep="\n")' >"$site/host.pth"

if [ -n "$wheels" ]; then
    export CUDA_ROOT=${CUDA_ROOT:-/usr/local/cuda}
    install=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps
        --no-build-isolation --ignore-installed --no-compile)
    shopt -s nullglob
    ready=("$wheels"/*.whl)
    [ ${#ready[@]} -eq 0 ] || "${install[@]}" "${ready[@]}"
    # Sources, as PyCUDA comes: a failure is said here and found again by the check.
    for source in "$wheels"/*.tar.gz; do
        PATH=$CUDA_ROOT/bin:$PATH "${install[@]}" "$source" || echo "gpu_check: ${source##*/} cannot be installed" >&2
    done
fi

PYTHONPATH=$root OMP_WAIT_POLICY=PASSIVE "$venv/bin/python" "$root/benchmarks/gpu_check.py" "${options[@]}"
