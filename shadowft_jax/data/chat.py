"""Conversations -> tokens, with a loss mask over the assistant's answers.

The model's own chat template renders the text.  The mask is derived from the rendered text, so the
template needs no {% generation %} markers.
"""

import os
from collections.abc import Sequence

import numpy as np

from shadowft_jax.data.tokenizer import ChatTemplate, Control, Tokenizer, check_text, control_of
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError

LONG, NEAR = 50, 6  # messages of a long conversation; those before and after an answer in its part
MARK = "zqxanswerqxz"  # replaces an answer, to find the text around it


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
  template = ChatTemplate(tokenizer, dict(settings.template_args)) if needed else None
  control = control_of(tokenizer)
  texts: list[tuple[str, list | None]] = []
  out: list[Entry] = []
  for row in rows:
    try:
      text, spans = (row.text, None) if row.text else _answers(row, template, control)
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
  _, after = _around(template.render(turns), turns, 1, template, None)
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
  trained_texts = [x for m in row.messages if _is_trained(m) for x in _texts(m)]
  return Example(
    token[:max_length],
    answer[:max_length],
    cut=int(answer[max_length:].sum()),
    altered=not all(x.strip() in plain for m in row.messages for x in _texts(m)),
    unterminated=sum(not stop[within(closing, end)].any() for _, closing, end in spans),
    has_special=control.contains_special(trained_texts, ids),
    where=row.where,
  )


def _is_trained(message):
  return message["role"] == "assistant" and message.get("weight") != 0


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


def _answers(row, template, control):
  """(the rendered conversation, the `_span` of each answer that the loss covers)."""
  turns = [i for i, message in enumerate(row.messages) if _is_trained(message)]
  if not turns:
    raise InputError("it has no assistant turn to train on; expected at least one answer")
  text = template.render(row.messages, row.tools)
  spans = _spans(text, row.messages, turns, template, row.tools, control)
  start, closing, end = spans[-1]
  # The template does not close the last answer.
  if turns[-1] == len(row.messages) - 1 and not control.pattern.search(text, closing):
    marker = _next_marker(text, row.messages, template, row.tools, control)
    text, spans[-1] = text + marker, (start, closing, end + len(marker))
  return text, spans


def _spans(text, messages, turns, template, tools, control):
  """The `_span` of each answer.

  Each takes a few renderings of the conversation, so a long one is rendered in parts.
  """
  rest = (template, tools, control)
  spans = _spans_in_parts(text, messages, turns, *rest) if len(messages) > LONG else None
  return spans or [_span(text, messages, turn, *rest) for turn in turns]


def _spans_in_parts(text, messages, turns, template, tools, control):
  """The spans, each found in the turns near it; None if their text is not that of the whole."""
  lead = messages[0]["role"] == "system"
  contents, parts = [], []
  try:
    for turn in turns:
      first = max(turn - NEAR, lead)
      while first > lead and messages[first]["role"] != "user":
        first -= 1
      part = [*messages[:lead], *messages[first : turn + NEAR + 1]]
      at, local = turn - first + lead, template.render(part, tools)
      before, after = _around(local, part, at, template, tools)
      contents.append(local[len(before) : len(local) - len(after)])
      start, closing, end = _span(local, part, at, template, tools, control)
      parts.append((local[start:closing], local[closing:end]))
    answers = {*turns}
    marked = [_marked(m, MARK) if i in answers else m for i, m in enumerate(messages)]
    around = template.render(marked, tools).split(MARK)
  except InputError:
    return None
  if len(around) != len(turns) + 1 or MARK in text:
    return None
  spans, end = [], 0
  for fixed, content, (answer, closing) in zip(around, contents, parts, strict=False):
    end += len(fixed) + len(content)
    spans.append((end - len(answer), end, end + len(closing)))
  same = (text[a:c] == "".join(part) for (a, _, c), part in zip(spans, parts, strict=True))
  woven = [x for pair in zip(around, [*contents, ""], strict=True) for x in pair]
  return spans if "".join(woven) == text and all(same) else None


def _span(text, messages, turn, template, tools, control):
  """The character range of messages[turn] in `text`: (start, end of its content, end).

  The range starts where generation would start, so that text between the generation prompt and the
  content (an empty thinking block) is trained.  It ends after the text that closes the turn.
  """
  before, after = _around(text, messages, turn, template, tools)
  end = len(text) - len(after)
  # With tool calls the mark is in the middle of the answer.
  start = len(before) if text.startswith(before) and not messages[turn].get("tool_calls") else None
  if turn:
    prompt = template.render(messages[:turn], tools, prompt=True)
    # False if the generation prompt opens a thinking block that the rendered conversation drops.
    start = len(prompt) if text.startswith(prompt) else start
  if start is None or start > end or not text.endswith(after):
    raise InputError(
      f"turn {turn + 1}: cannot find the answer {(messages[turn]['content'] or '')[:60]!r} in the "
      f"text rendered by the chat template of {template.name}; this template is not supported for "
      "training"
    )
  return start, end, end + _closing(text, messages, turn, after, template, tools, control)


def _around(text, messages, turn, template, tools):
  """The rendered text before and after the content (or last tool call) of a turn."""
  mark = MARK
  while mark in text:
    mark += MARK
  marked = [*messages[:turn], _marked(messages[turn], mark), *messages[turn + 1 :]]
  before, *after = template.render(marked, tools).split(mark)
  if len(after) != 1:
    raise InputError(
      f"turn {turn + 1}: the chat template of {template.name} renders the answer {len(after)} "
      "times; expected once"
    )
  return before, after[0]


def _marked(message, mark):
  """The message with `mark` as its content, or as the name of its last tool call: some templates
  drop the content of a message that has calls."""
  if not message.get("tool_calls"):
    return {**message, "content": mark}
  *calls, last = message["tool_calls"]
  return {
    **message,
    "tool_calls": [*calls, {**last, "function": {**last["function"], "name": mark}}],
  }


def _closing(text, messages, turn, after, template, tools, control):
  """The length of the text that closes an answer: the text that would follow it as the last turn.

  Some templates close earlier answers with a different token, or with the next turn's marker.
  """
  if turn == len(messages) - 1:
    return len(after)
  alone = _around(text, messages[: turn + 1], turn, template, tools)[1]
  shared = len(os.path.commonprefix([alone, after]))
  # "<|end|>\n<|endoftext|>" and "<|end|>\n<|user|>" share "<|end|>\n", not "<|end|>\n<|".
  for marker in control.pattern.finditer(alone):
    if marker.start() < shared < marker.end():
      shared = marker.start()
  first = control.pattern.search(after)
  if first and first.start() >= shared and not after[: first.start()].strip():
    if _is_stop(first[0], template, control):
      return first.end()
    # One token closes the turn, and another opens the next.
    header = _header(text, messages, turn + 1, template, tools)[len(text) - len(after) :]
    if control.pattern.search(alone) and len(control.pattern.findall(header)) > 1:
      return first.end()
  return shared


def _header(text, messages, turn, template, tools):
  """The rendered text before the content of a turn; "" if it cannot be found."""
  try:
    return _around(text, messages, turn, template, tools)[0]
  except InputError:
    return ""


def _next_marker(text, messages, template, tools, control):
  """The stop token that would begin a turn after the last answer; "" if there is none."""
  role = "tool" if messages[-1].get("tool_calls") else "user"
  more = [*messages, {"role": role, "content": "?"}]
  try:
    after = _around(text, more, len(messages) - 1, template, tools)[1]
  except InputError:
    return ""  # The template does not accept such a turn.
  first = control.pattern.match(after.lstrip())
  return first[0] if first and _is_stop(first[0], template, control) else ""


def _is_stop(token, template, control):
  return template.tokenizer.convert_tokens_to_ids(token) in control.stops
