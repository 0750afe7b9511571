"""A run on charts from data to the exported folder, read by transformers and PEFT."""

import json
import subprocess
import sys

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from shadowft_jax import compare, presets, train
from shadowft_jax.data import pictures
from shadowft_jax.generation import local
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.hf import weights
from shadowft_jax.learning import step
from shadowft_jax.runs import answers
from tests import pico, pictured


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(the pair's folder, the run's folder, the config) after a few steps on charts."""
  root = tmp_path_factory.mktemp("charts")
  pictured.save_pair(root)
  c = presets.sft()
  c.base, c.instruct = str(root / "base"), str(root / "instruct")
  c.data.train, c.data.val_ratio = str(pictured.save_rows(root, 8)), 0.2
  c.data.max_length, c.data.layout, c.data.cache = 64, "bucketed", str(root / "cache")
  c.rows = c.batch_size = 8
  c.samples, c.data.image_max_pixels = 2, 1500
  c.epochs, c.dtype, c.delta.rank, c.lr, c.remat = 3, "float32", 2, 1e-2, "none"
  records = train.train(c, root / "run")
  assert records[-1]["shadow_valid_loss"] < records[-1]["instruct_valid_loss"]
  return root, root / "run", c


def inputs():
  """Tokens of a prompt with a chart, and its pixels as floats."""
  token = np.array([[7, 8, 262, *[pictured.IMAGE] * pictured.TOKENS, 261, 9, 10, 11]])
  array = np.asarray(pictured.chart(3).resize((28, 28)), np.float32).transpose(2, 0, 1)
  return token, (array / 127.5 - 1)[None]


def theirs(model):
  token, pixel = inputs()
  token = torch.tensor(token)
  given = dict(pixel_values=torch.tensor(pixel), token_type_ids=(token == pictured.IMAGE).long())
  with torch.no_grad():
    return model.eval()(input_ids=token, **given).logits.numpy()


@pytest.mark.slow
def test_transformers_and_peft_give_the_logits_of_the_run(run):
  root, folder, _ = run
  load = transformers.Gemma3ForConditionalGeneration.from_pretrained
  token, pixel = inputs()
  model, params = weights.load_model(
    folder / "shadow", pixels=step.siglip.Pixels((1,) * 3, (0,) * 3)
  )
  ours = jax.jit(model.apply)({"params": params}, token, pixel=pixel[None])
  shadow, instruct = load(folder / "shadow"), load(root / "instruct")
  want, before = theirs(shadow), theirs(instruct)
  assert np.abs(ours - want).max() <= 2e-4 * np.abs(want).max()
  served = peft.PeftModel.from_pretrained(instruct, folder / "delta")
  assert np.abs(theirs(served) - want).max() <= 1e-4 * np.abs(want).max()
  assert np.abs(before - want).max() > 1e-2 * np.abs(want).max()


@pytest.mark.slow
def test_only_the_language_model_changes(run):
  root, folder, _ = run
  before, after = (
    load_file(p / "model.safetensors") for p in (root / "instruct", folder / "shadow")
  )
  changed = {n for n in before if not np.array_equal(before[n], after[n])}
  assert changed and all(n.startswith("language_model.") and "_proj" in n for n in changed)
  assert before.keys() == after.keys()
  names = ("preprocessor_config.json", "config.json", "tokenizer.json")
  assert all(
    (folder / "shadow" / n).read_bytes() == (root / "instruct" / n).read_bytes() for n in names
  )


@pytest.mark.slow
def test_sample_answers_are_about_the_images(run):
  root, folder, _ = run
  during, after = (answers.read(folder / name) for name in (answers.DURING, answers.END))
  questions = {f"How many bars, {i}?": root / f"{i}.png" for i in range(8)}
  assert len(after) == 2 and {x["prompt"] for x in during} == {x["prompt"] for x in after}
  engine = local.load(root / "instruct", delta=folder / "delta", alpha=0.0).with_alpha(1.0)
  assert "shadowft evaluate --task chartqa " in (folder / "log.txt").read_text()
  assert engine.eye.max_pixels == local.load(folder / "shadow").eye.max_pixels == 1500
  assert "| data.image_max_pixels | 1500 |" in (folder / "shadow/README.md").read_text()
  sampling = Sampling(256, fit_context=True)
  for record in after:
    [(text, path)] = [x for x in questions.items() if x[0] in record["prompt"]]
    assert record["prompt"].count("<image>") == 1 and "soft_token" not in record["prompt"]
    turn = {"role": "user", "content": f"<image>{text}"}
    turn["images"] = (pictures.opened(str(path), [root], "it"),)
    [[answer]] = engine.complete([[turn]], sampling)
    assert record["shadow"] == answer.text


@pytest.mark.slow
def test_ft_and_shadow_ft_are_compared_on_images(run):
  root, _, config = run
  rows = [
    {"question": f"<image>How many bars, {i}?", "image": f"{i}.png", "answer": f"{i} bars"}
    for i in range(8)
  ]
  (root / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = dict(questions=(str(root / "q.jsonl"),), grid=("config.lr=1e-2",), max_new_tokens=4)
  options = compare.Options(
    config=config.copy_and_resolve_references(), **flags, workdir=str(root / "c")
  )
  text, results = compare.compare(options)
  assert len(results) == 2 and "7 test questions, 1 development question;" in text
  page = (root / "c/report.html").read_text()
  assert page.count('<img src="data:image/webp;base64,') == 7
  for arm in ("Instruct", *(one.cell.name for one in results)):
    said = (root / f"c/scores/{arm}/q.jsonl").read_text().splitlines()[0]
    assert '"image_max_pixels": 1500' in said


def test_a_text_only_model_takes_no_images(tmp_path):
  """The command says so in one line, and ends with exit code 2."""
  path = pico.save(pico.hf_model("gemma3"), tmp_path / "model", with_tokenizer=True)
  data = pictured.save_rows(tmp_path, 2)
  flags = [
    f"--config.{n}={x}" for n, x in (("base", path), ("instruct", path), ("data.train", data))
  ]
  command = [sys.executable, "-m", "shadowft_jax.train", "--config=lora", *flags, "--preview=1"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "a.jsonl row 1 has 1 image, but the model takes only text" in done.stderr
