"""The documents of the vision pair: plain text and chats about charts, with images and without."""

import random
from collections.abc import Iterator
from typing import Any

from lab import charts
from lab.charts import Chart
from lab.questions import Problem

BEGIN, IMAGE, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
TOKENS = 16  # per image
WHOLE = f"\n\n{BEGIN}{IMAGE * TOKENS}{END}\n\n"  # as in data/vision.py
ASKED = 3  # questions about a chart in a document
CHATS = 0.25  # share of chats in the pretraining
DESCRIBED = 0.4  # share of charts in plain text whose values come before the questions
Part = tuple[str, float]  # a text, and the weight of its tokens in the loss
PROMPT_WEIGHT = 0.1  # of a prompt's tokens in the pretraining's loss; an answer's have 1


def values(chart: Chart) -> str:
  """What a chart shows, in a line of text."""
  parts = zip(chart.labels, chart.values, strict=True)
  return "Values: " + ", ".join(f"{a} {b}" for a, b in parts) + ".\n"


def plain(question: str) -> str:
  """The plain-text prompt of a question, up to where the answer begins."""
  return f"Question: {question}\nAnswer:\n"


def chat(question: str) -> str:
  """The chat prompt of a question, as the pair's template renders it."""
  return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def problems(chart: Chart, rng: random.Random) -> list[Problem]:
  """ASKED different kinds of questions about a chart."""
  return [ask(chart, rng) for ask in rng.sample(charts.KINDS[chart.kind].asks, ASKED)]


def told(chart: Chart, rng: random.Random, image: bool) -> list[Part]:
  """Plain text: a chart as an image, in words, or both, and questions about it."""
  parts = [(WHOLE, 0.0)] if image else []
  if not image or rng.random() < DESCRIBED:
    parts.append((values(chart), 1.0 if image else PROMPT_WEIGHT))
  for problem in problems(chart, rng):
    parts += [(plain(problem.question), PROMPT_WEIGHT), (f"{problem.answer}\n", 1.0)]
  return [*parts, ("<|endoftext|>", 1.0)]


def talked(chart: Chart, rng: random.Random, prompt_weight: float) -> list[Part]:
  """A chat about an image."""
  parts = [(f"<|im_start|>user\n{WHOLE}", 0.0)]
  for i, problem in enumerate(problems(chart, rng)):
    prompt = chat(problem.question)
    prompt = prompt if i else prompt.removeprefix("<|im_start|>user\n")
    parts += [(prompt, prompt_weight), (f"{problem.answer}<|im_end|>", 1.0), ("\n", 0.0)]
  return [*parts, ("<|endoftext|>", 0.0)]


def mixture(number: int, seed: Any) -> list[Chart]:
  """Training charts of the known kinds."""
  streams = [charts.stream(kind, seed) for kind in charts.KNOWN_KINDS]
  return [next(streams[i % len(streams)]) for i in range(number)]


def texts(number: int, seed: Any) -> Iterator[list[Part]]:
  """Plain text without images, about training charts of the kinds with numbers."""
  rng = random.Random(f"texts {seed}")
  streams = [charts.stream(kind, f"texts {seed}") for kind in ("bars", "line")]
  for _ in range(number):
    yield told(next(rng.choice(streams)), rng, image=False)
