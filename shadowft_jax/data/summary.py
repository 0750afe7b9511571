"""What is said of the examples of a file before they are trained on."""

import os
import pathlib
from collections.abc import Sequence

from shadowft_jax.data.tokenizer import control_of, load_tokenizer
from shadowft_jax.data.turns import Example
from shadowft_jax.progress import count, say


def line(examples: Sequence[Example], dropped: int) -> str:
  """What the examples of a source hold, in a line, and what of it was dropped or cut."""
  cut, prompts = sum(e.cut > 0 for e in examples), sum(e.prompt_cut > 0 for e in examples)
  what = "pair" if examples[0].second else "example"
  altered = sum(e.altered for e in examples)
  tokens, trained = sum(len(e.token) for e in examples), sum(e.trained for e in examples)
  return "; ".join(
    [
      f"{count(len(examples), what)}, {count(tokens, 'token')}, {trained:,} trained",
      *([f"{dropped:,} dropped (their answers lie beyond data.max_length)"] if dropped else []),
      *([f"{cut:,} cut at data.max_length"] if cut else []),
      *(
        [f"{prompts:,} without the beginning of their prompt, for data.max_length"]
        if prompts
        else []
      ),
      *(
        [f"{altered:,} in which the chat template leaves out a part, such as earlier thoughts"]
        if altered
        else []
      ),
    ]
  )


def warn(
  name: str, examples: Sequence[Example], tokenizer_dir: str | os.PathLike, recipe: str
) -> None:
  """Says which answers are trained otherwise than their owner may mean."""
  spelt, endless = sum(e.spelt for e in examples), sum(e.endless for e in examples)
  if spelt:
    say(
      f"warning: {name}: in {spelt:,} of {len(examples):,} an answer spells out a control token of "
      "the tokenizer, such as the one that ends a turn, which is trained as that token"
    )
  if endless:
    tokenizer = load_tokenizer(tokenizer_dir)
    stops = tokenizer.convert_ids_to_tokens(list(control_of(tokenizer).stops))
    framing = "the authors' framing" if recipe == "paper" else "the chat template"
    say(
      f"warning: {name}: no stop token ends {count(endless, 'answer')}, so that the model may "
      f"never end one: {framing} of {tokenizer_dir} closes them without any of "
      f"{', '.join(stops) or 'them, since no file names one'}; if it writes another, name it as "
      f"eos_token_id in {pathlib.Path(tokenizer_dir, 'generation_config.json')}"
    )
