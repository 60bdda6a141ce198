#!/usr/bin/env bash
# Builds the images of the named services, or of all five, as <IMAGES>-<service>:<version>, where IMAGES is
# `everloop` or, for a registry, <registry>/everloop.
# IMAGE_OPTIONS are further options of `docker build`, such as --build-arg PYTHON=<base> --network host.
set -euo pipefail
cd "$(dirname "$0")/.."
export DOCKER_BUILDKIT=1
docker=${DOCKER:-docker}
version=$(sed -n 's/^appVersion: //p' deploy/helm/everloop/Chart.yaml)
read -ra options <<<"${IMAGE_OPTIONS:-}"
options+=(--label "org.opencontainers.image.version=$version")
options+=(--label "org.opencontainers.image.revision=$(git rev-parse HEAD)")
prefix=${IMAGES:-everloop}
(($#)) || set -- ingest trainer registry_gateway inference monitor

"$docker" build "${options[@]}" --file deploy/images/Dockerfile --tag "$prefix-base:$version" .
for service; do
    "$docker" build "${options[@]}" --build-arg "BASE=$prefix-base:$version" --file "services/$service/Dockerfile" \
        --tag "$prefix-${service//_/-}:$version" .
    if [[ $service == inference ]]; then # what `everloop package` puts one model into
        for target in model-server model-lambda; do
            "$docker" build "${options[@]}" --build-arg "BASE=$prefix-base:$version" \
                --file services/inference/Dockerfile --target "$target" --tag "$prefix-$target:$version" .
        done
    fi
done
