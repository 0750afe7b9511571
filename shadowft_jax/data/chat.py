"""Conversations -> tokens, with a loss mask over the assistant's answers.

The model's own chat template renders the text.  The mask is derived from the rendered text, so the
template needs no {% generation %} markers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shadowft_jax.data import answers
from shadowft_jax.data.tokenizer import ChatTemplate, Control, Tokenizer, check_text, control_of
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer, settings: Settings) -> list[Entry]:
  """Tokenises rows with the tokenizer's chat template, truncated to `settings.max_length` tokens.

  Returns:
    One entry per row, in order: its list of Example (one for a conversation, one or more for raw
    text), or the InputError of a bad row.

  Raises:
    InputError: max_length is not positive, or the tokenizer has no chat template.
  """
  if settings.max_length < 1:
    raise InputError(f"data.max_length must be above 0; got {settings.max_length}")
  needed = any(row.messages for row in rows)
  template: Any = ChatTemplate(tokenizer, dict(settings.template_args)) if needed else None
  control = control_of(tokenizer)
  texts: list[tuple[str, list | None]] = []
  out: list[Entry] = []
  for row in rows:
    try:
      text, spans = row.text, None
      if not text:
        text, spans = answers.rendered(row.messages, row.tools, template, control)
      if spans and settings.marks and row.images:
        text, spans = settings.marks.expanded(text, spans, len(row.images))
      check_text(text)
      texts.append((text, spans))
      out.append([])
    except InputError as error:
      out.append(InputError(f"{row.where}: {error}"))
  if not texts:
    return out
  encoded = tokenizer(
    [text for text, _ in texts],
    add_special_tokens=False,
    return_offsets_mapping=True,
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,
  )
  done = zip(encoded.input_ids, encoded.offset_mapping, texts, strict=True)
  for row, examples in zip(rows, out, strict=True):
    if not isinstance(examples, InputError):
      ids, offsets, (text, spans) = next(done)
      if spans is None:
        examples += _pieces(ids, tokenizer, settings.max_length, row.where)
      else:
        examples.append(_example(row, text, spans, ids, offsets, control, settings))
  return out


def unstopped(tokenizer: Tokenizer) -> str | None:
  """The token that ends an answer in the chat template, if the model does not stop at it.

  Returns:
    None if every answer ends with a stop token; "" if no token follows an answer.

  Raises:
    InputError: the template does not render a plain conversation.
  """
  turns = [{"role": r, "content": f"{r} {i}"} for i in (1, 2) for r in ("user", "assistant")]
  (entry,) = encode_rows([Row("a plain conversation", turns)], tokenizer, Settings(1 << 20))
  if isinstance(entry, InputError):
    raise entry
  if not entry[0].unterminated:
    return None
  template = ChatTemplate(tokenizer)
  _, after = answers.around(template.render(turns), turns, 1, template, None)
  found = control_of(tokenizer).pattern.search(after)
  return found[0] if found else ""


def _example(row, text, spans, ids, offsets, control: Control, settings):
  """The Example of a conversation, truncated to `settings.max_length` tokens."""
  begin = _begin(np.array(offsets, np.int64).reshape(-1, 2))
  within = lambda start, end: (begin >= start) & (begin < end)
  answer = sum(within(start, end) for start, _, end in spans).astype(np.int32)
  token = np.array(ids, np.int32)
  max_length, plain, marks = settings.max_length, text, settings.marks
  if marks and row.images:
    max_length, plain = marks.kept(token, max_length), text.replace(marks.whole, marks.mark)
  stop = np.isin(token, list(control.stops))
  trained_texts = [x for m in row.messages if answers.is_trained(m) for x in _texts(m)]
  return Example(
    token[:max_length],
    answer[:max_length],
    cut=int(answer[max_length:].sum()),
    altered=not all(x.strip() in plain for m in row.messages for x in _texts(m)),
    unterminated=sum(not stop[within(closing, end)].any() for _, closing, end in spans),
    has_special=control.contains_special(trained_texts, ids),
    where=row.where,
  )


def _texts(message):
  """The texts of a message."""
  return [message.get(key) or "" for key in ("content", "reasoning_content")]


def _pieces(ids, tokenizer, max_length, where):
  """Splits raw text, with BOS and EOS added, into equal pieces; the loss covers all of it."""
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  # A text that is already rendered has both, possibly with a newline after its last turn.
  last = next((i for i in reversed(ids) if tokenizer.decode([i]).strip()), None)
  ids = [
    *([] if bos is None or ids[:1] == [bos] else [bos]),
    *ids,
    *([] if eos is None or last == eos else [eos]),
  ]
  return [
    Example(np.array(part, np.int32), np.ones(len(part), np.int32), where=where)
    for part in np.array_split(ids, -(-len(ids) // max_length))
  ]


def _begin(offsets):
  """The index of the first character of each token, int [T].

  Args:
    offsets: int [T, 2], the character range of each token, as reported by the tokenizer.
  """
  # A token begins no later than the end of the tokens before it: some byte-level tokenizers leave
  # leading spaces out of the offsets.  All bytes of one character begin at that character.
  ends = np.maximum.accumulate(offsets[:, 1])
  return np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]])) if len(ends) else ends
