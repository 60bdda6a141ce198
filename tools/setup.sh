#!/usr/bin/env bash
# Makes .venv: the packages of requirements.lock by their hashes, torch as the machine needs it, and the members of
# the workspace from this checkout. Needs python3.11 and nothing else. Repeating it changes only what differs.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        if [[ -n $candidate ]] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.11 is missing. Install it (Debian: apt install python3.11 python3.11-venv; macOS: brew install" \
        "python@3.11) or name it: PYTHON=/path/to/python3.11 make setup"
}

if [[ ! -x .venv/bin/python ]]; then
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "no virtual environment could be made: on Debian, apt install python3.11-venv"
fi
if [[ ! -x .venv/bin/uv ]]; then
    say "installing uv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.*'
fi
export VIRTUAL_ENV=$PWD/.venv
uv=.venv/bin/uv

# torch has a build of its own for machines without a GPU, 200 MB instead of 4.5 GB, on an index of its own.
torch=$(sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' services/trainer/pyproject.toml)
installed=$("$uv" pip show torch 2>/dev/null | sed -n 's/^Version: \([0-9.]*\).*/torch==\1/p' || true)
if [[ $installed != "$torch" ]]; then
    install=("$uv" pip install --quiet --constraint requirements.lock "$torch")
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        say "installing $torch for this machine's NVIDIA GPU"
        "${install[@]}"
    else
        say "installing $torch for CPUs"
        if ! UV_HTTP_RETRIES=0 "${install[@]}" --torch-backend=cpu 2>.venv/torch.log; then
            say "the index of CPU builds cannot be reached (.venv/torch.log): taking the larger build, 4.5 GB," \
                "that also runs on CPUs"
            "${install[@]}"
        fi
    fi
fi

say "installing $(grep -c '==' requirements.lock) locked packages: a minute or a few"
"$uv" pip install --quiet --no-deps --require-hashes --requirement requirements.lock

say "installing Everloop from this checkout"
members=()
for folder in libs/*/ services/*/; do
    [[ -f $folder/pyproject.toml ]] && members+=(--editable "./$folder")
done
"$uv" pip install --quiet --no-deps "${members[@]}"
say "ready"
