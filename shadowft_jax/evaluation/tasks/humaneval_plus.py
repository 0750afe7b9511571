"""HumanEval+: HumanEval's functions, with 80 times as many tests.

{"task_id": "HumanEval/0", "prompt": "from typing import List\\n...", "entry_point": "has_...",
 "canonical_solution": "...", "base_input": [[[1.0, 2.0, 3.9], 0.3], ...], "atol": 0,
 "plus_input": [[[1.0, 2.5, 3.0], 0.4], ...], "contract": "...", "test": "..."}

Rule: on all inputs, the old and the new, the function gives what the canonical solution gives,
floats within atol, or 1e-6 where that is 0.  Source: EvalPlus (arXiv 2305.01210).
Prompt: OpenCompass humaneval_plus_openai_simple_evals_gen_159614.
"""

from shadowft_jax.evaluation.tasks import code
from shadowft_jax.evaluation.tasks.originals import Data, Original
from shadowft_jax.evaluation.tasks.task import Example, Grade, Task, example

PROBLEMS = Original(
  files=("humaneval/HumanEvalPlus.jsonl",),
  form='rows with "prompt", "entry_point", "canonical_solution", "base_input", "plus_input"',
  origin="https://github.com/evalplus/humanevalplus_release/releases",
)
PROMPT = (
  "Read the following function signature and docstring, and fully implement the function "
  "described. Your response should only contain the code for this function.\n{prompt}"
)
SECONDS = 90.0
FIELDS = (
  "task_id",
  "prompt",
  "entry_point",
  "canonical_solution",
  "base_input",
  "plus_input",
  "atol",
)
_HARNESS = """
import copy as _copy, signal as _signal, time as _time
def _function(source):
  space = {"__name__": "solution"}
  exec(source, space)
  return space[_entry]
_canonical = _function(_right)
_start = _time.monotonic()
_want = [_canonical(*_copy.deepcopy(x)) for x in _inputs]
def _late(*_):
  raise TimeoutError("took longer than 10 s and four times as long as the canonical solution")
_signal.signal(_signal.SIGALRM, _late)
_signal.setitimer(_signal.ITIMER_REAL, 10 + 4 * (_time.monotonic() - _start))
_candidate = _function(_given)
for _x, _w in zip(_inputs, _want):
  _got = _candidate(*_copy.deepcopy(_x))
  if _entry == "find_zero":  # any zero of the polynomial is right
    assert abs(sum(c * _got**i for i, c in enumerate(_x[0]))) <= _atol, _x
  else:
    assert _same(_got, _w, _atol), _x
"""


def _read(data: Data) -> list[Example]:
  out = []
  for row in data.rows(PROBLEMS):
    gold = {name: row[name] for name in FIELDS}
    out.append(example(PROMPT.format(prompt=row["prompt"]), gold))
  return out


def grade(text: str, gold: dict) -> Grade:
  """Grades the function by comparing it with the canonical one, in the sandbox."""
  answer = code.solution(text, gold["prompt"], gold["entry_point"])
  named = code.sources(
    _given=answer,
    _right=gold["prompt"] + gold["canonical_solution"],
    _entry=gold["entry_point"],
    _inputs=gold["base_input"] + gold["plus_input"],
    _atol=gold["atol"],
  )
  program = code.QUIET + code.COMPARISON + named + _HARNESS
  return code.grade(answer if text.strip() else "", program, SECONDS)


HUMANEVAL_PLUS = Task("humaneval_plus", _read, grade, max_new_tokens=512, runs_code=True)
