"""Files from strangers: what is malformed, absurd or hostile is one InputError, in bounded time."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shadowft_jax import files, machine, models, progress
from shadowft_jax.data import answers, chat, formats, renderer, sources, tokenise, tokenizer
from shadowft_jax.errors import InputError
from shadowft_jax.example import TINY
from shadowft_jax.hf import adapters, deltas, folder, hub, patterns, safetensors
from shadowft_jax.models import checks
from shadowft_jax.pairs import check
from shadowft_jax.runs import metrics
from tests import commands, real_configs, runs

ROOT = pathlib.Path(__file__).parents[1]

CONFIG = json.loads((TINY / "instruct/config.json").read_text())
TOKENIZER = json.loads((TINY / "instruct/tokenizer.json").read_text())


def instruct(tmp_path, name, data):
  """A copy of the tiny Instruct in which one file is bytes, or JSON."""
  out = tmp_path / "instruct"
  shutil.copytree(TINY / "instruct", out)
  (out / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
  return out


# JSON.


def nested(depth):
  return f'{{"a": {"[" * depth}1{"]" * depth}}}'


@pytest.mark.parametrize(
  "text, what",
  [
    *((text, "expected an object") for text in ("[]", "null", "5")),
    ("{", "not valid JSON"),
    ('{"a": 1, "a": 2}', "duplicate key 'a'"),
    (nested(100), "nested deeper than 100"),
    (nested(100_000), "not valid JSON"),
    (r'{"a": ["\ud800"]}', "surrogates"),
    ('{"a": %s}' % ("9" * 5000), "not valid JSON"),
  ],
)
def test_json_of_another_form_is_refused(text, what):
  with pytest.raises(InputError, match=what):
    files.parse_json(text, "x.json")


def test_json_of_the_right_form_is_read():
  text = r', "b": "\ud83d\ude00", "c": "\\ud800"}'
  read = files.parse_json(nested(98)[:-1] + text, "x.json")
  assert (read["b"], read["c"]) == ("😀", r"\ud800")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "large", "not UTF-8"])
def test_only_regular_files_are_read(tmp_path, kind, monkeypatch):
  path = tmp_path / "config.json"
  monkeypatch.setattr(files.check_regular, "__defaults__", (1000,))
  if kind == "a pipe":
    os.mkfifo(path)
  elif kind == "a device":
    path.symlink_to("/dev/zero")
  elif kind == "a folder":
    path.mkdir()
  else:
    path.write_bytes(b'{"a": "%s"}' % (b"x" * 1000 if kind == "large" else b"\xff"))
  with pytest.raises(InputError, match="not a regular file|at most 1.0 kB|should be UTF-8"):
    files.read_json(path)
  if kind != "large":
    with pytest.raises(InputError, match="not a regular file|not a valid safetensors|truncated"):
      safetensors.header(path)


# config.json.

CONFIGS = {
  "num_hidden_layers": [0, "5", 1.5, 10**5, 10**9, 2**70, True],
  "vocab_size": [0, -1, "640", 10**12],
  "num_attention_heads": [[4], -4],
  "num_key_value_heads": ["2", 2.0, 3],
  "head_dim": [31, -1, "32", 10**9],
  "hidden_size": ["128", -1],
  "rope_parameters": [
    *([1], "x", 5, {"rope_type": []}, {"rope_theta": "x"}, {"rope_theta": []}),
    {"rope_type": "linear", "factor": [2]},
    {"rope_type": "default", "x": [1]},
    {
      "rope_type": "llama3",
      "factor": 2,
      "low_freq_factor": 1,
      "high_freq_factor": 1,
      "original_max_position_embeddings": 64,
    },
  ],
  "model_type": [[], {}],
  "quantization_config": [[1]],
  "text_config": [[1]],
  "layer_types": [5, [[]]],
  "intermediate_size": [-1],
  "rms_norm_eps": ["x", [], 0],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_field_of_another_type_or_size_is_named(name):
  for value in CONFIGS[name]:
    with pytest.raises(InputError, match="config"):
      models.from_config({**CONFIG, name: value})


FAMILIES = {x["model_type"]: x for pair in real_configs.CONFIGS.values() for x in pair}


def read_config(hf):
  """The model of a config.json; None if it is refused."""
  with contextlib.suppress(InputError):
    return models.from_config(hf)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n in models.FAMILIES])
def test_each_field_of_a_family_may_be_null_or_absurd(name):
  """Null is as good as missing, except where it stands for none."""
  hf = FAMILIES[name]
  inner = hf.get("text_config", hf)
  read = lambda some: read_config({**hf, "text_config": some} if inner is not hf else some)
  for field in inner:
    null = read({**inner, field: None})
    if field not in checks.NULLS:
      assert null == read({n: x for n, x in inner.items() if n != field}), field
    for value in ("x", 10**9, [{}]):
      read({**inner, field: value})


SMALL = {
  "chat_template.jinja": [b"\xff"],
  "tokenizer_config.json": [{"chat_template": 5}, {"chat_template": [{"name": "x"}]}, [1]],
  "generation_config.json": [{"eos_token_id": [[]]}, {"eos_token_id": {}}],
  "tokenizer.json": [
    {**TOKENIZER, "model": {**TOKENIZER["model"], "merges": [5]}},
    {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"a": "x", "b": 1}}},
    {**TOKENIZER, "added_tokens": [{"id": [], "content": "x"}]},
  ],
  "config.json": [
    {**CONFIG, "text_config": [1]},
    {**CONFIG, "quantization_config": "x"},
    {**CONFIG, "rope_parameters": [1]},
    {**CONFIG, "vision_config": [1]},
    {**CONFIG, "model_type": []},
    {**CONFIG, "eos_token_id": [[]]},
  ],
}


@pytest.mark.parametrize("name, index", [(n, i) for n, xs in SMALL.items() for i in range(len(xs))])
def test_a_small_file_of_another_form_is_named_in_the_pair_check(tmp_path, name, index):
  with pytest.raises(InputError, match=name):
    check.check(TINY / "base", instruct(tmp_path, name, SMALL[name][index]))


def test_stop_tokens_are_ids(tmp_path):
  there = instruct(tmp_path, "generation_config.json", {"eos_token_id": [[]]})
  with pytest.raises(InputError, match="eos_token_id"):
    tokenizer.stop_tokens(tokenizer.load_tokenizer(there), there)


def test_the_longest_input_of_a_tokenizer_is_a_number(tmp_path):
  there = instruct(tmp_path, "tokenizer_config.json", {"model_max_length": []})
  with pytest.raises(InputError, match="model_max_length"):
    tokenizer.load_tokenizer(there)


@pytest.mark.parametrize("shard", [[], "../x.safetensors", "x" * 300 + ".safetensors"])
def test_an_index_lists_shards_of_its_folder(tmp_path, shard):
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
  with pytest.raises(InputError, match="plain|lacks shards"):
    folder.find(tmp_path)


@pytest.mark.parametrize(
  "name, fields",
  [
    ("state.json", {"_data_files": 5}),
    ("state.json", {"_data_files": [{}]}),
    ("state.json", {"_data_files": [{"filename": "/etc/passwd"}]}),
    ("state.json", {"_data_files": [{"filename": "x\0.arrow"}]}),
    ("dataset_dict.json", {"splits": 5}),
  ],
)
def test_descriptions_of_data_are_checked(tmp_path, name, fields):
  (tmp_path / name).write_text(json.dumps(fields))
  with pytest.raises(InputError, match=name):
    sources.read(str(tmp_path))


@pytest.mark.parametrize("line", ["{", "[]", '{"a": 1}', '{"step": "1"}', "\0"])
def test_a_torn_line_of_metrics_is_named(tmp_path, line):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
  with pytest.raises(InputError, match=r"metrics.jsonl line 2"):
    metrics.read_metrics(tmp_path)


# Adapters.

MODULE = "model.layers.0.self_attn.q_proj"


def adapter(tmp_path, **fields):
  named = {x: np.ones(s, np.float32) for x, s in (("A", (2, 8)), ("B", (8, 2)))}
  named = {f"base_model.model.{MODULE}.lora_{x}.weight": w for x, w in named.items()}
  save_file(named, tmp_path / "adapter_model.safetensors", {"format": "pt"})
  config = adapters.adapter_config(["q_proj"], rank=2, alpha=4, base_model="x")
  (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **fields}))
  return deltas.read(tmp_path).parts["layers.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
  "patterns, scale",
  [
    ({"q_proj": 8}, 4),
    ({"proj": 8}, 2),
    ({r"layers\.0\.self_attn\.q_proj": 8, "q_proj": 6}, 4),
    ({r"layers\.\d+\..*q_proj": 8, "q_proj": 6}, 4),
    ({r".*\.1\..*": 8, "k_proj|q_proj": 6}, 3),
    ({"^model.layers.0.self_attn.q_proj": 8}, 4),
  ],
)
def test_the_first_pattern_that_matches_counts(tmp_path, patterns, scale):
  assert adapter(tmp_path, alpha_pattern=patterns).scale == scale


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
  "pattern, what",
  [
    ("(", "not a regular expression"),
    ("*", "not a regular expression"),
    ("(" * 5000 + ")" * 5000, "not a regular expression|takes more than"),
    ("(([a-z_.0-9]+)+)+x", "takes more than"),
    ("x" * 20_000, "has 20,000 characters"),
  ],
)
def test_a_pattern_that_is_none_or_never_ends_is_named(tmp_path, monkeypatch, name, pattern, what):
  monkeypatch.setattr(patterns, "CODE", patterns.CODE.replace("(10, 10)", "(1, 1)"))
  with pytest.raises(InputError, match=f"{name}.*({what})"):
    adapter(tmp_path, **{name: {pattern: 2}})


# Chat templates.


@pytest.fixture(scope="module")
def tiny():
  return tokenizer.load_tokenizer(TINY / "instruct")


def rendered(tiny, template, turns=2):
  tiny.chat_template = template
  messages = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(turns)]
  return tokenizer.ChatTemplate(tiny).render(messages)


LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"


@pytest.mark.parametrize(
  "template, what",
  [
    (LOOP * 3 + END * 3, "takes more than"),
    ("{{ 2**(2**40) }}", "takes more than|memory"),
    ("{{ 'x' * 10**10 }}", "memory"),
    ("{{ 'x'.ljust(10**10) }}", "memory"),
    ("{{ '%10000000000d' % 1 }}", "memory|."),
    ("{{ 'x' * 20000001 }}", "has 20,000,001 characters"),
    pytest.param(LOOP * 2 + "{{ 'x' * 10**6 }}" + END * 2, "memory|takes", marks=pytest.mark.slow),
    ("{% if %}", "."),
    ("{{ raise_exception('no such role') }}", "no such role"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"),
  ],
)
def test_a_template_has_limits_and_the_next_one_is_rendered(tiny, monkeypatch, template, what):
  if "takes" in what:  # the others end by themselves, on a slow machine after more than a second
    monkeypatch.setattr(renderer, "SECONDS", 1)
  with pytest.raises(InputError, match=f"the chat template of .* fails .*({what})"):
    rendered(tiny, template)
  assert rendered(tiny, "{{ messages[1].content }}") == "turn 1"


def test_half_of_a_surrogate_pair_is_rendered(tiny):
  tiny.chat_template = "{{ messages[0].content }}"
  messages = [{"role": "user", "content": "\ud800"}]
  assert tokenizer.ChatTemplate(tiny).render(messages) == "\ud800"


# Rows.


def conversation(turns, system=True):
  lead = [{"role": "system", "content": "Be brief."}] * system
  words = lambda i: f"{'say it' if i % 2 == 0 else 'said'} {i % 7} <b>{'x ' * (i % 5)}"
  return lead + [{"role": ("user", "assistant")[i % 2], "content": words(i)} for i in range(turns)]


@pytest.mark.parametrize(
  "name", ["chatml", "llama3", "the reply is stripped", "depends on the end"]
)
@pytest.mark.parametrize("system", [True, False])
def test_a_long_conversation_is_tokenised_as_a_short_one(monkeypatch, tiny, name, system):
  open_, close = ("<|im_start|>", "<|im_end|>\n") if name != "llama3" else ("", "<|im_end|>")
  content = "m.content | trim" if "stripped" in name else "m.content"
  mark = "{{ loop.revindex }} " if "end" in name else ""
  tiny.chat_template = (
    "{% for m in messages %}" + f"{open_}{{{{ m.role }}}}\n{mark}{{{{ {content} }}}}{close}"
    "{% endfor %}{% if add_generation_prompt %}" + f"{open_}assistant\n{{% endif %}}"
  )
  messages = conversation(40, system)
  calls = []
  render = renderer.render
  monkeypatch.setattr(renderer, "render", lambda *args: calls.append(len(args[1])) or render(*args))
  examples, lengths = [], []
  for long in (10_000, 4):
    monkeypatch.setattr(answers, "LONG", long)
    monkeypatch.setattr(answers, "NEAR", 2)
    examples.append(runs.encode(messages, tiny, 10_000))
    lengths.append(sum(calls))
    calls.clear()
  one, other = examples
  assert one.token.tolist() == other.token.tolist()
  assert one.answer.tolist() == other.answer.tolist()
  assert one.unterminated == other.unterminated and 0 < one.answer.sum() < len(one.token)
  if "end" not in name:  # otherwise a part is not rendered as in the whole, and each turn is
    assert lengths[1] < lengths[0] / 2


@pytest.mark.slow
def test_the_work_of_a_conversation_grows_with_its_turns_not_with_their_square(tiny, monkeypatch):
  """So that 3,000 turns take seconds, not minutes: messages rendered, for each message."""
  tiny.chat_template = tokenizer.load_tokenizer(TINY / "instruct").chat_template
  rendered, render = [], renderer.render
  monkeypatch.setattr(
    renderer, "render", lambda *args: rendered.append(len(args[1])) or render(*args)
  )
  work = {}
  for turns in (300, 3000):
    rendered.clear()
    example = runs.encode(conversation(turns), tiny, 10**6)
    assert example.answer.sum() > turns and example.unterminated == 0
    work[turns] = sum(rendered) / turns
  assert work[3000] < 1.1 * work[300] < 100


@pytest.mark.parametrize("recipe", [("chat",), ("paper", "qwen")])
@pytest.mark.parametrize("text", ["x" * 600_000, "x " * 6_000_000])
def test_a_row_that_no_tokenizer_can_take_is_named(tiny, recipe, text):
  tiny.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
  rows = [
    formats.Row(f"row {i}", [{"role": "user", "content": a}, {"role": "assistant", "content": b}])
    for i, (a, b) in enumerate([("a", "b"), ("a", text)])
  ]
  encode = tokenise.RECIPES[recipe[0]]
  _, bad = encode(rows, tiny, formats.Settings(64, *recipe))
  assert isinstance(bad, InputError) and re.match(r"row 1: it has [\d,]+ characters", str(bad))


def test_a_template_that_gives_half_of_a_surrogate_pair_is_a_bad_row(tiny):
  tiny.chat_template = "{% for m in messages %}\udce8{{ m.content }}<|im_end|>{% endfor %}"
  turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  [bad] = chat.encode_rows([formats.Row("row 0", turns)], tiny, formats.Settings(64))
  assert isinstance(bad, InputError) and "half of a surrogate pair" in str(bad)


def test_control_characters_are_escaped_and_long_messages_cut(capsys):
  progress.say("a\x1b[31mb\r\u202e\ud800\n\té", "x" * 30_000)
  err = capsys.readouterr().err
  assert "a\\x1b[31mb\\r\\u202e\\ud800\n\té\n" in err
  assert "x … and 10,000 more characters" in err and len(err) < 21_000


# Links.


def test_links_out_of_a_folder_are_not_copied(tmp_path):
  cache = tmp_path / "models--a--b"
  home = cache / "snapshots" / "c0ffee"
  home.mkdir(parents=True)
  (cache / "blobs").mkdir()
  (cache / "blobs" / "1").write_text("{}")
  (tmp_path / "secret").write_text("secret")
  (home / "config.json").symlink_to("../../blobs/1")
  (home / "README.md").write_text("x")
  (home / "LICENSE").symlink_to("README.md")
  (home / "notes.txt").symlink_to(tmp_path / "secret")
  (home / "more.txt").symlink_to("../../../secret")
  left_out = hub.copy(home, tmp_path / "out", [])
  assert left_out == ["more.txt", "notes.txt"]
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
    "LICENSE",
    "README.md",
    "config.json",
  ]
  (home / "tokenizer.json").symlink_to(tmp_path / "secret")
  with pytest.raises(InputError, match="tokenizer.json is a link to .*secret.*outside"):
    hub.copy(home, tmp_path / "out2", [])


# Places and caches.


def test_an_error_of_the_disk_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("x")
  for out in ("file/x", "file"):
    words = [f"--{x}={TINY / y}" for x, y in (("base", "base"), ("instruct", "instruct"))]
    done = commands.run("similarity", *words, "--out", tmp_path / out)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1), done.stderr
    assert str(tmp_path / "file") in done.stderr and "Traceback" not in done.stderr
  assert (tmp_path / "file").read_text() == "x"


def test_a_user_without_a_home_has_a_cache_of_the_process():
  if os.getuid():
    pytest.skip("needs root, to be a user without an entry in /etc/passwd")
  code = (
    "import os, pwd; from shadowft_jax import machine; os.setgid(54321); os.setuid(54321); "
    "p = machine.cache_folder(); p.mkdir(); print(p)"
  )
  env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
  run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert not pathlib.Path(run.stdout.strip()).exists()


def test_a_poisoned_entry_of_the_cache_is_made_again(tmp_path, capsys):
  rows = [formats.Row(f"row {i}", [], text=f"text {i} " * 9) for i in range(3)]
  ask = lambda: tokenise.tokenise(rows, TINY / "instruct", formats.Settings(16), tmp_path)
  first = ask()
  [path] = tmp_path.glob("*.npz")
  good = path.read_bytes()
  with np.load(path) as file:
    arrays = dict(file)
  for name, array in (("token", arrays["token"][::-1]), ("answer", arrays["token"] * 0)):
    np.savez(path, **{**arrays, name: array})
    capsys.readouterr()
    again = ask()
    assert "tokenising its rows again" in capsys.readouterr().err
    for (a, *_), (b, *_) in zip(first, again, strict=True):
      assert a.token.tolist() == b.token.tolist()
    assert len(path.read_bytes()) == len(good)


def test_the_cache_keeps_what_was_used_last(tmp_path):
  for i, name in enumerate("abcd"):
    (tmp_path / f"{name}.npz").write_bytes(bytes(10))
    os.utime(tmp_path / f"{name}.npz", (i, i))
  os.utime(tmp_path / "a.npz", (9, 9))
  machine.trim(tmp_path, "*.npz", 25)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "d.npz"]


def test_compiled_programs_have_a_limit(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(machine, "MOST_COMPILED", 25)
  for cpu, name, used in (("a", "x", 1), ("a", "y", 4), ("b", "x", 2), ("b", "y", 3)):
    path = machine.cache_folder() / "xla" / cpu / f"jit_{name}-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(10))
    os.utime(path, (used, 0))
  machine.configure_jax()
  left = [p.relative_to(machine.cache_folder()) for p in tmp_path.rglob("*-cache")]
  assert sorted(map(str, left)) == ["xla/a/jit_y-cache", "xla/b/jit_y-cache"]


# Safetensors: what the library refuses.


def entry(**fields):
  return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}}


HEADERS = [
  *(entry(dtype=d, data_offsets=[0, n]) for d in ("F128", "f32", "", "C128") for n in (4, 16)),
  *(entry(dtype="F4", shape=[s], data_offsets=[0, n]) for s, n in ((7, 3), (7, 4), (1, 1))),
  *({**entry(), "__metadata__": m} for m in (5, [], "x", {"a": 1}, {"a": None}, {"a": {}})),
  *(entry(shape=s) for s in ([1.0], ["1"], "1", {"1": 1}, [-1], [2], [1, True], None)),
  *(entry(data_offsets=o) for o in ([0.0, 4], [4, 0], [0], [0, 4, 4], "04", [0, 8], [-4, 0])),
  *(entry(shape=s, data_offsets=[0, 0]) for s in ([2**64, 0], [2**63, 2, 0])),
  {**entry(), "b": entry()["a"]},
  {"a": 5},
  {"a": {"dtype": "F32"}},
]
RAW = [b'{"a\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"[]", b"{}x", b"\xff"]
GOOD = [
  entry(),
  *({**entry(), "__metadata__": m} for m in (None, {}, {"format": "pt"})),
  *(entry(dtype=d, shape=[8], data_offsets=[0, b]) for d, b in safetensors.BITS.items()),
]


def write(path, header):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  ends = (
    [f.get("data_offsets") for f in header.values() if isinstance(f, dict)]
    if text != header
    else []
  )
  count = max([4, *(e[1] for e in ends if isinstance(e, list) and len(e) > 1)])
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(int(count)))


def accepts(path):
  try:
    with safe_open(path, "np") as file:
      return sorted(file.keys())
  except (SafetensorError, OverflowError):
    return None


@pytest.mark.parametrize("header", [*HEADERS, *RAW], ids=repr)
def test_a_header_that_the_library_refuses_is_refused(tmp_path, header):
  write(tmp_path / "a.safetensors", header)
  assert accepts(tmp_path / "a.safetensors") is None
  with pytest.raises(InputError, match="not a valid safetensors file|truncated"):
    safetensors.header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("header", GOOD, ids=repr)
def test_a_header_that_the_library_reads_is_read(tmp_path, header):
  write(tmp_path / "a.safetensors", header)
  assert sorted(safetensors.header(tmp_path / "a.safetensors")) == accepts(
    tmp_path / "a.safetensors"
  )


@pytest.mark.parametrize("shape", [[10**18, 0], [0, 10**18], [0] * 100_000])
def test_absurd_shapes_of_empty_tensors_are_refused(tmp_path, shape):
  write(tmp_path / "a.safetensors", entry(shape=shape, data_offsets=[0, 0]))
  with pytest.raises(InputError, match="has the shape"):
    safetensors.header(tmp_path / "a.safetensors")
