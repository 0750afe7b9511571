"""Every finding fires on a pair that is made to have it, and on no other."""

import json
import pathlib
import re
import shutil

import ml_dtypes  # noqa: F401  (numpy's name of bfloat16)
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import shadowft_jax
from shadowft_jax.pairs import vocabulary
from shadowft_jax.pairs import findings
from shadowft_jax.hf import folder as folders, safetensors
from shadowft_jax.pairs import check, registry
from shadowft_jax.errors import InputError
from shadowft_jax import presets
from shadowft_jax.pairs.opened import open_pair
from tests import runs
from tests.real_configs import CONFIGS, theirs

TINY = pathlib.Path(shadowft_jax.__file__).parent / "assets" / "tiny"
VOCABULARY = "the vocabulary is the same (tokenizer.json"
ROWS = "the chat tokens' rows of the Base's"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """{name: folder of a pair}, one untied and one tied."""
  return {n: runs.make_pair(tmp_path_factory.mktemp(n), n) for n in ("qwen3", "llama3_tied")}


@pytest.fixture
def pair(made, tmp_path):
  """pair(name): (base, instruct) to be changed at will."""

  def copy(name="qwen3"):
    for side in ("base", "instruct"):
      shutil.copytree(made[name] / side, tmp_path / side)
    return tmp_path / "base", tmp_path / "instruct"

  return copy


def edit(path, **fields):
  """Sets fields of a JSON file, new or old; None removes one."""
  fields_ = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({n: v for n, v in {**fields_, **fields}.items() if v is not None}))


def edit_config(folder, **fields):
  edit(folder / "config.json", **fields)


def edit_tensors(folder, change):
  """Replaces the weights by change(name, array) -> (name, array), or None to drop it."""
  file = folder / "model.safetensors"
  tensors = filter(None, [change(n, x) for n, x in load_file(file).items()])
  save_file({n: np.ascontiguousarray(x) for n, x in tensors}, file)


def edit_tokenizer(folder, change):
  path = folder / "tokenizer.json"
  fields = json.loads(path.read_text())
  change(fields)
  path.write_text(json.dumps(fields))


def new(before, base, instruct):
  """The findings that were not there `before`, as "level: text"."""
  lines = {f"{f.level}: {f.text}" for f in check.check(base, instruct)}
  return sorted(lines - {f"{f.level}: {f.text}" for f in before})


def heads(findings):
  return [(f.level, f.text[: len(VOCABULARY)]) for f in findings]


# A clean pair.


def test_a_clean_pair_has_notes_alone(pair):
  base, instruct = pair()
  assert heads(check.check(base, instruct)) == [
    ("note", VOCABULARY),
    ("note", f"{ROWS} embedd"),
    ("note", f"{ROWS} head l"),
  ]
  base.rename(base.with_name("other"))
  findings.raise_errors(check.check(base.with_name("other"), instruct))


def test_the_pair_that_is_shipped_has_notes_alone():
  findings = check.check(TINY / "base", TINY / "instruct")
  assert [f.level for f in findings] == ["note"] * 4
  assert [re.match(r"[\w' ]+", f.text)[0] for f in findings] == [
    "tied embeddings in both",
    "the vocabulary is the same ",
    "special tokens differ",
    "the chat tokens' rows of the Base's embedding look trained",
  ]


# Families, sizes, tensors.


def test_two_families_are_an_error(made):
  results = check.check(made["llama3_tied"] / "base", made["qwen3"] / "instruct")
  assert results[0] == (
    "error",
    "different model families: Base llama, Instruct qwen3; a delta cannot be transferred between "
    "families; give the Base from which the Instruct was made",
  )
  with pytest.raises(InputError, match="different model families(.|\n)*num_hidden_layers"):
    findings.raise_errors(results)


def test_one_folder_twice_is_warned_of(made):
  findings = check.check(made["qwen3"] / "base", made["qwen3"] / "base")
  (got,) = [f.text for f in findings if f.level == "warning"]
  assert got.startswith("Base and Instruct are the same folder, ")


def test_one_model_is_not_trained_as_its_own_base(pair, made):
  """Under two names too; to fine-tune it is another setting, which the error names."""
  base, _ = pair()
  for other in (base, made["qwen3"] / "base"):
    config = presets.sft()
    config.base, config.instruct = str(base), str(other)
    with pytest.raises(InputError, match="are the same model.*--config.learn_on=instruct"):
      open_pair(config)
    config.learn_on = "instruct"
    assert open_pair(config).trained.directory == other
  config = presets.sft()
  config.base, config.instruct = str(base), str(made["qwen3"] / "instruct")
  assert not [w for w in open_pair(config).warnings if "same" in w]


def test_all_differing_sizes_are_reported_at_once(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_config(
    instruct,
    num_hidden_layers=3,
    hidden_size=40,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=80,
  )
  got = new(before, base, instruct)
  assert [t.split(";")[0] for t in got] == [
    "error: head_dim: Base 16, Instruct 4",
    "error: hidden_size: Base 32, Instruct 40",
    "error: intermediate_size: Base 64, Instruct 80",
    "error: num_attention_heads: Base 4, Instruct 8",
    "error: num_hidden_layers: Base 2, Instruct 3",
    "error: num_key_value_heads: Base 2, Instruct 1",
  ]
  edit_config(
    base,
    num_hidden_layers=None,
    hidden_size=None,
    num_attention_heads=None,
    num_key_value_heads=None,
    head_dim=None,
    intermediate_size=None,
  )
  assert new(before, base, instruct) == []  # the tensors say that they fit


def test_another_vocab_size_is_a_warning_and_its_tables_are_excused(pair):
  base, instruct = pair()
  before = check.check(base, instruct)

  def longer(name, x):
    return name, np.concatenate([x, x[:8]]) if re.search("embed|lm_head", name) else x

  edit_tensors(instruct, longer)
  (got,) = new(before, base, instruct)  # the config says nothing of it
  assert got.startswith("error: tensors are missing on one side or differ in shape")
  edit_config(instruct, vocab_size=272)
  (got,) = new(before, base, instruct)
  assert got.startswith("warning: vocab_size: Base 264, Instruct 272; projections can be grafted")
  edit_tensors(instruct, lambda n, x: None if "embed" in n else (n, x))
  assert "\n  embed_tokens.weight: Base (264, 32), Instruct has none" in "".join(
    new(before, base, instruct)
  )


def test_tied_against_untied_is_a_warning_and_the_head_is_excused(pair):
  base, instruct = pair("llama3_tied")
  before = check.check(base, instruct)
  assert "tied embeddings in both" in findings.report(before)
  edit_config(instruct, tie_word_embeddings=False)
  table = load_file(instruct / "model.safetensors")["model.embed_tokens.weight"]
  save_file(
    {**load_file(instruct / "model.safetensors"), "lm_head.weight": table},
    instruct / "model.safetensors",
  )
  (got,) = new(before, base, instruct)
  assert got.startswith("warning: tie_word_embeddings: Base True, Instruct False")
  edit_config(instruct, tie_word_embeddings=True)  # now it is only a twin of the table
  assert new(before, base, instruct) == []
  edit_config(base, tie_word_embeddings=False)  # and here the head is missing
  edit_config(instruct, tie_word_embeddings=False)
  assert [t[:7] for t in new(before, base, instruct)] == ["error: "]


def test_tensors_of_one_side_are_listed_layer_by_layer(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tensors(
    instruct,
    lambda n, x: (
      None if "q_norm" in n else (n, x[:-8] if n.endswith("1.mlp.up_proj.weight") else x)
    ),
  )
  (got,) = new(before, base, instruct)
  assert got.startswith("error: tensors are missing on one side or differ in shape, so")
  assert got.endswith(
    "\n  layers.*.self_attn.q_norm.weight (2 tensors): Base (16,), Instruct has none"
    "\n  layers.1.mlp.up_proj.weight: Base (64, 32), Instruct (56, 32)"
  )
  report = findings.report(check.check(base, instruct))
  assert "\n    layers.1.mlp.up_proj.weight: Base (64, 32)" in report
  back = check.check(instruct, base)[0]
  assert back.level == "error" and "Base has none, Instruct (16,)" in back.text


def test_old_buffers_do_no_harm(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  file = base / "model.safetensors"
  save_file(
    {**load_file(file), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)},
    file,
  )
  assert new(before, base, instruct) == []


@pytest.mark.parametrize(
  "spelling",
  [
    lambda n: n if n.startswith("lm_head") else n.replace("model.", "language_model.model.", 1),
    lambda n: n if n.startswith("lm_head") else n.replace("model.", "model.language_model.", 1),
    lambda n: "language_model." + n,
    lambda n: n.removeprefix("model."),
  ],
)
def test_another_spelling_of_the_prefix_is_a_note(pair, spelling):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tensors(base, lambda n, x: (spelling(n), x))
  (got,) = new(before, base, instruct)
  assert got.startswith("note: tensor names have different prefixes (Base ")
  assert "Instruct model.)" in got


def test_a_tensor_under_two_prefixes_is_refused(pair):
  base, instruct = pair()
  file = base / "model.safetensors"
  save_file({**load_file(file), "language_model.model.norm.weight": np.ones(32, np.float32)}, file)
  with pytest.raises(InputError, match="base has norm.weight under two prefixes"):
    check.check(base, instruct)


def test_other_dtypes_are_a_note(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tensors(base, lambda n, x: (n, x if "norm" in n else x.astype("bfloat16")))
  assert (
    "note: stored as: Base BF16 and F32, Instruct F32; grafted tensors are rounded to the "
    "Instruct's dtype" in new(before, base, instruct)
  )


def test_vision_that_differs_is_a_warning(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  for side, patches in ((base, 4), (instruct, 9)):
    file = side / "model.safetensors"
    save_file(
      {**load_file(file), "vision_model.position.weight": np.ones((patches, 8), np.float32)}, file
    )
    edit_config(side, vision_config={"image_size": 14 * patches})
  got = new(before, base, instruct)
  assert [t.split(";")[0] for t in got] == [
    "warning: image_size: Base 56, Instruct 126",
    "warning: the vision or audio parts differ",
  ]
  assert got[1].endswith("\n  vision_model.position.weight: Base (4, 8), Instruct (9, 8)")


# What the same weights compute.


@pytest.mark.parametrize(
  "side, fields, want",
  [
    (
      "base",
      dict(rms_norm_eps=1e-5),
      [
        "warning: rms_norm_eps: Base 1e-05, Instruct 1e-06; each model keeps its own; the graft "
        "only adds weights"
      ],
    ),
    (
      "instruct",
      dict(rope_parameters=dict(rope_theta=5e6, rope_type="default")),
      [
        "warning: rope_theta: Base 1000000.0, Instruct 5000000.0; position encodings differ: each "
        "model keeps its own, but the delta of q and k is trained with the Base's"
      ],
    ),
    ("instruct", dict(rope_parameters=None, rope_theta=1e6), []),
    ("instruct", dict(rope_parameters=None, rope_theta=1e6, rope_scaling=None), []),
    (
      "instruct",
      dict(rope_parameters=None, rope_theta=1e6, rope_scaling=dict(type="linear", factor=2.0)),
      [
        "warning: rope_scaling.factor: Base None, Instruct 2.0",
        "warning: rope_type: Base default, Instruct linear",
      ],
    ),
    (
      "base",
      dict(partial_rotary_factor=0.5),
      ["warning: rope_scaling.partial_rotary_factor: Base 0.5, Instruct 1.0"],
    ),
    ("base", dict(hidden_act="gelu"), ["warning: hidden_act: Base gelu, Instruct silu"]),
    ("base", dict(hidden_act=None), []),
    (
      "base",
      dict(sliding_window=64, use_sliding_window=True),
      ["warning: sliding_window: Base 64, Instruct None"],
    ),
    (
      "base",
      dict(sliding_window=64, use_sliding_window=None),  # Mistral has no such field
      ["warning: sliding_window: Base 64, Instruct None"],
    ),
    ("base", dict(sliding_window=64, use_sliding_window=False), []),
    (
      "base",
      dict(max_position_embeddings=64),
      [
        "note: max_position_embeddings: Base 64, Instruct 512; train within the Base's limit; "
        "the grafted model keeps the Instruct's"
      ],
    ),
  ],
)
def test_fields_that_change_the_computation(pair, side, fields, want):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_config({"base": base, "instruct": instruct}[side], **fields)
  got = new(before, base, instruct)
  assert len(got) == len(want)
  assert all(g.startswith(w) for g, w in zip(got, want, strict=True)), got


def test_gemma_3_turns_by_kind_of_layer_in_both_spellings():
  old = dict(
    model_type="gemma3_text",
    rope_theta=1e6,
    rope_local_base_freq=1e4,
    rope_scaling=dict(rope_type="linear", factor=8.0),
  )
  new_spelling = dict(
    model_type="gemma3_text",
    rope_parameters=dict(
      full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
      sliding_attention=dict(rope_type="default", rope_theta=1e4),
    ),
  )
  partial = dict(model_type="gemma3_text", rope_scaling=dict(rope_type="linear", factor=8.0))
  assert check.rope(old) == check.rope(new_spelling) == check.rope(partial)
  assert check.rope(old)["rope_theta of full_attention"] == 1e6
  assert check.rope(old)["rope_theta of sliding_attention"] == 1e4


# Folders that hold no plain weights.


def test_a_quantised_checkpoint_is_an_error_by_config_or_by_dtype(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_config(base, quantization_config=dict(quant_method="gptq", bits=4))
  (got,) = new(before, base, instruct)
  assert got.startswith("error: the Base is quantised (gptq), and a delta cannot be")
  assert "download the unquantised model" in got
  edit_config(base, quantization_config=None)
  edit_tensors(instruct, lambda n, x: (n, x.astype(np.int8) if "mlp" in n else x))
  (got,) = new(before, base, instruct)
  assert got.startswith("error: the Instruct is quantised (I8)")


def test_gguf_and_pickles_are_refused(pair):
  base, instruct = pair()
  (base / "model.safetensors").rename(base / "model.gguf")
  with pytest.raises(InputError, match="only GGUF weights.*download the original model"):
    check.check(base, instruct)
  (base / "model.gguf").rename(base / "pytorch_model.bin")
  with pytest.raises(InputError, match="only pickled weights .pytorch_model.bin.*python -c"):
    check.check(base, instruct)


# Tokenizers and templates.


def test_tokenizers_that_cannot_be_compared_are_warned_of(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  (base / "tokenizer.json").rename(base / "tokenizer.model")
  (got,) = [t for t in new(before, base, instruct) if "cannot be compared" in t]
  assert got.startswith(
    "warning: the tokenizers cannot be compared (Base tokenizer.model, Instruct tokenizer.json)"
  )
  (base / "tokenizer.model").unlink()
  assert "Base has none, Instruct tokenizer.json" in "".join(new(before, base, instruct))
  (instruct / "tokenizer.json").unlink()
  assert "Base has none, Instruct has none" in "".join(new(before, base, instruct))


def test_sentencepiece_files_are_compared_whole(pair):
  base, instruct = pair()
  for side in (base, instruct):
    (side / "tokenizer.json").unlink()
    (side / "tokenizer.model").write_bytes(b"pieces")
  assert "note: the vocabulary is the same (tokenizer.model" in findings.report(
    check.check(base, instruct)
  )
  (base / "tokenizer.model").write_bytes(b"other pieces")
  (error,) = [f.text for f in check.check(base, instruct) if f.level == "error"]
  assert error.startswith("tokenizer.model differs (sha256 Base ")


def test_a_token_id_that_means_two_tokens_is_an_error(pair):
  base, instruct = pair()
  before = check.check(base, instruct)

  def swap(fields):
    vocabulary = fields["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

  edit_tokenizer(instruct, swap)
  (got,) = new(before, base, instruct)
  assert got.startswith("error: token ids that mean different tokens in Base and Instruct: 2;")
  assert "Base 'a', Instruct 'b'" in got and "Base 'b', Instruct 'a'" in got


def test_a_longer_vocabulary_is_a_warning(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tokenizer(instruct, lambda f: f["model"]["vocab"].update(new=260))
  got = new(before, base, instruct)
  assert [t[:78] for t in got] == [
    "warning: the vocabularies differ in size: Base 256, Instruct 257; the Base was"
  ]


def test_other_merges_are_a_warning_however_they_are_spelt(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tokenizer(base, lambda f: f["model"].update(merges=["a b", "c d"]))
  (got,) = new(before, base, instruct)
  assert got.startswith("warning: the merge rules of the tokenizers differ")
  edit_tokenizer(instruct, lambda f: f["model"].update(merges=[["a", "b"], ["c", "d"]]))
  assert new(before, base, instruct) == []


def test_a_unigram_vocabulary_is_a_list(pair):
  base, instruct = pair()
  for side in (base, instruct):
    edit_tokenizer(
      side, lambda f: f["model"].update(vocab=[[t, -1.0] for t in f["model"]["vocab"]], merges=None)
    )
  before = check.check(base, instruct)
  assert [f.level for f in before] == ["note"] * 3
  edit_tokenizer(base, lambda f: f["model"]["vocab"].__setitem__(9, ["other", -1.0]))
  assert "9: Base 'other', Instruct " in "".join(new(before, base, instruct))


def test_added_tokens_of_one_side_are_a_warning(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit_tokenizer(
    instruct,
    lambda f: f["added_tokens"].append(dict(f["added_tokens"][0], id=260, content="<tool>")),
  )
  edit_tokenizer(base, lambda f: f["added_tokens"][1].update(content="<reserved>"))
  (got,) = [t for t in new(before, base, instruct) if "added tokens" in t]
  assert got.startswith("warning: added tokens differ")
  assert got.endswith(
    "\n  1: Base '<reserved>', Instruct '<|im_start|>'\n  260: Base None, Instruct '<tool>'"
  )


def test_special_tokens_are_a_note_and_a_warning_where_a_text_begins(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  edit(base / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
  (got,) = new(before, base, instruct)
  assert got == (
    "note: special tokens differ; the Instruct's are used for both: eos_token: Base "
    "'<|endoftext|>', Instruct '<|im_end|>'"
  )
  edit(instruct / "tokenizer_config.json", bos_token="<|im_start|>")
  (got,) = new(before, base, instruct)
  assert got.startswith("warning: special tokens differ")
  assert "bos_token: Base None, Instruct '<|im_start|>'" in got


def test_a_malformed_tokenizer_is_refused(pair):
  base, instruct = pair()
  edit_tokenizer(base, lambda f: f.pop("model"))
  with pytest.raises(InputError, match="tokenizer.json.*KeyError: 'model'.*download it again"):
    check.check(base, instruct)


def test_an_instruct_without_a_template_looks_swapped(pair):
  base, instruct = pair()
  before = check.check(base, instruct)
  (instruct / "chat_template.jinja").unlink()
  got = new(before, base, instruct)
  assert [t[:60] for t in got] == [
    "warning: Base and Instruct look swapped: only the Base has a",
    "warning: the Instruct has no chat template: it may be a Base",
  ]
  (base / "chat_template.jinja").unlink()
  assert [t[:44] for t in new(before, base, instruct)] == [
    "warning: the Instruct has no chat template: "
  ]


@pytest.mark.parametrize(
  "file, field, at_text, at_turn",
  [
    ("generation_config.json", "eos_token_id", 0, [2, 0]),
    ("config.json", "eos_token_id", 0, 2),
    ("tokenizer_config.json", "eos_token", "<|endoftext|>", "<|im_end|>"),
  ],
)
def test_a_base_that_stops_at_the_end_of_a_turn_looks_swapped(pair, file, field, at_text, at_turn):
  base, instruct = pair()
  for side, stop in ((base, at_text), (instruct, at_turn)):
    edit(side / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(side / "generation_config.json", eos_token_id=None)
    edit_config(side, eos_token_id=0)
    edit(side / file, **{field: stop})
  right, swapped = check.check(base, instruct), check.check(instruct, base)
  assert {f.level for f in right} == {"note"}
  (got,) = [f.text for f in swapped if f.level != "note" and "does not stop" not in f.text]
  assert got == (
    "Base and Instruct look swapped: only the Base has a stop token that is in the "
    "chat template; the delta would be trained on the Instruct and grafted onto the Base"
  )


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json"])
def test_a_template_is_found_in_every_file_that_may_hold_it(pair, place):
  base, instruct = pair()
  before = check.check(base, instruct)
  template = (instruct / "chat_template.jinja").read_text()
  (instruct / "chat_template.jinja").unlink()
  edit(instruct / place, chat_template=template)
  assert new(before, base, instruct) == []
  edit(instruct / place, chat_template=[{"name": "default", "template": template + " "}])
  (got,) = new(before, base, instruct)
  assert got == "note: the chat templates differ; the Instruct's is used for both"


# Rows that the Base never trained.


@pytest.mark.parametrize(
  "table, kind", [("model.embed_tokens.weight", "embedding"), ("lm_head.weight", "head")]
)
def test_untrained_embedding_rows_give_a_warning(pair, table, kind):
  base, instruct = pair()
  before = check.check(base, instruct)

  def shrink(name, x):
    if name == table:
      x = x.copy()
      x[2] *= 0.2
    return name, x

  edit_tensors(base, shrink)
  (got,) = new(before, base, instruct)
  assert got.startswith(f"warning: the Base's {kind} rows of <|im_end|> look untrained")


def test_rows_as_short_as_those_of_no_token_were_never_trained(pair):
  base, instruct = pair()
  before = check.check(base, instruct)

  def shrink(name, x):
    if name == "lm_head.weight":
      x = x.copy()
      x /= np.linalg.norm(x, axis=1, keepdims=True)
      x[259:] *= 0.35
      x[259] *= 0.4 / 0.35
      x[1] = x[259]  # not that short in itself, but as a row of no token
    return name, x

  edit_tensors(base, shrink)
  (got,) = new(before, base, instruct)
  assert got.startswith(
    "warning: the Base's head rows of <|im_start|> look untrained: norms "
    "<|im_start|> 0.4, <|im_end|> 1, median of other tokens 1;"
  )


def test_a_chat_token_beyond_the_table_is_an_error(pair):
  base, instruct = pair()
  before = check.check(base, instruct)

  def move(fields):
    fields["added_tokens"][2]["id"] = 900
    fields["model"]["vocab"]["<|im_end|>"] = 900

  edit_tokenizer(instruct, move)
  got = [t for t in new(before, base, instruct) if t.startswith("error: the Base's")]
  assert got == [
    f"error: the Base's {kind} has 264 rows, and none for these tokens of the chat "
    "template: <|im_end|> (900); it cannot be trained on conversations"
    for kind in ("embedding", "head")
  ]


def test_of_long_tables_only_some_rows_are_read(pair, monkeypatch):
  base, instruct = pair("llama3_tied")
  for side in (base, instruct):
    edit_config(side, vocab_size=9000)
    edit_tensors(side, lambda n, x: (n, np.resize(x, (9000, 32)) if "embed" in n else x))
    edit_tokenizer(
      side, lambda f: f["model"]["vocab"].update({f"word {i}": i for i in range(300, 8000)})
    )
  read, rows = [], safetensors.rows

  def counted(tensor, start=0, stop=None):
    read.append(stop - start)
    return rows(tensor, start, stop)

  monkeypatch.setattr(safetensors, "rows", counted)
  findings = check.check(base, instruct)
  assert {f.level for f in findings} == {"note"}
  assert set(read) == {1} and len(read) <= 2 * vocabulary.SAMPLE + 2


# The report, and checkpoints that no model is built from.


def test_the_report_counts_findings_and_lists_errors_first(pair):
  base, instruct = pair()
  edit_config(base, rms_norm_eps=1e-5, head_dim=8)
  lines = findings.report(check.check(base, instruct)).split("\n")
  assert lines[0] == "pair check: 1 error, 1 warning, 3 notes"
  assert [x.split(":")[0] for x in lines[1:]] == ["  error", "  warning", *["  note"] * 3]


def test_all_errors_are_raised_as_one_and_nothing_else_is():
  warning, note = (findings.Finding(x, "x") for x in ("warning", "note"))
  findings.raise_errors([warning, note])
  with pytest.raises(InputError) as error:
    findings.raise_errors(
      [findings.Finding("error", "one"), warning, findings.Finding("error", "two")]
    )
  assert str(error.value) == (
    "these two models cannot be trained and grafted as a pair:\n- one\n- two"
  )


def test_models_of_remote_code_are_compared_like_others(tmp_path):
  layer = "model.layers.0."
  shapes = {
    "model.tok_embeddings.weight": (9, 4),
    layer + "attention.wqkv.weight": (8, 4),
    layer + "feed_forward.w1.weight": (6, 4),
    "output.weight": (9, 4),
  }
  random = np.random.default_rng(0)
  for side in ("base", "chat"):
    folder = tmp_path / side
    folder.mkdir()
    save_file(
      {n: random.normal(size=s).astype(np.float16) for n, s in shapes.items()},
      folder / "model.safetensors",
    )
    edit_config(folder, model_type="internlm2", vocab_size=9, hidden_size=4)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    edit(
      folder / "tokenizer_config.json",
      chat_template="[UNUSED]" if side == "chat" else None,
      added_tokens_decoder={"8": {"content": "[UNUSED]"}},
    )
  results = check.check(tmp_path / "base", tmp_path / "chat")
  assert [f.level for f in results] == ["note"] * 4
  assert [f.text[:14] for f in results] == [
    "graft and simi",
    "the vocabulary",
    "the chat token",
    "the chat token",
  ]
  edit_tensors(tmp_path / "chat", lambda n, x: (n, x[:-1] if "w1" in n else x))
  with pytest.raises(InputError, match=r"layers.0.feed_forward.w1.weight: Base \(6, 4\)"):
    findings.raise_errors(check.check(tmp_path / "base", tmp_path / "chat"))


# Released pairs: what is known to differ is what is found.

KNOWN = {
  "qwen2.5-14b": ["rms_norm_eps"],
  "qwen2.5-32b": ["rms_norm_eps"],
  "qwen3-4b-2507": ["rope_theta"],
  "llama-3.2-11b-vision": ["image_size", "the vision or audio parts differ"],
  "llama-3.2-90b-vision": ["image_size", "the vision or audio parts differ"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_released_pairs_differ_in_their_known_findings(name, tmp_path, monkeypatch):
  tensors = {}
  for i, side in enumerate(("base", "instruct")):
    folder = tmp_path / side
    folder.mkdir()
    edit_config(folder, **CONFIGS[name][i])
    edit(folder / "tokenizer.json", model=dict(vocab={"a": 0}, merges=[]), added_tokens=[])
    edit(folder / "tokenizer_config.json", chat_template="a" if side == "instruct" else None)
    tensors[folder] = {
      n: safetensors.Tensor(None, "BF16", s, 0, 0) for n, s in theirs(name, i).items()
    }
  monkeypatch.setattr(folders, "find", tensors.__getitem__)
  findings = check.check(tmp_path / "base", tmp_path / "instruct")
  text = "\n".join(f"{f.level}: {f.text}" for f in findings)
  assert "error:" not in text
  assert [re.split("[:;]", f.text)[0] for f in findings if f.level == "warning"] == sorted(
    KNOWN.get(name, []), key=lambda t: t.startswith("image")
  )
  for word in ("rms_norm_eps", "rope_theta", "image"):
    assert (word in registry.PAIRS[name].note) == any(word in k for k in KNOWN.get(name, [])), word
  assert ("tied embeddings" in registry.PAIRS[name].note) == ("tied embeddings in both" in text)
