"""Asks models questions about charts, and measures the vision pair against its requirements."""

import collections
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from lab import asking, chart_text, charts, measure, questions
from lab.charts import Chart
from lab.questions import Problem
from shadowft_jax import tree
from shadowft_jax.data.pictures import Picture
from shadowft_jax.data.turns import IMAGE
from shadowft_jax.generation import engine as engines
from shadowft_jax.hf import weights
from shadowft_jax.models import siglip

MEASURED = 100  # test charts a skill
NEUTRAL = siglip.Pixels((1.0,) * 3, (0.0,) * 3)  # where no image is looked at
MAX_NEW = 2  # tokens: an answer has one, and the end of the turn follows
# The requirements, set before any model was trained.
KNOWN, NEAR_CHANCE, MOST_GAP, MOST_BYTES = 0.6, 0.1, 0.05, 12e6

Asked = list[tuple[Chart, Problem]]


@functools.cache
def picture(chart: Chart | None) -> Picture:
  """The drawing of a chart; None: a white image."""
  data = chart.png() if chart else charts.png(Image.new("RGB", (charts.SIZE,) * 2, "white"))
  return Picture(hashlib.sha256(data).hexdigest(), data)


def answers(
  folder: str | os.PathLike, asked: Asked, form: str = "chat", blank: bool = False
) -> list[str]:
  """What the model in a folder answers, greedily; with `blank`, all it sees are white images.

  Args:
    folder: the model.
    asked: charts and questions.
    form: chat, in the model's template, or plain text.
    blank: whether to hide the charts.
  """
  engine, sampling = asking.engine(folder), engines.Sampling(max_new=MAX_NEW)
  shown = [[picture(None if blank else chart)] for chart, _ in asked]
  asks = [problem.question for _, problem in asked]
  if form == "plain":
    whole = engine.eye.vision.marks.whole
    prompts = engine.tokenizer([whole + chart_text.plain(ask) for ask in asks])["input_ids"]
    return [one.text for [one] in engine.complete_tokens(prompts, sampling, images=shown)]
  chats = [
    [{"role": "user", "content": IMAGE + ask, "images": images}]
    for ask, images in zip(asks, shown, strict=True)
  ]
  return [one.text for [one] in engine.complete(chats, sampling)]


def test_set(number: int, seed: Any, of: str = "test") -> dict[tuple[str, str], Asked]:
  """{(kind of chart, question): charts and questions} of every skill."""
  return {
    (kind, ask.__name__): charts.asked(kind, ask, number, seed, of) for kind, ask in charts.skills()
  }


def right(
  folder: str | os.PathLike, asked: dict[tuple[str, str], Asked], **how: Any
) -> dict[tuple[str, str], np.ndarray]:
  """1 for a right answer and 0 for a wrong one, by skill."""
  flat = [pair for group in asked.values() for pair in group]
  finals = map(questions.final, answers(folder, flat, **how))
  return {
    skill: np.array([next(finals) == problem.answer for _, problem in group], float)
    for skill, group in asked.items()
  }


def shares(hits: dict[tuple[str, str], np.ndarray]) -> dict[str, float]:
  """The mean over the known skills and over the new ones, and every skill."""
  by_skill = {skill: float(values.mean()) for skill, values in hits.items()}
  of = lambda new: float(
    np.mean([x for (kind, _), x in by_skill.items() if (kind == charts.NEW_KIND) is new])
  )
  each = {f"{kind} {ask}": x for (kind, ask), x in by_skill.items()}
  return {"known": of(False), "new": of(True), **each}


def chance(asked: dict[tuple[str, str], Asked]) -> dict[str, float]:
  """As `shares`, of one who sees no image and gives the most frequent answer to each question.

  For a value it is that of the right answers' digits, whichever label is asked for.
  """
  hits = {}
  for skill, group in asked.items():
    counts = collections.Counter(problem.answer for _, problem in group)
    hits[skill] = np.array([counts.most_common(1)[0][1] / len(group)])
  return shares(hits)


def measured(out: pathlib.Path) -> dict[str, Any]:
  """Returns the numbers of the stored pair, and which requirements they miss."""
  asked = test_set(MEASURED, "test")
  folders = {name: out / name for name in ("base", "instruct")}
  pair = {
    n: weights.load_model(f, dtype=jnp.float32, pixels=NEUTRAL)[1] for n, f in folders.items()
  }
  result = {
    "parameters": tree.size(pair["base"]),
    "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    "gap_ratio": measure.gap_ratio(**pair),
    "chance": chance(asked),
    "blank": shares(right(folders["instruct"], asked, blank=True)),
    "accuracy": {
      name: {form: shares(right(folder, asked, form=form)) for form in ("plain", "chat")}
      for name, folder in folders.items()
    },
  }
  return {**result, "missed": missed(result)}


def missed(result: dict[str, Any]) -> list[str]:
  """Returns every requirement that a pair's measured numbers miss."""
  instruct = result["accuracy"]["instruct"]["chat"]
  wanted = [
    ("instruct, chat, known kinds", instruct["known"], KNOWN, 1),
    ("with blank images", result["blank"]["known"], result["chance"]["known"] + NEAR_CHANCE, -1),
    ("gap ratio", result["gap_ratio"], MOST_GAP, -1),
    ("bytes", result["bytes"], MOST_BYTES, -1),
    ("instruct, chat, new kind", instruct["new"], instruct["known"] - 0.15, -1),
  ]
  return [
    f"{what} is {value:.3f}, at {'least' if sign > 0 else 'most'} {limit:.3f} wanted"
    for what, value, limit, sign in wanted
    if sign * value < sign * limit
  ]
