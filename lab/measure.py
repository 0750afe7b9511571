"""Measures a pair: held-out accuracy by skill and format, the gap ratio, what was required."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lab import questions, text
from shadowft_jax.generation import decode
from shadowft_jax.pairs import gap

MAX_NEW = 12  # tokens of an answer; the longest right one has 7


def replies(model, params, tok, prompts: Sequence[str]) -> list[str]:
  """Returns the likeliest continuation of each prompt, up to the end of the text or turn."""
  params = jax.device_put(jax.device_get(params), jax.devices()[0])
  outputs = decode.generate(
    model,
    {"params": params},
    tok(list(prompts))["input_ids"],
    max_new=MAX_NEW,
    stop=tuple(tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])),
    batch_size=256,
  )
  return tok.batch_decode(outputs)


def mean(row: dict[str, float], skills: Sequence[str]) -> float:
  """The mean accuracy of some skills."""
  return float(np.mean([row[skill] for skill in skills]))


def accuracy(model, params, tok, by_skill: dict[str, list[questions.Problem]], form: str):
  """Returns {skill: share of right answers} with three summaries; `form` is plain or chat.

  old: the mean of the old skills; need working: of those that need working; worked: the share of
  the answers to those that have working.  Only the first line of an answer counts, so a model that
  goes on after it is not marked down.
  """
  render = text.plain if form == "plain" else text.chat
  flat = [(skill, problem) for skill, problems in by_skill.items() for problem in problems]
  answers = replies(model, params, tok, [render(problem.question) for _, problem in flat])
  right, worked = {}, []
  for (skill, problem), answer in zip(flat, answers, strict=True):
    right.setdefault(skill, []).append(questions.final(answer) == problem.answer)
    if problem.working:
      worked.append(questions.is_worked(answer))
  row = {skill: float(np.mean(hits)) for skill, hits in right.items()}
  return {
    "old": mean(row, list(questions.OLD_SKILLS)),
    "need working": mean(row, list(questions.WORKED_SKILLS)),
    "worked": float(np.mean(worked)),
    **row,
  }


def gap_ratio(base, instruct) -> float:
  """Returns sum|W_B - W_I| / (sum|W_B| + sum|W_I|) over all weights.

  Source: Shadow-FT, arXiv 2505.12716, equation 1.
  """
  parts = jax.tree.map(lambda b, i: gap.sums(np.asarray(b), np.asarray(i)), base, instruct)
  return gap.total(jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, gap.Sums))).ratio


def table(model, pair: dict, tok, by_skill: dict[str, list[questions.Problem]]) -> dict:
  """Returns {model: {form: what `accuracy` returns}}."""
  return {
    name: {form: accuracy(model, params, tok, by_skill, form) for form in ("plain", "chat")}
    for name, params in pair.items()
  }


def missed(result: dict[str, Any]) -> list[str]:
  """Returns every requirement that a pair's measured numbers miss."""
  base, instruct = (result["accuracy"][name]["chat"] for name in ("base", "instruct"))
  at_least = [
    ("base, chat, old skills", base["old"], 0.5),
    ("instruct, chat, old skills", instruct["old"], 0.95),
    (
      "instruct minus base, chat, skills that need working",
      instruct["need working"] - base["need working"],
      0.3,
    ),
  ]
  at_most = [("gap ratio", result["gap_ratio"], 0.05)] + [
    (f"{name}, {form}, {new}", row[new], 0.1)
    for name, forms in result["accuracy"].items()
    for form, row in forms.items()
    for new in questions.NEW_SKILLS
  ]
  return [
    f"{what} is {value:.3f}, at least {limit} wanted"
    for what, value, limit in at_least
    if value < limit
  ] + [
    f"{what} is {value:.3f}, at most {limit} wanted"
    for what, value, limit in at_most
    if value > limit
  ]
