#!/usr/bin/env bash
# Writes requirements.lock: every third-party package by name, version and hashes, and nothing else.
#
# torch stays outside, with what only its CUDA build needs (nvidia-*, cuda-*, triton): which build is right depends on
# the machine, see tools/setup.sh. The members of the workspace come from the checkout.
# Versions already in the lock are kept where they still fit; UPGRADE=1 takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}

compile=("$uv" pip compile --quiet pyproject.toml --group dev --python-version 3.11 --no-header --no-annotate)
draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
cp requirements.lock "$draft" 2>/dev/null || true

# Once for the names of what is left out, which uv must be told one by one, then for the lock.
"${compile[@]}" ${UPGRADE:+--upgrade} --output-file "$draft" >/dev/null
left_out=()
while read -r name; do
    left_out+=(--no-emit-package "$name")
done < <(sed -nE 's/^((torch|triton|(nvidia|cuda)-[a-z0-9-]+))==.*/\1/p' "$draft")
for member in libs/*/ services/*/; do
    left_out+=(--no-emit-package "$(sed -n 's/^name = "\(.*\)"$/\1/p' "$member/pyproject.toml" | head -1)")
done
"${compile[@]}" --generate-hashes "${left_out[@]}" --output-file "$draft" >/dev/null

if grep -nE '://|^-e|^--' "$draft"; then
    echo "the lock would hold addresses" >&2
    exit 1
fi
cat "$draft" >requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) packages"
