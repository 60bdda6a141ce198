#!/usr/bin/env bash
# Compares the contracts with those of an earlier commit: BASE, or where this branch left main, or the commit before.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { printf '   skipped: %s\n' "$*"; exit 0; }

git rev-parse --verify --quiet HEAD >/dev/null || skip "there is no commit to compare with"
base=${BASE:-}
if [[ -z $base ]]; then
    for main in origin/main main; do
        if fork=$(git merge-base HEAD "$main" 2>/dev/null) && [[ $fork != "$(git rev-parse HEAD)" ]]; then
            base=$fork
            break
        fi
    done
fi
base=${base:-HEAD~1}
base=$(git rev-parse --verify --quiet "$base^{commit}") || skip "the earlier commit is not in this clone"
# shellcheck disable=SC2015 # both must be there
git cat-file -e "$base:buf.yaml" 2>/dev/null && git cat-file -e "$base:proto" 2>/dev/null ||
    skip "commit ${base:0:10} has no contracts"

# Handed over as a folder, because buf's own reading of .git does not know worktrees.
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$base" buf.yaml proto | tar -x -C "$before"
buf breaking --against "$before"
printf '   compatible with commit %s\n' "${base:0:10}"
