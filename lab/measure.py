"""Measures a pair: held-out accuracy by skill and format, the gap ratio, what was required."""

import jax
import numpy as np

from lab import questions, text
from shadowft_jax.generation import decode
from shadowft_jax.pairs import gap

MAX_NEW = 16


def chat(tok, question: str) -> str:
  """Returns the chat prompt of a question, up to where the assistant's answer begins."""
  return tok.apply_chat_template(
    [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
  )


def accuracy(model, params, tok, examples: list[dict], form: str) -> dict[str, float]:
  """Returns {skill: share of exact answers}; `form` is plain or chat.

  Only the answer's first line counts, so a model that goes on after it is not marked down.
  """
  params = jax.device_put(jax.device_get(params), jax.devices()[0])
  stops = tuple(tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
  render = text.plain if form == "plain" else lambda question: chat(tok, question)
  prompts = tok([render(e["question"]) for e in examples])["input_ids"]
  outputs = decode.generate(
    model, {"params": params}, prompts, max_new=MAX_NEW, stop=stops, batch_size=128
  )
  right = {}
  for example, output in zip(examples, outputs, strict=True):
    first_line = tok.decode(output).strip().split("\n")[0].strip()
    right.setdefault(example["skill"], []).append(first_line == example["answer"])
  return {skill: float(np.mean(hits)) for skill, hits in right.items()}


def gap_ratio(base, instruct) -> float:
  """Returns sum|W_B - W_I| / (sum|W_B| + sum|W_I|) over all weights.

  Source: Shadow-FT, arXiv 2505.12716, equation 1.
  """
  parts = jax.tree.map(lambda b, i: gap.sums(np.asarray(b), np.asarray(i)), base, instruct)
  return gap.total(jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, gap.Sums))).ratio


def table(model, pair: dict, tok, examples: list[dict]) -> dict:
  """Returns {model: {form: {skill: accuracy, and old: the mean over the old skills}}}."""
  out = {}
  for name, params in pair.items():
    for form in ("plain", "chat"):
      row = accuracy(model, params, tok, examples, form)
      old = float(np.mean([row[skill] for skill in questions.OLD_SKILLS]))
      out.setdefault(name, {})[form] = {"old": old, **row}
  return out


def missed(result: dict) -> list[str]:
  """Returns every requirement that a pair's measured numbers miss."""
  base, instruct = result["accuracy"]["base"], result["accuracy"]["instruct"]
  new = questions.NEW_SKILL
  at_least = [
    ("instruct, chat, old skills", instruct["chat"]["old"], 0.8),
    ("base, plain, old skills", base["plain"]["old"], 0.6),
  ]
  at_least += [(f"instruct, chat, {s}", instruct["chat"][s], 0.5) for s in questions.OLD_SKILLS]
  at_most = [
    ("base, chat, old skills", base["chat"]["old"], 0.3),
    ("gap ratio", result["gap_ratio"], 0.1),
  ]
  at_most += [
    (f"{name}, {form}, {new}", row[form][new], 0.1)
    for name, row in result["accuracy"].items()
    for form in row
  ]
  return [
    f"{what} is {got:.3f}, at least {want} wanted" for what, got, want in at_least if got < want
  ] + [f"{what} is {got:.3f}, at most {want} wanted" for what, got, want in at_most if got > want]
