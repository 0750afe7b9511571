"""The preview shows which tokens are trained, and what the plan makes of all of them."""

import re

import numpy as np
import pytest

from shadowft_jax.data import dataset, preview
from shadowft_jax.data.tokenizer import load_tokenizer
from tests import pico, runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  (folder / "instruct").mkdir()
  pico.save_tokenizer(folder / "instruct")
  runs.write_rows(folder / "rows.jsonl")
  return folder


def shown(folder, count=2, ids=False, colour=False, **fields):
  config = runs.config_of(folder, **fields)
  data = dataset.read(config, config.instruct)
  tokenizer = load_tokenizer(config.instruct)
  return data, tokenizer, preview.text(data, tokenizer, count, ids=ids, colour=colour)


def test_trained_tokens_are_marked(folder):
  data, tokenizer, text = shown(folder)
  for number, example in enumerate(data.train[:2], 1):
    prompt, answer = (tokenizer.decode(example.token[example.answer == k]) for k in (0, 1))
    want = prompt + "⟦" + answer.replace("\n", "⏎\n") + "⟧"
    assert f"--- example {number}: {example.where}: {len(example.token)} tokens, " in text
    assert want in text
  assert text.count("⟦") == 2 and "rows.jsonl row" in text


def test_colour_marks_the_same_tokens(folder):
  data, tokenizer, text = shown(folder, colour=True)
  plain = re.sub("\x1b\\[[0-9;]*m", "", text)
  assert plain == shown(folder)[2].replace("⟦", "").replace("⟧", "")
  trained = "".join(re.findall("\x1b\\[1;32m(.*?)\x1b\\[0m", text))
  want = "".join(tokenizer.decode(e.token[e.answer > 0]).replace("\n", "⏎") for e in data.train[:2])
  assert trained == want


def test_ids_are_shown_on_request(folder):
  data, _, text = shown(folder, count=1, ids=True)
  head, _, body = text.partition("\n")
  ids = [int(i) for i in re.findall(r"(\d+):\S", body.split("tokens per example")[0])]
  assert ids == data.train[0].token.tolist()


def test_another_label_than_the_token_is_shown(folder):
  _, tokenizer, text = shown(
    folder,
    ids=True,
    **{"data.recipe": "paper", "data.template": "falcon", "data.train": str(two_turns(folder))},
  )
  assert f"→{tokenizer.eos_token_id}:" in text


def two_turns(folder):
  path = folder / "turns.jsonl"
  turn = '{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}'
  path.write_text(f'{{"messages": [{turn}, {turn}]}}\n' * 20)
  return path


def test_the_numbers_are_those_of_the_run(folder):
  data, _, text = shown(folder, count=0)
  lengths = [len(e.token) for e in data.train]
  trained = sum(e.trained for e in data.train)
  assert "--- example" not in text
  assert f"{trained:,} of {sum(lengths):,} ({trained / sum(lengths):.1%})" in text
  assert f"{len(data.train)} training, {len(data.valid)} validation" in text
  assert f"steps:           {len(data.steps)}; " in text
  bars = re.findall(r"^ +([\d,]+) to +([\d,]+) +([\d,]+)", text, re.M)
  assert sum(int(n) for *_, n in bars) == len(lengths)
  for low, high, n in bars:
    assert int(n) == sum(int(low) <= x <= int(high) for x in lengths)
  computed = sum(b["token"].size for i in range(len(data.steps)) for b in data.batches(i))
  used = sum(data.tokens(i) for i in range(len(data.steps)))
  assert f"{used / computed:.1%} of the computed tokens" in text


def test_truncated_tokens_are_counted(folder):
  data, _, text = shown(folder, count=0, **{"data.max_length": 60})
  cut = [e.cut for e in data.train if e.cut]
  assert cut and f"truncated:       {len(cut)} examples, {sum(cut)} answer token" in text


def test_the_rows_of_both_layouts_are_counted(folder):
  for layout in ("packed", "bucketed"):
    data, _, text = shown(folder, count=0, **{"data.layout": layout})
    rows = [len(s.rows) for s in data.steps]
    assert re.search(rf"rows per step:   .*, {layout}; micro", text)
    if layout == "bucketed":
      assert rows == [len(s.examples) for s in data.steps]
    computed = sum(b["token"].size for i in range(len(data.steps)) for b in data.batches(i))
    used = sum(data.tokens(i) for i in range(len(data.steps)))
    assert np.isclose(
      float(re.search(r"fill: +([\d.]+)%", text)[1]), 100 * used / computed, atol=0.05
    )
