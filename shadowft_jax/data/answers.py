"""Where the answers are in the text of a conversation, as its chat template renders it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from shadowft_jax.data.tokenizer import ChatTemplate, Control
from shadowft_jax.errors import InputError

Message: TypeAlias = Mapping[str, Any]
Span: TypeAlias = tuple[int, int, int]  # of an answer: start, end of its content, end
LONG, NEAR = 50, 6  # messages of a long conversation; those before and after an answer in its part
MARK = "zqxanswerqxz"  # replaces an answer, to find the text around it


def is_trained(message: Message) -> bool:
  """Whether the loss covers a message."""
  return message["role"] == "assistant" and message.get("weight") != 0


def rendered(
  messages: Sequence[Message], tools: list[Any] | None, template: ChatTemplate, control: Control
) -> tuple[str, list[Span]]:
  """The rendered conversation, and where the answers are that the loss covers.

  The last answer is preceded by what it is generated after.

  Raises:
    InputError: there is no answer, or it cannot be found in the text.
  """
  turns = [i for i, message in enumerate(messages) if is_trained(message)]
  if not turns:
    raise InputError("it has no assistant turn to train on; expected at least one answer")
  text = template.render(messages, tools)
  spans = _spans(text, messages, turns, template, tools, control)
  if turns[-1] < len(messages) - 1:
    return text, spans
  start, closing, end = spans[-1]
  # The template does not close the last answer.
  if not control.pattern.search(text, closing):
    marker = _next_marker(text, messages, template, tools, control)
    text, end = text + marker, end + len(marker)
  thoughts = _empty_thoughts(text, start, messages, template, tools)
  spans[-1] = tuple(x + len(thoughts) for x in (start, closing, end))
  return text[:start] + thoughts + text[start:], spans


def _empty_thoughts(text, start, messages, template, tools):
  """The empty thoughts at the end of the generation prompt, if the text lacks them; else "".

  Gemma 4's template drops complete thoughts from all answers, the empty ones of its own prompt too.
  Thoughts that a prompt only opens (DeepSeek-R1) are the model's to write, and not added.
  """
  if len(messages) == 1:
    return ""
  prompt = template.render(messages[:-1], tools, prompt=True)
  if start >= len(prompt) or not prompt.startswith(text[:start]):
    return ""
  thoughts = prompt[start:]
  last = lambda content: [*messages[:-1], {**messages[-1], "content": content}]
  dropped = template.render(last(thoughts + MARK), tools) == template.render(last(MARK), tools)
  return thoughts if dropped else ""


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
      before, after = around(local, part, at, template, tools)
      contents.append(local[len(before) : len(local) - len(after)])
      start, closing, end = _span(local, part, at, template, tools, control)
      parts.append((local[start:closing], local[closing:end]))
    answers = {*turns}
    marked = [_marked(m, MARK) if i in answers else m for i, m in enumerate(messages)]
    fixed_texts = template.render(marked, tools).split(MARK)
  except InputError:
    return None
  if len(fixed_texts) != len(turns) + 1 or MARK in text:
    return None
  spans, end = [], 0
  for fixed, content, (answer, closing) in zip(fixed_texts, contents, parts, strict=False):
    end += len(fixed) + len(content)
    spans.append((end - len(answer), end, end + len(closing)))
  same = (text[a:c] == "".join(part) for (a, _, c), part in zip(spans, parts, strict=True))
  woven = [x for pair in zip(fixed_texts, [*contents, ""], strict=True) for x in pair]
  return spans if "".join(woven) == text and all(same) else None


def _span(text, messages, turn, template, tools, control):
  """The character range of messages[turn] in `text`: (start, end of its content, end).

  The range starts where generation would start, so that text between the generation prompt and the
  content (an empty thinking block) is trained.  It ends after the text that closes the turn.
  """
  before, after = around(text, messages, turn, template, tools)
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


def around(
  text: str, messages: Sequence[Message], turn: int, template: ChatTemplate, tools: list[Any] | None
) -> tuple[str, str]:
  """The rendered text before and after the content (or last tool call) of a turn.

  Raises:
    InputError: the template does not render it once.
  """
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
  alone = around(text, messages[: turn + 1], turn, template, tools)[1]
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
    return around(text, messages, turn, template, tools)[0]
  except InputError:
    return ""


def _next_marker(text, messages, template, tools, control):
  """The stop token that would begin a turn after the last answer; "" if there is none."""
  role = "tool" if messages[-1].get("tool_calls") else "user"
  more = [*messages, {"role": role, "content": "?"}]
  try:
    after = around(text, more, len(messages) - 1, template, tools)[1]
  except InputError:
    return ""  # The template does not accept such a turn.
  first = control.pattern.match(after.lstrip())
  return first[0] if first and _is_stop(first[0], template, control) else ""


def _is_stop(token, template, control):
  return template.tokenizer.convert_tokens_to_ids(token) in control.stops
