"""The summary and warnings printed for each data source before training."""

import os
import pathlib
from collections.abc import Sequence

from shadowft_jax.data.tokenizer import control_of, load_tokenizer
from shadowft_jax.data.turns import Example
from shadowft_jax.progress import count, say


def line(examples: Sequence[Example], dropped: int) -> str:
  """A one-line summary of the examples of a source.

  Args:
    examples: its examples.
    dropped: how many rows have no answer token within data.max_length.
  """
  cut, prompts = sum(e.cut > 0 for e in examples), sum(e.prompt_cut > 0 for e in examples)
  what = "pair" if examples[0].second and examples[0].desirable is None else "example"
  altered = sum(e.altered for e in examples)
  tokens, trained = sum(len(e.token) for e in examples), sum(e.trained for e in examples)
  counted = {
    "dropped (no answer token within data.max_length)": dropped,
    "truncated to data.max_length": cut,
    "with the prompt truncated from the left (data.max_length)": prompts,
    "with a part that the chat template drops, such as earlier thinking": altered,
  }
  return "; ".join(
    [
      f"{count(len(examples), what)}, {count(tokens, 'token')}, {trained:,} trained",
      *(f"{number:,} {text}" for text, number in counted.items() if number),
    ]
  )


def warn(
  name: str, examples: Sequence[Example], tokenizer_dir: str | os.PathLike, recipe: str
) -> None:
  """Warns of answers that contain control tokens, or that do not end with a stop token."""
  has_special, unterminated = (
    sum(e.has_special for e in examples),
    sum(e.unterminated for e in examples),
  )
  if has_special:
    say(
      f"warning: {name}: the text of an answer contains a special token, such as the one that ends "
      f"a turn, in {has_special:,} of {len(examples):,} examples; it is tokenised as that token"
    )
  if unterminated:
    tokenizer = load_tokenizer(tokenizer_dir)
    stops = tokenizer.convert_ids_to_tokens(list(control_of(tokenizer).stops))
    framing = "The paper's template" if recipe == "paper" else "The chat template"
    say(
      f"warning: {name}: answers without a stop token at their end: {unterminated:,}; the model "
      f"may not learn to stop.  {framing} of {tokenizer_dir} closes them with none of its stop "
      f"tokens ({', '.join(stops) or 'none is defined'}); if it uses another, set it as "
      f"eos_token_id in {pathlib.Path(tokenizer_dir, 'generation_config.json')}"
    )
