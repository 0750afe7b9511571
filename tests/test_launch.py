"""launch/ starts the command with its arguments whole; the schedulers are stood in for by fakes.

What is proved on the schedulers themselves: launch/README.md.
"""

import itertools
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from shadowft_jax import hosts

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
ARGS = [
  "--config",
  "configs/full.py",
  "--config.data.train",
  "two words",
  "it's",
  '"$HOME" * \\',
  "",
]
# Stands for python and writes what it was given; STATUS is its exit code.
PYTHON = f"""#!{sys.executable}
import json, os, sys
names = [n for n in os.environ if n.startswith(("JAX_", "SHADOWFT_"))]
with open(os.environ["TOLD"], "a") as told:
  told.write(json.dumps([sys.argv[1:], os.getcwd(), {{n: os.environ[n] for n in names}}]) + "\\n")
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  """Puts programs on PATH; calls(name) are the argument lists that a fake was called with."""
  folder = tmp_path / "bin"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("TOLD", str(tmp_path / "told"))
  for name in hosts.EXPLICIT:
    monkeypatch.delenv(name, raising=False)

  def put(name, script):
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)

  put("python", PYTHON)
  return put


def environment_of(tmp_path):
  return [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]


def logged(tmp_path, then=""):
  return f'#!/bin/bash\nprintf "%s\\n" "$(basename "$0") $*" >> {tmp_path}/log\n{then}\n'


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse(path):
  subprocess.run(["bash", "-n", path], check=True)


def test_no_file_sets_a_field_of_an_experiment():
  for path in (
    LAUNCH / "slurm.sh",
    LAUNCH / "tpu_vm.sh",
    LAUNCH / "jobset.yaml",
    LAUNCH / "sky.yaml",
  ):
    text = path.read_text()
    assert "shadowft_jax.train" in text and "--config." not in text


@pytest.mark.parametrize(
  "status, state, requeued",
  [
    (0, "RUNNING", False),
    (1, "RUNNING", False),
    (137, "RUNNING", False),
    (143, "RUNNING", True),
    (143, "COMPLETING", False),
  ],
)
def test_slurm_passes_arguments_and_requeues_what_sigterm_ended(
  fakes, tmp_path, status, state, requeued
):
  fakes("srun", '#!/bin/bash\n"$@"')
  fakes("squeue", f"#!/bin/bash\necho {state}")
  fakes("scontrol", logged(tmp_path))
  env = {**os.environ, "SLURM_JOB_ID": "7", "STATUS": str(status)}
  assert subprocess.run(["bash", LAUNCH / "slurm.sh", *ARGS], env=env).returncode == status
  assert environment_of(tmp_path)[0][0] == ["-m", "shadowft_jax.train", *ARGS]
  assert (tmp_path / "log").exists() == requeued
  if requeued:
    assert (tmp_path / "log").read_text() == "scontrol requeue 7\n"


def test_slurm_passes_the_signal_on_and_waits_for_the_tasks(fakes, tmp_path):
  fakes(
    "srun",
    f"#!/bin/bash\ntouch {tmp_path}/runs\n"
    f"until [ -e {tmp_path}/stop ]; do sleep 0.05; done; sleep 0.3; exit 143",
  )
  fakes("scancel", logged(tmp_path, f"touch {tmp_path}/stop"))
  fakes("squeue", "#!/bin/bash\necho RUNNING")
  fakes("scontrol", logged(tmp_path))
  script = subprocess.Popen(["bash", LAUNCH / "slurm.sh"], env={**os.environ, "SLURM_JOB_ID": "7"})
  while not (tmp_path / "runs").exists():
    time.sleep(0.02)
  script.send_signal(signal.SIGUSR1)
  assert script.wait(20) == 143
  assert (tmp_path / "log").read_text() == "scancel --signal=TERM 7\nscontrol requeue 7\n"


# Runs the command in a shell of its own once for each worker, as ssh does.
GCLOUD = """#!/bin/bash
for last; do :; done
case "$last" in --command=*) ;; *) exit 9;; esac
for worker in 0 1; do (cd "$FAR" && exec bash -c "${last#--command=}") || exit; done
"""


@pytest.mark.parametrize("args", [ARGS, []], ids=["args", "none"])
def test_tpu_vm_starts_the_command_on_every_worker(fakes, tmp_path, args):
  fakes("gcloud", GCLOUD)
  (tmp_path / "far" / "a folder").mkdir(parents=True)
  env = {
    **os.environ,
    "TPU": "t",
    "ZONE": "z",
    "DIR": "a folder",
    "PYTHON": "python",
    "FAR": str(tmp_path / "far"),
  }
  subprocess.run(["bash", LAUNCH / "tpu_vm.sh", *args], env=env, check=True)
  for got, folder, variables in environment_of(tmp_path):
    assert got == ["-m", "shadowft_jax.train", *args]
    assert folder == str(tmp_path / "far" / "a folder")
    assert hosts._arguments(variables) == {"cluster_detection_method": "gcetpu"}
  assert len(environment_of(tmp_path)) == 2


def test_tpu_vm_returns_the_exit_code_and_names_missing_variables(fakes, tmp_path):
  fakes("gcloud", "#!/bin/bash\nexit 3")
  env = {**os.environ, "TPU": "t", "ZONE": "z"}
  assert subprocess.run(["bash", LAUNCH / "tpu_vm.sh"], env=env).returncode == 3
  del env["TPU"]
  ran = subprocess.run(["bash", LAUNCH / "tpu_vm.sh"], env=env, capture_output=True, text=True)
  assert ran.returncode != 0 and "the name of the TPU" in ran.stderr


def test_tpu_vm_passes_a_signal_on(fakes, tmp_path):
  fakes(
    "gcloud",
    f'#!/bin/bash\ncase "$*" in *pkill*) echo "$*" > {tmp_path}/stop;; *) '
    f"touch {tmp_path}/runs; until [ -e {tmp_path}/stop ]; do sleep 0.05; done; exit 15;; esac",
  )
  script = subprocess.Popen(
    ["bash", LAUNCH / "tpu_vm.sh"], env={**os.environ, "TPU": "t", "ZONE": "z"}
  )
  while not (tmp_path / "runs").exists():
    time.sleep(0.02)
  script.send_signal(signal.SIGTERM)
  assert script.wait(20) == 15
  assert "--worker=all" in (tmp_path / "stop").read_text()
  assert "pkill -TERM" in (tmp_path / "stop").read_text()


def test_the_jobset_agrees_with_itself():
  jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
  spec = jobset["spec"]
  [job] = spec["replicatedJobs"]
  batch = job["template"]["spec"]
  pod = batch["template"]["spec"]
  [container] = pod["containers"]
  env = {e["name"]: e.get("value", "0") for e in container["env"]}
  arguments = hosts._arguments(env)
  assert arguments["num_processes"] == batch["parallelism"] == batch["completions"]
  host, port = arguments["coordinator_address"].split(":")
  assert host == f"{jobset['metadata']['name']}-{job['name']}-0-0.{spec['network']['subdomain']}"
  assert port.isdigit()
  assert container["command"] == ["python", "-m", "shadowft_jax.train"]
  assert pod["restartPolicy"] == "Never" and pod["shareProcessNamespace"]
  assert batch["completionMode"] == "Indexed" and batch["backoffLimit"] == 0
  mounts = {m["name"] for m in container["volumeMounts"]}
  assert mounts == {v["name"] for v in pod["volumes"]}


@pytest.mark.parametrize("rank", [0, 1])
def test_sky_tells_each_node_who_it_is(fakes, tmp_path, rank):
  task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
  (tmp_path / "shadowft" / "bin").mkdir(parents=True)
  (tmp_path / "shadowft" / "bin" / "python").symlink_to(tmp_path / "bin" / "python")
  env = {
    **os.environ,
    "HOME": str(tmp_path),
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": str(rank),
    "ARGS": "--config c.py --workdir '/shared/two words'",
  }
  subprocess.run(["bash", "-c", task["run"]], env=env, check=True)
  [[args, _, variables]] = environment_of(tmp_path)
  assert args == ["-m", "shadowft_jax.train", "--config", "c.py", "--workdir", "/shared/two words"]
  arguments = hosts._arguments(variables)
  assert arguments["process_id"] == rank and arguments["num_processes"] == 2
  assert re.fullmatch(r"10\.0\.0\.1:\d+", arguments["coordinator_address"])


TABLE1 = (LAUNCH / "table1.txt").read_text().splitlines()
# Stands for sbatch: runs the tasks of the array that the script's own options ask for.
SBATCH = """#!/bin/bash
array=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
cp "$1" "$SPOOL"
export SLURM_ARRAY_JOB_ID=40
for SLURM_ARRAY_TASK_ID in $(seq 0 "$array"); do
  export SLURM_ARRAY_TASK_ID SLURM_JOB_ID=$((40 + array - SLURM_ARRAY_TASK_ID))
  bash "$SPOOL" "${@:2}" || exit
done
"""


def test_the_rows_of_table_1_are_those_of_its_config():
  table = runpy.run_path(str(LAUNCH.parent / "configs" / "paper" / "table1.py"))
  assert TABLE1 == [",".join(words) for words in itertools.product(*table["CHOICES"].values())]
  assert f"--array=0-{len(TABLE1) - 1}\n" in (LAUNCH / "table1_slurm.sh").read_text()


def test_the_array_of_table_1_runs_each_row_in_a_folder_of_its_own(fakes, tmp_path):
  fakes("sbatch", SBATCH)
  fakes("srun", '#!/bin/bash\n"$@"')
  fakes("squeue", f'#!/bin/bash\necho "$*" >> {tmp_path}/asked; echo RUNNING')
  env = {**os.environ, "SPOOL": str(tmp_path / "slurm_script")}
  script = LAUNCH / "table1_slurm.sh"
  rest = ["--config.data.train=two words.parquet"]
  subprocess.run(
    ["sbatch", script, "/shared/my runs", *rest], env=env, cwd=LAUNCH.parent, check=True
  )
  assert [args for args, *_ in environment_of(tmp_path)] == [
    ["-m", "shadowft_jax.train", "--config", f"paper/table1:{row}"]
    + ["--workdir", f"/shared/my runs/{row.replace(',', '_')}", *rest]
    for row in TABLE1
  ]
  # By the number of the task: that of the last is the whole array's.
  asked = (tmp_path / "asked").read_text().splitlines()
  assert [line.rpartition("--jobs=")[2] for line in asked] == [f"40_{i}" for i in range(28)]


def test_what_the_array_lacks_is_named(fakes, tmp_path):
  script = LAUNCH / "table1_slurm.sh"
  for args, env, message in (
    ([], {}, "the folder of the runs is missing"),
    (["/runs"], {}, "this is an array; submit it with sbatch"),
    (["/runs"], {"SLURM_ARRAY_TASK_ID": "28"}, "table1.txt has no such line"),
  ):
    done = subprocess.run(
      ["bash", script, *args], env={**os.environ, **env}, cwd=LAUNCH.parent, capture_output=True
    )
    assert done.returncode != 0 and message in done.stderr.decode()


def test_sky_gets_a_job_for_each_row_of_table_1(fakes, tmp_path):
  fakes("sky", PYTHON)
  script = LAUNCH / "table1_sky.sh"
  rest = ["--config.data.train=/shared/two words.parquet"]
  env = {**os.environ, "BUCKET": "b"}
  subprocess.run(["bash", script, *rest], env=env, cwd=LAUNCH.parent, check=True)
  for row, (args, *_) in zip(TABLE1, environment_of(tmp_path), strict=True):
    assert args[:2] == ["jobs", "launch"] and args[-1] == "launch/sky.yaml"
    assert re.fullmatch(r"[a-z][a-z0-9-]*", args[args.index("--name") + 1])
    [words] = [a.removeprefix("ARGS=") for a in args if a.startswith("ARGS=")]
    workdir = f"/shared/runs/{row.replace(',', '_')}"
    assert shlex.split(words) == ["--config", f"paper/table1:{row}", "--workdir", workdir, *rest]
  del env["BUCKET"]
  done = subprocess.run(["bash", script], env=env, cwd=LAUNCH.parent, capture_output=True)
  assert done.returncode != 0 and b"the name of the bucket is missing" in done.stderr
