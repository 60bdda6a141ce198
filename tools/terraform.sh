#!/usr/bin/env bash
# Terraform as this repository runs it: it asks nobody for a newer release. Without a network, name a mirror of providers:
# TF_CLI_ARGS_init=-plugin-dir=<folder>.
set -euo pipefail
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1
# A configuration that the environment names but that is not there draws a warning with each command.
[[ -e ${TF_CLI_CONFIG_FILE:-/} ]] || unset TF_CLI_CONFIG_FILE
exec terraform "$@"
