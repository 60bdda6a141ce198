#!/usr/bin/env bash
# Writes requirements.lock: every third-party package by name, version and hashes, and nothing else.
#
# torch stays outside, with what only its CUDA build needs (nvidia-*, cuda-*, triton): which build is right depends
# on the machine, see tools/setup.sh. The workspace members are installed from the checkout.
# Versions already in the lock are kept where they still fit; UPGRADE=1 takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}

left_out='^(torch|triton|(nvidia|cuda)-[a-z0-9-]+|everloop(-[a-z-]+)?)$'
options=(--quiet --group dev --generate-hashes --no-header --no-annotate --python-version 3.11)
[[ -n ${UPGRADE:-} ]] && options+=(--upgrade)

members=$(sed -n 's/^name = "\(.*\)"$/\1/p' libs/*/pyproject.toml services/*/pyproject.toml)
resolved=$("$uv" pip compile pyproject.toml "${options[@]}" --no-emit-workspace --output-file requirements.lock \
    2>/dev/null | sed -n 's/^\([a-z0-9._-]*\)==.*/\1/p' || true)
