#!/usr/bin/env bash
# Everything that can be known without running the product. Runs all checks, then fails if any failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH=$PWD/.venv/bin:$PATH
failed=()

step() {
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then
        printf '   ok, %d s\n' $((SECONDS - began))
    else
        failed+=("$name")
    fi
}

step "ruff check" ruff check .
step "ruff format" ruff format --check .
step "mypy" mypy
step "buf lint" buf lint
step "buf breaking" tools/breaking.sh
step "generated code" python tools/generate.py --check

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
printf '\nall checks passed\n'
