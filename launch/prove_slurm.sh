#!/bin/bash
# Proves launch/slurm.sh on a real Slurm, started here for the purpose: one machine, two tasks.
#
#   bash launch/prove_slurm.sh [python]
#
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge) and shadowft_jax's
# environment; touches nothing outside a temporary folder, and needs no root.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$(command -v "${1:-python}")")
PATH=$PATH:/usr/sbin:/sbin
for tool in munged slurmctld slurmd sbatch; do
  command -v $tool >/dev/null || { echo "$tool is missing: apt-get install slurm-wlm munge"; exit 2; }
done
dir=$(mktemp -d)
me=$(id -un)
host=$(hostname -s)
daemons=()

stop() {
  trap - EXIT
  scancel --user="$me" 2>/dev/null || true
  for _ in {1..60}; do [ "$(squeue -h 2>/dev/null)" ] && sleep 0.5; done
  kill "${daemons[@]}" 2>/dev/null || true
  sleep 1
  kill -9 "${daemons[@]}" 2>/dev/null || true
  [ "${passed:-}" ] && rm -rf "$dir" || echo "NOT PROVED; logs are in $dir"
}
trap stop EXIT

# ---- a Slurm of one node
mkdir -m 700 "$dir"/{munge,state,spool}
head -c 1024 /dev/urandom > "$dir/munge/key"
chmod 600 "$dir/munge/key"
chmod 755 "$dir"
munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge.socket" \
  --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" \
  > "$dir/munged.log" 2>&1 &
daemons+=($!)
ports=$("$python" -c 'import socket
s = [socket.socket() for _ in range(2)]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*[x.getsockname()[1] for x in s])')
export SLURM_CONF=$dir/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=prove
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE PreemptMode=OFF
PartitionName=low Nodes=$host PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$host PriorityTier=2
CONF
slurmctld -D > "$dir/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -N "$host" > "$dir/slurmd.log" 2>&1 &
daemons+=($!)

# ---- what a job runs in the place of training: a sum over the tasks a step, 0.2 s a step
cat > "$dir/steps.py" <<'PYTHON'
import json, pathlib, sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from shadowft_jax import hosts
hosts.start()
done, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
mesh = Mesh(jax.devices(), "n")
x = jax.make_array_from_process_local_data(
    NamedSharding(mesh, P("n")), np.full(1, 10 ** jax.process_index(), np.int32))
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))
first = int(done.read_text()) if done.exists() else 0
for step in range(first + 1, steps + 1):
  assert int(total(x)) == int("1" * jax.process_count())
  if hosts.is_first():
    done.write_text(str(step))
  time.sleep(0.2)
print(f"task {jax.process_index()}: steps {first + 1} to {steps} done;", json.dumps(sys.argv[3:]),
      flush=True)
PYTHON
cat > "$dir/stand-in" <<SHELL
#!/bin/bash
[ "\$1 \$2" = "-m shadowft_jax.train" ] || exit 99
exec "$python" "$dir/steps.py" "\${@:3}"
SHELL
chmod 755 "$dir/stand-in"
export PYTHONPATH=$PWD JAX_PLATFORMS=cpu

submit() {    # submit PYTHON [OPTION...] -- ARGUMENT...; sets job
  local with=$1 options=(); shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  job=$(PYTHON=$with sbatch --parsable --ntasks-per-node=2 --output="$dir/%j.out" "${options[@]}" \
    launch/slurm.sh "$@")
}
field() { scontrol show job "$job" -o | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }
until_true() {    # until_true SECONDS WHAT COMMAND...
  local limit=$((SECONDS + $1)) what=$2; shift 2
  until "$@"; do
    if [ $SECONDS -ge $limit ]; then
      echo "no, it is not so: $what"; scontrol show job "$job"; cat "$dir/$job.out"; exit 1
    fi
    sleep 0.2
  done
}
state_is() { [ "$(field JobState)" = "$1" ]; }
at_step() { [ "$(cat "$done" 2>/dev/null || echo 0)" -ge "$1" ]; }
tells() { grep -qsF -- "$1" "$dir/$job.out"; }
proved() { echo "proved in $((SECONDS - began)) s: $1"; began=$SECONDS; }
began=$SECONDS

until_true 60 "Slurm answers" eval 'sinfo -h -o %T | grep -q idle'

submit "$dir/stand-in" -- "$dir/quick" 3 'two words' "it's" '"$HOME" *' ''
until_true 60 "the job completes" state_is COMPLETED
for n in 0 1; do
  until_true 1 "process $n is one of two" tells "process $n of 2 (counted from 0): 1 of 2 cpu"
  until_true 1 "arguments arrive whole" \
    tells "task $n: steps 1 to 3 done; [\"two words\", \"it's\", \"\\\"\$HOME\\\" *\", \"\"]"
done
proved "two tasks are one program; arguments with blanks and quotes arrive whole"

resumed() {    # resumed: the job was stopped once, and went on to its end
  until_true 90 "the job is requeued" eval '[ "$(field Restarts)" = 1 ]'
  left=$(cat "$done")
  until_true 120 "the job completes" state_is COMPLETED
  until_true 1 "it goes on where it was" tells "task 1: steps $((left + 1)) to 60 done"
}
long() {    # long NAME STEPS [OPTION...]: a job that has begun; its step is in NAME
  done=$dir/$1
  submit "$dir/stand-in" "${@:3}" -- "$done" "$2"
  until_true 60 "it runs" at_step 5
}
long signalled 60
scancel --batch --signal=USR1 "$job"
resumed
proved "the signal before the time limit stops the tasks; requeued, they go on from step $left"

long preempted 60 --partition=low
sbatch --parsable --partition=high --ntasks=2 --output=/dev/null --wrap="sleep 2" > /dev/null
resumed
proved "a job of higher priority preempts it; requeued, it goes on from step $left"

long killed 600
kill -9 "$(pgrep -nf "$dir/steps.py $done")"
killed=$SECONDS
until_true 60 "the job fails" state_is FAILED
killed=$((SECONDS - killed))
until_true 1 "a task says so" tells "of 2 (counted from 0) ended early"
proved "a task that is killed ends the other and the job within $killed s, with no requeue"

long cancelled 600
scancel "$job"
until_true 60 "the job is cancelled" state_is CANCELLED
sleep 5
until_true 1 "it stays so" state_is CANCELLED
proved "a job that is cancelled stays so"

submit "$python" -- --config configs/quickstart.py --config.max_steps=30 --config.eval_every=5 \
  --workdir "$dir/run"
until_true 300 "the training has a checkpoint" tells "step 10 of 30"
scancel --batch --signal=USR1 "$job"
until_true 300 "the training completes" state_is COMPLETED
until_true 1 "both tasks took part" tells "process 1 of 2 (counted from 0)"
until_true 1 "it was resumed" tells "taking up $dir/run after step"
step=$(sed -n 's/.*taking up .* after step \([0-9]*\).*/\1/p' "$dir/$job.out" | head -n 1)
[ -f "$dir/run/shadow/model.safetensors" ]
proved "the tiny pair is trained on two tasks, stopped, resumed after step $step, and grafted"
passed=1
echo "all proved, with $(sinfo --version)"
