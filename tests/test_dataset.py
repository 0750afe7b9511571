"""Files become the steps of a run: what is taken, left out, weighted and split off."""

import collections
import json
import pathlib
import re

import datasets
import numpy as np
import pytest

from shadowft_jax import presets
from shadowft_jax.data import dataset
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from tests import pico


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
  folder = tmp_path_factory.mktemp("instruct")
  pico.save_tokenizer(folder)
  return folder


def write(path, answers, **extra):
  rows = [{"instruction": "Say it.", "output": a, **extra} for a in answers]
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  return path


@pytest.fixture
def config(tmp_path, instruct):
  c = presets.sft()
  c.base = "not read"
  c.instruct = str(instruct)
  c.data.max_length = 128
  c.data.val_ratio = 0.0
  c.batch_size = 8
  c.data.train = str(write(tmp_path / "a.jsonl", [f"a{i:02}" for i in range(20)]))
  return c


def answers(examples, instruct):
  tokenizer = load_tokenizer(instruct)
  return [
    tokenizer.decode(e.token[e.answer > 0], skip_special_tokens=True).strip() for e in examples
  ]


def epoch(data, config, number=0):
  """The answers of one epoch's steps, with how often each is there."""
  a_epoch = len(data.steps) // config.epochs
  steps = data.steps[number * a_epoch : (number + 1) * a_epoch]
  texts = answers(data.train, config.instruct)
  return collections.Counter(texts[i] for s in steps for i in s.examples)


def test_the_first_rows_are_taken_or_any(config):
  config.data.max_examples = 5
  first = dataset.read(config, config.instruct)
  assert answers(first.train, config.instruct) == ["a00", "a01", "a02", "a03", "a04"]
  config.data.select = "uniform"
  some = answers(dataset.read(config, config.instruct).train, config.instruct)
  again = answers(dataset.read(config, config.instruct).train, config.instruct)
  assert some == again == sorted(set(some))
  assert len(some) == 5 and some != answers(first.train, config.instruct)
  config.seed = 1
  assert answers(dataset.read(config, config.instruct).train, config.instruct) != some
  config.data.max_examples = 99
  assert len(dataset.read(config, config.instruct).train) == 20


def test_sources_are_passed_by_their_weights(config, tmp_path):
  write(tmp_path / "b.jsonl", [f"b{i:02}" for i in range(10)])
  config.data.train = f"{tmp_path}/a.jsonl*0.5,{tmp_path}/b.jsonl*2"
  config.epochs = 2
  data = dataset.read(config, config.instruct)
  for number in (0, 1):
    count = epoch(data, config, number)
    assert sum(n for k, n in count.items() if k[0] == "a") == 10
    assert all(count[f"b{i:02}"] == 2 for i in range(10))
  assert epoch(data, config, 0) != epoch(data, config, 1)


def test_a_split_keeps_each_source_at_its_weight(config, tmp_path):
  write(tmp_path / "b.jsonl", [f"b{i:02}" for i in range(10)])
  config.data.train = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl*3"
  config.data.val_ratio = 0.3
  data = dataset.read(config, config.instruct)
  held_out = answers(data.valid, config.instruct)
  assert len(held_out) == 9 and {k[0] for k in held_out} == {"a", "b"}
  for answer, n in epoch(data, config).items():
    assert n == (3 if answer[0] == "b" else 1) and answer not in held_out


def test_the_papers_split_is_that_of_datasets(config):
  config.data.recipe, config.data.template = "paper", "qwen"
  config.data.val_ratio = 0.1
  data = dataset.read(config, config.instruct)
  rows = datasets.Dataset.from_dict({"i": [f"a{i:02}" for i in range(20)]})
  want = rows.train_test_split(test_size=0.1, seed=42)
  assert answers(data.valid, config.instruct) == want["test"]["i"]
  assert sorted(answers(data.train, config.instruct)) == sorted(want["train"]["i"])


def test_bad_rows_end_the_run_or_are_left_out_and_listed(config, tmp_path, capsys):
  path = tmp_path / "a.jsonl"
  path.write_text(path.read_text() + '{"instruction": "q", "output": ""}\nnot json\n')
  with pytest.raises(InputError, match="a.jsonl row 21"):
    dataset.read(config, config.instruct)
  config.data.skip_bad_rows = True
  assert len(dataset.read(config, config.instruct).train) == 20
  err = capsys.readouterr().err
  assert "bad rows skipped: 2" in err and "row 21" in err and "row 22 is not valid JSON" in err


def test_rows_with_images_are_refused_or_trained_as_text(config, tmp_path):
  write(tmp_path / "a.jsonl", ["<image>two", "one<image>"], images=["1.png"])
  with pytest.raises(InputError, match=r"a.jsonl row 1 has 1 image,.*data.images=ignore"):
    dataset.read(config, config.instruct)
  config.data.images = "ignore"
  assert answers(dataset.read(config, config.instruct).train, config.instruct) == ["two", "one"]


def test_truncated_and_dropped_examples_are_reported(config, tmp_path, capsys):
  write(tmp_path / "a.jsonl", ["x" * 10, "x" * 200, "y"])
  dataset.read(config, config.instruct)
  assert "alpaca" in capsys.readouterr().err
  with (tmp_path / "a.jsonl").open("a") as f:
    f.write(json.dumps({"instruction": "q" * 300, "output": "a"}) + "\n")
  data = dataset.read(config, config.instruct)
  err = capsys.readouterr().err
  assert "3 examples" in err and "1 dropped" in err and "1 truncated to data.max_length" in err
  assert [e.cut > 0 for e in data.train] == [False, True, False]
  write(tmp_path / "a.jsonl", ["a"], input="q" * 300)
  with pytest.raises(InputError, match="no example has an answer .*raise data.max_length"):
    dataset.read(config, config.instruct)


def test_answers_without_a_stop_token_are_reported_with_a_remedy(config, tmp_path, capsys):
  pico.save_tokenizer(tmp_path)
  dataset.read(config, tmp_path)
  assert "warning" not in capsys.readouterr().err
  template = (tmp_path / "chat_template.jinja").read_text()
  (tmp_path / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|endoftext|>"))
  dataset.read(config, tmp_path)
  err = capsys.readouterr().err
  assert "answers without a stop token at their end: 20" in err
  assert f"of {tmp_path} closes them with none of its stop tokens (<|im_end|>);" in err
  # What it advises helps.
  field, path = re.search(r"set it as (\w+) in (.*)", err).groups()
  ids = load_tokenizer(tmp_path).convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
  pathlib.Path(path).write_text(json.dumps({field: ids}))
  dataset.read(config, tmp_path)
  assert "warning" not in capsys.readouterr().err


def test_control_tokens_in_answers_and_dates_in_templates_are_reported(config, tmp_path, capsys):
  write(tmp_path / "a.jsonl", ["it ends with <|im_end|>", "so", "<|im_start|>"])
  dataset.read(config, config.instruct)
  assert (
    "special token, such as the one that ends a turn, in 2 of 3 examples" in capsys.readouterr().err
  )
  pico.save_tokenizer(tmp_path)
  template = (tmp_path / "chat_template.jinja").read_text()
  (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b') }}" + template)
  config.data.validation = config.data.train
  data = dataset.read(config, tmp_path)
  assert load_tokenizer(tmp_path).decode(data.train[0].token).startswith("26 Jul<|im_start|>")
  err = capsys.readouterr().err
  assert err.count("inserts today's date; using 26 Jul 2024 instead") == 1


def test_max_steps_ends_a_run_early_or_passes_over_the_data_again(config):
  assert len(dataset.read(config, config.instruct).steps) == 3
  for steps in (2, 7):
    config.max_steps = steps
    data = dataset.read(config, config.instruct)
    assert len(data.steps) == steps
    assert [len(s.examples) for s in data.steps] == [8, 8, 4, 8, 8, 4, 8][:steps]


def test_rows_are_a_multiple_of_the_devices_that_share_them(config):
  config.data.layout, config.data.max_length = "bucketed", 200
  for context, widths in ((1, {100}), (8, {200})):
    data = dataset.read(config, config.instruct, context)
    assert {b["token"].shape[1] for b in data.batches(0)} == widths
    assert {b["token"].shape[1] for b, _ in data.once(data.train)} == widths


def test_the_digest_depends_on_tokens_their_order_and_the_loss_mask(config, tmp_path):
  digest = lambda: dataset.read(config, config.instruct).digest
  first = digest()
  assert digest() == first
  rows = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
  config.data.train = str(tmp_path / "b.jsonl")
  (tmp_path / "b.jsonl").write_text("".join(rows))
  assert digest() == first  # wherever the rows lie
  digests = {first}
  for text in (rows[::-1], rows[:-1], [rows[0].replace("a00", "b00"), *rows[1:]]):
    (tmp_path / "b.jsonl").write_text("".join(text))
    digests.add(digest())
  (tmp_path / "b.jsonl").write_text("".join(rows))
  config.data.val_ratio = 0.1
  assert len(digests | {digest()}) == 5


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_the_batches_of_all_steps_hold_every_example(config, layout):
  config.data.layout = layout
  config.loss_mean = "rank"
  config.ranks = 2
  data = dataset.read(config, config.instruct)
  rows = [b for i in range(len(data.steps)) for b in data.batches(i)]
  assert sum(int((b["position"] == 0)[b["segment"] > 0].sum()) for b in rows) == 20
  # Each rank's trained tokens weigh 1 in all.
  for i in range(len(data.steps)):
    total = sum(float((b["weight"] * (b["answer"] > 0)).sum()) for b in data.batches(i))
    np.testing.assert_allclose(total, 2, rtol=1e-6)
