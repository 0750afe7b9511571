"""Train, kill, resume; train, graft, export, reload elsewhere."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowft_jax.hf import deltas
from shadowft_jax import train
from shadowft_jax.generation import decode
from shadowft_jax.hf import weights
from shadowft_jax.errors import InputError
from shadowft_jax.learning import checkpoints, kernels, loop, step
from shadowft_jax.runs import html, metrics, page
from tests import runs

pytestmark = pytest.mark.draws

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24))


def torch_logits(folder, dtype=torch.float32, adapter=None):
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
  if adapter:
    model = peft.PeftModel.from_pretrained(model, adapter)
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.float().numpy()


def our_logits(folder):
  model, params = weights.load_model(folder, dtype=jnp.float32)
  return np.asarray(jax.jit(model.apply)({"params": params}, jnp.array(TOKENS)))


def tensors(folder):
  from safetensors.torch import load_file

  return load_file(folder / "model.safetensors")


def assert_close(got, want, tolerance=2e-4):
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def lora_run(pair, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "lora"
  records = train.train(runs.config_of(pair), workdir)
  return workdir, records


def test_a_run_lowers_the_loss_and_writes_a_whole_folder(pair, lora_run):
  workdir, records = lora_run
  losses = [r["loss"] for r in records if "loss" in r]
  assert len(losses) == 10
  assert losses[-1] < 0.8 * losses[0]
  valid = {r["step"]: r["valid_loss"] for r in records if "valid_loss" in r}
  assert sorted(valid) == [0, 4, 8, 10]
  assert valid[10] < valid[0]
  assert records[-1]["shadow_valid_loss"] < records[-1]["instruct_valid_loss"]
  assert {p.name for p in workdir.iterdir()} == {
    "config.json",
    "data.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "delta",
    "shadow",
    "log.txt",
    "preview.json",
    "report.html",
    "pictures",
    "provenance.json",
    "README.md",
  }
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  best = min((step for step in valid if step), key=valid.get)
  assert steps == sorted({best, 4, 8, 10})
  digests = json.loads((workdir / "provenance.json").read_text())["sha256"]
  assert str(pair / "base" / "model.safetensors") in digests["base"]


def test_a_run_has_cards_and_a_guide(pair, lora_run):
  workdir, records = lora_run
  loss = (
    f"| loss | {records[-1]['instruct_valid_loss']:.4f} | {records[-1]['shadow_valid_loss']:.4f} |"
  )
  for name, library in (("shadow", "transformers"), ("delta", "peft")):
    card = ModelCard.load(workdir / name / "README.md")
    assert card.data.library_name == library and card.data.tags[0] == "shadow-ft"
    assert loss in card.text and "`rows.jsonl`" in card.text and str(pair) not in card.text
  stored = json.loads((workdir / "shadow" / "provenance.json").read_text())["sha256"]["output"]
  for path in (workdir / "shadow").iterdir():
    if path.name != "provenance.json":
      assert stored[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
  guide = (workdir / "README.md").read_text()
  named = set(re.findall(r"^\| `([\w.]+)/?`", guide, re.M))
  assert named == {p.name for p in workdir.iterdir()} - {"README.md"} and loss in guide


def test_transformers_gives_our_logits_from_shadow_and_peft_from_delta(pair, lora_run):
  workdir, _ = lora_run
  want = our_logits(workdir / "shadow")
  assert np.abs(want - our_logits(pair / "instruct")).max() > 0.1
  assert_close(torch_logits(workdir / "shadow"), want)
  assert_close(torch_logits(pair / "instruct", adapter=workdir / "delta"), want)
  assert json.loads((workdir / "delta" / "adapter_config.json").read_text())[
    "base_model_name_or_path"
  ] == str(pair / "instruct")


def test_only_the_projections_differ_from_the_instruct(pair, lora_run):
  before, after = tensors(pair / "instruct"), tensors(lora_run[0] / "shadow")
  assert before.keys() == after.keys()
  changed = {n for n in before if not torch.equal(before[n], after[n])}
  assert changed == {n for n in before if "_proj" in n}


def test_generation_agrees_with_transformers(lora_run):
  folder = lora_run[0] / "shadow"
  tokenizer = AutoTokenizer.from_pretrained(folder)
  text = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Say red blue again."}], tokenize=False, add_generation_prompt=True
  )
  prompt = tokenizer(text, add_special_tokens=False).input_ids
  hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  out = hf.generate(
    torch.tensor([prompt]),
    max_new_tokens=12,
    do_sample=False,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=0,
  )
  want = [t for t in out[0, len(prompt) :].tolist() if t != tokenizer.eos_token_id]
  model, params = weights.load_model(folder)
  got = decode.generate(
    model, {"params": params}, [prompt[:3], prompt], max_new=12, stop=(tokenizer.eos_token_id,)
  )
  assert got[1] == want


@pytest.mark.parametrize("name", [pytest.param("llama3", marks=pytest.mark.slow), "qwen2"])
def test_full_tuning_of_another_family(name, tmp_path):
  pair = runs.make_pair(tmp_path / "pair", name)
  config = runs.config_of(pair, **{"delta.kind": "full", "lr": 1e-3, "remat": "none"})
  records = train.train(config, tmp_path / "run")
  assert records[-1]["shadow_valid_loss"] < records[-1]["instruct_valid_loss"]
  assert (tmp_path / "run" / "delta" / "delta.safetensors").exists()
  assert_close(torch_logits(tmp_path / "run" / "shadow"), our_logits(tmp_path / "run" / "shadow"))


@pytest.mark.slow
def test_a_bf16_pair(tmp_path):
  """The folder agrees within bf16; the adapter kept apart is the more exact one."""
  pair = runs.make_pair(tmp_path / "pair", dtype=torch.bfloat16)
  config = runs.config_of(pair, dtype="bfloat16")
  train.train(config, tmp_path / "run")
  shadow, apart = tmp_path / "run" / "shadow", tmp_path / "run" / "delta"
  assert {str(t.dtype) for t in tensors(shadow).values()} == {"torch.bfloat16"}
  assert_close(torch_logits(shadow), our_logits(shadow))
  instruct, scale = our_logits(pair / "instruct"), None
  model, params = weights.load_model(pair / "instruct", dtype=jnp.float32)
  trained, scale = deltas.load(apart)
  from shadowft_jax import delta

  variables = delta.variables(params, trained, scale)
  exact = np.asarray(jax.jit(model.apply)(variables, jnp.array(TOKENS)))
  merged_error = np.abs(our_logits(shadow) - exact).max()
  apart_error = np.abs(torch_logits(pair / "instruct", adapter=apart) - exact).max()
  assert apart_error < merged_error <= 0.05 * np.abs(exact).max()
  assert np.abs(instruct - exact).max() > 2 * merged_error


def test_a_rate_of_zero_grafts_nothing(pair, tmp_path):
  fields = {"lr": 1e-30, "max_steps": 2, "data.val_ratio": 0.0}
  train.train(runs.config_of(pair, **fields), tmp_path / "run")
  a, b = pair / "instruct" / "model.safetensors", tmp_path / "run" / "shadow" / "model.safetensors"
  assert a.read_bytes() == b.read_bytes()


def test_the_usual_fine_tuning_starts_from_the_instruct(pair, tmp_path, capsys):
  config = runs.config_of(pair, learn_on="instruct")
  records = train.train(config, tmp_path / "run")
  np.testing.assert_allclose(
    records[0]["valid_loss"], records[-1]["instruct_valid_loss"], rtol=1e-5
  )
  last = [r["valid_loss"] for r in records if "valid_loss" in r][-1]
  np.testing.assert_allclose(records[-1]["shadow_valid_loss"], last, rtol=1e-4)
  # It never calls itself a graft; the folder keeps its name.
  run, err = tmp_path / "run", capsys.readouterr().err
  report = page.of_run(run)  # its last section has the config
  shown = html.render(dataclasses.replace(report, sections=report.sections[:-1]))
  assert "tuned Instruct" in shown
  guides = [(run / d / "README.md").read_text() for d in (".", "shadow", "delta")]
  for text in (err, shown, *guides):
    words = (
      text.replace(str(run / "shadow"), "")
      .replace("`shadow/`", "")
      .replace("shadowft_jax", "")
      .replace("shadowft ", "")  # the command that tries it
      .lower()
    )
    assert not re.search("shadow|graft", words.replace("nothing was grafted", "")), words
  assert f"validation loss: Instruct {records[-1]['instruct_valid_loss']:.4f}, tuned" in err
  assert f"try it: shadowft chat --model {run / 'shadow'}" in err
  log = (run / "log.txt").read_text()
  assert all(line in log for line in err.splitlines())
  assert "survival cos" in log and "survival cos" not in err


class Stop(Exception):
  """Stands for anything that ends a process between two steps."""


def stop_after(monkeypatch, step):
  real = metrics.Log.step

  def stopping(self, at, *args, **kwargs):
    real(self, at, *args, **kwargs)
    if at == step:
      raise Stop

  monkeypatch.setattr(metrics.Log, "step", stopping)


@pytest.mark.parametrize(
  "stops", [*(pytest.param(s, marks=pytest.mark.slow) for s in ((5,), (3,))), (4, 9)]
)
def test_a_resumed_run_gives_the_same_delta_bit_for_bit(
  pair, lora_run, tmp_path, monkeypatch, stops
):
  for stop in stops:
    with monkeypatch.context() as patch:
      stop_after(patch, stop)
      with pytest.raises(Stop):
        train.train(runs.config_of(pair), tmp_path / "run")
  records = train.train(runs.config_of(pair), tmp_path / "run")
  name = "delta/adapter_model.safetensors"
  assert (tmp_path / "run" / name).read_bytes() == (lora_run[0] / name).read_bytes()
  timeless = lambda rs: [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in rs]
  assert timeless(records) == timeless(lora_run[1])


def test_a_run_is_not_resumed_on_other_data(pair, tmp_path, monkeypatch):
  rows = tmp_path / "rows.jsonl"
  before = (pair / "rows.jsonl").read_text()
  config = lambda: runs.config_of(pair, **{"data.train": str(rows)})
  run = tmp_path / "run"
  # Before the first checkpoint, the data may still change.
  for text, stop in ((before.replace("red", "blue"), 2), (before, 5)):
    rows.write_text(text)
    with monkeypatch.context() as patch:
      stop_after(patch, stop)
      with pytest.raises(Stop):
        train.train(config(), run)
  never = lambda *_, **__: pytest.fail("the weights are read")
  monkeypatch.setattr(weights, "load_model", never)
  for text in ("\n".join(reversed(before.splitlines())), before[: before.rindex("{")]):
    rows.write_text(text)
    with pytest.raises(
      InputError, match=f"{run} was begun with other inputs; .*have changed since:\n  {rows}"
    ):
      train.train(config(), run)
  rows.write_text(before)
  with pytest.raises(pytest.fail.Exception, match="the weights are read"):
    train.train(config(), run)


def test_bad_data_ends_a_run_before_anything_is_compiled(pair, tmp_path, monkeypatch):
  monkeypatch.setattr(kernels, "choose", lambda *_: pytest.fail("attention is compiled"))
  config = runs.config_of(pair, **{"data.columns.prompt": "nowhere"})
  with pytest.raises(InputError, match="has no column 'nowhere'"):
    train.train(config, tmp_path / "run")


def test_the_next_item_is_made_while_one_is_in_use():
  made = [threading.Event() for _ in range(4)]

  def items():
    for number, event in enumerate(made):
      event.set()
      yield number

  for number in (fetched := loop.prefetch(items())):
    assert number == 3 or made[number + 1].wait(10)
    assert number > 1 or not made[number + 2].is_set()
  assert list(loop.prefetch(iter([]))) == [] and list(fetched) == []

  def failing():
    yield 1
    raise Stop

  got = loop.prefetch(failing())
  assert next(got) == 1
  with pytest.raises(Stop):
    next(got)


def test_a_finished_run_is_left_alone(pair, lora_run):
  workdir, records = lora_run
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
  assert train.train(runs.config_of(pair), workdir) == records
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_a_finished_run_that_was_killed_before_its_page_gets_it(pair, lora_run):
  workdir, records = lora_run
  page_before = (workdir / "report.html").read_bytes()
  (workdir / "report.html").unlink()
  assert train.train(runs.config_of(pair), workdir) == records
  assert (workdir / "report.html").read_bytes() == page_before


@pytest.mark.slow
def test_a_killed_run_resumes(pair, lora_run, tmp_path):
  """kill -9 in the middle of a real command, then the same command again."""
  config = pathlib.Path(tmp_path / "config.py")
  config.write_text(
    "from tests import runs\nimport pathlib\n"
    f"def get_config(): return runs.config_of(pathlib.Path({str(pair)!r}))\n"
  )
  command = [
    sys.executable,
    "-m",
    "shadowft_jax.train",
    "--config",
    str(config),
    "--workdir",
    str(tmp_path / "run"),
  ]
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
  process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
  metrics = tmp_path / "run" / "metrics.jsonl"
  deadline = time.time() + 120
  while not (metrics.exists() and '"step": 5' in metrics.read_text()):
    assert time.time() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  again = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert again.returncode == 0, again.stderr
  name = "delta/adapter_model.safetensors"
  assert (tmp_path / "run" / name).read_bytes() == (lora_run[0] / name).read_bytes()


@pytest.mark.parametrize(
  "losses, best, remaining",
  [
    ([0.2, 0.5, 0.9, 0.6, 0.5], 1, {1, 3, 4, 5}),
    ([0.9, 0.5, 0.3, 0.2], 4, {2, 3, 4}),
    ([None, None], 2, {1, 2}),
    ([], None, set()),
  ],
)
def test_the_newest_checkpoints_and_the_one_of_lowest_loss_stay(tmp_path, losses, best, remaining):
  state = {"x": jnp.zeros(2)}
  with checkpoints.open_checkpoints(tmp_path / "checkpoints") as saved:
    for number, loss in enumerate(losses, 1):
      checkpoints.save(saved, {"x": jnp.full(2, number)}, number, loss)
    assert checkpoints.best_step(saved) == best
    assert {c.step for c in saved.checkpoints} == remaining
    if best:
      assert checkpoints.restore(saved, state, best)["x"].tolist() == [best, best]
      assert checkpoints.restore(saved, state)["x"].tolist() == [len(losses)] * 2


@pytest.mark.slow
def test_the_best_checkpoint_can_be_grafted(pair, tmp_path):
  # Half like the trained answers and half unlike them: the loss falls, and rises in the end.
  valid = tmp_path / "valid.jsonl"
  rows = (pair / "rows.jsonl").read_text().splitlines()[:2]
  rows.append(json.dumps({"instruction": "Say red again.", "output": "Q" * 40}))
  valid.write_text("\n".join(rows) + "\n")
  config = runs.config_of(pair, **{"eval_every": 1, "epochs": 3, "data.validation": str(valid)})
  newest = train.train(config, tmp_path / "newest")
  config.graft.checkpoint = "best"
  train.train(config, tmp_path / "best")
  valid = {r["step"]: r["valid_loss"] for r in newest if r.get("valid_loss") and r["step"]}
  best = min(valid, key=valid.get)
  assert best < max(valid)
  with checkpoints.open_checkpoints(tmp_path / "best" / "checkpoints") as saved:
    assert checkpoints.best_step(saved) == best
  a, b = (deltas.load(tmp_path / n / "delta")[0] for n in ("newest", "best"))
  different = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a, b)
  assert any(jax.tree.leaves(different))


@pytest.mark.parametrize("of", ["training", "validation"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
  pair, tmp_path, monkeypatch, of
):
  real_update, real_means, calls = step.update, step.means, []

  def update(*args, **kwargs):
    calls.append(1)
    state, metrics = real_update(*args, **kwargs)
    bad = of == "training" and len(calls) == 6
    return state, {**metrics, "loss": jnp.float32("nan")} if bad else metrics

  def means(*args, **kwargs):
    bad = of == "validation" and len(calls) == 8
    return {**real_means(*args, **kwargs), **({"loss": float("nan")} if bad else {})}

  monkeypatch.setattr(step, "update", update)
  monkeypatch.setattr(step, "means", means)
  words = {"training": "step 6: {'loss': nan}", "validation": "step 8: {'valid_loss': nan}"}[of]
  with pytest.raises(
    FloatingPointError, match=f"not finite at {words}.*checkpoint of step 4 stays"
  ):
    train.train(runs.config_of(pair, **{"guard.skips": 1}), tmp_path / "run")
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
  assert not (tmp_path / "run" / "shadow").exists()
