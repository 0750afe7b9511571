#!/bin/bash
# Shadow-FT on a TPU VM of any number of hosts.
#
#   TPU=my-tpu ZONE=us-east5-b bash launch/tpu_vm.sh --config configs/full.py --workdir /shared/a
#
# Starts the command on every host, in the folder DIR of the home there (default shadowft_jax),
# where PYTHON (default .venv/bin/python) has the extra `tpu` installed; the work folder lies on a
# disk that all hosts share. The hosts find each other by the TPU's own metadata.
# SIGTERM and SIGINT are passed on to all hosts. After a preemption create the TPU again (`gcloud
# compute tpus queued-resources create` waits for one) and give the same command: it resumes.
set -u
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}
trap "again=1; everywhere \"pkill -TERM -f '[s]hadowft_jax.train'\"" INT TERM

python=${PYTHON:-.venv/bin/python} dir=${DIR:-shadowft_jax}
everywhere "cd ${dir@Q} && SHADOWFT_CLUSTER=gcetpu ${python@Q} -m shadowft_jax.train ${*@Q}" &
again=1
while [ "$again" ]; do                                    # a trap ends the wait
  again=
  wait $!
  status=$?
done
exit "$status"
