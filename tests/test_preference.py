"""Pairs as tokens: which of them count, what is cut, what is counted and refused."""

import json

import numpy as np
import pytest

from shadowft_jax import presets
from shadowft_jax.data import dataset, formats, preference, preview, sources
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from tests import pico


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("instruct")
  pico.save_tokenizer(out)
  return out


def user(text):
  return {"role": "user", "content": text}


def assistant(text, **more):
  return {"role": "assistant", "content": text, **more}


def encode(row, folder, max_length=400, **settings):
  """The one Example of a raw row, which comes the way that all rows come."""
  source = sources.Source("f", 1.0, [("f row 1", row)])
  _, rows = formats.convert(source, {}, formats.BadRows(False), "dpo")
  [entry] = preference.encode(rows, folder, formats.Settings(max_length, **settings))
  if isinstance(entry, InputError):
    raise entry
  return entry[0]


def text_of(example, folder, trained=None):
  """The text of both sides; `trained`: of the tokens alone that count, or that do not."""
  tokenizer = load_tokenizer(folder)
  sides = (slice(example.second), slice(example.second, None))
  keep = slice(None) if trained is None else example.answer > 0 if trained else example.answer == 0
  mark = np.zeros(len(example.token), bool)
  mark[keep] = True
  return [tokenizer.decode(example.token[side][mark[side]]) for side in sides]


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# The forms that preference data has, and what is the prompt in them.
SAME = {
  "prompt beside": {"prompt": "q", "chosen": "a", "rejected": "bb"},
  "messages beside": {
    "prompt": [user("q")],
    "chosen": [assistant("a")],
    "rejected": [assistant("bb")],
  },
  "whole conversations": {
    "chosen": [user("q"), assistant("a")],
    "rejected": [user("q"), assistant("bb")],
  },
  "prompt repeated": {
    "prompt": "q",
    "chosen": [user("q"), assistant("a")],
    "rejected": [user("q"), assistant("bb")],
  },
  "ShareGPT ranking": {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "bb"},
  },
  "alpaca ranking": {"instruction": "q", "input": "", "chosen": "a", "rejected": "bb"},
  "transcripts": {
    "chosen": "\n\nHuman: q\n\nAssistant: a",
    "rejected": "\n\nHuman: q\n\nAssistant: bb",
  },
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_pair(form, folder):
  example = encode(SAME[form], folder)
  assert text_of(example, folder) == [
    CHAT.format("q") + "a<|im_end|>\n",
    CHAT.format("q") + "bb<|im_end|>\n",
  ]
  assert text_of(example, folder, trained=True) == ["a<|im_end|>\n", "bb<|im_end|>\n"]
  assert example.where == "f row 1" and example.cut == example.prompt_cut == 0


def test_the_loss_covers_only_turns_after_the_shared_ones(folder):
  turns = [user("p"), assistant("x"), user("q")]
  whole = {"chosen": [*turns, assistant("a")], "rejected": [*turns, assistant("bb")]}
  beside = {"prompt": turns, "chosen": "a", "rejected": "bb"}
  for row in (whole, beside):
    example = encode(row, folder)
    assert text_of(example, folder, trained=True) == ["a<|im_end|>\n", "bb<|im_end|>\n"]
    assert "x<|im_end|>" in text_of(example, folder, trained=False)[0]


def test_the_loss_covers_both_answers_from_where_conversations_differ(folder):
  row = {
    "chosen": [user("p"), assistant("x"), user("q"), assistant("y")],
    "rejected": [user("p"), assistant("z"), user("r"), assistant("y")],
  }
  example = encode(row, folder)
  assert text_of(example, folder, trained=True) == [
    "x<|im_end|>\ny<|im_end|>\n",
    "z<|im_end|>\ny<|im_end|>\n",
  ]
  with pytest.raises(InputError, match="row 1: .*differ before their last turn.*recipe=chat"):
    encode(row, folder, recipe="paper", template="yi")


def test_the_papers_framing_of_pairs(folder):
  turns = [user("p"), assistant("x"), user("q")]
  example = encode(
    {"prompt": turns, "chosen": "a", "rejected": "bb"}, folder, recipe="paper", template="yi"
  )
  assert text_of(example, folder, trained=True) == ["a<|im_end|>\n", "bb<|im_end|>\n"]
  assert text_of(example, folder, trained=False)[0] == CHAT.format("p") + "x<|im_end|>\n" + (
    CHAT.format("q")
  )


@pytest.mark.parametrize("recipe", ["chat", "paper"])
def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end(folder, recipe):
  options = dict(recipe=recipe, template="yi" if recipe == "paper" else "")
  row = {"prompt": "p" * 100 + "q", "chosen": "a", "rejected": "b" * 9}
  example = encode(row, folder, 60, **options)
  for side in text_of(example, folder, trained=False):
    assert side.endswith("q<|im_end|>\n<|im_start|>assistant\n") and "user" not in side
  assert text_of(example, folder, trained=True) == ["a<|im_end|>\n", "b" * 9 + "<|im_end|>\n"]
  whole = encode(row, folder, 1000, **options)
  assert example.cut == 0 and len(example.token) < 60
  assert example.prompt_cut == len(whole.token) - len(example.token) > 0

  row = {"prompt": "q", "chosen": "a" * 90, "rejected": "b"}
  example = encode(row, folder, 160, **options)
  whole = encode(row, folder, 1000, **options)
  assert example.second == 80 and example.prompt_cut == 0
  assert text_of(example, folder, trained=True)[1] == "b<|im_end|>\n"
  assert set(text_of(example, folder, trained=True)[0]) == {"a"}
  assert example.cut == len(whole.token) - len(example.token) > 0


def test_both_sides_keep_as_much_of_their_prompt(folder):
  example = encode({"prompt": "p" * 60, "chosen": "a", "rejected": "b" * 60}, folder, 80)
  chosen, rejected = text_of(example, folder, trained=False)
  assert chosen == rejected and len(example.token) - example.second == 40


def test_answers_that_are_equal_once_cut_are_refused(folder):
  row = {"prompt": "q", "chosen": "a" * 90 + "x", "rejected": "a" * 90 + "y"}
  assert encode(row, folder, 400).cut == 0
  with pytest.raises(
    InputError,
    match="row 1: chosen and rejected are identical once truncated to half of "
    "data.max_length=100; .*skip_bad_rows",
  ):
    encode(row, folder, 100)


def test_cached_tokens_are_reused_with_another_max_length(folder, tmp_path, monkeypatch):
  row = formats.Row("r", [user("q"), assistant("a" * 30)], [user("q"), assistant("b")])
  encoded = lambda n: preference.encode([row], folder, formats.Settings(n), tmp_path)[0][0]
  long = encoded(400)
  [cached] = tmp_path.glob("*.npz")
  assert len(encoded(60).token) < len(long.token)
  assert list(tmp_path.glob("*.npz")) == [cached]


# ---- a dataset of pairs


@pytest.fixture
def config(tmp_path, folder):
  c = presets.dpo()
  c.base, c.instruct = "not read", str(folder)
  c.data.max_length, c.data.val_ratio, c.batch_size, c.rows = 200, 0.0, 4, 2
  c.data.train = str(tmp_path / "pairs.jsonl")
  return c


def write(config, rows):
  with open(config.data.train, "w") as file:
    file.write("".join(json.dumps(row) + "\n" for row in rows))


def pairs(count):
  return [
    {"prompt": f"q{i}", "chosen": "a" * (1 + i), "rejected": "b" * (1 + i % 3)}
    for i in range(count)
  ]


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_both_sides_of_a_pair_share_a_row_in_separate_segments(config, layout):
  config.data.layout = layout
  write(config, pairs(10))
  data = dataset.read(config, config.instruct)
  data = data.with_reference(-1.0 - np.arange(20.0).reshape(10, 2), np.zeros((0, 2)))
  assert [len(s.examples) for s in data.steps[:3]] == [4, 4, 2]
  segments = []
  for number in range(3):
    for batch in data.batches(number):
      for token, segment, position, answer, logp in zip(
        *(batch[k] for k in ("token", "segment", "position", "answer", "reference")), strict=True
      ):
        count = segment.max() // 2
        for p in range(count):
          sides = [np.flatnonzero(segment == 2 * p + k) for k in (1, 2)]
          [which] = [
            i
            for i, e in enumerate(data.train)
            if np.array_equal(np.concatenate([token[s] for s in sides]), e.token)
          ]
          segments.append(which)
          for side, value in zip(sides, data.train[which].reference, strict=True):
            np.testing.assert_array_equal(position[side], np.arange(len(side)))
            first = side[np.flatnonzero(answer[side])[0]]
            assert logp[first - 1] == value
        assert np.count_nonzero(logp) == 2 * count
  assert sorted(segments) == list(range(10))


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
@pytest.mark.parametrize("share", [(0, 1, 1), (1, 2, 2)])
def test_a_pass_over_all_says_which_pair_is_where(config, layout, share):
  config.data.layout = layout
  write(config, pairs(9))
  data = dataset.read(config, config.instruct)
  seen = []
  for batch, rows in data.once(data.train, share):
    mine = rows[share[0] * len(batch["token"]) :]  # shares of one part of the rows each
    for token, row in zip(batch["token"], mine, strict=False):
      want = np.concatenate([data.train[i].token for i in row])
      np.testing.assert_array_equal(token[: len(want)], want)
    seen += [i for row in rows for i in row]
  assert sorted(seen) == list(range(9))


def test_truncated_refused_and_dropped_rows_are_reported(config, capsys):
  config.data.max_length = 100
  write(
    config,
    [
      *pairs(3),
      {"prompt": "p" * 80, "chosen": "a", "rejected": "b"},
      {"prompt": "q", "chosen": "a" * 90, "rejected": "b"},
      {"prompt": "q", "chosen": "a" * 90 + "x", "rejected": "a" * 90},
    ],
  )
  with pytest.raises(InputError, match="row 6: chosen and rejected are identical once"):
    dataset.read(config, config.instruct)
  config.data.skip_bad_rows = True
  assert len(dataset.read(config, config.instruct).train) == 5
  err = capsys.readouterr().err
  assert "(preference): 5 pairs" in err and "bad rows skipped: 1" in err and "row 6" in err
  assert "1 truncated to data.max_length" in err
  assert "1 with the prompt truncated from the left" in err


@pytest.mark.parametrize(
  "objective, row, said_",
  [
    (
      "sft",
      {"prompt": "q", "chosen": "a", "rejected": "b"},
      "row 1 is a preference pair; use config.objective=dpo, .*columns.response=chosen",
    ),
    ("dpo", {"instruction": "q", "output": "a"}, "row 1 is in the alpaca format and has no chosen"),
    (
      "dpo",
      {"messages": [user("q"), assistant("a")], "chosen": "a"},
      "has no rejected; config.objecti",
    ),
    ("dpo", {"text": "t"}, "row 1 is in the text format and has no chosen and rejected"),
    ("dpo", {"prompt": "q", "rejected": "a"}, "row 1 has rejected but no chosen"),
    (
      "dpo",
      {"messages": [user("q"), assistant("a")], "label": False},
      "good or bad; use config.objective=kto",
    ),
    (
      "dpo",
      {"messages": [user("q"), assistant("a")], "label": True},
      "good or bad; use config.objective=kto",
    ),
  ],
)
def test_data_of_another_objective_is_refused(config, objective, row, said_):
  config.objective = objective
  write(config, [row])
  with pytest.raises(InputError, match=said_):
    dataset.read(config, config.instruct)


def test_the_chosen_answers_alone_can_be_trained_by_naming_them(config, folder):
  config.objective = "sft"
  config.data.columns.update(prompt="prompt", response="chosen")
  write(config, pairs(1))
  [example] = dataset.read(config, config.instruct).train
  assert example.second == 0
  assert load_tokenizer(folder).decode(example.token[example.answer > 0]) == "a<|im_end|>\n"


def test_the_preview_shows_both_answers(config, folder):
  write(config, pairs(2))
  data = dataset.read(config, config.instruct)
  shown = preview.text(data, load_tokenizer(folder), 1, colour=False)
  assert "chosen:\n" in shown and "rejected:\n" in shown
  assert "⟦a<|im_end|>⏎\n⟧" in shown and "⟦b<|im_end|>⏎\n⟧" in shown


def test_a_real_file_of_pairs(shared_data, config):
  config.data.train = str(shared_data("llamafactory_demo") / "dpo_en_demo.json")
  config.data.max_length = 600
  config.data.max_examples, config.data.skip_bad_rows = 40, True
  data = dataset.read(config, config.instruct)
  assert len(data.train) > 30
  for e in data.train:
    assert 0 < e.second < len(e.token) <= 600
    assert e.answer[: e.second].any() and e.answer[e.second :].any()
  assert sum(e.prompt_cut > 0 for e in data.train) > 0 < sum(e.cut > 0 for e in data.train)
