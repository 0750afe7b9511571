"""DROP: questions about a passage, answered with a number, a date or spans of it.

{"history_319": {"passage": "The Port of Charleston, owned and operated by ...", "qa_pairs": [
  {"question": "What happened second: ...?", "answer": {"number": "", "date": {"day": "",
   "month": "", "year": ""}, "spans": ["sixth terminal"]}, "query_id": "..."}]}}
or, as simple-evals has it, {"context": "Passage: ...\\nQuestion: ...\\nAnswer:", "ref_text": "1|2"}

Rule: fuzzy match, one of the gold answers within the given one or the other way round, both without
case, punctuation and articles.  Source: openai/simple-evals drop_eval.py.
Prompt: OpenCompass drop_openai_simple_evals_gen_3857b0 (3 examples, where the paper says 0:
`drop_0shot`).
"""

import functools
import re
import string

from shadowft_jax.evaluation.tasks import grading
from shadowft_jax.evaluation.tasks.drop_shots import SHOTS
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

PASSAGES = Original(
  files=("drop/drop_dataset_dev.json", "drop_simple_eval/dev.jsonl", "drop/drop_fixture.json"),
  form='{"id": {"passage", "qa_pairs": [{"question", "answer"}]}}',
  hub="ucinlp/drop",
  split="validation",
)
SHOWN = f" Some examples of passages and Q&A are provided below.\n\n{SHOTS}\n\n"
PROMPT = (
  "You will be asked to read a passage and answer a question.{shots}"
  "# Your Task\n\n---\n{context}\n\nThink step by step, then "
  'write a line of the form "Answer: $ANSWER" at the end of your response.'
)


def _answers(pair):
  """The gold answers of a question: that of its author, and those of validators."""
  answers = [pair["answer"], *(pair.get("validated_answers") or [])]
  dates = [" ".join(filter(None, (a.get("date") or {}).values())) for a in answers]
  texts = [
    a["number"] or ", ".join(a["spans"]) or date for a, date in zip(answers, dates, strict=True)
  ]
  return list(dict.fromkeys(filter(None, texts)))


def _questions(data):
  """(context, gold answers) of every question."""
  for row in data.rows(PASSAGES):
    if "ref_text" in row:
      yield row["context"], row["ref_text"].split("|")
    elif "answers_spans" in row:
      context = f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:"
      yield context, list(dict.fromkeys(row["answers_spans"]["spans"]))
    else:
      for passage in row.values():
        for pair in passage["qa_pairs"]:
          context = f"Passage: {passage['passage']}\nQuestion: {pair['question']}\nAnswer:"
          yield context, _answers(pair)


def _read(data: Data, shots: str) -> list[Example]:
  prompt = PROMPT.replace("{shots}", shots)
  return [example(prompt.replace("{context}", c), gold) for c, gold in _questions(data)]


def _plain(text):
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def grade(text: str, gold: list[str]) -> Grade:
  """Grades the line "Answer: …", or else a box, or else the whole text."""
  lines = re.findall(r"answer\s*:\s*([^\n]+)", text, re.IGNORECASE)
  answer = lines[-1] if lines else grading.boxed(text) or text
  given = _plain(answer)
  right = [_plain(g) for g in gold]
  is_right = any(given == r or (given and r and (given in r or r in given)) for r in right)
  return Grade(is_right, answer.strip() or None)


DROP = Task("drop", functools.partial(_read, shots=SHOWN), grade)
DROP_0SHOT = Task("drop_0shot", functools.partial(_read, shots="\n\n"), grade)
