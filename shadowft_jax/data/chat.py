"""Conversations as tokens, with a mask over the assistant's answers.

The model's own chat template renders the text; the mask is found from the text alone, so that
a template needs no marks of its own for it.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadowft_jax.data.tokenizer import Tokenizer, name_of
from shadowft_jax.data.turns import Example, Row, Settings
from shadowft_jax.errors import InputError

MARK = "zqxanswerqxz"  # stands in for an answer, to find the text around it
# Llama 3's templates write today's date unless they are given one, and a run could not be
# repeated tomorrow.  This is their own fallback.
DATE = "26 Jul 2024"


Entry = list[Example] | InputError  # of a row: its examples, or what is wrong with it


def render_prompt(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> list[int]:
  """The tokens after which the assistant's next turn is generated."""
  text = _render(messages, tokenizer, prompt=True)
  return tokenizer(text, add_special_tokens=False).input_ids


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer, settings: Settings) -> list[Entry]:
  """Encodes rows with the tokenizer's own chat template, cut to `settings.max_length` tokens.

  Returns:
    One entry per row, in order: its list of Example (raw text may be several pieces, a
    conversation is one), or the InputError that says what is wrong with the row.

  Raises:
    InputError: max_length is not positive, or the tokenizer has no chat template.
  """
  if settings.max_length < 1:
    raise InputError(f"data.max_length must be above 0; got {settings.max_length}")
  if not tokenizer.chat_template and any(row.messages for row in rows):
    raise InputError(
      f"{name_of(tokenizer)} has no chat template; use the tokenizer of the "
      "Instruct model, or put its chat_template.jinja into the folder"
    )
  texts: list[tuple[str, list | None]] = []
  out: list[Entry] = []
  for row in rows:
    try:
      texts.append((row.text, None) if row.text else _answers(row, tokenizer))
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
        answer = _learnt(np.array(offsets, np.int64).reshape(-1, 2), spans)
        examples.append(_cut(ids, answer, settings.max_length, _altered(text, row), row.where))
  return out


def _cut(ids, answer, max_length, altered, where):
  """The Example of a conversation, cut to `max_length` tokens."""
  token = np.array(ids[:max_length], np.int32)
  cut = int(answer[max_length:].sum())
  return Example(token, answer[:max_length], cut, altered, where=where)


def _pieces(ids, tokenizer, max_length, where):
  """Raw text between the tokenizer's begin and end tokens, in equal pieces; all of it trained."""
  ids = [
    *([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]),
    *ids,
    *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]),
  ]
  return [
    Example(np.array(part, np.int32), np.ones(len(part), np.int32), where=where)
    for part in np.array_split(ids, -(-len(ids) // max_length))
  ]


def _altered(text, row):
  """Whether the template left out some of what a message says: earlier thoughts, for one."""
  said = [m.get(key) or "" for m in row.messages for key in ("content", "reasoning_content")]
  return not all(part.strip() in text for part in said)


def _learnt(offsets, spans):
  """int32 [T]: 1 where a token begins inside one of the spans (start, end), in characters.

  Args:
    offsets: int [T, 2], the characters a token covers, as the tokenizer reports them.
  """
  # A token begins no later than where the ones before it end: some byte-level tokenizers leave
  # the spaces of a token out of its offsets.  The bytes of one character all begin with it.
  ends = np.maximum.accumulate(offsets[:, 1])
  begin = np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]])) if len(ends) else ends
  return sum(((begin >= start) & (begin < end)) for start, end in spans).astype(np.int32)


def _answers(row, tokenizer):
  """The rendered conversation, and the span (start, end) of each answer that the loss covers."""
  turns = [
    i for i, m in enumerate(row.messages) if m["role"] == "assistant" and m.get("weight") != 0
  ]
  if not turns:
    raise InputError("there is no turn of the assistant to learn; expected at least one answer")
  text = _render(row.messages, tokenizer, row.tools)
  return text, [_span(text, row.messages, turn, tokenizer, row.tools) for turn in turns]


def _span(text, messages, turn, tokenizer, tools):
  """Where in `text` the answer messages[turn] stands: (start, end), in characters.

  It starts where generation would: text that a template puts between its prompt and the content
  (an empty thinking block) has to be trained.  It ends after the text that closes the turn.
  """
  before, after = _around(text, messages, turn, tokenizer, tools)
  end = len(text) - len(after)
  # A call's mark stands in the middle of the answer.
  start = len(before) if text.startswith(before) and not messages[turn].get("tool_calls") else None
  if turn:
    prompt = _render(messages[:turn], tokenizer, tools, prompt=True)
    # Not so where the prompt opens thoughts that the rendered conversation leaves out.
    start = len(prompt) if text.startswith(prompt) else start
  if start is None or start > end or not text.endswith(after):
    raise InputError(
      f"turn {turn + 1}: the answer {(messages[turn]['content'] or '')[:60]!r} is not found in "
      f"what the chat template of {name_of(tokenizer)} writes; its template cannot be learnt "
      "from"
    )
  return start, end + _closing(text, messages, turn, after, tokenizer, tools)


def _around(text, messages, turn, tokenizer, tools):
  """The text that the template writes before and after the content, or last call, of a turn."""
  mark = MARK
  while mark in text:
    mark += MARK
  marked = [*messages[:turn], _marked(messages[turn], mark), *messages[turn + 1 :]]
  before, *after = _render(marked, tokenizer, tools).split(mark)
  if len(after) != 1:
    raise InputError(
      f"turn {turn + 1}: the chat template of {name_of(tokenizer)} writes an answer "
      f"{len(after)} times; expected once"
    )
  return before, after[0]


def _marked(message, mark):
  """The message with `mark` for its content; or for the name of its last call, since some
  templates leave out the content beside calls."""
  if not message.get("tool_calls"):
    return {**message, "content": mark}
  *calls, last = message["tool_calls"]
  return {
    **message,
    "tool_calls": [*calls, {**last, "function": {**last["function"], "name": mark}}],
  }


def _closing(text, messages, turn, after, tokenizer, tools):
  """The length of the text that closes an answer: the text after it, were it the last."""
  if turn == len(messages) - 1:
    return len(after)
  alone = _around(text, messages[: turn + 1], turn, tokenizer, tools)[1]
  shared = len(os.path.commonprefix([alone, after]))
  if shared == len(alone):
    return shared
  # "<|end|>\n<|endoftext|>" and "<|end|>\n<|user|>" share "<|end|>\n", not "<|end|>\n<|".
  special = "|".join(map(re.escape, sorted(tokenizer.get_added_vocab(), key=len, reverse=True)))
  for found in re.finditer(special, alone) if special else ():
    if found.start() < shared < found.end():
      return found.start()
  return shared


def _render(messages, tokenizer, tools=None, prompt=False):
  """The text of a conversation; with `prompt`, up to where the assistant's turn begins."""
  try:
    # transformers renders in jinja2's ImmutableSandboxedEnvironment.
    return tokenizer.apply_chat_template(
      messages, tools=tools, tokenize=False, add_generation_prompt=prompt, date_string=DATE
    )
  except Exception as error:  # A template is foreign code: it may raise anything.
    raise InputError(
      f"the chat template of {name_of(tokenizer)} fails on roles "
      f"{', '.join(m['role'] for m in messages)}: {error}; change the "
      "conversation or the template"
    ) from error
