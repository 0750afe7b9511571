"""The pair check of stop tokens: whether a tuned model stops where its answers end."""

from collections.abc import Iterator

from etils import epy

from shadowft_jax.errors import InputError
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.pairs.findings import Finding

with epy.lazy_imports():  # brings transformers
  from shadowft_jax.data import chat, tokenizer as tokenizers


def unstopped(base: ModelFolder, instruct: ModelFolder) -> Iterator[Finding]:
  """Yields a warning if the Instruct's template ends an answer with no stop token of the Instruct.

  Stop tokens are those of generation_config.json, config.json and the tokenizer together.  GLM's
  template, for example, closes no answer: the next turn begins with <|user|>, at which GLM stops
  only because generation_config.json says so.

  Args:
    base: not used; as in the other parts of the check.
    instruct: the model that is served.
  """
  if not (instruct.template and (instruct.directory / "tokenizer.json").is_file()):
    return
  try:
    tokenizer = tokenizers.load_tokenizer(instruct.directory)
    closing = chat.unstopped(tokenizer)
  except InputError:
    return  # training says what is wrong with the tokenizer or the template
  if closing is None:
    return
  stops = tokenizer.convert_ids_to_tokens(sorted(tokenizers.control_of(tokenizer).stops))
  yield Finding(
    "warning",
    f"the chat template ends an answer with {closing or 'nothing'}, and the Instruct's stop tokens "
    f"are {', '.join(stops) or 'none'}: a model that is trained on such answers does not stop; add "
    "the token that ends an answer, or begins the user's turn, to eos_token_id in "
    f"{instruct.directory / 'generation_config.json'}",
  )
