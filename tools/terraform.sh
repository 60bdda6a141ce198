#!/usr/bin/env bash
# Terraform as this repository runs it: it asks nobody for a newer release, and takes providers from a filesystem mirror
# where one lies below /opt, so that it works without a network.
set -euo pipefail
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1
for mirror in /opt/*/registry.terraform.io; do
    if [[ -d $mirror && -z ${TF_CLI_ARGS_init:-} ]]; then
        export TF_CLI_ARGS_init=-plugin-dir=${mirror%/*}
    fi
done
# A configuration that the environment names but that is not there draws a warning with each command.
[[ -e ${TF_CLI_CONFIG_FILE:-/} ]] || unset TF_CLI_CONFIG_FILE
exec terraform "$@"
