"""GPQA: graduate-level multiple choice; the 198 Diamond questions, and the biology of the main set.

A CSV with a header, one line a question, of whose columns these are read:
Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,Subdomain

Rule: the option named; the options are rotated by the question's number, from 1, modulo 4.
Prompt: OpenCompass gpqa_gen_4baadb (no chain of thought, where the paper says 0-shot CoT:
`gpqa_diamond_cot`, with the prompt of openai/simple-evals).
`gpqa_medical`: the paper names it and says no more.  HuatuoGPT-o1 (arXiv 2412.18925), whose data
the run trains on, has a set of that name: GPQA's Genetics and Molecular Biology.
"""

import functools

from shadowft_jax.evaluation.tasks import choices
from shadowft_jax.evaluation.tasks.originals import Data, Original, table
from shadowft_jax.evaluation.tasks.task import Example, Task, example

FORM = "a CSV with the columns Question, Correct Answer, Incorrect Answer 1 to 3, Subdomain"
ROTATIONS = ("ABCD", "BCDA", "CDAB", "DABC")
FORM_OF_OPTION = "({letter}){option}"
MEDICAL = ("Genetics", "Molecular Biology")
PROMPT = (
  "What is the correct answer to this question: {question}\nChoices:\n{options}\nFormat your "
  'response as follows: "The correct answer is (insert answer here)"'
)


def _read(
  data: Data, subset: str, subdomains: tuple[str, ...] = (), with_thoughts: bool = False
) -> list[Example]:
  original = Original((f"gpqa/{subset}.csv",), FORM, "Idavidrein/gpqa", subset, "train")
  out = []
  for number, row in enumerate(table(data.rows(original)), 1):
    if subdomains and row["Subdomain"] not in subdomains:
      continue
    answers = [row["Correct Answer"]] + [row[f"Incorrect Answer {i}"] for i in (1, 2, 3)]
    options = [answers["ABCD".index(c)] for c in ROTATIONS[number % 4]]
    form, template = (
      ("{letter}. {option}", choices.PROMPT_ABCD) if with_thoughts else (FORM_OF_OPTION, PROMPT)
    )
    prompt = template.format(question=row["Question"], options=choices.listed(options, form))
    gold = choices.key("ABCD"[options.index(answers[0])], options)
    out.append(example(prompt, gold, row.get("Subdomain") or ""))
  return out


GPQA_DIAMOND = Task("gpqa_diamond", functools.partial(_read, subset="gpqa_diamond"), choices.grade)
GPQA_DIAMOND_COT = Task(
  "gpqa_diamond_cot",
  functools.partial(_read, subset="gpqa_diamond", with_thoughts=True),
  choices.grade,
)
GPQA_MEDICAL = Task(
  "gpqa_medical", functools.partial(_read, subset="gpqa_main", subdomains=MEDICAL), choices.grade
)
