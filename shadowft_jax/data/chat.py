"""Conversations as tokens, with a mask over the assistant's answers.

The model's own chat template renders the text; the mask is found from the text alone, so that
a template needs no marks of its own for it.
"""

import datetime
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from shadowft_jax.data.tokenizer import Control, Tokenizer, control_of, name_of
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError

MARK = "zqxanswerqxz"  # stands in for an answer, to find the text around it
# Some templates write today's date, and a run could not be repeated tomorrow.  This is the date
# that Llama 3's fall back to.
DATE = "26 Jul 2024"
DAY = datetime.datetime(2024, 7, 26)
# A macro that stands in for transformers' strftime_now, which reads the clock.
CLOCK = "".join(
  [
    "{% macro strftime_now(format) %}{{ format",
    *(f" | replace('%-{x}', '{int(DAY.strftime('%' + x))}')" for x in "dHIjmMSUwWy"),
    *(f" | replace('%{x}', '{DAY.strftime('%' + x)}')" for x in "aAbBcdDeFHIjmMpSTuUVwWxXyYzZ%"),
    " }}{% endmacro %}\n",
  ]
)


def prompt_text(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> str:
  """The text after which the assistant's next turn is generated, special tokens spelt out."""
  return str(_render(messages, tokenizer, prompt=True))


def render_prompt(messages: list[dict[str, Any]], tokenizer: Tokenizer) -> list[int]:
  """The tokens after which the assistant's next turn is generated."""
  return tokenizer(prompt_text(messages, tokenizer), add_special_tokens=False).input_ids


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
  control = control_of(tokenizer)
  texts: list[tuple[str, list | None]] = []
  out: list[Entry] = []
  for row in rows:
    try:
      texts.append((row.text, None) if row.text else _answers(row, tokenizer, control))
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
        examples.append(_example(row, text, spans, ids, offsets, control, settings.max_length))
  return out


def _example(row, text, spans, ids, offsets, control: Control, max_length):
  """The Example of a conversation, cut to `max_length` tokens."""
  begin = _begin(np.array(offsets, np.int64).reshape(-1, 2))
  within = lambda start, end: (begin >= start) & (begin < end)
  answer = sum(within(start, end) for start, _, end in spans).astype(np.int32)
  token = np.array(ids, np.int32)
  stop = np.isin(token, list(control.stops))
  said = [x for m in row.messages if _is_learnt(m) for x in _texts(m)]
  return Example(
    token[:max_length],
    answer[:max_length],
    cut=int(answer[max_length:].sum()),
    altered=not all(x.strip() in text for m in row.messages for x in _texts(m)),
    endless=sum(not stop[within(closing, end)].any() for _, closing, end in spans),
    spelt=control.is_spelt(said, ids),
    where=row.where,
  )


def _is_learnt(message):
  return message["role"] == "assistant" and message.get("weight") != 0


def _texts(message):
  """The texts of a message."""
  return [message.get(key) or "" for key in ("content", "reasoning_content")]


def _pieces(ids, tokenizer, max_length, where):
  """Raw text between the tokenizer's begin and end tokens, in equal pieces; all of it trained."""
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  # A text that was rendered before has them, maybe with a line end after its last turn.
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
  """int [T]: the character with which each token begins.

  Args:
    offsets: int [T, 2], the characters a token covers, as the tokenizer reports them.
  """
  # A token begins no later than where the ones before it end: some byte-level tokenizers leave
  # the spaces of a token out of its offsets.  The bytes of one character all begin with it.
  ends = np.maximum.accumulate(offsets[:, 1])
  return np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]])) if len(ends) else ends


def _answers(row, tokenizer, control):
  """The rendered conversation, and the span of each answer that the loss covers, see `_span`."""
  turns = [i for i, message in enumerate(row.messages) if _is_learnt(message)]
  if not turns:
    raise InputError("there is no turn of the assistant to learn; expected at least one answer")
  text = _render(row.messages, tokenizer, row.tools)
  spans = [_span(text, row.messages, turn, tokenizer, row.tools, control) for turn in turns]
  start, closing, end = spans[-1]
  # Nothing closes the last answer.
  if turns[-1] == len(row.messages) - 1 and not control.pattern.search(text, closing):
    marker = _next_marker(text, row.messages, tokenizer, row.tools, control)
    text, spans[-1] = text + marker, (start, closing, end + len(marker))
  return text, spans


def _span(text, messages, turn, tokenizer, tools, control):
  """Where in `text` messages[turn] stands: (start, end of its content, end), in characters.

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
  return start, end, end + _closing(text, messages, turn, after, tokenizer, tools, control)


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


def _closing(text, messages, turn, after, tokenizer, tools, control):
  """The length of the text that closes an answer: the text after it, were it the last.

  Some templates close earlier answers with another token, some by the marker of the next turn.
  """
  if turn == len(messages) - 1:
    return len(after)
  alone = _around(text, messages[: turn + 1], turn, tokenizer, tools)[1]
  shared = len(os.path.commonprefix([alone, after]))
  # "<|end|>\n<|endoftext|>" and "<|end|>\n<|user|>" share "<|end|>\n", not "<|end|>\n<|".
  for found in control.pattern.finditer(alone):
    if found.start() < shared < found.end():
      shared = found.start()
  first = control.pattern.search(after)
  if first and first.start() >= shared and not after[: first.start()].strip():
    if _is_stop(first[0], tokenizer, control):
      return first.end()
    # One token that closes a turn, and one that opens the next.
    header = _header(text, messages, turn + 1, tokenizer, tools)[len(text) - len(after) :]
    if control.pattern.search(alone) and len(control.pattern.findall(header)) > 1:
      return first.end()
  return shared


def _header(text, messages, turn, tokenizer, tools):
  """The text before the content of a turn; "" where it is not to be found."""
  try:
    return _around(text, messages, turn, tokenizer, tools)[0]
  except InputError:
    return ""


def _next_marker(text, messages, tokenizer, tools, control):
  """The stop token with which a turn after the last answer would begin; "" if there is none."""
  role = "tool" if messages[-1].get("tool_calls") else "user"
  more = [*messages, {"role": role, "content": "?"}]
  try:
    after = _around(text, more, len(messages) - 1, tokenizer, tools)[1]
  except InputError:
    return ""  # The template takes no such turn.
  first = control.pattern.match(after.lstrip())
  return first[0] if first and _is_stop(first[0], tokenizer, control) else ""


def _is_stop(token, tokenizer, control):
  return tokenizer.convert_tokens_to_ids(token) in control.stops


def _render(messages, tokenizer, tools=None, prompt=False):
  """The text of a conversation; with `prompt`, up to where the assistant's turn begins."""
  try:
    template = tokenizer.get_chat_template(tools=tools)
    # transformers renders in jinja2's ImmutableSandboxedEnvironment.
    return tokenizer.apply_chat_template(
      messages,
      tools=tools,
      chat_template=CLOCK + template if "strftime_now" in template else template,
      tokenize=False,
      add_generation_prompt=prompt,
      date_string=DATE,
    )
  except Exception as error:  # A template is foreign code: it may raise anything.
    raise InputError(
      f"the chat template of {name_of(tokenizer)} fails on roles "
      f"{', '.join(m['role'] for m in messages)}: {error}; change the "
      "conversation or the template"
    ) from error
