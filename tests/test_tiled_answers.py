"""Answers of Llama 3.2 Vision to questions about images: against transformers, row by row."""

import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

from shadowft_jax.errors import InputError
from shadowft_jax.generation import decode, local
from shadowft_jax.generation.engine import Sampling, images_of
from tests import pictured
from tests.test_seeing import MAX_NEW, NEAR, asked, picture, tokens

pytestmark = pytest.mark.slow

CONVERSATIONS = [
  asked("<image>How many?", picture(0)),
  asked("Which has more bars, <image> or <image>?", picture(1, (20, 90)), picture(2, (70, 60))),
  asked("What is a bar?"),
  asked("Are <image><image> the same?", picture(3), picture(4, (90, 20))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model whose answers depend on the images."""
  path = pictured.save_tiled_pair(tmp_path_factory.mktemp("pair")) / "base"
  tensors = load_file(path / "model.safetensors")
  for name, x in tensors.items():
    x *= 4 if "cross_attn.v_proj" in name else 1
  save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
  return path


@pytest.fixture(scope="module")
def engine(folder):
  engine = local.load(folder, batch_size=4)
  engine.decoder, engine.variables = engine.eye.opened(engine.decoder, engine.variables)
  return engine


def theirs(folder, conversations):
  """transformers' greedy tokens for each row, as far as its two best logits lie apart."""
  model = transformers.MllamaForConditionalGeneration.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  processor = MllamaProcessor(MllamaImageProcessorPil.from_pretrained(folder), tokenizer)
  processor.bos_token = ""  # the tiny tokenizer has none
  out = []
  for messages in conversations:
    chat = [{**m, "content": m["content"].replace("<image>", pictured.TILED)} for m in messages]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    images = [p.decoded() for p in images_of(messages)] or None
    given = processor(text=text, images=images, return_tensors="pt")
    made = model.generate(
      **given,
      max_new_tokens=MAX_NEW,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
      return_dict_in_generate=True,
      output_logits=True,
    )
    best = torch.topk(torch.stack(made.logits)[:, 0], 2).values
    near = (best[:, 0] - best[:, 1]).numpy() < NEAR
    clear = int(near.argmax()) if near.any() else MAX_NEW
    out.append(made.sequences[0, given["input_ids"].shape[1] :][:clear].tolist())
  return out


def test_greedy_answers_in_one_padded_batch_are_those_of_transformers(folder, engine):
  got, want = tokens(engine, CONVERSATIONS, batch_size=4), theirs(folder, CONVERSATIONS)
  for ours, other in zip(got, want, strict=True):
    assert len(ours) == MAX_NEW and ours[: len(other)] == other
  assert sum(map(len, want)) >= 0.6 * MAX_NEW * len(want)
  blank = [[{**m, "images": (picture(9),) * len(images_of([m]))}] for [m] in CONVERSATIONS]
  same = [a == b for a, b in zip(got, tokens(engine, blank, batch_size=4), strict=True)]
  assert same == [False, False, True, False]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_row_sees_no_image_of_the_answer_before_it(engine, monkeypatch, batch_size):
  """Images come one at a time, so that rows of text are prefilled without any."""
  want = tokens(engine, CONVERSATIONS, batch_size=4)
  monkeypatch.setattr(decode, "IMAGES", 1)
  order = [3, 0, 2, 1]  # shorter prompts come first, so it should not matter
  got = tokens(engine, [CONVERSATIONS[i] for i in order], batch_size=batch_size)
  assert got == [want[i] for i in order]


def test_tokens_of_images_that_are_not_there_are_refused(engine):
  with pytest.raises(InputError, match=r"its text contains <\|image\|>; write <image>"):
    engine.prompt(asked("<image><|image|>", picture(0)))
  forged = [CONVERSATIONS[0], asked("What is <|image|>?")]
  with pytest.raises(InputError, match="1 image token, expected 0 for its 0 images"):
    engine.complete(forged, Sampling(1))
