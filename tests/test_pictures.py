"""Images of rows: the forms people have, what is wrong with them, and the pixels they become."""

import base64
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from transformers import Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from shadowft_jax import presets, sharding
from shadowft_jax.data import dataset, kept, pictures, processors, vision
from shadowft_jax.data.tokenizer import load_tokenizer
from shadowft_jax.errors import InputError
from tests import pico, pictured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder as `dataset.read` needs it: no weights."""
  path = tmp_path_factory.mktemp("instruct")
  pico.hf_model(pictured.MODEL).config.save_pretrained(path)
  pictured.save_processor(path)
  return path


@pytest.fixture
def config(folder, tmp_path):
  c = presets.sft()
  c.base = c.instruct = str(folder)
  c.data.val_ratio, c.data.max_length, c.data.cache = 0.0, 128, str(tmp_path / "cache")
  c.data.train, c.rows, c.batch_size = str(tmp_path / "a.jsonl"), 2, 8
  return c


def png(seed=0, **options):
  out = io.BytesIO()
  pictured.chart(seed, **options).save(out, "png")
  return out.getvalue()


def write(config, *rows):
  path = pathlib.Path(config.data.train)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(content, **more):
  turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "two"}]
  return {"messages": turns, **more}


def examples(config):
  return dataset.read(config, config.instruct).train


def as_text(image):
  return base64.b64encode(image).decode()


def test_every_form_of_an_image_gives_the_same_picture(config, tmp_path):
  image, text = png(), "<image>What?"
  (tmp_path / "a b.png").write_bytes(image)
  url = f"data:image/png;base64,{as_text(image)}"
  parts = lambda x: [x, {"type": "text", "text": "What?"}]
  write(
    config,
    row(parts({"type": "image_url", "image_url": {"url": url}})),
    row(parts({"type": "image_url", "image_url": {"url": str(tmp_path / "a b.png")}})),
    row(parts({"type": "image", "image": "a b.png"})),
    row(parts({"type": "image", "path": f"file://{tmp_path}/a b.png"})),
    row(text, images=["a b.png"]),
    row(text, images=as_text(image)),
    row(text, image={"bytes": as_text(image), "path": None}),
  )
  chart_moe = tmp_path / "chartmoe.json"
  turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "two"}]
  chart_moe.write_text(json.dumps([{"conversations": turns, "image": "a b.png"}]))
  share_gpt = tmp_path / "sharegpt.json"
  turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "two"}]
  share_gpt.write_text(json.dumps([{"conversations": turns, "images": ["a b.png"]}]))
  table = pa.table(
    {"messages": [row(text)["messages"]], "images": [[{"bytes": image, "path": None}]]}
  )
  pa.parquet.write_table(table, tmp_path / "b.parquet")
  config.data.train += f",{chart_moe},{share_gpt},{tmp_path}/b.parquet"
  all_ = examples(config)
  assert len(all_) == 10 and len({e.images for e in all_}) == 1
  assert len({e.token.tobytes() for e in all_}) == 1
  np.testing.assert_array_equal(all_[0].images[0].decoded(), pictured.chart(0))


def test_tokens_are_those_of_the_familys_processor(config, folder):
  write(config, row("one<image>two <image>", images=[as_text(png(1)), as_text(png(2))]))
  [example] = examples(config)
  tokenizer = load_tokenizer(folder)
  for name, token in zip(("eoi", "boi", "image"), pictured.ADDED[2:], strict=True):
    setattr(tokenizer, f"{name}_token", token)
    setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
  processor = Gemma3Processor(
    Gemma3ImageProcessorPil.from_pretrained(folder), tokenizer, image_seq_length=pictured.TOKENS
  )
  text = (
    "<|im_start|>user\none<start_of_image>two <start_of_image><|im_end|>\n<|im_start|>assistant"
  )
  images = [picture.decoded() for picture in example.images]
  want = processor(text=f"{text}\ntwo<|im_end|>\n", images=images, return_tensors="np")
  np.testing.assert_array_equal(example.token, want["input_ids"][0])
  opened = vision.open_vision(folder)
  pixel = np.stack([opened.prepared(p)["pixel"] for p in example.images])
  assert pixel.dtype == np.uint8
  scale, shift = (np.array(x, np.float32)[:, None, None] for x in opened.normalisation)
  np.testing.assert_allclose(scale * pixel + shift, want["pixel_values"], atol=1e-6)
  assert opened.prepared(example.images[0]) is opened.prepared(example.images[0])
  assert not example.answer[example.token == pictured.IMAGE].any() and not example.altered


def test_batches_hold_the_images_of_each_row_in_order(config):
  write(
    config,
    *(
      row("<image>" * n + "?", images=[as_text(png(10 * n + i)) for i in range(n)])
      for n in range(4)
    ),
  )
  config.rows = 8
  data = dataset.read(config, config.instruct)
  [batch] = data.batches(0)
  assert batch["pixel"].shape == (8, 8, 3, 28, 28) and batch["pixel"].dtype == np.uint8
  for r, places in enumerate(data.steps[0].rows):
    images = [x for p in places for x in data.train[data.steps[0].examples[p]].images]
    assert (batch["token"][r] == pictured.IMAGE).sum() == len(images) * pictured.TOKENS
    for image, pixel in zip(images, batch["pixel"][r], strict=False):
      np.testing.assert_array_equal(pixel, data.vision.prepared(image)["pixel"])
    assert not batch["pixel"][r, len(images) :].any()
  halves = [next(data.batches(0, (i, i + 1, 2))) for i in range(2)]
  both = np.concatenate([half["pixel"] for half in halves])
  np.testing.assert_array_equal(both, batch["pixel"])
  placed = sharding.place_rows(batch["pixel"], sharding.make_mesh())
  np.testing.assert_array_equal(placed, batch["pixel"])


def test_an_image_is_kept_whole_or_not_at_all(config):
  write(config, row("<image>", images=[as_text(png())]))
  [whole] = examples(config)
  turns = row("<image>", images=[as_text(png(i)) for i in range(2)])
  turns["messages"] *= 2
  write(config, turns)
  config.data.max_length = len(whole.token) + 11
  [cut] = examples(config)
  assert (cut.token == pictured.IMAGE).sum() == pictured.TOKENS and cut.images == whole.images
  assert len(cut.token) == config.data.max_length - 2


@pytest.mark.parametrize(
  "content, images, message",
  [
    (
      "<image>",
      ["no.png"],
      r"row 1: there is no image .*/no.png; its path begins in the folder of the data",
    ),
    ("<image>", [], "row 1 has 1 <image> mark and 0 images; expected one <image>"),
    ("What?", ["a.png"], "row 1 has 0 <image> marks and 1 image;"),
    ("<image><image>", ["a.png"], "row 1 has 2 <image> marks and 1 image;"),
    ("<image>", ["text.png"], "row 1: the image .*/text.png cannot be decoded: its format"),
    ("<image>", ["cut.png"], "row 1: the image .*/cut.png cannot be decoded"),
    ("<image>", ["moving.gif"], "row 1: the image .*/moving.gif is animated, with 2 frames"),
    ("<image>", ["huge.png"], "row 1: the image .*/huge.png has 81,000,000 pixels; at most"),
    ("<image>", ["http://a.b/c.png"], "row 1: the image 'http://a.b/c.png' is on the web"),
    ("<image>", ["data:image/png;base64,=a="], "row 1: an image is not valid base64"),
    ("<image>", [7], "row 1: an image is 7; expected a path"),
    ("<image><start_of_image>", ["a.png"], "row 1: its text contains <start_of_image>"),
  ],
)
def test_bad_images_are_named_by_row(config, tmp_path, content, images, message):
  (tmp_path / "a.png").write_bytes(png())
  (tmp_path / "cut.png").write_bytes(png(size=(300, 200))[:200])
  (tmp_path / "text.png").write_text("no image")
  frames = [pictured.chart(i) for i in range(2)]
  frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
  if images == ["huge.png"]:
    Image.new("1", (9_000, 9_000)).save(tmp_path / "huge.png")
  write(config, row(content, images=images), row("<image>", images=["a.png"]))
  with pytest.raises(InputError, match=message) as error:
    examples(config)
  assert "\n" not in str(error.value)
  config.data.skip_bad_rows = True
  [good] = examples(config)
  assert good.where.endswith("row 2") and len(good.images) == 1


def test_a_folder_for_images_and_its_absence(config, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere/a.png").write_bytes(png())
  write(config, row("<image>", images=["a.png"]))
  with pytest.raises(InputError, match="image_folder"):
    examples(config)
  config.data.image_folder = str(tmp_path / "elsewhere")
  assert len(examples(config)[0].images) == 1


@pytest.mark.parametrize(
  "change, message",
  [
    (None, "neither preprocessor_config.json nor processor_config.json, which say how"),
    (dict(size={"height": 56, "width": 56}), r"size is \(56, 56\), expected \(28, 28\)"),
    (dict(do_pan_and_scan=True), "do_pan_and_scan is True, expected False"),
  ],
)
def test_processors_that_are_missing_or_not_supported(config, tmp_path, change, message):
  pico.hf_model(pictured.MODEL).config.save_pretrained(tmp_path / "model")
  pictured.save_processor(tmp_path / "model", **(change or {}))
  if change is None:
    (tmp_path / "model/preprocessor_config.json").unlink()
  write(config, row("<image>", images=[as_text(png())]))
  with pytest.raises(InputError, match=message):
    dataset.read(config, tmp_path / "model")


def test_other_objectives_take_no_images(config):
  images = [as_text(png())]
  pair = {"chosen": row("<image>")["messages"], "rejected": row("<image>")["messages"][:1]}
  pair["rejected"] = [*pair["rejected"], {"role": "assistant", "content": "no"}]
  write(config, {**pair, "images": images})
  config.objective = "dpo"
  with pytest.raises(InputError, match="row 1 has images; only SFT on conversations takes them"):
    examples(config)


def test_images_stand_in_the_authors_templates_as_in_the_processors(config):
  config.data.recipe, config.data.template = "paper", "yi"
  config.data.columns = {"messages": "talk", "images": "image"}
  turns = [*row("Is <image>\nred?")["messages"], *row("And {} <image>?")["messages"]]
  turns.insert(0, {"role": "system", "content": "Look."})
  write(config, {"talk": turns, "image": [as_text(png(i)) for i in range(2)]}, {"talk": turns[3:]})
  with pytest.raises(InputError, match="row 2 has 1 <image> mark and 0 images"):
    examples(config)
  write(config, {"talk": turns, "image": [as_text(png(i)) for i in range(2)]})
  [one] = examples(config)
  tokenizer = load_tokenizer(config.instruct)
  whole = vision.open_vision(config.instruct).marks.whole
  frame = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
  pieces = ["<|im_start|>system\nLook.<|im_end|>\n", frame.format(f"Is {whole}\nred?")]
  answer = "two<|im_end|>\n"
  pieces += [answer, frame.format("And {} " + whole + "?"), answer]
  want = [tokenizer(text, add_special_tokens=False).input_ids for text in pieces]
  assert one.token.tolist() == sum(want, []) and len(one.images) == 2
  assert one.answer.sum() == 2 * len(want[2])
  assert (one.token == pictured.IMAGE).sum() == 2 * pictured.TOKENS
  for length in range(40, len(one.token), 2):
    config.data.max_length = length
    [cut] = examples(config)
    count = int((cut.token == pictured.IMAGE).sum())
    assert count == len(cut.images) * pictured.TOKENS and len(cut.token) <= length
    assert [x.digest for x in cut.images] == [x.digest for x in one.images[: len(cut.images)]]


@pytest.mark.parametrize("size", [(1000, 500), (768, 768), (2000, 1000), (20, 10), (4000, 3)])
def test_the_authors_rule_of_sizes(size):
  """As `_preprocess_image` of LLaMA-Factory, whose image_max_pixels is 768 * 768."""
  made = processors.scaled(Image.new("RGB", size), 768 * 768)
  want = {(2000, 1000): (1086, 543), (20, 10): (45, 22)}.get(size, size)
  assert made.size == want


def test_the_option_of_sizes_changes_pixels(folder):
  picture = pictures.opened(png(size=(900, 800)), [], "row 1")
  plain, small = (vision.open_vision(folder, n).prepared(picture)["pixel"] for n in (0, 10_000))
  assert plain.shape == small.shape and (plain != small).any()


def pixels(config):
  return next(dataset.read(config, config.instruct).batches(0))["pixel"]


def never(*_):
  raise AssertionError("an image is decoded again")


def test_a_second_run_reads_prepared_images_from_disk(config, tmp_path, monkeypatch, capsys):
  write(config, *(row("<image>", images=[as_text(png(i))]) for i in range(3)))
  want = pixels(config)
  files = sorted((tmp_path / "cache/images").iterdir())
  assert len(files) == 3 and all(path.suffix == ".npz" for path in files)
  with monkeypatch.context() as patch:
    patch.setattr(pictures, "_decoded", never)
    np.testing.assert_array_equal(pixels(config), want)
    config.data.image_max_pixels = 1100
    with pytest.raises(AssertionError, match="decoded again"):
      pixels(config)
  assert (pixels(config) != want).any() and len([*(tmp_path / "cache/images").iterdir()]) == 6
  config.data.image_max_pixels = 0
  good = files[1].read_bytes()
  files[1].write_bytes(good[:-9])
  capsys.readouterr()
  np.testing.assert_array_equal(pixels(config), want)
  assert f"cannot read the cache file {files[1]}" in capsys.readouterr().err
  assert files[1].read_bytes() == good


def test_other_settings_of_the_processor_are_other_prepared_images(config, folder, tmp_path):
  write(config, row("<image>", images=[as_text(png(size=(300, 200)))]))
  want = pixels(config)
  shutil.copytree(folder, tmp_path / "other")
  pictured.save_processor(tmp_path / "other", resample=0)
  config.base = config.instruct = str(tmp_path / "other")
  assert (pixels(config) != want).any()


def test_the_oldest_prepared_images_go_and_a_folder_that_is_full_is_said_once(
  config, tmp_path, monkeypatch, capsys
):
  write(config, *(row("<image>", images=[as_text(png(i))]) for i in range(9)))
  monkeypatch.setattr(kept, "MOST_CACHED", 5000)
  want = pixels(config)
  assert 0 < sum(p.stat().st_size for p in (tmp_path / "cache/images").iterdir()) <= 5000
  (tmp_path / "file").write_text("")
  config.data.cache = str(tmp_path / "file" / "cache")
  np.testing.assert_array_equal(pixels(config), want)
  assert capsys.readouterr().err.count("cannot cache the images for the next run") == 1


def test_images_need_no_torch(config, folder):
  write(config, row("<image>", images=[as_text(png())]))
  code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from shadowft_jax import presets
from shadowft_jax.data import dataset
c = presets.sft()
c.update(base={str(folder)!r}, instruct={str(folder)!r})
c.data.update(train={config.data.train!r}, val_ratio=0.0, cache={config.data.cache!r})
data = dataset.read(c, {str(folder)!r})
[batch] = data.batches(0)
print(batch["pixel"].shape, int(batch["pixel"].sum()), "jax" in sys.modules)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  want = (
    vision.open_vision(folder).prepared(examples(config)[0].images[0])["pixel"].astype(int).sum()
  )
  assert done.stdout.split("\n")[0] == f"(8, 1, 3, 28, 28) {want} False", done.stderr
