"""PAIRS: name -> Base, Instruct, chat template of the authors' code and known differences.

The pairs of the paper's tables and of the authors' list, with their actual Hub ids.
Source: arXiv 2505.12716, tables 1 to 6; wutaiqiang/Shadow-FT, examples/model_pair.json (some of its
ids do not exist) and run.sh (the template of each Base).
"""

import dataclasses
import difflib
import os
import pathlib

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.presets import Config

# model_type -> why it cannot be trained here.  Such models can still be grafted and compared.
WHY_NOT_TRAIN = {
  kind: (
    f"{kind} models {needs}not implemented in JAX here: train the Base elsewhere, then graft with "
    "--base and --tuned"
  )
  for kind, needs in {
    "internlm2": "need remote code, which is never run, and are ",
    "baichuan": "need remote code, which is never run, and are ",
    "mllama": "(with images) are ",
  }.items()
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """A Base and its Instruct on the Hub.

  Attributes:
    base: Hub id of the Base.
    instruct: Hub id of the Instruct.
    model_type: the model_type in config.json.
    template: the template in the authors' code; None if they have none for it, in which case the
      Instruct's own template is used.
    note: known differences and particulars.
  """

  base: str
  instruct: str
  model_type: str
  template: str | None
  note: str = ""

  @property
  def why_not_train(self) -> str | None:
    """Why the pair can only be grafted; None if it can be trained."""
    return WHY_NOT_TRAIN.get(self.model_type)


PAIRS = {
  "llama-3.2-1b": Pair(
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "llama",
    "llama3",
    "tied embeddings",
  ),
  "llama-3.2-3b": Pair(
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B-Instruct",
    "llama",
    "llama3",
    "tied embeddings",
  ),
  "llama-3.1-8b": Pair(
    "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "llama", "llama3"
  ),
  "qwen3-0.6b": Pair(
    "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B", "qwen3", "qwen3", "tied embeddings"
  ),
  "qwen3-1.7b": Pair(
    "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B", "qwen3", "qwen3", "tied embeddings"
  ),
  "qwen3-4b": Pair("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", "qwen3", "qwen3", "tied embeddings"),
  "qwen3-4b-2507": Pair(
    "Qwen/Qwen3-4B-Base",
    "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3",
    "qwen3",
    "tied embeddings; rope_theta 1e6 against 5e6",
  ),
  "qwen3-8b": Pair("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", "qwen3", "qwen3"),
  "qwen3-14b": Pair("Qwen/Qwen3-14B-Base", "Qwen/Qwen3-14B", "qwen3", "qwen3"),
  "qwen3-30b-a3b": Pair("Qwen/Qwen3-30B-A3B-Base", "Qwen/Qwen3-30B-A3B", "qwen3_moe", "qwen3"),
  "qwen2.5-7b": Pair(
    "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "qwen2", "qwen", "the authors wrote -Chat"
  ),
  "qwen2.5-14b": Pair(
    "Qwen/Qwen2.5-14B",
    "Qwen/Qwen2.5-14B-Instruct",
    "qwen2",
    "qwen",
    "rms_norm_eps 1e-5 against 1e-6",
  ),
  "qwen2.5-32b": Pair(
    "Qwen/Qwen2.5-32B",
    "Qwen/Qwen2.5-32B-Instruct",
    "qwen2",
    "qwen",
    "rms_norm_eps 1e-5 against 1e-6; the authors wrote -Chat",
  ),
  "falcon3-1b": Pair(
    "tiiuae/Falcon3-1B-Base",
    "tiiuae/Falcon3-1B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-1b",
  ),
  "falcon3-3b": Pair(
    "tiiuae/Falcon3-3B-Base",
    "tiiuae/Falcon3-3B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-3b",
  ),
  "falcon3-7b": Pair(
    "tiiuae/Falcon3-7B-Base",
    "tiiuae/Falcon3-7B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-7b, another model",
  ),
  "falcon3-10b": Pair(
    "tiiuae/Falcon3-10B-Base",
    "tiiuae/Falcon3-10B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-10b",
  ),
  "gemma-2-2b": Pair(
    "google/gemma-2-2b", "google/gemma-2-2b-it", "gemma2", "gemma", "tied embeddings"
  ),
  "gemma-2-9b": Pair(
    "google/gemma-2-9b", "google/gemma-2-9b-it", "gemma2", "gemma", "tied embeddings"
  ),
  "gemma-3-1b": Pair(
    "google/gemma-3-1b-pt",
    "google/gemma-3-1b-it",
    "gemma3_text",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-1b",
  ),
  "gemma-3-4b": Pair(
    "google/gemma-3-4b-pt",
    "google/gemma-3-4b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-4b",
  ),
  "gemma-3-12b": Pair(
    "google/gemma-3-12b-pt",
    "google/gemma-3-12b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-12b",
  ),
  "gemma-3-27b": Pair(
    "google/gemma-3-27b-pt",
    "google/gemma-3-27b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-27b",
  ),
  "llama-3.2-11b-vision": Pair(
    "meta-llama/Llama-3.2-11B-Vision",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "mllama",
    "mllama",
    "image size 448 against 560",
  ),
  "llama-3.2-90b-vision": Pair(
    "meta-llama/Llama-3.2-90B-Vision",
    "meta-llama/Llama-3.2-90B-Vision-Instruct",
    "mllama",
    "mllama",
    "image size 448 against 560",
  ),
  "mistral-7b": Pair(
    "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistral", "mistral"
  ),
  "yi-6b": Pair("01-ai/Yi-6B", "01-ai/Yi-6B-Chat", "llama", "yi"),
  "yi-coder-1.5b": Pair("01-ai/Yi-Coder-1.5B", "01-ai/Yi-Coder-1.5B-Chat", "llama", "yi"),
  "yi-coder-9b": Pair("01-ai/Yi-Coder-9B", "01-ai/Yi-Coder-9B-Chat", "llama", "yi"),
  "seed-coder-8b": Pair(
    "ByteDance-Seed/Seed-Coder-8B-Base", "ByteDance-Seed/Seed-Coder-8B-Instruct", "llama", None
  ),
  "baichuan2-7b": Pair(
    "baichuan-inc/Baichuan2-7B-Base",
    "baichuan-inc/Baichuan2-7B-Chat",
    "baichuan",
    "baichuan2",
    "pickle weights only; the authors wrote Baichuan2-7B",
  ),
  "internlm2-1.8b": Pair(
    "internlm/internlm2-1_8b",
    "internlm/internlm2-chat-1_8b",
    "internlm2",
    "intern2",
    "the authors wrote internlm2-1_8b-chat",
  ),
  "internlm2-7b": Pair(
    "internlm/internlm2-7b",
    "internlm/internlm2-chat-7b",
    "internlm2",
    "intern2",
    "the authors wrote internlm2-7b-chat",
  ),
  "internlm2.5-1.8b": Pair(
    "internlm/internlm2_5-1_8b", "internlm/internlm2_5-1_8b-chat", "internlm2", "intern2"
  ),
  "internlm2.5-7b": Pair(
    "internlm/internlm2_5-7b", "internlm/internlm2_5-7b-chat", "internlm2", "intern2"
  ),
  "internlm2.5-20b": Pair(
    "internlm/internlm2_5-20b", "internlm/internlm2_5-20b-chat", "internlm2", "intern2"
  ),
  "glm-4-32b-0414": Pair(
    "THUDM/GLM-4-32B-Base-0414",
    "THUDM/GLM-4-32B-0414",
    "glm4",
    None,
    "fused gate_up_proj; also under zai-org; the authors wrote glm-4-32b",
  ),
}


def get(name: str, flags: str = "config.") -> Pair:
  """The Pair of that name; `flags` is the prefix of the flags in errors.

  Raises:
    InputError: the name is unknown; suggests the nearest.
  """
  if name not in PAIRS:
    close = difflib.get_close_matches(name.lower(), PAIRS, n=1, cutoff=0.0)[0]
    raise InputError(
      f"{flags}pair {name!r} is not one of the {len(PAIRS)} known pairs; did you mean {close}? "
      f"(for any other pair: --{flags}base=DIR --{flags}instruct=DIR)"
    )
  return PAIRS[name]


def ids(name: str = "") -> dict[str, list[str]]:
  """{"base", "instruct": Hub ids of the models of one pair, or of all pairs}."""
  chosen = [PAIRS[name]] if name else PAIRS.values()
  return {"base": [p.base for p in chosen], "instruct": [p.instruct for p in chosen]}


def resolve(config: Config) -> None:
  """Fills empty config.base, config.instruct and data.template from the pair config.pair.

  Raises:
    InputError: there is no such pair, or it can only be grafted; says why.
  """
  if config.pair:
    pair = get(config.pair)
    if pair.why_not_train:
      raise InputError(f"config.pair {config.pair} cannot be trained: {pair.why_not_train}")
    config.base = config.base or pair.base
    config.instruct = config.instruct or pair.instruct
    config.data.template = config.data.template or pair.template or ""


def check_trainable(directory: str | os.PathLike) -> None:
  """Checks that the model in a folder is of a family that can be trained.

  Raises:
    InputError: it can only be grafted; says why.
  """
  kind = files.read_json(pathlib.Path(directory) / "config.json").get("model_type")
  if kind in WHY_NOT_TRAIN:
    raise InputError(f"{directory} cannot be trained: {WHY_NOT_TRAIN[kind]}")
