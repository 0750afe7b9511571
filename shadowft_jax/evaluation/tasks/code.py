"""Programs from a model's answers, and the outcome of running them."""

import json
import re
from typing import Any

from shadowft_jax.evaluation.tasks import sandbox
from shadowft_jax.evaluation.tasks.task import Grade

_BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|$)", re.DOTALL)
# Compares as EvalPlus does, but needs no NumPy.
COMPARISON = """
def _close(got, want, atol):
  if isinstance(want, (list, tuple)):
    return len(got) == len(want) and all(_close(g, w, atol) for g, w in zip(got, want))
  if got == want or (got != got and want != want):
    return True
  return abs(got - want) <= atol + 1e-7 * abs(want)

def _floats(x):
  return isinstance(x, float) or (
    isinstance(x, (list, tuple)) and bool(x) and all(isinstance(y, float) for y in x))

def _same(got, want, atol):
  try:
    if type(got == want) is bool and got == want:
      return True
    atol = atol or 1e-6 * _floats(want)
    return bool(atol) and type(got) is type(want) and _close(got, want, atol)
  except (TypeError, ValueError, OverflowError):
    return False
"""
QUIET = "import os as _os, sys as _sys\n_sys.stdout = open(_os.devnull, 'w')\n"


def blocks(text: str) -> list[str]:
  """The fenced blocks of a text, the last even without its end."""
  return _BLOCK.findall(text)


def solution(text: str, prompt: str, entry_point: str) -> str:
  """The program of an answer that completes a function: whole, or to follow the prompt.

  Of several fenced blocks it is the first that defines the function.
  """
  candidates = blocks(text) or [text]
  defines = re.compile(rf"^[ \t]*def\s+{re.escape(entry_point)}\b", re.MULTILINE)
  code = next((block for block in candidates if defines.search(block)), candidates[0])
  programs = [f"{prompt}\n{code}\n"]
  if not defines.search(code):  # a body, of which a model or a tokenizer may leave out spaces
    lines = code.strip("\n").split("\n")
    indented = "".join(f"    {line}\n" for line in lines)
    programs += [f"{prompt}\n{indented}", f"{prompt}\n    {code.lstrip()}\n"]
  return next(filter(_is_program, programs), programs[0])


def _is_program(source):
  try:
    compile(source, "program.py", "exec")
  except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
    return False
  return True


def literal(value: Any) -> str:
  """An expression of a program that gives a JSON value, infinities too."""
  return f"__import__('json').loads({json.dumps(value)!r})"


def grade(answer: str, program: str, seconds: float) -> Grade:
  """Grades a program that ends in its tests by running it in the sandbox."""
  if not answer.strip():
    return Grade(False, None)
  outcome = sandbox.run(program, seconds=seconds)
  return Grade(outcome.passed, answer, outcome.reason)


def sources(**named: Any) -> str:
  """Lines of a program that give names to JSON values."""
  return "".join(f"{name} = {literal(value)}\n" for name, value in named.items())
