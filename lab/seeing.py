"""Asks models questions about charts, and measures the vision pair against its requirements."""

import collections
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab import chart_text, charts, measure, questions
from lab.charts import Chart
from lab.questions import Problem
from shadowft_jax import tree
from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.data import vision
from shadowft_jax.hf import weights
from shadowft_jax.models import siglip

MEASURED = 100  # test charts a skill
NEUTRAL = siglip.Pixels((1.0,) * 3, (0.0,) * 3)  # where no image is looked at
MAX_NEW = 2  # tokens: an answer has one, and the end of the turn follows
BATCH = 128  # questions at a time
# The requirements, set before any model was trained.
KNOWN, NEAR_CHANCE, MOST_GAP, MOST_BYTES = 0.6, 0.1, 0.05, 12e6

Asked = list[tuple[Chart, Problem]]


def inputs(
  folder: str | os.PathLike, asked: Asked, form: str = "chat", blank: bool = False
) -> tuple[list[list[int]], np.ndarray]:
  """Tokens of each question, and the images, uint8 [N, 1, 3, S, S]; all are white with `blank`."""
  tok, whole = tokenizers.load_tokenizer(folder), vision.open_vision(folder).marks.whole
  ask = {"chat": chat, "plain": plain}[form]
  tokens = tok([ask(whole, problem.question) for _, problem in asked])["input_ids"]
  pixel = np.stack([np.asarray(chart.image()).transpose(2, 0, 1)[None] for chart, _ in asked])
  return tokens, np.full_like(pixel, 255) if blank else pixel


def answers(folder: str | os.PathLike, asked: Asked, **how: Any) -> list[str]:
  """What the model in a folder answers, greedily, to its `inputs`.

  Every token is computed from the whole row, which is quick enough for answers of one token.
  """
  pixels = siglip.Pixels(*vision.open_vision(folder).normalisation)
  model, params = weights.load_model(folder, dtype=jnp.float32, pixels=pixels)
  apply = jax.jit(model.apply)
  tokens, pixel = inputs(folder, asked, **how)
  length, out = max(map(len, tokens)) + MAX_NEW, []
  for first in range(0, len(asked), BATCH):
    part = tokens[first : first + BATCH]
    token = np.zeros((BATCH, length), np.int32)
    images = np.zeros((BATCH, *pixel.shape[1:]), np.uint8)
    images[: len(part)] = pixel[first : first + BATCH]
    for i, row in enumerate(part):
      token[i, : len(row)] = row
    end = np.array([*map(len, part), *[1] * (BATCH - len(part))])
    each = np.arange(BATCH)
    for _ in range(MAX_NEW):
      logit = np.asarray(apply({"params": params}, token, pixel=images))
      token[each, end] = logit[each, end - 1].argmax(-1)
      end += 1
    out += [row[n - MAX_NEW : n] for row, n in zip(token[: len(part)], end, strict=False)]
  return tokenizers.load_tokenizer(folder).batch_decode(out)


def chat(image: str, question: str) -> str:
  """A chat about an image, up to where the answer begins."""
  return chart_text.chat(image + question)


def plain(image: str, question: str) -> str:
  """Plain text about an image, up to where the answer begins."""
  return image + chart_text.plain(question)


def final(reply: str) -> str:
  """The answer of a reply: its first line, up to the end of the turn."""
  return questions.final(reply.split("<|")[0])


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
  replies = iter(answers(folder, flat, **how))
  return {
    skill: np.array([final(next(replies)) == problem.answer for _, problem in group], float)
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
