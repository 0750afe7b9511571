"""The tokenizers of released models, as Hugging Face folders, from the files of shared_data."""

import base64
import functools
import gzip
import json
import shutil
import struct
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors

from shadowft_jax.data.tokenizer import load_tokenizer

# Source: tokenizer.json of Llama-3.2-1B and Qwen2.5-7B on the Hub.
PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3 added these to Qwen2.5's.
QWEN3 = ["<tool_response>", "</tool_response>", "<think>", "</think>"]


def load(name, shared_data):
  """A real tokenizer by name: llama3, qwen, qwen3, llama2, gpt2 or minimind.

  It is read from a folder as a user's is, and once a session.
  """
  return _loaded(name, shared_data("tokenizers"), shared_data("hf_configs"))


def templates(shared_data):
  """The chat templates of released models: {"trl/qwen3": text, ...}."""
  root = shared_data("chat_templates")
  return {
    str(path.relative_to(root).with_suffix("")): path.read_text()
    for path in sorted(root.glob("*/*.jinja"))
  }


def vectors(name, shared_data):
  """[(text, ids), ...]: what llama.cpp's own test wants of a tokenizer."""
  path = shared_data("tokenizers") / "llama_cpp_vectors" / name
  texts = path.with_name(f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
  lines = path.with_name(f"{name}.out").read_text().splitlines()
  return [
    (text, [int(i) for i in line.split()]) for text, line in zip(texts[:-1], lines, strict=True)
  ]


@functools.cache
def _loaded(name, files, configs):
  with tempfile.TemporaryDirectory() as folder:
    if name == "minimind":
      for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(files / name / file, folder)
    else:
      backend, config = BUILDERS[name](files, configs)
      backend.save(f"{folder}/tokenizer.json")
      with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump(config, file)
    return load_tokenizer(folder)


def _llama3(files, configs):
  lines = (files / "llama3" / "tokenizer.model").read_bytes()
  config = _config(configs / "Llama-3.2-1B-Instruct")
  backend = _from_ranks(lines, r"{1,3}", whole_pieces=True)
  _add(backend, config["added_tokens_decoder"])
  bos = config["bos_token"]
  backend.post_processor = processors.Sequence(
    [
      backend.post_processor,
      (
        processors.TemplateProcessing(
          f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, backend.token_to_id(bos))]
        )
      ),
    ]
  )
  return backend, config


def _qwen(files, configs, more=()):
  lines = gzip.decompress((files / "qwen" / "qwen.tiktoken.gz").read_bytes())
  config = _config(configs / "Qwen2.5-7B-Instruct")
  for i, token in enumerate(more, 151665):
    config["added_tokens_decoder"][str(i)] = {
      **config["added_tokens_decoder"]["151657"],
      "content": token,
    }
  backend = _from_ranks(lines, "")
  backend.normalizer = normalizers.NFC()
  _add(backend, config["added_tokens_decoder"])
  return backend, config


def _config(folder):
  return json.loads((folder / "tokenizer_config.json").read_text())


def _add(backend, tokens):
  backend.add_tokens([AddedToken(**tokens[i]) for i in sorted(tokens, key=int)])
  assert all(backend.token_to_id(t["content"]) == int(i) for i, t in tokens.items())


def _from_ranks(lines, digits, whole_pieces=False):
  """Byte-level BPE from tiktoken's ranks: a pair merges wherever the two together are a token."""
  letters = _byte_letters()
  ranks = {}
  for line in lines.splitlines():
    token, rank = line.split()
    ranks["".join(letters[b] for b in base64.b64decode(token))] = int(rank)
  backend = Tokenizer(models.BPE(ranks, _merges(ranks, ranks), ignore_merges=whole_pieces))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(PATTERN.format(digits)), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  return backend


def _byte_letters():
  """The letter that stands for each byte in a byte-level vocabulary."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = {b: chr(b) for b in plain}
  return letters | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)
  }


def _merges(vocab, order):
  """Every pair of tokens that makes a token, in the order of what it makes."""
  return [
    pair
    for whole in sorted(order, key=order.get)
    for pair in sorted(
      (
        (whole[:i], whole[i:])
        for i in range(1, len(whole))
        if whole[:i] in vocab and whole[i:] in vocab
      ),
      key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
    )
  ]


def _gpt2(files, configs):
  vocab = json.loads(gzip.decompress((files / "gpt2" / "gpt2_vocab.json.gz").read_bytes()))
  lines = gzip.decompress((files / "gpt2" / "gpt2_merges.txt.gz").read_bytes()).decode()
  merges = [
    tuple(line.split(" ")) for line in lines.split("\n") if line and not line.startswith("#version")
  ]
  backend = Tokenizer(models.BPE(vocab, merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  return backend, {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
  }


def _llama2(files, configs):
  pieces = _sentencepieces((files / "llama2" / "tokenizer.model").read_bytes())
  vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
  order = {piece: -score for piece, score in pieces}
  backend = Tokenizer(
    models.BPE(vocab, _merges(vocab, order), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  backend.add_special_tokens(
    [AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>")]
  )
  # transformers makes a LlamaTokenizer's own normalizer, and then " a" lacks a space.
  return backend, {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
  }


def _sentencepieces(data):
  """[(piece, score), ...] of a sentencepiece model: field 1 of the message, with 1 and 2 in it."""
  return [
    (fields[1].decode(), fields[2])
    for key, value in _protobuf(data)
    if key == 1
    for fields in [dict(_protobuf(value))]
  ]


def _protobuf(data):
  """Yields (field number, value) of a message; bytes stay bytes, and four of them are a float."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    if key & 7 == 0:
      value, at = _varint(data, at)
    elif key & 7 == 2:
      size, at = _varint(data, at)
      value, at = data[at : at + size], at + size
    else:
      size = {1: 8, 5: 4}[key & 7]
      value, at = struct.unpack("<f" if size == 4 else "<d", data[at : at + size])[0], at + size
    yield key >> 3, value


def _varint(data, at):
  value = shift = 0
  while True:
    value |= (data[at] & 127) << shift
    at, shift = at + 1, shift + 7
    if not data[at - 1] & 128:
      return value, at


BUILDERS = {
  "llama3": _llama3,
  "qwen": _qwen,
  "gpt2": _gpt2,
  "llama2": _llama2,
  "qwen3": lambda files, configs: _qwen(files, configs, more=QWEN3),
}
