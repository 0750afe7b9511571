"""Trains the byte-level BPE tokenizer of the tiny pair on generated text."""

import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lab import questions, text

VOCAB_SIZE = 448  # the models'; the tokenizer may find fewer tokens worth having
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pattern, with a leading space for digits, too, which come one by one.
PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
  "{%- for message in messages %}"
  "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
  "{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def corpus(seed: int, count: int = 20_000) -> list[str]:
  """Returns the documents of the pretraining, chats without their marks, and the new questions."""
  # Without chats: their marks are special tokens, not text.
  documents = [head + tail for head, tail in text.documents(count, seed, chats=0.0)]
  answers = [
    f"user\n{problem.question}\nassistant\n{problem.answer}\n"
    for problem in itertools.islice(questions.mixture(seed), count // 10)
  ]
  answers += [
    f"{problem.question}\n"
    for skill in questions.NEW_SKILLS
    for problem in questions.problems(skill, count // 40, seed)
  ]
  return documents + answers


def train(
  seed: int, documents: Iterable[str] | None = None, more: Mapping[str, str] | None = None
) -> transformers.PreTrainedTokenizerFast:
  """Trains the tokenizer; the same seed gives the same vocabulary.

  Args:
    seed: of the corpus.
    documents: what it is trained on; None: the corpus of the tiny pair.
    more: {name in transformers, such as image_token: a special token besides SPECIALS}.
  """
  more = more or {}
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  bpe.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    special_tokens=[*SPECIALS, *more.values()],
    show_progress=False,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  bpe.train_from_iterator(corpus(seed) if documents is None else documents, trainer)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=list(SPECIALS[:2]),
    **more,
    chat_template=CHAT_TEMPLATE,
    clean_up_tokenization_spaces=False,
    model_max_length=512,
  )


def save(tok: transformers.PreTrainedTokenizerFast, folder: pathlib.Path) -> None:
  """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
  tok.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  # The spelling that transformers 4 opens, too.
  fields = json.loads(path.read_text())
  del fields["backend"]
  fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
  fields["tokenizer_class"] = "PreTrainedTokenizerFast"
  path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
