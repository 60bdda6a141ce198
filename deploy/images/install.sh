#!/usr/bin/env bash
# In the build stage of an image: makes /opt/everloop, an environment with one service and its dependencies, as
# requirements.lock names them and by its hashes, and /opt/code with what of it is Everloop's own, for a small layer.
set -euo pipefail
cd "$(dirname "$0")/../.."
service=$1
export UV_LINK_MODE=copy UV_PYTHON=/opt/everloop/bin/python

python3 -m venv /tmp/tools
/tmp/tools/bin/pip install --quiet --disable-pip-version-check 'uv==0.13.*' 'cyclonedx-bom==7.*'
python3 -m venv --without-pip /opt/everloop

# The file of a module may change in a container that Tilt updates, so that its content decides whether it is compiled.
PYC_INVALIDATION_MODE=CHECKED_HASH /tmp/tools/bin/uv pip install --quiet --compile-bytecode --no-editable \
    --constraint requirements.lock "./services/$service"
/tmp/tools/bin/cyclonedx-py environment --output-reproducible --output-file /opt/everloop/sbom.json "$UV_PYTHON"

packages=lib/python3.11/site-packages
mkdir -p "/opt/code/$packages"
mv "/opt/everloop/$packages"/everloop* "/opt/code/$packages"
