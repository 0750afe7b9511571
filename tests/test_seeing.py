"""Answers to questions about images: against transformers, and from every place that asks."""

import dataclasses
import io
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from starlette import testclient

from shadowft_jax import api, chat, compare, evaluate, files, presets
from shadowft_jax.data import pictures, vision
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import arms
from shadowft_jax.generation import decode, local, openai_form, seeing, server, serving, steps
from shadowft_jax.generation.engine import Sampling, images_of
from tests import pico, pictured

MAX_NEW, NEAR = 24, 1e-3  # logits that differ by less may be told apart by rounding


def picture(seed, size=(60, 40)):
  """A chart as its file's bytes."""
  file = io.BytesIO()
  pictured.chart(seed, size).save(file, "png")
  return pictures.opened(file.getvalue(), [], "the chart")


def asked(text, *images):
  return [{"role": "user", "content": text, **({"images": images} if images else {})}]


CONVERSATIONS = [
  asked("<image>How many?", picture(0)),
  asked("Which of <image> and <image> has more bars, and by how much?", picture(1), picture(2)),
  asked("What is a bar?"),
  [
    *asked("<image>Is it red?", picture(3)),
    {"role": "assistant", "content": "No."},
    *asked("And <image>?", picture(4)),
  ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model whose answers vary: its blocks and images outweigh the embeddings."""
  path = pictured.save_pair(tmp_path_factory.mktemp("pair")) / "instruct"
  tensors = load_file(path / "model.safetensors")
  for name, x in tensors.items():
    x *= 5 if "mm_input_projection" in name else 1
    x += 4 if re.search("post_(attention|feedforward)_layernorm", name) else 0
  save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
  return path


@pytest.fixture(scope="module")
def engine(folder):
  engine = local.load(folder, batch_size=4)
  engine.decoder, engine.variables = engine.eye.opened(engine.decoder, engine.variables)
  return engine


def theirs(folder, engine):
  """transformers' greedy tokens for one padded batch, as far as its two best logits lie apart."""
  model = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
  prompts = [engine.prompt(m) for m in CONVERSATIONS]
  width = max(map(len, prompts))
  token = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
  images = [p for m in CONVERSATIONS for turn in m for p in turn.get("images", ())]
  pixel = np.stack([engine.eye.vision.prepared(p)["pixel"] for p in images]).astype(np.float32)
  out = model.generate(
    input_ids=token,
    attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    token_type_ids=(token == pictured.IMAGE).long(),
    pixel_values=torch.tensor(pixel / 127.5 - 1),
    max_new_tokens=MAX_NEW,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_logits=True,
  )
  best = torch.topk(torch.stack(out.logits), 2).values  # [step, row, 2]
  near = (best[..., 0] - best[..., 1]).numpy().T < NEAR
  clear = [int(x.argmax()) if x.any() else MAX_NEW for x in near]
  return [row[width : width + n].tolist() for row, n in zip(out.sequences, clear, strict=True)]


def tokens(engine, conversations, **options):
  """The greedy tokens of each answer, which nothing but its length ends."""
  keyed = [
    decode.Prompt(engine.prompt(m), np.zeros(2, np.uint32), images=images_of(m))
    for m in conversations
  ]
  answers = decode.answers(
    engine.decoder,
    engine.variables,
    keyed,
    stop=(-1,),
    sampling=Sampling(MAX_NEW),
    vision=engine.eye.vision,
    **options,
  )
  return [x.tokens for x in sorted((x for x in answers if x.reason), key=lambda x: x.prompt)]


def test_greedy_answers_in_one_padded_batch_are_those_of_transformers(folder, engine):
  got, want = tokens(engine, CONVERSATIONS, batch_size=4), theirs(folder, engine)
  for ours, other in zip(got, want, strict=True):
    assert len(ours) == MAX_NEW and ours[: len(other)] == other
  assert sum(map(len, want)) >= 0.6 * MAX_NEW * len(want)
  blank = [
    [{**turn, "images": (picture(9),) * len(turn.get("images", ()))} for turn in m]
    for m in CONVERSATIONS
  ]
  same = [a == b for a, b in zip(got, tokens(engine, blank, batch_size=4), strict=True)]
  assert same[2] and same.count(True) <= 2


@pytest.mark.slow
def test_few_images_at_a_time_and_waiting_prompts_change_no_token(engine, monkeypatch):
  want = tokens(engine, CONVERSATIONS, batch_size=4)
  monkeypatch.setattr(decode, "IMAGES", 1)
  seen = []
  prefill = steps.prefill
  monkeypatch.setattr(steps, "prefill", lambda *x: seen.append(x[-1]) or prefill(*x))
  for batch_size in (4, 2):
    assert tokens(engine, CONVERSATIONS, batch_size=batch_size) == want
  pixels = [shown["pixel"].shape for shown in seen if shown]
  assert pixels and all(shape[0] == 1 for shape in pixels) and len(pixels) < len(seen)


def test_images_that_cannot_be_given_are_refused(engine, tmp_path):
  for text, images, message in (
    ("How many?", 1, "0 <image> marks and 1 image"),
    ("<image><image>", 1, "2 <image> marks and 1 image"),
    ("<start_of_image><image>", 1, "its text contains <start_of_image>"),
  ):
    with pytest.raises(InputError, match=message):
      engine.prompt(asked(text, *[picture(0)] * images))
  forged = [CONVERSATIONS[0], asked("<image_soft_token>")]
  with pytest.raises(InputError, match="1 image token, expected 0 for its 0 images"):
    engine.complete(forged, Sampling(1))
  assert engine.prompt(asked("An <image> in words")).count(pictured.IMAGE) == 0
  text_only = pico.save(pico.hf_model("gemma3"), tmp_path / "text", with_tokenizer=True)
  with pytest.raises(InputError, match="takes only text"):
    local.load(text_only).prompt(CONVERSATIONS[0])


def test_a_server_gets_and_takes_images_as_data_urls(monkeypatch):
  """What ServerEngine sends is read by openai_form as the same conversation."""
  monkeypatch.setattr(server.ServerEngine, "_offered", lambda self: {})
  far = server.ServerEngine("http://localhost:1", "it")
  body = far._body(CONVERSATIONS[3], Sampling(8), 0)
  parts = body["messages"][2]["content"]
  assert [x["type"] for x in parts] == ["text", "image_url", "text"]
  assert parts[1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
  assert openai_form.parsed(body, "it", Sampling(8)).messages == CONVERSATIONS[3]


@pytest.mark.parametrize(
  "url, message",
  [
    ("http://localhost/a.png", "no data URL; this server reads neither files nor the web"),
    ("file:///etc/passwd", "reads neither files"),
    ("/etc/passwd", "reads neither files"),
    ("data:text/plain,hello", "reads neither files"),
    ("data:image/png;base64,/etc", "cannot be decoded: its format is not known"),
    ("data:image/png;base64,!", "not valid base64"),
  ],
)
def test_a_server_reads_no_files(url, message):
  content = [{"type": "image_url", "image_url": {"url": url}}]
  body = {"model": "it", "messages": [{"role": "user", "content": content}]}
  with pytest.raises(openai_form.Refusal, match=re.escape(message)):
    openai_form.parsed(body, "it", Sampling(8))
  content[0]["image_url"] = {"url": picture(0).url()}
  body["messages"][0]["role"] = "assistant"
  with pytest.raises(openai_form.Refusal, match="in messages of the user"):
    openai_form.parsed(body, "it", Sampling(8))


def test_the_server_answers_about_an_image_as_the_engine(engine):
  app = serving.app(engine, "it", Sampling(6))
  url = CONVERSATIONS[0][0]["images"][0].url()
  content = [
    {"type": "image_url", "image_url": {"url": url}},
    {"type": "text", "text": "How many?"},
  ]
  body = {"model": "it", "messages": [{"role": "user", "content": content}], "temperature": 0}
  [[want]] = engine.complete(CONVERSATIONS[:1], Sampling(6))
  with testclient.TestClient(app) as client:
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == want.text
    assert answer["usage"]["prompt_tokens"] == len(engine.prompt(CONVERSATIONS[0]))
    refused = client.post("/v1/chat/completions", json={**body, "logprobs": True})
  assert refused.status_code == 400 and "without images" in refused.text


def test_generate_takes_images_in_content_lists(folder, engine, tmp_path):
  chart = pictured.chart(0)
  chart.save(tmp_path / "a.png")
  forms = [str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), chart]
  parts = [[{"type": "image", "image": x}, {"type": "text", "text": "How many?"}] for x in forms]
  prompts = ["What is a bar?", *([{"role": "user", "content": x}] for x in parts)]
  plain, *answers = api.generate(api.load_model(folder), prompts, max_new=6)
  [[want]], [[text]] = (
    engine.complete([m], Sampling(6)) for m in (CONVERSATIONS[0], asked(prompts[0]))
  )
  assert answers == [want.text] * 3 and plain == text.text
  parts[0][0]["image"] = "no.png"
  with pytest.raises(InputError, match="prompt 2: there is no image no.png"):
    api.generate(api.load_model(folder), prompts)


def test_images_are_scaled_as_in_the_run_that_wrote_the_model_or_delta(folder, tmp_path):
  chart, made = picture(0, (200, 100)), tmp_path / "run/shadow"
  plain, small = (vision.open_vision(folder, n).prepared(chart)["pixel"] for n in (0, 1500))
  assert (plain != small).any()
  shutil.copytree(folder, made)
  files.write_json(made / "provenance.json", {"seed": None, "image_max_pixels": 1500})
  engine = local.load(made)
  np.testing.assert_array_equal(engine.eye.vision.prepared(chart)["pixel"], small)
  assert engine.identity["image_max_pixels"] == 1500
  told = local.load(made, image_max_pixels=0)
  np.testing.assert_array_equal(told.eye.vision.prepared(chart)["pixel"], plain)
  assert "image_max_pixels" not in told.identity
  assert seeing.trained_pixels(folder) == 0
  assert seeing.trained_pixels(folder, tmp_path / "run") == 1500
  assert seeing.trained_pixels(folder, tmp_path / "run/delta") == 1500


def test_commands_hand_on_the_size_of_images(folder, tmp_path, monkeypatch):
  given = []

  def load(*_, image_max_pixels, **__):
    given.append(image_max_pixels)
    raise InputError("enough")

  monkeypatch.setattr(local, "load", load)
  config, arm = presets.sft(), arms.Arm("a", "model", str(folder))
  own = dict(questions=("q.jsonl",), image_max_pixels=4)
  asking = compare.Options(config=config, workdir=str(tmp_path), questions=own["questions"])
  config.data.image_max_pixels = 9
  for call in (
    lambda: chat._first(chat.Options(model=str(folder), image_max_pixels=3)),
    lambda: evaluate.answers([arm], evaluate.Options(**own, out=str(tmp_path)), []),
    lambda: evaluate.asked(asking, [arm], [], tmp_path),
    lambda: evaluate.asked(dataclasses.replace(asking, **own), [arm], [], tmp_path),
  ):
    with pytest.raises(InputError, match="enough"):
      call()
  assert given == [3, 4, 9, 4]
  for check, options in (
    (chat._check, chat.Options(server="http://a", name="b", image_max_pixels=3)),
    (evaluate.check_options, evaluate.Options(**own, server="http://a", name=("b",), out="c")),
  ):
    with pytest.raises(InputError, match="a server resizes images itself"):
      check(options)
