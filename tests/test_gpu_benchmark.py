"""benchmarks/gpu.py at a small size on a CPU, on a machine that has but what it asks for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What a bare machine lacks of our requirements.
ABSENT = ("clu", "datasets", "grain", "matplotlib", "ml_collections", "pyarrow", "tensorboardX")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"


def run(tmp_path, *flags):
  """The JSON lines of gpu.py --tiny where ABSENT cannot be imported."""
  (tmp_path / "sitecustomize.py").write_text(BLOCK)
  result = subprocess.run(
    [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--steps", "2", *flags],
    env={**os.environ, "PYTHONPATH": str(tmp_path), "XLA_FLAGS": ""},
    timeout=600,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return [json.loads(x) for x in result.stdout.splitlines() if x.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["lora_ours", "full_ours"])
def test_ours_learns_on_a_bare_machine(tmp_path, side):
  [out] = run(tmp_path, "--side", side, "--attention", "chunked")
  assert len(out["losses"]) == 3 and out["losses"][-1] < out["losses"][0]
  assert 0 < out["useful_flops"] < out["executed_flops"]
  assert out["real_tokens"] < out["computed_tokens"]


@pytest.mark.slow
def test_every_section_runs(tmp_path):
  lines = run(tmp_path, "--sections", "attention,lora,full")
  predicted = [x for x in lines if "prediction" in x]
  lines = [x for x in lines if "prediction" not in x]
  assert [x["section"] for x in predicted] == ["lora", "full"]
  for x in predicted:
    assert 0 < x["prediction"]["planned_bytes"] < 1e9 and x["prediction"]["estimated_bytes"] > 0
  assert [(x["section"], x.get("side")) for x in lines] == [
    ("attention", None),
    *((kind, side) for kind in ("lora", "full") for side in ("ours", "peer", "peer_full_rows")),
  ]
  assert not any("failed" in x for x in lines)
  for case in lines[0]["cases"].values():
    assert case["chunked"]["error"] < 1e-4
  # The same tokens are trained from by both sides, in the same number of steps.
  assert len({len(x["losses"]) for x in lines[1:]}) == 1


@pytest.mark.slow
def test_decoding_and_a_profile(tmp_path):
  decode, profile = run(tmp_path, "--sections", "decode,profile", "--attention", "chunked")
  assert decode["new_tokens"] == 8 and decode["tokens_per_second"] > 0
  assert len(profile["kernels"]) > 5 and profile["kernels"][0][1] >= profile["kernels"][1][1]


def test_a_backend_that_disagrees_or_fails_is_reported():
  sys.path.insert(0, str(ROOT / "benchmarks"))
  import gpu

  lines = [
    {
      "section": "attention",
      "cases": {
        "llama": {
          "xla": {"both_ms": 2.0, "error": 0.0},
          "flash": {"both_ms": 0.5, "error": 0.5},
          "chunked": {"both_ms": 1.0, "error": 1e-3},
          "cudnn": "FAILED X: y",
          "splash": "runs on tpu",
        }
      },
    },
    {"section": "lora", "side": "ours", "losses": [float("nan")]},
    {"section": "full", "side": "peer", "failed": "out of memory"},
  ]
  assert gpu.best_backend(lines[0]) == "chunked"
  problems = list(gpu.wrong(lines))
  assert len(problems) == 4
  for words in ("flash: differs", "cudnn: FAILED", "lora ours: losses", "out of memory"):
    assert any(words in x for x in problems)
  assert gpu.best_backend({"failed": "no time left"}) == "chunked"
