"""The framing of the paper's code: its texts, its borders, its cuts and its labels."""

import json
import logging
import pathlib

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shadowft_jax.data import chat, dataset, formats, paper
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from tests import real_tokenizers

TINY = pathlib.Path(__file__).parents[1] / "shadowft_jax" / "assets" / "tiny" / "instruct"
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# Family -> what comes before everything, a system block, a turn.  // is where learning begins
# in a turn, and the end of the turn is where it ends.
FRAMES = {
  "llama3": (
    "<|begin_of_text|>",
    "<|start_header_id|>system<|end_header_id|>\n\n{s}<|eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n//{a}<|eot_id|>",
  ),
  "qwen": (
    "",
    "<|im_start|>system\n{s}<|im_end|>\n",
    "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n//{a}<|im_end|>\n",
  ),
  "qwen3": (
    "",
    "<|im_start|>system\n{s}<|im_end|>\n",
    "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n"
    "//<think>\n\n</think>\n\n{a}<|im_end|>\n",
  ),
  "gemma": (
    "<bos>",
    None,
    "<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n//{a}<end_of_turn>\n",
  ),
  "yi": (
    "",
    "<|im_start|>system\n{s}<|im_end|>\n",
    "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n//{a}<|im_end|>\n",
  ),
  "falcon": ("", "{s}", "User: {q}\nFalcon://{a}\n"),
}
FRAMES["gemma3"] = FRAMES["gemma"]
TOKENS = {
  "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
  "gemma": ["<start_of_turn>", "<end_of_turn>"],
  "gemma3": ["<start_of_turn>", "<end_of_turn>"],
}
TALKS = [
  [("What is it?", "It is four.")],
  [("What is it?", "It is four."), ("Why {} {0}?", "  A dog, and\n\n"), ("{q}", "//")],
]


def byte_tokenizer(special, bos=None, eos=None, merges=()):
  """Every byte is a token, and so are each of `special` and the pairs of bytes in `merges`."""
  tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
  t = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
  t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  t.decoder = decoders.ByteLevel()
  t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in special])
  return PreTrainedTokenizerFast(
    tokenizer_object=t, bos_token=bos, eos_token=eos, model_max_length=16
  )


@pytest.fixture(scope="module")
def tokenizer_of():
  tiny = load_tokenizer(TINY)
  made = {
    "llama3": byte_tokenizer(TOKENS["llama3"] + ["<|begin_of_text|>"], "<|begin_of_text|>"),
    "gemma": byte_tokenizer(TOKENS["gemma"] + ["<bos>"], "<bos>"),
  }
  return lambda name: made.get(name.removesuffix("3") if "gemma" in name else name, tiny)


def row_of(turns, system=None, where="FILE row 7", **fields):
  messages = [] if system is None else [{"role": "system", "content": system}]
  for question, answer in turns:
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
  return formats.Row(where, messages, **fields)


def encode(turns, name, tokenizer, max_length=10_000, think="trained", system=None):
  settings = formats.Settings(max_length, "paper", name, think)
  [entry] = paper.encode_rows([row_of(turns, system)], tokenizer, settings)
  if isinstance(entry, InputError):
    raise entry
  [example] = entry
  return example


def text_of(ids, tokenizer):
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def pieces(example, tokenizer):
  """The text, with // wherever learning begins and wherever it ends."""
  edges = np.flatnonzero(np.diff(example.answer)) + 1
  return "//".join(text_of(part, tokenizer) for part in np.split(example.token, edges))


def framed(name, turns, system, eos=""):
  """What `pieces` is to be, written from FRAMES."""
  bos, block, turn = FRAMES[name]
  head, system = bos, system or (QWEN if name == "qwen" else "")
  if system and block is None:
    turns = [(f"{system}\n\n{turns[0][0]}", turns[0][1]), *turns[1:]]
  elif system:
    head += block.replace("{s}", system)
  text = head + "//".join(
    turn.replace("{q}", "\0").replace("{a}", a).replace("\0", q) for q, a in turns
  )
  return text + eos


@pytest.mark.parametrize("name", sorted(set(paper.TEMPLATES) - {"falcon"}))
@pytest.mark.parametrize("turns", TALKS, ids=["one", "three"])
@pytest.mark.parametrize("system", [None, "", "Be {brief}."])
def test_text_and_borders_are_the_papers(tokenizer_of, name, turns, system):
  tokenizer = tokenizer_of(name)
  example = encode(turns, name, tokenizer, system=system)
  assert pieces(example, tokenizer) == framed(name, turns, system)
  assert (example.cut, example.label, example.where) == (0, None, "FILE row 7")
  assert example.token.dtype == example.answer.dtype == np.int32


@pytest.mark.parametrize("turns", TALKS, ids=["one", "three"])
@pytest.mark.parametrize("system", [None, "Be {brief}."])
def test_falcon_is_trained_on_its_end_token_instead_of_the_next_turn(tokenizer_of, turns, system):
  tokenizer = tokenizer_of("falcon")
  example = encode(turns, "falcon", tokenizer, system=system)
  eos, first = tokenizer.eos_token_id, tokenizer("User", add_special_tokens=False).input_ids[0]
  # A question's first token is read, and the end token is trained there; then it is as elsewhere.
  other = np.flatnonzero(example.label != example.token)
  assert len(other) == len(turns) - 1
  assert (example.token[other] == first).all() and (example.label[other] == eos).all()
  assert example.answer[other].all() and example.answer[other - 1].all()
  plain = example.answer.copy()
  plain[other] = 0
  bare = chat.Example(example.token, plain, 0)
  assert pieces(bare, tokenizer) == framed("falcon", turns, system, eos="<|im_end|>")
  # What is to be said, in order: each answer, and the end token after it.
  labels = text_of(example.label[example.answer == 1], tokenizer)
  assert labels == "".join(f"{a}\n<|im_end|>" for _, a in turns)


def test_texts_that_are_tokenised_apart_share_no_token():
  """System text, question, block of thoughts and answer, whatever would merge over a border."""
  tokenizer = byte_tokenizer(
    ["<|im_start|>", "<|im_end|>"],
    eos="<|im_end|>",
    merges=[(":", ":"), ("x", "U"), ("Ċ", "b"), ("Ċ", "<"), ("Ċ", "Ċ")],
  )
  ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
  example = encode([("a", ": b")], "falcon", tokenizer, system="x")
  apart = ["x", "User: a\nFalcon:", ": b\n", "<|im_end|>"]
  assert example.token.tolist() == [i for text in apart for i in ids(text)] != ids("".join(apart))
  apart = [
    "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
    paper.NO_THOUGHTS,
    "b<|im_end|>\n",
  ]
  for think in ("trained", "masked"):
    example = encode([("a", "b")], "qwen3", tokenizer, think=think)
    assert example.token.tolist() == [i for text in apart for i in ids(text)] != ids("".join(apart))


def test_thoughts_are_trained_or_masked(tokenizer_of):
  tokenizer = tokenizer_of("qwen3")
  ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
  none = "<think>\n\n</think>\n\n"
  own = "<think>\nhm\n\nso\n</think>\n\n"
  # Tags that are not written so stay as they are, and ask for no block.
  turns = [("a", "b"), ("c", f"{own}\nd{own}e"), ("f", "<think>hm"), ("g", "hm</think>h")]
  assert (
    pieces(encode(turns, "qwen3", tokenizer), tokenizer)
    == "<|im_end|>\n//".join(
      [
        f"{ask('a')}//{none}b",
        f"{ask('c')}//{own}\nd{own}e",
        f"{ask('f')}//<think>hm",
        f"{ask('g')}//hm</think>h",
      ]
    )
    + "<|im_end|>\n"
  )
  masked = encode(turns, "qwen3", tokenizer, think="masked")
  assert (
    pieces(masked, tokenizer)
    == "<|im_end|>\n//".join(
      [
        f"{ask('a')}{none}//b",
        f"{ask('c')}{none}//de",
        f"{ask('f')}//<think>hm",
        f"{ask('g')}//hm</think>h",
      ]
    )
    + "<|im_end|>\n"
  )
  # Only qwen3 has it.
  assert pieces(encode(turns[:1], "yi", tokenizer, think="masked"), tokenizer) == (
    f"{ask('a')}//b<|im_end|>\n"
  )


def test_a_cut_keeps_the_answer_where_it_can():
  """Kept prompt and answer tokens, of so many, in so much room; by the rule in the facts."""
  golden = {
    (5, 3, 8): (5, 3),
    (5, 3, 100): (5, 3),
    (4, 4, 8): (4, 4),  # all fits
    (90, 3, 20): (17, 3),
    (11, 9, 20): (11, 9),  # a short answer: cut the prompt
    (90, 9, 20): (11, 9),
    (3, 90, 20): (3, 17),
    (9, 90, 20): (9, 11),  # a short prompt
    (90, 10, 20): (18, 2),
    (10, 90, 20): (2, 18),  # both long: in proportion
    (10, 10, 19): (10, 9),
    (30, 10, 7): (6, 1),
    (1, 1, 1): (1, 0),
    (9, 9, 0): (0, 0),
    (710, 290, 100): (72, 28),  # 100 * (290 / 1000) is 28.999... in floats
  }
  assert {case: paper.fitting_sizes(*case) for case in golden} == golden


def test_truncated_turns_fit_the_room():
  random = np.random.default_rng(0)
  for source, target, room in random.integers(1, 60, (3000, 3)).tolist():
    prompt_size, answer_size = paper.fitting_sizes(source, target, room)
    assert 0 <= answer_size <= target and 1 <= prompt_size <= source
    # Nothing is cut that fits, and no room is left where something is cut.
    assert prompt_size + answer_size == min(room, source + target)
    if 2 * target < room:
      assert answer_size == target
    elif 2 * source < room:
      assert prompt_size == source
    elif source + target > room:
      assert abs(answer_size - room * target / (source + target)) < 1 + 1e-9


@pytest.mark.parametrize("name", ["llama3", "falcon", "qwen3", "gemma"])
def test_any_length_cuts_the_same_conversation(tokenizer_of, name):
  """Each turn loses the ends of its two parts; nothing follows a turn that found no room."""
  tokenizer = tokenizer_of(name)
  turns = [("why " * 9, "so"), ("x", "because " * 12), ("and? " * 7, "no. " * 8)]
  whole = encode(turns, name, tokenizer)
  eos = name == "falcon"
  # The parts of the whole: prompt, answer, prompt, ...
  plain = whole.answer * (1 if whole.label is None else whole.label == whole.token)
  plain = plain[: len(plain) - eos]
  parts = np.split(whole.token[: len(plain)], np.flatnonzero(np.diff(plain)) + 1)
  assert len(parts) == 6
  for max_length in range(1, len(whole.token) + 2):
    example = encode(turns, name, tokenizer, max_length)
    assert len(example.token) == min(max_length, len(whole.token))
    want, trained, room = [], 0, max_length - eos
    for source, target in zip(parts[::2], parts[1::2], strict=True):
      prompt_size, answer_size = paper.fitting_sizes(len(source), len(target), room)
      room -= prompt_size + answer_size
      trained += answer_size
      want += [*source[:prompt_size], *target[:answer_size]]
    assert example.token.tolist() == want + [tokenizer.eos_token_id] * eos
    assert example.cut == sum(map(len, parts[1::2])) - trained
    ends = 0 if example.label is None else int((example.label != example.token).sum())
    assert example.answer.sum() == trained + ends + eos


def test_a_cut_turn_loses_its_end(tokenizer_of):
  tokenizer = tokenizer_of("llama3")
  turns = [("q", "abcdefghijklmnopqrstuvwxyz" * 2), ("r", "never read")]
  example = encode(turns, "llama3", tokenizer, max_length=52)
  prompt, answer = pieces(example, tokenizer).split("//")
  assert prompt == framed("llama3", [("q", "")], None).split("//")[0]
  assert answer == turns[0][1][:28]
  assert example.cut == len(turns[0][1]) - 28 + len("never read") + 2


def test_rows_are_encoded_each_by_itself_and_in_order(tokenizer_of):
  tokenizer = tokenizer_of("qwen")
  settings = formats.Settings(100, "paper", "qwen")
  rows = [
    row_of(TALKS[1], where="A"),
    formats.Row("B", [], text="raw"),
    row_of(TALKS[0], "x", where="C", rejected=[]),
  ]
  together = paper.encode_rows(rows, tokenizer, settings)
  assert str(together[1]).startswith("B: ")
  for i in (0, 2):
    [[alone]], [there] = paper.encode_rows([rows[i]], tokenizer, settings), together[i]
    assert there.where == rows[i].where
    np.testing.assert_array_equal(there.token, alone.token)
    np.testing.assert_array_equal(there.answer, alone.answer)
  assert paper.encode_rows([], tokenizer, settings) == []
  assert len(paper.encode_rows(rows[1:2], tokenizer, settings)) == 1


def test_long_text_warns_of_nothing(caplog, recwarn):
  # A tokenizer says once that a text is longer than its model's limit, of 16 tokens here.
  tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
  logger = logging.getLogger("transformers")  # It hands nothing on by itself.
  logger.addHandler(caplog.handler)
  try:
    encode([("a " * 90, "b " * 90)], "yi", tokenizer)
    assert not caplog.records and not list(recwarn)
    tokenizer(["a " * 90])
    assert "longer than" in caplog.text
  finally:
    logger.removeHandler(caplog.handler)


TURN = row_of(TALKS[0]).messages


@pytest.mark.parametrize(
  "row, what",
  [
    (formats.Row("F row 3", [], text="some text"), "raw text"),
    (formats.Row("F row 3", TURN, tools=[{"type": "function"}]), "tools"),
    (
      formats.Row("F row 3", [*TURN, {"role": "tool", "content": "4"}, TURN[1]]),
      "roles user, assistant, tool, assistant",
    ),
    (formats.Row("F row 3", TURN[:1]), "roles user"),
    (formats.Row("F row 3", TURN[::-1]), "roles assistant, user"),
    (formats.Row("F row 3", TURN[:1] + TURN), "roles user, user, assistant"),
    (
      formats.Row("F row 3", [*TURN, {"role": "system", "content": "x"}, *TURN]),
      "roles user, assistant, system, user, assistant",
    ),
    (formats.Row("F row 3", [{"role": "system", "content": "x"}]), "roles system"),
    (formats.Row("F row 3", [TURN[0], {**TURN[1], "weight": 0}, *TURN]), "weight of the assistant"),
    (
      formats.Row("F row 3", [TURN[0], {**TURN[1], "tool_calls": [{}]}]),
      "tool_calls of the assistant",
    ),
    (
      formats.Row("F row 3", [TURN[0], {**TURN[1], "reasoning_content": "hm"}]),
      "reasoning_content of the assistant",
    ),
  ],
)
def test_unsupported_rows_are_refused_by_row(tokenizer_of, row, what):
  [entry] = paper.encode_rows([row], tokenizer_of("qwen"), formats.Settings(99, "paper", "qwen"))
  assert isinstance(entry, InputError)
  message = str(entry)
  assert message.startswith("F row 3: ") and f"; got {what}; " in message
  assert "data.recipe=chat" in message and "\n" not in message


def test_a_weight_of_one_and_a_rejected_answer_change_nothing(tokenizer_of):
  tokenizer, settings = tokenizer_of("yi"), formats.Settings(99, "paper", "yi")
  row = formats.Row(
    "r",
    [TURN[0], {**TURN[1], "weight": 1}],
    rejected=[TURN[0], {"role": "assistant", "content": "no"}],
  )
  [[example]] = paper.encode_rows([row], tokenizer, settings)
  assert pieces(example, tokenizer) == framed("yi", TALKS[0], None)


@pytest.mark.parametrize(
  "name, lacks",
  [
    ("llama3", "\n  <|end_header_id|>\n  <|eot_id|>\n  <|start_header_id|>\n  a BOS token"),
    ("gemma", "\n  <end_of_turn>\n  <start_of_turn>\n  a BOS token"),
    ("gemma3", "\n  <end_of_turn>\n  <start_of_turn>\n  a BOS token"),
  ],
)
def test_a_tokenizer_of_another_family_is_refused(tokenizer_of, name, lacks):
  with pytest.raises(InputError) as caught:
    encode(TALKS[0], name, tokenizer_of("qwen"))
  message = str(caught.value)
  assert message.endswith(lacks) and f"template {name} " in message and str(TINY) in message


def test_missing_tokens_are_named_alone(tokenizer_of):
  with pytest.raises(InputError, match=r"lacks:\n  <\|eot_id\|>$"):
    encode(TALKS[0], "llama3", byte_tokenizer([*TOKENS["llama3"][:2], "<s>"], "<s>"))
  with pytest.raises(InputError, match=r"lacks:\n  an EOS token$"):
    encode(TALKS[0], "falcon", byte_tokenizer([]))
  with pytest.raises(InputError, match=r"lacks:\n  <\|im_end\|>\n  <\|im_start\|>$"):
    encode(TALKS[0], "yi", tokenizer_of("gemma"))


def test_unknown_names_and_lengths_are_refused(tokenizer_of):
  with pytest.raises(InputError, match="'llama4' is unknown; expected one of:\n  falcon\n"):
    encode(TALKS[0], "llama4", tokenizer_of("qwen"))
  with pytest.raises(InputError, match="data.max_length must be above 0; got 0"):
    encode(TALKS[0], "qwen", tokenizer_of("qwen"), max_length=0)


@pytest.mark.parametrize(
  "base, name",
  [
    ("meta-llama/Llama-3.1-8B", "llama3"),
    ("/m/Llama-3.2-1B/", "llama3"),
    ("Qwen/Qwen2.5-32B", "qwen"),
    ("Qwen/Qwen2-7B", "qwen"),
    ("Qwen/Qwen3-8B-Base", "qwen3"),
    ("/hub/models--Qwen--Qwen3-4B-Base/snapshots/0f", "qwen3"),
    ("01-ai/Yi-6B", "yi"),
    ("01-ai/Yi-Coder-9B", "yi"),
    ("tiiuae/Falcon3-10B-Base", "falcon"),
    ("google/gemma-3-4b-pt", "gemma"),
    ("x/gemma3-4b", "gemma3"),
    ("google/gemma-2-2b", "gemma"),
    # The order decides.
    ("Yi/Qwen3-8B", "qwen3"),
    ("Llama-3/Qwen2.5", "llama3"),
    ("Falcon/gemma3", "falcon"),
  ],
)
def test_the_path_of_the_base_names_the_template(base, name):
  assert paper.name_of(base) == name


@pytest.mark.parametrize(
  "base, what",
  [
    ("tiiuae/falcon-7b", "none of Llama-3, Qwen2,"),
    ("/m/llama-3-8b", "none of Llama-3, Qwen2,"),
    ("Qwen/qwen3", "none of Llama-3, Qwen2,"),
    ("meta-llama/Llama-2-7b-hf", "llama2"),
    ("internlm/internlm2-7b", "intern2"),
    ("mistralai/Mistral-7B-v0.3", "mistral"),
    # These would be gemma and Yi, had they not been found before.
    ("Mistral/gemma", "mistral"),
    ("Llama-2/Yi", "llama2"),
    ("baichuan-inc/Baichuan2-7B-Base", "baichuan2"),
  ],
)
def test_a_path_without_a_template_is_refused(base, what):
  with pytest.raises(InputError) as caught:
    paper.name_of(base)
  message = str(caught.value)
  assert base in message and what in message and "--config.data.template" in message
  assert message.endswith("\n  falcon\n  gemma\n  gemma3\n  llama3\n  qwen\n  qwen3\n  yi")


def test_the_split_is_that_of_datasets():
  datasets = pytest.importorskip("datasets")
  for count, ratio, seed in [(2000, 0.01, 42), (101, 0.01, 42), (50, 0.3, 7)]:
    want = datasets.Dataset.from_dict({"i": list(range(count))}).train_test_split(
      test_size=ratio, seed=seed
    )
    train, valid = dataset.paper_split(count, ratio, seed)
    assert train.tolist() == want["train"]["i"] and valid.tolist() == want["test"]["i"]


def test_the_split_of_the_paper():
  train, valid = dataset.paper_split(2000, 0.01, 42)
  assert (len(train), len(valid)) == (1980, 20)
  assert valid[:5].tolist() == [1631, 285, 1268, 747, 390]
  assert sorted([*train, *valid]) == list(range(2000))
  train, valid = dataset.paper_split(5, 0.0, 42)
  assert sorted(train) == list(range(5)) and not len(valid)
  for count, ratio in [(1, 0.01), (10, 1.0), (10, -0.1)]:
    with pytest.raises(InputError, match="data.val_ratio"):
      dataset.paper_split(count, ratio, 42)


@pytest.mark.parametrize("name", ["llama3", "qwen", "qwen3"])
def test_real_tokenizers_read_the_same_text(shared_data, name):
  tokenizer = real_tokenizers.load(name, shared_data)
  rows = json.loads((shared_data("llamafactory_demo") / "alpaca_en_demo.json").read_text())[:40]
  turns = [(f"{r['instruction']}\n{r['input']}".rstrip(), r["output"]) for r in rows]
  for talk in ([t] for t in turns):
    example = encode(talk, name, tokenizer)
    assert pieces(example, tokenizer) == framed(name, talk, None)
  example = encode(turns, name, tokenizer, system="Be brief.")
  assert pieces(example, tokenizer) == framed(name, turns, "Be brief.")
