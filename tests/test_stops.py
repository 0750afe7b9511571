"""Every trained answer ends in a token at which the model stops, or the pair check names it."""

import copy
import json

import pytest

from shadowft_jax.data import chat
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.hf.folder import open_model
from shadowft_jax.pairs import check, stops
from tests import real_tokenizers, runs
from tests.test_chat import CHATML, GLM, PLAIN, STOPS, byte_level, wrapped

# The real template, the real tokenizer that it is for, and the token that ends an answer.
REAL = {
  "trl/llama3": ("llama3", "<|eot_id|>"),
  "trl/llama3_1": ("llama3", "<|eot_id|>"),
  "trl/llama3_2": ("llama3", "<|eot_id|>"),
  "llama_cpp/meta-llama-Llama-3.3-70B-Instruct": ("llama3", "<|eot_id|>"),
  "trl/qwen2_5": ("qwen", "<|im_end|>"),
  "trl/qwen2_5_vl": ("qwen", "<|im_end|>"),
  "trl/qwen3": ("qwen3", "<|im_end|>"),
  "trl/qwen3_instruct_2507": ("qwen3", "<|im_end|>"),
  "trl/qwen3_vl": ("qwen3", "<|im_end|>"),
}


@pytest.fixture
def tokenizer():
  return wrapped(byte_level(False), CHATML)


def folder_of(tokenizer, folder, template, **generation):
  tokenizer.chat_template = template
  tokenizer.save_pretrained(folder)
  (folder / "generation_config.json").write_text(json.dumps(generation))
  return load_tokenizer(folder)


@pytest.mark.parametrize("name", STOPS)
def test_every_family_stops_or_is_named(tokenizer, tmp_path, name):
  template, tokens = STOPS[name]
  ids = tokenizer.convert_tokens_to_ids(tokens)
  assert chat.unstopped(folder_of(tokenizer, tmp_path, template, eos_token_id=ids)) is None
  if "<|eos|>" not in tokens or name == "glm":
    # Without generation_config.json, the tokenizer's own <|eos|> alone remains.
    want = "<|user|>" if name == "glm" else tokens[-1]
    assert chat.unstopped(folder_of(tokenizer, tmp_path, template)) == want


def test_an_answer_that_no_token_follows_is_told_too(tokenizer, tmp_path):
  assert chat.unstopped(folder_of(tokenizer, tmp_path, PLAIN)) == ""


@pytest.mark.parametrize("name", REAL)
def test_real_templates_with_their_tokenizers_stop(name, shared_data):
  kind, end = REAL[name]
  real = copy.copy(real_tokenizers.load(kind, shared_data))
  real.chat_template = real_tokenizers.templates(shared_data)[name]
  real.eos_token = end
  assert chat.unstopped(real) is None
  real.eos_token = "<|endoftext|>" if "qwen" in kind else "<|end_of_text|>"
  assert chat.unstopped(real) == end


@pytest.fixture
def pair(tmp_path):
  folder = runs.make_pair(tmp_path / "pair", "qwen3")
  return folder / "base", folder / "instruct"


def warnings(base, instruct):
  return [f.text for f in check.check(base, instruct) if "stop" in f.text]


def test_the_pair_check_names_the_token(pair):
  base, instruct = pair
  assert not warnings(base, instruct)
  own = load_tokenizer(instruct)
  own.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
  for folder in pair:
    folder_of(own, folder, GLM if folder == instruct else None)
  (found,) = warnings(base, instruct)
  assert found.startswith(
    "the chat template ends an answer with <|user|>, and the Instruct's stop tokens are "
  )
  assert f"eos_token_id in {instruct / 'generation_config.json'}" in found
  user = own.convert_tokens_to_ids("<|user|>")
  folder_of(own, instruct, GLM, eos_token_id=[user])
  assert not warnings(base, instruct)


def test_a_template_that_fails_is_left_to_training(pair):
  base, instruct = pair
  folder_of(load_tokenizer(instruct), instruct, "{{ raise_exception('no') }}")
  assert list(stops.unstopped(*map(open_model, pair))) == []
