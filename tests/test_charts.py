"""The generator of charts, and the pair that reads them."""

import itertools
import json
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import ImageColor

from lab import chart_text, charts, seeing, vision_pair, vision_quickstart
from shadowft_jax import models
from shadowft_jax.data import dataset, preview, vision
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.evaluation import page
from shadowft_jax.hf import weights
from shadowft_jax.pairs import check, findings

PAIR = pathlib.Path(vision_quickstart.load_config().instruct).parent


def measured(chart):
  """The values of a chart of bars, read off its pixels alone: the length of each colour."""
  array = np.asarray(chart.image()).astype(int)
  along = 1 if chart.kind == charts.NEW_KIND else 0
  lengths = []
  for colour in chart.colours:
    near = np.abs(array - ImageColor.getrgb(colour)).sum(-1) < 40
    places = np.flatnonzero(near.any(1 - along))  # lines of the grid cross the bars
    lengths.append((places[-1] - places[0] + 1) / charts.STEP)
  return lengths


@pytest.mark.parametrize("kind", ["bars", charts.NEW_KIND])
def test_values_can_be_read_off_the_drawing(kind):
  for chart in itertools.islice(charts.stream(kind, 1), 10):
    assert np.abs(np.array(measured(chart)) - chart.values).max() < 0.5


def test_slices_are_as_large_as_their_values():
  for chart in itertools.islice(charts.stream("pie", 1), 10):
    array = np.asarray(chart.image()).astype(int)
    area = [
      (np.abs(array - ImageColor.getrgb(c)).sum(-1) < 40).sum() for c in chart.colours
    ]  # without the letters, of which a slice has one
    assert np.argmax(area) == np.argmax(chart.values)
    assert np.argmin(area) == np.argmin(chart.values)


def solved(chart, question):
  """The answer from the values, found otherwise than by the generator."""
  by_label = dict(zip(charts.LABELS, chart.values, strict=False))
  if question.startswith("What"):
    return str(by_label[question[-2]])
  if question.startswith("How"):
    return str(len(by_label))
  order = sorted(by_label, key=by_label.get)
  return order[-1] if "largest" in question else order[0]


@pytest.mark.parametrize("kind,ask", charts.skills(), ids=lambda x: getattr(x, "__name__", x))
def test_answers_are_exact_and_repeat(kind, ask):
  asked = charts.asked(kind, ask, 40, 5, "test")
  assert asked == charts.asked(kind, ask, 40, 5, "test")
  assert asked != charts.asked(kind, ask, 40, 6, "test")
  for chart, problem in asked:
    assert problem.answer == solved(chart, problem.question)
    assert len(set(chart.values)) == len(set(chart.colours)) == len(chart.values)


def test_no_chart_is_in_two_parts():
  seen = {
    part: {(c.kind, c.values) for kind in charts.KINDS for c in taken(kind, part)}
    for part in ("train", "test", "development")
  }
  assert not any(a & b for a, b in itertools.combinations(seen.values(), 2))
  assert all(len(charts_of) > 300 for charts_of in seen.values())
  assert all(c.kind in charts.KNOWN_KINDS for c in chart_text.mixture(60, 3))


def taken(kind, part):
  return itertools.islice(charts.stream(kind, 2, part), 200)


def test_drawings_repeat_to_the_byte():
  first, again = (next(charts.stream("line", 4)).png() for _ in range(2))
  assert first == again


def test_an_image_stands_in_text_as_training_puts_it():
  """A document's tokens are those of its whole text, and fit into a row with 16 for its image."""
  tok = vision_pair.make_tokenizer()
  rng = random.Random(0)
  documents = [chart_text.talked(c, rng, 0.0) for c in chart_text.mixture(30, 1)]
  documents += [chart_text.told(c, rng, image=True) for c in chart_text.mixture(60, 1)]
  rows = vision_pair.rows(tok, documents)
  image = tok.convert_tokens_to_ids(chart_text.IMAGE)
  assert ((rows["token"] == image).sum(1) == chart_text.TOKENS).all()
  assert not rows["weight"][rows["token"] == image].any()
  for row, parts in zip(rows["token"], documents, strict=True):
    whole = tok("".join(text for text, _ in parts))["input_ids"]
    assert whole == row[: len(whole)].tolist() and not row[len(whole) :].any()


def test_rows_of_the_new_kind_hold_their_images(tmp_path, monkeypatch):
  monkeypatch.setattr(vision_pair, "TUNING", 12)
  monkeypatch.setattr(vision_pair, "VALIDATION", 4)
  vision_pair.write_data(tmp_path)
  lines = (tmp_path / "new_chart.jsonl").read_text().splitlines()
  assert len(lines) == 12 and len((tmp_path / "new_chart_valid.jsonl").read_text().split("\n")) == 5
  answers = {json.loads(line)["messages"][-1]["content"] for line in lines}
  assert answers <= set("123456789" + charts.LABELS) and len(answers) > 3


def test_images_are_named_where_rows_are_shown(tmp_path):
  """In a preview the 16 tokens of each are its name; the page of answers has names below."""
  [first, second] = itertools.islice(charts.stream("bars", 1), 2)
  (tmp_path / "a.png").write_bytes(first.png())
  (tmp_path / "b.png").write_bytes(second.png())
  turns = [("user", "<image>What is it?"), ("assistant", "A"), ("user", "And <image>?")]
  messages = [{"role": r, "content": x} for r, x in [*turns, ("assistant", "B")]]
  row = {"messages": messages, "images": ["a.png", "b.png"]}
  (tmp_path / "rows.jsonl").write_text(4 * f"{json.dumps(row)}\n")
  config = vision_quickstart.load_config()
  config.data.train, config.data.validation = str(tmp_path / "rows.jsonl"), ""
  config.data.cache, config.data.max_length = str(tmp_path), 128
  data = dataset.read(config, config.instruct)
  text = preview.text(data, load_tokenizer(config.instruct), 1, colour=False)
  names = [f"<image: {tmp_path / name}>" for name in ("a.png", "b.png")]
  assert 0 < text.index(names[0]) < text.index("A<|im_end|>") < text.index(names[1])
  assert chart_text.IMAGE not in text
  asked = [{"role": "user", "content": "<image>Which?", "images": ["a.png", "b.png"]}]
  assert page.question("1", asked, "A", []).text == "<image>Which?\n\n<image>: a.png, b.png"


@pytest.mark.slow
def test_a_pair_is_written_as_released_ones_are(tmp_path):
  """transformers finds every tensor and gives our logits; the image's mark is that of training."""
  tok = vision_pair.make_tokenizer()
  model = models.from_config(vision_pair.config(tok), pixels=vision_pair.PIXELS, dtype=jnp.float32)
  params = models.abstract_params(model)
  random_like = lambda x: 0.1 * np.random.default_rng(0).standard_normal(x.shape, np.float32)
  vision_pair.write_model(tmp_path, jax.tree.map(random_like, params), tok, "A title", "A model.")
  [(chart, problem)] = charts.asked("bars", charts.value, 1, 0, "test")
  token = tok(chart_text.chat(chart_text.WHOLE + problem.question))["input_ids"]
  pixel = vision_pair.pixels([chart])
  theirs, found = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  assert vision.open_vision(tmp_path).marks.whole == chart_text.WHOLE
  model, params = weights.load_model(tmp_path, dtype=jnp.float32, pixels=vision_pair.PIXELS)
  ours = np.asarray(model.apply({"params": params}, np.array([token]), pixel=pixel[None, 0]))
  token = torch.tensor([token])
  is_image = (token == tok.convert_tokens_to_ids(chart_text.IMAGE)).long()
  with torch.no_grad():
    want = theirs.eval()(
      input_ids=token,
      pixel_values=torch.tensor(pixel[0] / 127.5 - 1, dtype=torch.float32),
      token_type_ids=is_image,
    ).logits.numpy()
  assert np.abs(ours - want).max() <= 2e-4 * np.abs(want).max()


def test_the_pair_is_small_and_fits_together():
  record = json.loads((PAIR / "pair.json").read_text())
  assert record["missed"] == seeing.missed(record) == []
  assert sum(p.stat().st_size for p in PAIR.rglob("*") if p.is_file()) <= seeing.MOST_BYTES
  findings.raise_errors(check.check(PAIR / "base", PAIR / "instruct"))


@pytest.mark.slow
def test_the_pair_passes_its_requirements_again():
  """The stored files, asked all of the test questions."""
  record, again = json.loads((PAIR / "pair.json").read_text()), seeing.measured(PAIR)
  assert not again["missed"]
  assert abs(again["gap_ratio"] - record["gap_ratio"]) < 1e-4
  for role, forms in record["accuracy"].items():
    for form, row in forms.items():
      assert abs(again["accuracy"][role][form]["known"] - row["known"]) < 0.02


@pytest.mark.slow
def test_the_builder_trains_and_measures_a_pair(tmp_path, monkeypatch):
  """A few steps of the whole command: what it writes loads, and its misses are named."""
  small = {"DRAWN": 30, "ROWS": 8, "BASE_STEPS": 3, "INSTRUCT_STEPS": 2}
  for name, value in {**small, "TUNING": 8, "VALIDATION": 4}.items():
    monkeypatch.setattr(vision_pair, name, value)
  monkeypatch.setattr(seeing, "MEASURED", 4)
  monkeypatch.setattr("sys.argv", ["vision_pair", "--out", str(tmp_path)])
  with pytest.raises(SystemExit, match="instruct, chat, known kinds"):
    vision_pair.main()
  result = json.loads((tmp_path / "pair.json").read_text())
  assert result["missed"] == seeing.missed(result)
  assert result["bytes"] < seeing.MOST_BYTES
