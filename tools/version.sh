#!/usr/bin/env bash
# Fails unless the wheels, the chart and the images that it names have the version that is given.
set -euo pipefail
cd "$(dirname "$0")/.."
wrong=$(grep -HE '^(version|appVersion)( =|:) ' pyproject.toml {libs,services}/*/pyproject.toml deploy/helm/everloop/Chart.yaml |
    grep -vE "[ \"]${1//./\\.}\"?$" || true)
if [[ $wrong ]]; then
    printf 'not version %s:\n%s\n' "$1" "$wrong" >&2
    exit 1
fi
