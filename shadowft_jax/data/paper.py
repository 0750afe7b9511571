"""Conversations -> tokens with the templates of the paper's code: recipe "paper".

Prompts and answers are tokenised separately, so no token spans their boundary, and each turn is
truncated to the remaining space.  The result differs from chat.py wherever a family's own chat
template differs from the templates here.

Source: github.com/wutaiqiang/Shadow-FT, run.sh and its LLaMA-Factory 0.9.3.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence

import numpy as np

from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.data.turns import Entry, Example, Row, Settings
from shadowft_jax.errors import InputError, listing

NO_THOUGHTS = "<think>\n\n</think>\n\n"
THOUGHTS = re.compile(r"<think>\n.*?\n</think>\n\n", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Template:
  """The prompt format of a model family; {} is replaced by the text of a turn."""

  user: str
  assistant: str
  system: str = "{}"
  default_system: str = ""
  system_in_user: bool = False  # the system prompt is part of the first user turn
  bos: bool = False  # the conversation begins with BOS
  efficient_eos: bool = False  # every turn is trained to end with EOS; only the last contains it
  thinking: bool = False  # an answer without thinking gets an empty thinking block

  @property
  def special(self) -> list[str]:
    """The special tokens in the template."""
    return sorted(set(re.findall(r"<[^<>]+>", self.system + self.user + self.assistant)))


LLAMA3 = Template(
  system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
  user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
  "<|start_header_id|>assistant<|end_header_id|>\n\n",
  assistant="{}<|eot_id|>",
  bos=True,
)
CHATML = Template(
  system="<|im_start|>system\n{}<|im_end|>\n",
  user="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
  assistant="{}<|im_end|>\n",
)
GEMMA = Template(
  system="{}\n\n",
  system_in_user=True,
  user="<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
  assistant="{}<end_of_turn>\n",
  bos=True,
)
TEMPLATES = {
  "llama3": LLAMA3,
  "qwen": dataclasses.replace(
    CHATML, default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
  ),
  "qwen3": dataclasses.replace(CHATML, thinking=True),
  "gemma": GEMMA,
  "gemma3": GEMMA,
  "yi": CHATML,
  "falcon": Template(user="User: {}\nFalcon:", assistant="{}\n", efficient_eos=True),
}
# A substring of the Base's path -> its template.  The first match wins.
NAMES = {
  "Llama-3": "llama3",
  "Qwen2": "qwen",
  "Llama-2": "llama2",
  "Qwen3": "qwen3",
  "internlm2": "intern2",
  "Mistral": "mistral",
  "Falcon": "falcon",
  "gemma3": "gemma3",
  "gemma": "gemma",
  "Yi": "yi",
  "Baichuan": "baichuan2",
}


def name_of(base: str | os.PathLike) -> str:
  """The template that the paper's script uses for a Base, by its path (case-sensitive).

  Raises:
    InputError: the path matches no family, or one whose template is not in TEMPLATES.
  """
  template = next((name for part, name in NAMES.items() if part in str(base)), None)
  if template is not None and template in TEMPLATES:
    return template
  what = (
    f"its template in the authors' code, {template}, is not implemented here"
    if template
    else f"its path contains none of {', '.join(NAMES)}"
  )
  raise InputError(
    f"data.recipe=paper has no template for the Base {base}: {what}; set "
    f"--config.data.template to one of:{listing(TEMPLATES)}"
  )


def encode_rows(
  rows: Sequence[Row], tokenizer: tokenizers.Tokenizer, settings: Settings
) -> list[Entry]:
  """Tokenises rows with the template settings.template, truncated to settings.max_length tokens.

  With settings.think "masked", thinking blocks are removed from answers, as in the authors' code
  when it trains without thinking.

  Returns:
    One entry per row, in order: a list of one Example, or the InputError of a row that this recipe
    does not support.

  Raises:
    InputError: max_length is not positive, the template does not exist, or the tokenizer lacks its
      special tokens.
  """
  if settings.max_length < 1:
    raise InputError(f"data.max_length must be above 0; got {settings.max_length}")
  template, marks = _template(settings.template, tokenizer), settings.marks
  control = tokenizers.control_of(tokenizer)
  framed = [_checked(row, _framed(row, template, settings)) for row in rows]
  texts = [
    text
    for turns in framed
    if not isinstance(turns, InputError)
    for turn in turns
    for part in turn
    for text in part
  ]
  if not texts:
    return framed
  ids = iter(
    tokenizer(
      texts,
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    ).input_ids
  )
  out: list[Entry] = []
  for row, turns in zip(rows, framed, strict=True):
    if not isinstance(turns, InputError):
      turns = [
        [list(itertools.chain.from_iterable(next(ids) for _ in part)) for part in turn]
        for turn in turns
      ]
      if template.bos:
        turns[0][0].insert(0, tokenizer.bos_token_id)
      eos = tokenizer.eos_token_id if template.efficient_eos else None
      turns = [_example(row, turns, eos, control, settings.max_length, row.images and marks)]
    out.append(turns)
  return out


def _template(name, tokenizer):
  """The template of that name, after checking that the tokenizer has its special tokens."""
  if name not in TEMPLATES:
    raise InputError(
      f"config.data.template {name!r} is unknown; expected one of:{listing(TEMPLATES)}"
    )
  template = TEMPLATES[name]
  lacks = [
    token
    for token in template.special
    if len(tokenizer(token, add_special_tokens=False).input_ids) != 1
  ]
  lacks += ["a BOS token"] if template.bos and tokenizer.bos_token_id is None else []
  lacks += ["an EOS token"] if template.efficient_eos and tokenizer.eos_token_id is None else []
  if lacks:
    # Tokenised as ordinary text, the markers would have no special meaning.
    raise InputError(
      f"the template {name} of data.recipe=paper does not fit {tokenizers.name_of(tokenizer)}; set "
      "--config.data.template to the template of its family, or use --config.data.recipe=chat; the "
      f"tokenizer lacks:{listing(lacks)}"
    )
  return template


def _checked(row, turns):
  """The turns, or the InputError of a text that is too long."""
  try:
    for text in () if isinstance(turns, InputError) else (t for x in turns for p in x for t in p):
      tokenizers.check_text(text)
  except InputError as error:
    return InputError(f"{row.where}: {error}")
  return turns


def _framed(row, template, settings):
  """[(texts of the prompt, texts of the answer), ...], one pair per turn, each text to be tokenised
  separately; or the InputError of a row that this recipe does not support."""
  system, messages, think, marks = "", row.messages, settings.think, settings.marks
  if marks and row.images:
    whole = lambda text: text.replace(marks.mark, marks.whole)
    messages = [{**m, "content": whole(m["content"])} for m in messages]
  if messages and messages[0]["role"] == "system":
    system, messages = messages[0]["content"], messages[1:]
  what = _unframed(row, [m["role"] for m in messages])
  if what:
    return InputError(
      f"{row.where}: data.recipe=paper supports only alternating user and assistant turns after an "
      f"optional system prompt; got {what}; use --config.data.recipe=chat for such rows"
    )
  system = system or template.default_system
  before = [template.system.format(system)] if system else []
  turns = []
  for question, answer in zip(messages[::2], messages[1::2], strict=True):
    question, answer, thoughts = question["content"], answer["content"], []
    if template.system_in_user:
      question, before = "".join([*before, question]), []
    if template.thinking and think == "masked":
      answer = THOUGHTS.sub("", answer).lstrip("\n")
    if template.thinking and "<think>" not in answer and "</think>" not in answer:
      thoughts = [NO_THOUGHTS]
    prompt, reply = [*before, template.user.format(question)], [template.assistant.format(answer)]
    turns.append((prompt + thoughts, reply) if think == "masked" else (prompt, thoughts + reply))
    before = []
  return turns


def _unframed(row, roles):
  """The part of a row that this recipe does not support, or "".

  Args:
    roles: the roles of the turns, without the system prompt.
  """
  if not row.messages:
    return "raw text"
  if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
    return f"roles {', '.join(m['role'] for m in row.messages)}"
  extra = {
    f"{key} of the {m['role']}"
    for m in row.messages
    for key, value in m.items()
    if key not in ("role", "content") and (key, value) != ("weight", 1)
  }
  return " and ".join(sorted(extra) + (["tools"] if row.tools else []))


def _example(row, turns, eos, control, max_length, marks):
  """Joins turns of (prompt, answer) tokens, each truncated to its share of the remaining space.

  Of a row with images, `marks` keeps each of them whole or leaves it out.
  """
  room = max_length - (eos is not None)
  token, label, answer, cut = [], [], [], 0
  for i, (source, target) in enumerate(turns):
    prompt_size, answer_size = fitting_sizes(len(source), len(target), room - len(token))
    if marks:
      prompt_size = marks.kept(np.array(source), prompt_size)
    token += source[:prompt_size] + target[:answer_size]
    label += source[:prompt_size] + target[:answer_size]
    answer += [0] * prompt_size + [1] * answer_size
    cut += len(target) - answer_size
    if eos is not None and i and prompt_size:
      # The label of this question's first token is the EOS of the previous answer.
      label[-prompt_size - answer_size], answer[-prompt_size - answer_size] = eos, 1
  if eos is not None:
    token, label, answer = [*token, eos], [*label, eos], [*answer, 1]
  token, label, answer = (np.array(x, np.int32) for x in (token, label, answer))
  ends = [{*target[-3:]} if eos is None else {eos} for _, target in turns]
  replies = [m["content"] for m in row.messages if m["role"] == "assistant"]
  return Example(
    token,
    answer,
    cut,
    unterminated=sum(not control.stops & end for end in ends),
    has_special=control.contains_special(replies, (t for _, target in turns for t in target)),
    label=label if eos is not None else None,
    where=row.where,
  )


def fitting_sizes(source: int, target: int, room: int) -> tuple[int, int]:
  """How many prompt and answer tokens of a turn fit into `room` tokens."""
  if 2 * target < room:
    most = room
  elif 2 * source < room:
    most = room - source
  else:
    most = int(room * (target / (source + target)))  # in floats, to round as LLaMA-Factory does
  answer_size = min(most, target)
  return min(room - answer_size, source), answer_size
