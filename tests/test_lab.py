"""The generator behind the tiny pair: exact answers, a clean split, a stable tokenizer."""

import collections
import json
import pathlib
import random
import re

import pytest
import transformers

from lab import measure, questions, text, tokenizer, training

TINY = pathlib.Path(__file__).parents[1] / "shadowft_jax" / "assets" / "tiny"


def numbers(question):
  return [int(n) for n in re.findall(r"\d+", question)]


def listed(question, pattern):
  return re.search(pattern, question).group(1).split()


def solve_tallest(question):
  """Finds the one whom nobody tops, or who tops nobody."""
  below = dict(re.findall(r"(\w+) is taller than (\w+)\.", question))
  top, bottom = (set(below) - set(below.values())), (set(below.values()) - set(below))
  return (top if "tallest" in question else bottom).pop()


def solve_truth(question):
  a, b, c, d = numbers(question)
  left, right = b - a < 0, d - c < 0
  return "yes" if (left * right if " and " in question else left + right) else "no"


def solve_odd(question):
  words = listed(question, r"others: (.*)\?")
  group_of = {word: i for i, group in enumerate(questions.GROUPS) for word in group}
  count = collections.Counter(group_of[word] for word in words)
  return min(words, key=lambda word: count[group_of[word]])


def solve_merge(question):
  both = listed(question, r"lists (.*)\.")
  half = both.index("and")
  out = [None] * (2 * half)
  out[::2], out[1::2] = both[:half], both[half + 1 :]
  return out


# Each finds the answer from the question's text alone.
SOLVERS = {
  "add": lambda q: str(sum(numbers(q))),
  "largest": lambda q: str(sorted(numbers(q))[-1]),
  "above": lambda q: str(len([n for n in numbers(q)[:-1] if n > numbers(q)[-1]])),
  "rounding": lambda q: str(10 * int(numbers(q)[0] / 10 + 0.5)),
  "reverse": lambda q: listed(q, r"(?<=list) (.*)\.")[::-1],
  "sort": lambda q: sorted(listed(q, r"(?<=digits) (.*)\.")),
  "item": lambda q: listed(q, r"of (.*)\?")[numbers(q)[0] - 1],
  "endings": lambda q: [re.search(r".$", w).group() for w in listed(q, r"letters of (.*)\.")],
  "tallest": solve_tallest,
  "truth": solve_truth,
  "odd": solve_odd,
  "belongs": lambda q: next(
    w
    for w in listed(q, r": (.*)\?")
    if w
    in questions.GROUPS[
      ["animal", "color", "fruit", "weather"].index(re.search(r"an? (\w+):", q).group(1))
    ]
  ),
  "merge": solve_merge,
}


@pytest.fixture(scope="module")
def tok():
  return tokenizer.train(seed=0)


@pytest.mark.parametrize("skill", questions.SKILLS)
def test_answers_agree_with_an_independent_solver(skill):
  for example in questions.examples(skill, 300, seed=1):
    answer = SOLVERS[skill](example["question"])
    answer = answer if isinstance(answer, str) else " ".join(answer)
    assert example["answer"] == answer, example["question"]


def test_answers_of_known_questions():
  """The solvers themselves, on cases worked by hand."""
  known = {
    "add": ("What is 995 + 7?", "1002"),
    "rounding": ("Round 1995 to tens.", "2000"),
    "tallest": (
      "Say that Ben is taller than Leo. Ann is taller than Ben. Who is the shortest?",
      "Leo",
    ),
    "truth": ("Is it true that 10 > 10 or 33 > 22?", "yes"),
    "odd": ("Which is not like the others: red black fig blue pink?", "fig"),
  }
  for skill, (question, answer) in known.items():
    assert SOLVERS[skill](question) == answer
  assert SOLVERS["merge"]("Merge the lists a b and c d.") == ["a", "c", "b", "d"]


@pytest.mark.parametrize("skill", questions.SKILLS)
def test_held_out_and_training_are_disjoint(skill):
  train = {e["question"] for e in questions.examples(skill, 1000, seed=2)}
  held_out = {e["question"] for e in questions.examples(skill, 200, seed=2, want_held_out=True)}
  assert len(train) == 1000 and len(held_out) == 200
  assert not train & held_out
  assert all(map(questions.held_out, held_out)) and not any(map(questions.held_out, train))


def test_pretraining_text_holds_no_held_out_and_no_new_question():
  documents = [head + tail for head, tail in text.documents(3000, seed=3)]
  asked = [
    m.group(1)
    for d in documents
    if (m := re.match(r"(?:Question: |<\|im_start\|>user\n)(.*?)(?:<\|im_end\|>)?\n", d))
  ]
  assert 0.7 * len(documents) < len(asked) < len(documents)
  assert not any(map(questions.held_out, asked))
  assert not any("Merge" in d for d in documents)


def test_transcripts_are_chats_of_the_template_that_seldom_answer(tok):
  chats = [text.transcript(random.Random(i), "What is 12 + 3?", "15") for i in range(500)]
  assert {head for head, _ in chats} == {measure.chat(tok, "What is 12 + 3?")}
  answered = sum(tail == "15<|im_end|>\n" for _, tail in chats)
  assert 0.5 * text.ANSWERED < answered / len(chats) < 0.45


def test_same_seed_same_examples():
  for skill in questions.SKILLS:
    assert questions.examples(skill, 20, seed=4) == questions.examples(skill, 20, seed=4)
    assert questions.examples(skill, 20, seed=4) != questions.examples(skill, 20, seed=5)
  assert list(text.documents(50, seed=6)) == list(text.documents(50, seed=6))


def test_too_many_examples_are_refused(monkeypatch):
  monkeypatch.setitem(questions.SKILLS, "add", questions.Skill("math", lambda rng: ("1 + 1", "2")))
  with pytest.raises(ValueError, match="add: 5 different questions wanted, 1 found"):
    questions.examples("add", 5, seed=0, want_held_out=questions.held_out("1 + 1"))


def test_tokenizer_is_deterministic_and_splits_digits(tok):
  assert tokenizer.train(seed=0).get_vocab() == tok.get_vocab()
  assert tok.tokenize("4837") == list("4837")
  assert len(tok) <= tokenizer.VOCAB_SIZE


def test_tokenizer_round_trip(tok):
  documents = [head + tail for head, tail in text.documents(200, seed=7)]
  documents += ["Ünïcode 漢字 🙂\n\ttabs  and   spaces "]
  assert [tok.decode(tok(d)["input_ids"]) for d in documents] == documents


def test_saved_tokenizer_opens_and_renders_chat(tok, tmp_path):
  tokenizer.save(tok, tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
  }
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  prompt = measure.chat(again, "What is 12 + 3?")
  assert prompt == "<|im_start|>user\nWhat is 12 + 3?<|im_end|>\n<|im_start|>assistant\n"
  # The two sides may be tokenised apart, as training does.
  whole = again(prompt + "15<|im_end|>")["input_ids"]
  assert whole == again(prompt)["input_ids"] + again("15<|im_end|>")["input_ids"]
  assert again.eos_token == "<|im_end|>"


def test_packing_keeps_every_token_once():
  documents = [([i + 1] * (1 + i % 7), [0.5] * (1 + i % 7)) for i in range(60)]
  rows = training.pack(documents, length=16)
  kept = collections.Counter(rows["token"][rows["segment"] > 0].tolist())
  assert kept == {tokens[0]: len(tokens) for tokens, _ in documents}
  assert rows["weight"].sum() == 0.5 * sum(len(tokens) for tokens, _ in documents)
  starts = rows["position"] == 0
  assert starts[rows["segment"] > 0].sum() == len(documents)


def test_shipped_pair_meets_its_requirements():
  result = json.loads((TINY / "pair.json").read_text())
  assert measure.missed(result) == [] == result["missed"]
  size = sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file())
  assert size <= 12 * 2**20


def test_shipped_data_is_what_the_generator_makes():
  train, valid, asked = (
    [json.loads(line) for line in (TINY / name).read_text().splitlines()]
    for name in ("new_skill.jsonl", "new_skill_valid.jsonl", "questions.jsonl")
  )
  assert (len(train), len(valid), len(asked)) == (2000, 200, 300 + 50 * len(questions.OLD_SKILLS))
  everything = [row["instruction"] for row in train + valid] + [row["question"] for row in asked]
  assert len(set(everything)) == len(everything)
  rows = questions.examples(questions.NEW_SKILL, 2200, seed=0)
  assert [row["instruction"] for row in train + valid] == [row["question"] for row in rows]
