"""Conversations as tokens, with a mask over what the assistant says.

The model's own chat template renders the text; the mask is found from the text alone, so that
a template needs no marks of its own for it.
"""

import dataclasses
import json
import os
import pathlib
import re

import numpy as np
from transformers import AutoTokenizer

from shadowft_jax.errors import InputError

CHUNK = 1000                   # conversations tokenised at a time: offsets are large
MARK = "zqxanswerqxz"          # stands in for an answer to see what is written around it
# Llama 3's templates write today's date unless they are given one: a run would not be
# repeated tomorrow.  This is the date they fall back on themselves.
DATE = "26 Jul 2024"


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One conversation as tokens."""
  token: np.ndarray            # int32 [T]
  answer: np.ndarray           # int32 [T]: 1 where the loss counts
  cut: int                     # answer tokens cut away, beyond max_length


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of a list of conversations."""
  examples: int                # kept
  dropped: int                 # left out: no answer token within max_length
  cut: int                     # kept, with a part of the answer cut away
  tokens: int                  # of the examples kept
  answer_tokens: int           # of these, the ones that count

  def __str__(self):
    lost = [f"{n} {what}" for n, what in (
        (self.dropped, "dropped (their answers lie beyond data.max_length)"),
        (self.cut, "cut at data.max_length")) if n]
    return "; ".join([f"{self.examples} examples, {self.tokens:,} tokens, "
                      f"{self.answer_tokens:,} of them learnt", *lost])


def load_tokenizer(directory):
  """Loads the tokenizer of a local Hugging Face folder; never runs code from it.

  Raises:
    InputError: there is no folder, no tokenizer in it, or one without character offsets.
  """
  if not pathlib.Path(directory).is_dir():
    raise InputError(f"tokenizer: {directory} is not a folder; give a Hugging Face model folder")
  try:
    tokenizer = AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False)
  except Exception as error:   # Many types, by what is wrong with which file.
    # The rest of the message tells of packages, or how to allow the folder's code to run.
    reason = str(error).strip().split("\n")[0]
    raise InputError(f"{directory} has no tokenizer that can be read: {reason}; copy "
                     "tokenizer.json and tokenizer_config.json there") from error
  if not tokenizer.is_fast:
    raise InputError(f"{directory} has only a slow tokenizer; expected a tokenizer.json: save "
                     "one with AutoTokenizer.from_pretrained(...).save_pretrained(...)")
  return tokenizer


def stop_tokens(tokenizer, directory) -> tuple[int, ...]:
  """The tokens that end an answer: those the folder's files name, then the tokenizer's.

  Raises:
    InputError: none is named anywhere.
  """
  stop = []
  for name in ("generation_config.json", "config.json"):
    path = pathlib.Path(directory) / name
    if path.is_file():
      try:
        ids = json.loads(path.read_text()).get("eos_token_id")
      except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON object: {error}") from error
      stop += ids if isinstance(ids, list) else [ids]
  stop += [tokenizer.eos_token_id]
  stop = tuple(dict.fromkeys(i for i in stop if i is not None))
  if not stop:
    raise InputError(f"{directory} names no end token; set eos_token_id in generation_config.json")
  return stop


def render_prompt(messages, tokenizer) -> list[int]:
  """The tokens after which the assistant's next turn is generated."""
  text = _render(messages, tokenizer, prompt=True)
  return tokenizer(text, add_special_tokens=False).input_ids


def encode(conversation, tokenizer, max_length) -> Example:
  """Encodes one conversation, cut to its first `max_length` tokens.

  Raises:
    InputError: the chat template is missing, fails, or hides where an answer is.
  """
  return _encode([conversation], tokenizer, max_length)[0]


def encode_all(conversations, tokenizer, max_length):
  """Encodes conversations, leaving out those whose answers are cut away wholly.

  Returns:
    (list[Example] in the order given, Report).

  Raises:
    InputError: as `encode`, with the number of the conversation; or none is left.
  """
  encoded = []
  for start in range(0, len(conversations), CHUNK):
    encoded += _encode(conversations[start:start + CHUNK], tokenizer, max_length, start)
  # A first token is predicted from nothing, so it is never learnt.
  kept = [e for e in encoded if e.answer[1:].any()]
  if not kept:
    raise InputError(f"none of the {len(encoded)} conversations has an answer token within "
                     f"data.max_length={max_length}; raise data.max_length")
  return kept, Report(
      examples=len(kept), dropped=len(encoded) - len(kept), cut=sum(e.cut > 0 for e in kept),
      tokens=sum(len(e.token) for e in kept),
      answer_tokens=sum(int(e.answer[1:].sum()) for e in kept))


def _encode(conversations, tokenizer, max_length, before=0):
  if max_length < 1:
    raise InputError(f"data.max_length must be above 0; got {max_length}")
  texts, spans = [], []
  for number, messages in enumerate(conversations, before + 1):
    try:
      text, found = _answers(messages, tokenizer)
    except InputError as error:
      raise InputError(f"conversation {number}: {error}") from error
    texts.append(text)
    spans.append(found)
  out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True,
                  return_attention_mask=False, return_token_type_ids=False, verbose=False)
  return [_example(*parts, max_length)
          for parts in zip(out.input_ids, out.offset_mapping, spans, strict=True)]


def _example(ids, offsets, spans, max_length):
  answer = _learnt(np.array(offsets, np.int64).reshape(-1, 2), spans)
  return Example(np.array(ids[:max_length], np.int32), answer[:max_length],
                 int(answer[max_length:].sum()))


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


def _answers(messages, tokenizer):
  """The rendered conversation, and the span (start, end) of each answer in it."""
  turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
  if not turns:
    raise InputError("there is no turn of the assistant; expected at least one answer")
  text = _render(messages, tokenizer)
  return text, [_span(text, messages, turn, tokenizer) for turn in turns]


def _span(text, messages, turn, tokenizer):
  """Where in `text` the answer messages[turn] stands: (start, end), in characters.

  It starts where generation would: what a template puts between its prompt and the content
  (an empty block of thoughts) has to be learnt.  It ends after what closes the turn.
  """
  before, after = _around(text, messages, turn, tokenizer)
  end = len(text) - len(after)
  start = len(before) if text.startswith(before) else None
  if turn:
    prompt = _render(messages[:turn], tokenizer, prompt=True)
    # Not so where the prompt opens thoughts that the rendered conversation leaves out.
    start = len(prompt) if text.startswith(prompt) else start
  if start is None or start > end or not text.endswith(after):
    raise InputError(
        f"turn {turn + 1}: the answer {messages[turn]['content'][:60]!r} is not found in what the "
        f"chat template of {_name(tokenizer)} writes; its template cannot be learnt from")
  return start, end + _closing(text, messages, turn, after, tokenizer)


def _around(text, messages, turn, tokenizer):
  """What the template writes before and after the content of messages[turn]."""
  mark = MARK
  while mark in text:
    mark += MARK
  marked = [*messages[:turn], {**messages[turn], "content": mark}, *messages[turn + 1:]]
  before, *after = _render(marked, tokenizer).split(mark)
  if len(after) != 1:
    raise InputError(f"turn {turn + 1}: the chat template of {_name(tokenizer)} writes an answer "
                     f"{len(after)} times; expected once")
  return before, after[0]


def _closing(text, messages, turn, after, tokenizer):
  """The length of what closes an answer: what would follow if it were the last."""
  if turn == len(messages) - 1:
    return len(after)
  alone = _around(text, messages[:turn + 1], turn, tokenizer)[1]
  shared = len(os.path.commonprefix([alone, after]))
  if shared == len(alone):
    return shared
  # "<|end|>\n<|endoftext|>" and "<|end|>\n<|user|>" share "<|end|>\n", not "<|end|>\n<|".
  special = "|".join(map(re.escape, sorted(tokenizer.get_added_vocab(), key=len, reverse=True)))
  for found in re.finditer(special, alone) if special else ():
    if found.start() < shared < found.end():
      return found.start()
  return shared


def _render(messages, tokenizer, prompt=False):
  """The text of a conversation; with `prompt`, up to where the assistant's turn begins."""
  if not tokenizer.chat_template:
    raise InputError(f"{_name(tokenizer)} has no chat template; use the tokenizer of the Instruct "
                     "model, or put its chat_template.jinja into the folder")
  try:
    # transformers renders in jinja2's ImmutableSandboxedEnvironment.
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, date_string=DATE)
  except Exception as error:   # A template is foreign code: it may raise anything.
    raise InputError(f"the chat template of {_name(tokenizer)} fails on roles "
                     f"{', '.join(m['role'] for m in messages)}: {error}; change the "
                     "conversation or the template") from error


def _name(tokenizer):
  return tokenizer.name_or_path or "an unnamed tokenizer"
