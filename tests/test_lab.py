"""The generator behind the tiny pair: exact answers, a clean split, a stable tokenizer."""

import collections
import json
import pathlib
import re

import pytest
import transformers

from lab import measure, pair, questions, text, tokenizer, training

TINY = pathlib.Path(__file__).parents[1] / "shadowft_jax" / "assets" / "tiny"


def numbers(question):
  return [int(n) for n in re.findall(r"\d+", question)]


def listed(question, pattern):
  return re.search(pattern, question).group(1).split()


def solve_cups(question):
  """Moves the coin itself through four cups."""
  place, *swaps = numbers(question)
  table = ["coin" if i == place else "" for i in range(5)]
  for a, b in zip(swaps[::2], swaps[1::2], strict=True):
    table[a], table[b] = table[b], table[a]
  return str(table.index("coin"))


def solve_hops(question):
  """Composes the map with itself."""
  once = dict(re.findall(r"(\w) to (\w)", question))
  thrice = {a: once[once[once[a]]] for a in once}
  return thrice[re.search(r"from (\w)\.", question).group(1)]


def solve_merge(question):
  both = listed(question, r"lists (.*)\.")
  half = both.index("and")
  out = [None] * (2 * half)
  out[::2], out[1::2] = both[:half], both[half + 1 :]
  return out


def solve_belongs(question):
  group, words = re.search(r"is (an? \w+): (.*)\?", question).groups()
  return next(w for w in words.split() if w in questions.GROUPS[group])


# Each finds the answer from the question's text alone.
SOLVERS = {
  "total": lambda q: str(sum(numbers(q)))[-1],
  "back": lambda q: str((numbers(q)[0] - sum(numbers(q)[1:])) % 10),
  "cups": solve_cups,
  "hops": solve_hops,
  "largest": lambda q: str(sorted(numbers(q))[-1]),
  "reverse": lambda q: listed(q, r"(?<=list) (.*)\.")[::-1],
  "sort": lambda q: sorted(listed(q, r"(?<=digits) (.*)\.")),
  "belongs": solve_belongs,
  "merge": solve_merge,
  "ends": lambda q: [listed(q, r"of (.*)\.")[i] for i in (0, -1)],
}


@pytest.fixture(scope="module")
def tok():
  return tokenizer.train(seed=0)


@pytest.mark.parametrize("skill", questions.SKILLS)
def test_answers_agree_with_an_independent_solver(skill):
  for problem in questions.problems(skill, 300, seed=1):
    answer = SOLVERS[skill](problem.question)
    answer = answer if isinstance(answer, str) else " ".join(answer)
    assert problem.answer == answer, problem.question


def test_answers_of_known_questions():
  """The solvers themselves, on cases worked by hand."""
  known = {
    "total": ("What is the last digit of 9 + 7 + 0 + 5?", "1"),
    "back": ("A dial is at 3. Turn it back by 4 0 9. Where is it?", "0"),
    "cups": ("A coin is in cup 2. Swap 1 2, 3 4, 4 1. Where is it?", "4"),
    "hops": ("Paths go c to a, a to d, d to d, b to c. Take 3 from b.", "d"),
    "belongs": ("Which is a fruit: red fig hen?", "fig"),
  }
  for skill, (question, answer) in known.items():
    assert SOLVERS[skill](question) == answer
  assert SOLVERS["merge"]("Merge the lists a b and c d.") == ["a", "c", "b", "d"]


# One step of each skill's working: from the step before and the question's numbers or paths.
STEPS = {
  "total": lambda q, i, before: str((int(before) + numbers(q)[i + 1]) % 10),
  "back": lambda q, i, before: str((int(before) - numbers(q)[i + 1]) % 10),
  "cups": lambda q, i, before: solve_cups(f"{before} {numbers(q)[2 * i + 1 : 2 * i + 3]}"),
  "hops": lambda q, i, before: dict(re.findall(r"(\w) to (\w)", q))[before],
}


@pytest.mark.parametrize("skill", questions.WORKED_SKILLS)
def test_working_leads_to_the_answer(skill):
  for problem in questions.problems(skill, 100, seed=1):
    steps = problem.working.split()
    q = problem.question
    before = re.search(r"from (\w)\.", q).group(1) if skill == "hops" else str(numbers(q)[0])
    for i, step in enumerate(steps):
      assert step == (before := STEPS[skill](q, i, before)), q
    assert (len(steps), steps[-1]) == (3, problem.answer)
    assert questions.is_worked(problem.reply(True)) and not questions.is_worked(
      problem.reply(False)
    )
    assert questions.final(problem.reply(True)) == questions.final(problem.reply(False))


def test_only_the_answer_of_a_reply_counts():
  assert questions.final(" Steps 7 2 8. So 8\nQuestion: 5") == "8" == questions.final("8")
  assert questions.final("7 2 8") == "7 2 8"


@pytest.mark.parametrize("skill", questions.SKILLS)
def test_the_three_parts_are_disjoint(skill):
  parts = {
    of: {p.question for p in questions.problems(skill, count, 2, of)}
    for of, count in (("train", 1000), ("development", 200), ("test", 200))
  }
  assert len(set.union(*parts.values())) == 1400
  for of, problems in parts.items():
    assert {questions.part(question) for question in problems} == {of}


def test_pretraining_text_holds_no_held_out_and_no_new_question():
  documents = [*text.documents(3000, seed=3), *text.conversations(1000, seed=3)]
  prompts = [
    re.match(r"(?:Question: |<\|im_start\|>user\n)(.*?)(?:<\|im_end\|>)?\n", head).group(1)
    for head, _ in documents
  ]
  assert {questions.part(question) for question in prompts} == {"train"}
  assert not any(word in q for q in prompts for word in ("Merge", "Keep"))


def test_chats_are_those_of_the_template_and_mostly_bare(tok):
  documents = list(text.documents(4000, seed=3))
  chats = [(head, tail) for head, tail in documents if head.startswith("<|im_start|>")]
  assert abs(len(chats) / len(documents) - text.CHATS) < 0.03
  message = {"role": "user", "content": "Sort the digits 3 1 2."}
  assert text.chat(message["content"]) == tok.apply_chat_template(
    [message], tokenize=False, add_generation_prompt=True
  )
  for texts, share in (
    (chats, text.CHATS_WORKED),
    ([d for d in documents if d not in chats], text.PLAIN_WORKED),
    (list(text.conversations(1000, seed=3)), 1.0),
  ):
    worked = [questions.is_worked(t) for h, t in texts if re.search("last digit|Turn|Swap|Take", h)]
    assert abs(sum(worked) / len(worked) - share) < 0.06


def test_same_seed_same_examples():
  for skill in questions.SKILLS:
    assert questions.problems(skill, 20, seed=4) == questions.problems(skill, 20, seed=4)
    assert questions.problems(skill, 20, seed=4) != questions.problems(skill, 20, seed=5)
  assert list(text.documents(50, seed=6)) == list(text.documents(50, seed=6))


def test_too_many_examples_are_refused(monkeypatch):
  one = questions.Problem("1 + 1", "2")
  monkeypatch.setitem(questions.SKILLS, "total", questions.Skill("math", lambda rng: one))
  with pytest.raises(ValueError, match="total: 5 different questions wanted, 1 found"):
    questions.problems("total", 5, 0, questions.part(one.question))


def test_every_skill_fits_a_row_and_an_answer(tok):
  for skill in questions.SKILLS:
    for problem in questions.problems(skill, 200, seed=5):
      reply = tok(f"{problem.reply(True)}<|im_end|>")["input_ids"]
      assert len(reply) <= measure.MAX_NEW
      assert len(tok(text.chat(problem.question))["input_ids"]) + len(reply) <= pair.LENGTH


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
  prompt = text.chat("What is 12 + 3?")
  # The two sides may be tokenised apart, as training does.
  whole = again(prompt + "15<|im_end|>")["input_ids"]
  assert whole == again(prompt)["input_ids"] + again("15<|im_end|>")["input_ids"]
  assert again.eos_token == "<|im_end|>"


def test_packing_keeps_every_token_once():
  documents = [([i + 1] * (1 + i % 7), [0.5] * (1 + i % 7)) for i in range(60)]
  rows = training.pack(documents, length=16)
  packed = collections.Counter(rows["token"][rows["segment"] > 0].tolist())
  assert packed == {tokens[0]: len(tokens) for tokens, _ in documents}
  assert rows["weight"].sum() == 0.5 * sum(len(tokens) for tokens, _ in documents)
  starts = rows["position"] == 0
  assert starts[rows["segment"] > 0].sum() == len(documents)


def a_result(**numbers):
  """The numbers of a pair that meets every requirement but for those given."""
  values = dict(base_old=0.5, instruct_old=0.95, base_worked=0.4, instruct_worked=0.75, gap=0.05)
  values |= dict(new=0.1) | numbers
  return {
    "gap_ratio": values["gap"],
    "accuracy": {
      name: {
        form: {
          "old": values[f"{name}_old"],
          "need working": values[f"{name}_worked"],
          **dict.fromkeys(questions.NEW_SKILLS, values["new"]),
        }
        for form in ("plain", "chat")
      }
      for name in ("base", "instruct")
    },
  }


@pytest.mark.parametrize(
  "numbers, words",
  [
    (dict(base_old=0.49), "base, chat, old skills is 0.490, at least 0.5 wanted"),
    (dict(instruct_old=0.94), "instruct, chat, old skills is 0.940, at least 0.95 wanted"),
    (dict(base_worked=0.46), "skills that need working is 0.290, at least 0.3 wanted"),
    (dict(gap=0.051), "gap ratio is 0.051, at most 0.05 wanted"),
    (dict(new=0.11), "base, plain, merge is 0.110, at most 0.1 wanted"),
  ],
)
def test_a_pair_that_misses_a_requirement_is_reported(numbers, words):
  assert measure.missed(a_result()) == []
  assert words in "; ".join(measure.missed(a_result(**numbers)))


def test_shipped_pair_meets_its_requirements():
  result = json.loads((TINY / "pair.json").read_text())
  assert measure.missed(result) == [] == result["missed"]
  size = sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file())
  assert size <= 12 * 2**20


def read(name):
  return [json.loads(line) for line in (TINY / name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["new_skill", "broad", "broad_worked"])
def test_the_shipped_tuning_sets_are_those_of_the_generator(name, tmp_path):
  pair.write_data(tmp_path)
  for file in (f"{name}.jsonl", f"{name}_valid.jsonl", "questions.jsonl", "development.jsonl"):
    assert (tmp_path / file).read_text() == (TINY / file).read_text()
  train, valid = read(f"{name}.jsonl"), read(f"{name}_valid.jsonl")
  assert (len(train), len(valid)) == (2048, 200)
  prompts = [row["instruction"] for row in train + valid]
  assert len(set(prompts)) == len(prompts) and {*map(questions.part, prompts)} == {"train"}


def test_broad_sets_differ_in_their_working_alone():
  bare, worked = read("broad.jsonl"), read("broad_worked.jsonl")
  assert [row["instruction"] for row in bare] == [row["instruction"] for row in worked]
  assert not any(questions.is_worked(row["output"]) for row in bare)
  shown = sum(questions.is_worked(row["output"]) for row in worked) / len(worked)
  taught = sum(row["instruction"].startswith("Keep") for row in bare) / len(bare)
  assert abs(shown - 0.8 * 0.5) < 0.04 and abs(taught - pair.NEW_SHARE) < 0.03
  finals = [[questions.final(row["output"]) for row in rows] for rows in (bare, worked)]
  assert finals[0] == finals[1]


def test_shipped_questions_are_of_their_parts():
  for file, part in (("questions.jsonl", "test"), ("development.jsonl", "development")):
    rows = read(file)
    assert len(rows) == 75 * len(questions.OLD_SKILLS) + 150 * len(questions.NEW_SKILLS)
    assert len({q["question"] for q in rows}) == len(rows)
    assert {questions.part(q["question"]) for q in rows} == {part}
