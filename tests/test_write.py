"""Grafts from disk to disk: laws, what the folder holds, adapters, other families, bad input."""

import functools
import json
import math
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from shadowft_jax.hf import arrays
from shadowft_jax.grafting import selection
from shadowft_jax.runs import provenance
from shadowft_jax.hf import deltas
from shadowft_jax.hf.folder import open_model
from shadowft_jax.grafting import write
from shadowft_jax import delta, tree
from shadowft_jax.grafting import chunks, matching, sources
from shadowft_jax.hf import safetensors as hf_safetensors, unwrap, weights
from shadowft_jax.errors import InputError
from tests import commands, pico, runs

WEIGHTS = "model.safetensors"
command = functools.partial(commands.run, "graft")
ROOT = pathlib.Path(__file__).parents[1]


def run(
  out, instruct, deltas, scope="paper", *, vocab="refuse", verify=True, overwrite=False, **options
):
  """As the command does, without its flags; returns the plan and the outcome."""
  target = open_model(instruct)
  chosen = selection.Scope(scope, **options)
  plan = matching.plan(target, deltas, scope=chosen, vocab=vocab)
  return plan, write.run(plan, out, card="card", verify=verify, overwrite=overwrite)


def full(out, base, tuned, instruct, *args, **options):
  return run(out, instruct, [sources.difference(base, tuned)], *args, **options)


def load(folder):
  """{tensor name: torch tensor} of all shards."""
  return {
    n: t
    for p in sorted(folder.glob("*.safetensors"))
    for n, t in safetensors.torch.load_file(p).items()
  }


def near(folder, model, seed, size=0.05, dtype=torch.bfloat16, **options):
  """Writes the model and a small difference; the model itself stays."""
  random, copies = torch.Generator().manual_seed(seed), {}
  with torch.no_grad():
    for name, w in model.named_parameters():
      copies[name] = w.clone()
      w += size * w.std() * torch.randn(w.shape, generator=random)
  pico.save(model, folder, dtype=dtype, **options)
  model.load_state_dict(copies, strict=False)
  return folder


def trio(folder, name="qwen2", dtype=torch.bfloat16, **options):
  """folder/base, /tuned and /instruct of one random model."""
  model = pico.hf_model(name)
  pico.save(model, folder / "base", dtype=dtype)
  near(folder / "tuned", model, 1, dtype=dtype)
  near(folder / "instruct", model, 2, dtype=dtype, with_tokenizer=True, **options)
  return folder


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("bf16"))


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
  return trio(tmp_path_factory.mktemp("float32"), dtype=torch.float32)


def raw(folder, tensors, kind="internlm2", **config):
  """A folder of raw tensors, such as a family that is not ported has."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"model_type": kind, **config}))
  safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
  return folder


def sides(model, *names):
  return [model / n for n in (names or ("base", "tuned", "instruct"))]


@pytest.mark.parametrize("scope", ["paper", "all"])
def test_no_delta_keeps_every_byte(bf16, tmp_path, scope):
  base, _, instruct = sides(bf16)
  _, done = full(tmp_path / "out", base, base, instruct, scope)
  assert (tmp_path / "out" / WEIGHTS).read_bytes() == (instruct / WEIGHTS).read_bytes()
  assert done.changed == 0 and "the Instruct, byte for byte" in " ".join(done.warnings)


def test_onto_the_base_it_gives_the_tuned_model_where_the_difference_is_exact(bf16, tmp_path):
  base, tuned, _ = sides(bf16)
  full(tmp_path / "out", base, tuned, base, "all")
  a, b, got = load(base), load(tuned), load(tmp_path / "out")
  exact = {n: (b[n].float() - a[n].float()).double() == b[n].double() - a[n].double() for n in a}
  assert sum(map(torch.sum, exact.values())) > 0.99 * sum(x.numel() for x in a.values())
  for n in a:
    assert torch.equal(got[n][exact[n]], b[n][exact[n]])


def test_swapped_roles_are_the_chat_vector(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  full(tmp_path / "shadow", base, tuned, instruct, "all")
  full(tmp_path / "vector", base, instruct, tuned, "all")
  a, b = load(tmp_path / "shadow"), load(tmp_path / "vector")
  for n in a:
    torch.testing.assert_close(a[n], b[n], rtol=1e-6, atol=1e-7)


def test_the_sum_is_taken_in_float32_and_rounded_once(bf16, tmp_path):
  full(tmp_path / "out", *sides(bf16))
  a, b, i, got = (load(d) for d in [*sides(bf16), tmp_path / "out"])
  changed = {n for n in i if not torch.equal(got[n], i[n])}
  assert changed == {n for n in i if "_proj." in n}
  assert any(n.endswith("q_proj.bias") for n in changed)
  for n in changed:
    assert torch.equal(got[n], (i[n].float() + (b[n].float() - a[n].float())).bfloat16())
    authors, exact = i[n] + (b[n] - a[n]), i[n].double() + (b[n].double() - a[n].double())
    # The authors subtract in bfloat16; where that is exact, both have the same bits.
    same = (b[n] - a[n]).double() == b[n].double() - a[n].double()
    assert same.float().mean() > 0.9 and torch.equal(got[n][same], authors[same])
    assert (got[n] - exact).norm() <= (authors - exact).norm()


def stored_bytes(named, like):
  """The weight file of the folder `like` with the tensors of {leaf name: array} in their places."""
  out, places = bytearray((like / WEIGHTS).read_bytes()), hf_safetensors.header(like / WEIGHTS)
  for name, x in arrays.export(tree.nest(named)):
    start = places[name].offset
    out[start : start + places[name].nbytes] = x.tobytes()
  return bytes(out)


def test_it_equals_the_graft_in_memory(tmp_path):
  pair = runs.make_pair(tmp_path / "pair", dtype=torch.bfloat16)
  _, params = weights.load_model(pair / "instruct")
  noise = np.random.default_rng(0)
  trained = tree.map_named(lambda _, w: jnp.float32(noise.normal(0, 0.02, w.shape)), params)
  deltas.save_dense(tmp_path / "delta", trained)
  for scope in ("projections", "all"):
    run(
      tmp_path / f"stream {scope}",
      pair / "instruct",
      [sources.stored(tmp_path / "delta")],
      "paper" if scope == "projections" else "all",
    )
    _, fresh = weights.load_model(pair / "instruct")
    shadow, leaves = delta.graft(fresh, {"delta": trained}, match=scope)
    memory = stored_bytes({n: tree.names(shadow)[n] for n in leaves}, pair / "instruct")
    run(
      tmp_path / f"match {scope}",
      pair / "instruct",
      [sources.stored(tmp_path / "delta")],
      match=scope,
    )
    for name in ("stream", "match"):
      assert (tmp_path / f"{name} {scope}" / WEIGHTS).read_bytes() == memory


def test_our_adapter_equals_the_graft_in_memory(tmp_path):
  pair = runs.make_pair(tmp_path / "pair")
  _, params = weights.load_model(pair / "instruct")
  noise = np.random.default_rng(0)
  shape = delta.init_adapter(np.array([0, 1], np.uint32), params, rank=4, match="_proj/")
  adapter = tree.map_named(lambda _, w: jnp.float32(noise.normal(0, 0.1, w.shape)), shape)
  deltas.save_adapter(
    tmp_path / "adapter", adapter, rank=4, alpha=8.0, base_model=str(pair / "instruct")
  )
  run(tmp_path / "out", pair / "instruct", [sources.stored(tmp_path / "adapter")])
  shadow, _ = delta.graft(params, {"lora": adapter}, scale=2.0)
  a, b = load(tmp_path / "out"), dict(arrays.export(shadow))
  assert a.keys() == b.keys()
  for n in a:
    np.testing.assert_allclose(a[n].numpy(), b[n], rtol=1e-6, atol=1e-6)


def test_weights_and_several_deltas_add_up(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  half = sources.difference(base, tuned, 0.5)
  back = sources.difference(tuned, base, 0.25)
  run(tmp_path / "out", instruct, [half, back])
  a, b, i, got = (load(d) for d in [base, tuned, instruct, tmp_path / "out"])
  name = "model.layers.1.mlp.up_proj.weight"
  want = i[name] + 0.25 * (b[name] - a[name])
  torch.testing.assert_close(got[name], want, rtol=1e-6, atol=1e-7)
  assert not torch.equal(got[name], i[name])


@pytest.mark.parametrize(
  "options", [{}, {"rslora": True}, {"patterns": True}], ids=["plain", "rslora", "patterns"]
)
def test_an_adapter_of_peft_gives_equal_logits(float32, tmp_path, options):
  model = transformers.AutoModelForCausalLM.from_pretrained(float32 / "base")
  patterns = (
    {
      "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 6},
      "alpha_pattern": {"q_proj": 3},
    }
    if options.get("patterns")
    else {}
  )
  config = peft.LoraConfig(
    r=4,
    lora_alpha=16,
    use_rslora=options.get("rslora", False),
    target_modules=["q_proj", "v_proj", "down_proj"],
    **patterns,
  )
  tuned = peft.get_peft_model(model, config)
  optimizer = torch.optim.SGD([w for w in tuned.parameters() if w.requires_grad], lr=0.05)
  token = torch.arange(3, 35).reshape(2, 16)
  for _ in range(3):
    tuned(token, labels=token).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
  tuned.save_pretrained(tmp_path / "adapter")
  run(tmp_path / "out", float32 / "instruct", [sources.stored(tmp_path / "adapter")])
  instruct = transformers.AutoModelForCausalLM.from_pretrained(float32 / "instruct").eval()
  shadow = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
  with torch.no_grad():
    plain, got = instruct(token).logits, shadow(token).logits
    want = peft.PeftModel.from_pretrained(instruct, tmp_path / "adapter").eval()(token).logits
  torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
  assert (want - plain).abs().max() > 0.01


def test_a_tuning_in_the_new_spelling_lands_in_the_old(tmp_path):
  """transformers 5 names `model.language_model.`; the Hub's Gemma 3 has `language_model.model.`."""
  model = pico.hf_model("gemma3_vision")
  for name, seed in (("base", 0), ("tuned", 1), ("instruct", 2)):
    near(tmp_path / name, model, seed)
    if name != "instruct":
      again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / name)
      again.save_pretrained(tmp_path / f"new {name}", save_original_format=False)
  new, old = load(tmp_path / "new tuned"), load(tmp_path / "instruct")
  assert any(n.startswith("model.language_model.layers.") for n in new)
  assert any(n.startswith("language_model.model.layers.") for n in old)
  plan, _ = full(tmp_path / "out", *sides(tmp_path, "new base", "new tuned", "instruct"))
  full(tmp_path / "plain", *sides(tmp_path))
  got = load(tmp_path / "out")
  assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()
  assert any(
    "named model.language_model.* are matched with the Instruct's language_model.model.*" in line
    for line in plan.notes
  )
  assert {n for n in old if not torch.equal(old[n], got[n])} == {
    n for n in old if "_proj." in n and "vision" not in n
  }


def internlm(seed, layers=2):
  random = torch.Generator().manual_seed(seed)
  shapes = {
    "model.tok_embeddings.weight": (40, 16),
    "output.weight": (40, 16),
    "model.norm.weight": (16,),
  }
  for i in range(layers):
    shapes |= {
      f"model.layers.{i}.{n}.weight": s
      for n, s in {
        "attention.wqkv": (32, 16),
        "attention.wo": (16, 16),
        "feed_forward.w1": (24, 16),
        "feed_forward.w2": (16, 24),
        "feed_forward.w3": (24, 16),
        "attention_norm": (16,),
      }.items()
    }
  return {n: torch.randn(s, generator=random).bfloat16() for n, s in shapes.items()}


def test_a_family_that_is_not_ported(tmp_path):
  base = internlm(0)
  raw(tmp_path / "base", base)
  raw(tmp_path / "tuned", {n: t * 1.25 for n, t in base.items()})
  raw(tmp_path / "instruct", internlm(2))
  (tmp_path / "instruct" / "tokenization_internlm2.py").write_text("raise SystemExit")
  plan, done = full(tmp_path / "out", *sides(tmp_path))
  assert len(plan.targets) == 10 and done.left_out == ["tokenization_internlm2.py"]
  assert plan.out_of_scope == sorted(n for n in base if "layers" not in n or "norm" in n)
  got, instruct = load(tmp_path / "out"), load(tmp_path / "instruct")
  assert {n for n in got if not torch.equal(got[n], instruct[n])} == {t.name for t in plan.targets}
  r = torch.randn
  factors = {
    f"base_model.model.model.layers.1.attention.wqkv.lora_{k}.weight": r(s)
    for k, s in (("A", (3, 16)), ("B", (32, 3)))
  }
  adapter(tmp_path / "adapter", factors, r=3, lora_alpha=6)
  run(tmp_path / "low", tmp_path / "instruct", [sources.stored(tmp_path / "adapter")])
  name = "model.layers.1.attention.wqkv.weight"
  a, b = factors.values()
  want = instruct[name].float() + 2 * (b @ a)
  torch.testing.assert_close(load(tmp_path / "low")[name].float(), want, rtol=8e-3, atol=1e-3)


def adapter(folder, tensors, **config):
  folder.mkdir()
  (folder / "adapter_config.json").write_text(
    json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config})
  )
  safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
  return folder


@pytest.mark.parametrize(
  "shape", [(3, 5), (3000, 700), (1, 1_500_000), (2_100_000,), (2, 3, 5), (), (0, 4)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_tensors_of_any_shape_are_cut_and_put_together(tmp_path, monkeypatch, shape, dtype):
  if math.prod(shape) > 1e6 and dtype != torch.bfloat16:
    shape = (70, 900)
  random = torch.Generator().manual_seed(0)
  names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
  for side in ("base", "tuned", "instruct"):
    raw(
      tmp_path / side,
      {
        names[1]: torch.randn(7, generator=random).to(dtype),
        names[0]: torch.randn(shape, generator=random).to(dtype),
      },
      "llama",
    )
  plan, done = full(tmp_path / "out", *sides(tmp_path))
  a, b, i, got = (load(d) for d in [*sides(tmp_path), tmp_path / "out"])
  want = (i[names[0]].float() + (b[names[0]].float() - a[names[0]].float())).to(dtype)
  assert torch.equal(got[names[0]], want) and torch.equal(got[names[1]], i[names[1]])
  assert done.changed == (got[names[0]] != i[names[0]]).sum()
  covered = sorted(
    (c.offset, c.offset + c.nbytes) for c in chunks.split(plan.shards, plan.targets, None)
  )
  assert covered[0][0] == 0 and covered[-1][1] == (tmp_path / "out" / WEIGHTS).stat().st_size
  assert all(x[1] == y[0] for x, y in zip(covered, covered[1:], strict=False))


def test_scratch_buffers_are_used_again_after_the_block_and_not_within_it():
  address = lambda buffer: buffer.ctypes.data
  with chunks.scratch() as take:
    first = [address(take()), address(take())]
    with chunks.scratch() as inner:
      assert address(inner()) not in first
  with pytest.raises(ValueError), chunks.scratch() as take:
    assert [address(take()), address(take())] == first and len(set(first)) == 2
    raise ValueError
  with chunks.scratch() as take:
    assert address(take()) == first[0] and first[0] % 64 == 0


def want_survival(name, d, w, shadow, base=None):
  """In float64, by torch."""
  d, e = d.double(), shadow.double() - w.double()
  same = shadow == w
  out = [
    name,
    w.numel(),
    same.sum(),
    (same & (d != 0)).sum(),
    d.square().sum(),
    e.square().sum(),
    (d * e).sum(),
  ]
  if base is None:
    return [*out, *[None] * 6]
  g = w.double() - base.double()
  return [
    *out,
    g.square().sum(),
    (d * g).sum(),
    base.double().abs().sum(),
    w.double().abs().sum(),
    g.abs().sum(),
    base.double().square().sum(),
  ]


def same_numbers(got, want):
  assert (got[0], *map(type, got[1:4])) == (want[0], int, int, int)
  assert [x is None for x in got] == [x is None for x in want]
  known = [(float(a), float(b)) for a, b in zip(got[1:], want[1:], strict=True) if a is not None]
  np.testing.assert_allclose(*np.array(known).T, rtol=1e-5, atol=1e-9)


def test_survival_is_summed_per_tensor(bf16, tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, "CHUNK", 1024)
  base, tuned, instruct = sides(bf16)
  plan, done = full(tmp_path / "out", base, tuned, instruct, verify=False)
  b, t, w, shadow = (load(d) for d in [*sides(bf16), tmp_path / "out"])
  assert [s.name for s in done.survival] == [t.name for t in plan.targets]
  assert any(s.size > 1024 for s in done.survival) and any(s.size % 1024 for s in done.survival)
  for got in done.survival:
    n = got.name
    same_numbers(got, want_survival(n, t[n].float() - b[n].float(), w[n], shadow[n], b[n]))
    assert got.lost <= got.unchanged < got.size
  assert 0 < sum(s.lost for s in done.survival) < sum(s.unchanged for s in done.survival)


def test_without_a_base_the_gap_is_unknown_and_with_one_it_is_measured(bf16, tmp_path):
  base, _, instruct = sides(bf16)
  one = "model.layers.0.self_attn.q_proj.weight"
  low = sources.stored(adapter(tmp_path / "adapter", factors(), r=4, lora_alpha=1e-4))
  w = load(instruct)[one]
  d = torch.full(w.shape, 1e-4)
  for against in (None, base):
    target = open_model(instruct)
    known = against and open_model(against)
    plan = matching.plan(target, [low], scope=selection.Scope(), base=known)
    out = tmp_path / f"out {against is None}"
    (got,) = write.run(plan, out).survival
    b = load(base)[one] if against else None
    same_numbers(got, want_survival(one, d, w, load(out)[one], b))
    record = json.loads((out / "provenance.json").read_text())["sha256"]
    assert ("base" in record) == bool(against)
  with pytest.raises(InputError, match="has none of the grafted tensors with the same shapes"):
    matching.plan(
      target, [low], scope=selection.Scope(), base=open_model(raw(tmp_path / "x", internlm(0)))
    )


def test_shards_and_files_are_unchanged_except_grafted_tensors(tmp_path):
  folder = trio(tmp_path, "qwen3_tied", max_shard_size="20KB")
  instruct = folder / "instruct"
  for name in ("LICENSE", "merges.txt", "pytorch_model.bin.index.json", "README.md"):
    (instruct / name).write_text(name)
  plan, done = full(tmp_path / "out", *sides(folder))
  assert len(plan.shards) > 2 and done.left_out == ["pytorch_model.bin.index.json"]
  mine, theirs = ({p.name: p for p in d.iterdir()} for d in (tmp_path / "out", instruct))
  assert mine.keys() - theirs.keys() == {
    "README.instruct.md",
    "provenance.json",
    "graft_report.json",
    "graft_report.png",
  }
  assert theirs.keys() - mine.keys() == {"pytorch_model.bin.index.json"}
  for name in theirs.keys() & mine.keys() - {"README.md"}:
    a, b = theirs[name].read_bytes(), mine[name].read_bytes()
    assert (a == b) == (not name.startswith("model-")) or not any(
      t.tensor.path.name == name for t in plan.targets
    )
    if name.endswith(".safetensors"):
      length = 8 + int.from_bytes(a[:8], "little")
      assert a[:length] == b[:length] and len(a) == len(b)
  record = json.loads((tmp_path / "out" / "provenance.json").read_text())
  for name, digest in record["sha256"]["output"].items():
    assert digest == provenance.sha256(mine[name])
  assert set(record["sha256"]) == {"base", "tuned", "instruct", "output"}
  assert record["sha256"]["tuned"][str(folder / "tuned" / WEIGHTS)] == provenance.sha256(
    folder / "tuned" / WEIGHTS
  )


def test_a_tied_model_that_stores_its_table_twice_gets_both(tmp_path):
  random = torch.Generator().manual_seed(0)
  table = {s: torch.randn(8, 4, generator=random) for s in ("base", "tuned", "instruct")}
  for side, w in table.items():
    twin = {"lm_head.weight": w.clone()} if side == "instruct" else {}
    raw(
      tmp_path / side, {"model.embed_tokens.weight": w, **twin}, "llama", tie_word_embeddings=True
    )
  full(tmp_path / "out", *sides(tmp_path), "all")
  got = load(tmp_path / "out")
  assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])
  assert not torch.equal(got["lm_head.weight"], table["instruct"])


def tables(folder, rows, head=True):
  for side, n in rows.items():
    random = torch.Generator().manual_seed(n)
    raw(
      folder / side,
      {
        "model.embed_tokens.weight": torch.randn(n, 4, generator=random),
        "model.layers.0.mlp.up_proj.weight": torch.randn(6, 4),
      },
      "llama",
    )
  return sides(folder)


def test_tables_of_different_length(tmp_path):
  folders = tables(tmp_path, {"base": 8, "tuned": 9, "instruct": 12})
  full(tmp_path / "paper", *folders)
  with pytest.raises(
    InputError,
    match=r"--vocab=common.*\n  model.embed_tokens.weight: tuned "
    r"\(9, 4\), Base \(8, 4\), Instruct \(12, 4\)",
  ):
    full(tmp_path / "out", *folders, "all")
  full(tmp_path / "out", *folders, "all", vocab="common")
  a, b, i, got = (load(d)["model.embed_tokens.weight"] for d in [*folders, tmp_path / "out"])
  assert torch.equal(got[:8], i[:8] + (b[:8] - a)) and torch.equal(got[8:], i[8:])


def test_include_and_exclude_narrow_the_scope(bf16, tmp_path):
  plan, _ = full(tmp_path / "out", *sides(bf16), include=r"layers\.1\.", exclude="mlp|bias")
  assert {t.name for t in plan.targets} == {
    f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkvo"
  }
  assert "model.layers.0.self_attn.q_proj.weight" in plan.out_of_scope


def test_existing_files_stay_without_the_flag(bf16, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("x")
  with pytest.raises(InputError, match="out exists; name another folder, or pass --overwrite"):
    full(tmp_path / "out", *sides(bf16))
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
  full(tmp_path / "out", *sides(bf16), overwrite=True)
  assert not (tmp_path / "out" / "mine").exists()


def test_a_folder_that_holds_an_input_is_not_overwritten(bf16):
  for out in (bf16 / "tuned", bf16, bf16 / "base" / "new"):
    with pytest.raises(InputError, match="--out is the tuned's own folder|one is inside the other"):
      full(out, *sides(bf16), overwrite=True)


def fails(match, out, *args, **options):
  with pytest.raises(InputError, match=match) as error:
    full(out, *args, **options)
  assert not [p for p in out.parent.iterdir() if p.name.startswith(out.name)]
  return str(error.value)


def test_names_on_one_side_are_listed_with_the_flag_that_allows_them(bf16, tmp_path):
  for side in ("base", "tuned"):
    tensors = load(bf16 / side)
    if side == "tuned":
      del tensors["model.layers.1.mlp.up_proj.weight"]
      tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 3)
    raw(tmp_path / side, tensors, "qwen2")
  folders = [tmp_path / "base", tmp_path / "tuned", bf16 / "instruct"]
  text = fails("missing on one side", tmp_path / "out", *folders)
  assert "model.layers.1.mlp.up_proj.weight: tuned has none, Base (64, 32), Instruct (64" in text
  assert "model.layers.7.mlp.up_proj.weight: tuned (2, 3), Base has none, Instruct has no" in text
  flag = text.split("--exclude='")[1].split("'")[0]
  plan, _ = full(tmp_path / "out", *folders, exclude=flag)
  assert len(plan.targets) == 3 * 10 - 1


def test_nothing_that_matches_is_an_error(bf16, tmp_path):
  outside = {n: t for n, t in internlm(0).items() if "layers" not in n}
  for side in ("base", "tuned", "instruct"):
    raw(tmp_path / side, outside)
  text = fails("nothing would be grafted", tmp_path / "out", *sides(tmp_path))
  assert "--scope=all" in text and "model.norm.weight" in text
  fails("'[(]' is not a valid regular", tmp_path / "out", *sides(bf16), include="(")


@pytest.mark.parametrize("side", ["base", "tuned", "instruct"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_invalid_number_is_named(tmp_path, side, value):
  for name in ("base", "tuned", "instruct"):
    w = torch.ones(6, 4)
    if name == side:
      w[5, 3] = value
    raw(tmp_path / name, {"model.layers.0.mlp.up_proj.weight": w}, "llama")
  role = {"base": "Base", "instruct": "Instruct"}.get(side, side)
  fails(
    f"layers.0.mlp.up_proj.weight of the {role} contains NaN or infinity in .*{side}",
    tmp_path / "out",
    *sides(tmp_path),
  )


def test_a_sum_beyond_float16(tmp_path):
  for name, x in (("base", 0.0), ("tuned", 6e4), ("instruct", 6e4)):
    raw(
      tmp_path / name, {"model.layers.0.mlp.up_proj.weight": torch.full((6, 4), x).half()}, "llama"
    )
  fails("exceeds the range of the stored dtype F16", tmp_path / "out", *sides(tmp_path))


def test_a_disk_that_is_too_small(bf16, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
  fails("needs .* MB, but its disk has .* kB free", tmp_path / "out", *sides(bf16))


def test_a_byte_that_is_read_back_wrong_is_an_error(bf16, tmp_path, monkeypatch):
  real = write.safetensors.write_at

  def spoilt(path, offset, data):
    if offset:
      data = data.copy()
      data[-1] ^= 1
    real(path, offset, data)

  monkeypatch.setattr(write.safetensors, "write_at", spoilt)
  fails("reads back different bytes", tmp_path / "out", *sides(bf16))
  full(tmp_path / "unseen", *sides(bf16), verify=False)


def test_folders_that_cannot_be_read(bf16, tmp_path):
  base, _, instruct = sides(bf16)
  spoilt = shutil.copytree(base, tmp_path / "spoilt")
  content = (spoilt / WEIGHTS).read_bytes()
  (spoilt / WEIGHTS).write_bytes(content[:-10])
  fails("truncated: 10 bytes", tmp_path / "out", base, spoilt, instruct)
  (spoilt / WEIGHTS).unlink()
  torch.save({}, spoilt / "pytorch_model.bin")
  fails("only pickled weights", tmp_path / "out", base, spoilt, instruct)
  (spoilt / "pytorch_model.bin").unlink()
  (spoilt / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": f"../{WEIGHTS}"}}))
  fails("a shard must be a plain", tmp_path / "out", base, spoilt, instruct)
  (spoilt / f"{WEIGHTS}.index.json").unlink()
  (spoilt / WEIGHTS).write_bytes(content)
  config = json.loads((spoilt / "config.json").read_text())
  (spoilt / "config.json").write_text(
    json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
  )
  fails(r"quantised \(gptq\)", tmp_path / "out", base, spoilt, instruct)
  fails(
    "is an adapter; expected a whole",
    tmp_path / "out",
    base,
    adapter(tmp_path / "adapter", {}),
    instruct,
  )


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def factors(rank=4, d_in=32, d_out=32, module=Q):
  return {
    f"{module}.lora_A.weight": torch.ones(rank, d_in),
    f"{module}.lora_B.weight": torch.ones(d_out, rank),
  }


@pytest.mark.parametrize(
  "config, tensors, message",
  [
    ({"use_dora": True}, factors(), "use_dora is True; expected False"),
    ({"modules_to_save": ["lm_head"]}, factors(), r"modules_to_save is \['lm_head'\]"),
    ({"bias": "all"}, factors(), "bias is 'all'; expected 'none'"),
    ({"fan_in_fan_out": True}, factors(), "fan_in_fan_out is True"),
    ({"init_lora_weights": "pissa_niter_4"}, factors(), "init_lora_weights is 'pissa_niter_4'"),
    ({"target_parameters": ["x"]}, factors(), "target_parameters"),
    ({"peft_type": "LOHA"}, factors(), "peft_type is 'LOHA'; expected 'LORA'"),
    ({"rank_pattern": {"q_proj": 0}}, factors(), "rank_pattern is {'q_proj': 0}"),
    ({"r": 8}, factors(), r"q_proj: A \(4, 32\) and B \(32, 4\), but the config has rank 8"),
    ({}, {k: t for k, t in factors().items() if "_A" in k}, "lora_B is missing"),
    ({}, {**factors(), f"{Q}.lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
    ({}, {**factors(), "base_model.model.lm_head.weight": torch.ones(3, 3)}, "lm_head.weight"),
    ({}, factors(d_in=16), r"q_proj.weight: adapter \(32, 16\), Instruct \(32, 32\)"),
    ({}, factors(module=Q.replace(".0.", ".9.")), r"layers.9.*Instruct has none"),
    ({}, factors(module="base_model.model.h.0.c_attn"), "1 of 1 tensors .*\\n.*c_attn.*has none"),
    ({}, factors(module="base_model.model.lm_head"), "nothing would be grafted.*--scope=all"),
  ],
  ids=lambda x: str(x)[:20] if isinstance(x, str) else "",
)
def test_an_adapter_that_cannot_be_grafted(bf16, tmp_path, config, tensors, message):
  folder = adapter(tmp_path / "adapter", tensors, **config)
  with pytest.raises(InputError, match=message):
    run(tmp_path / "out", bf16 / "instruct", [sources.stored(folder)])
  assert not (tmp_path / "out").exists()


SPELT = {
  "compiled": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
  "checkpointed": lambda k: k.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
  "state dict": lambda k: k.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("spell", SPELT.values(), ids=SPELT)
def test_an_adapter_of_a_raw_state_dict_is_read_once_it_is_renamed(bf16, tmp_path, spell):
  folder = adapter(tmp_path / "adapter", {spell(n): x for n, x in factors().items()})
  with pytest.raises(InputError, match="tensor names contain .*rename them: ") as error:
    sources.stored(folder)
  *_, place = commands.words(str(error.value)[str(error.value).index("python -m") :])
  unwrap.unwrap(place)
  plan, _ = run(tmp_path / "out", bf16 / "instruct", [sources.stored(folder)])
  assert [t.name for t in plan.targets] == ["model.layers.0.self_attn.q_proj.weight"]


def test_an_adapter_of_a_resized_vocabulary_is_grafted_once_it_is_merged(float32, tmp_path):
  load_model = transformers.AutoModelForCausalLM.from_pretrained
  model = load_model(float32 / "base")
  model.resize_token_embeddings(272)
  tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
  with torch.no_grad():
    for name, w in tuned.named_parameters():
      w += 0.1 * ("lora_B" in name)
  tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
  with pytest.raises(InputError, match="resized vocabulary.*merge it into the Base.*--tuned") as e:
    sources.stored(tmp_path / "adapter")
  assert "embed_tokens.weight (272, 32)" in str(e.value)
  tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
  full(
    tmp_path / "out", float32 / "base", tmp_path / "merged", float32 / "instruct", exclude="bias"
  )
  a, b, i, got = (
    load(d) for d in (float32 / "base", tmp_path / "merged", float32 / "instruct", tmp_path / "out")
  )
  for name in i:
    want = i[name] + (b[name] - a[name]) if name.endswith("q_proj.weight") else i[name]
    torch.testing.assert_close(got[name], want, rtol=0, atol=1e-6)


def test_an_adapter_that_is_a_pickle(tmp_path):
  folder = adapter(tmp_path / "adapter", factors())
  (folder / "adapter_model.safetensors").unlink()
  torch.save({}, folder / "adapter_model.bin")
  with pytest.raises(InputError, match="only adapter_model.bin"):
    sources.stored(folder)


def test_the_command(float32, tmp_path):
  base, tuned, instruct = sides(float32)
  adapter(tmp_path / "adapter", factors(), r=4, lora_alpha=8)
  flags = [
    f"--base={base}",
    f"--tuned={tuned}",
    f"--adapter={tmp_path / 'adapter'}:0.5",
    f"--instruct={instruct}",
    f"--out={tmp_path / 'out'}",
    "--alpha=0.5",
    "--no-verify",
  ]
  result = command(*flags, "--dry-run")
  assert result.returncode == 0 and not (tmp_path / "out").exists(), result.stderr
  assert f"{instruct} + 0.5 x {tuned} - {base} + 0.25 x the adapter" in result.stderr
  assert "changes 30 of 39 tensors" in result.stderr and "lm_head.weight" in result.stderr
  assert command(*flags).returncode == 0
  a, b, i, got = (load(d) for d in [base, tuned, instruct, tmp_path / "out"])
  name = "model.layers.0.self_attn.q_proj.weight"
  torch.testing.assert_close(got[name], i[name] + 0.5 * (b[name] - a[name]) + 0.25 * 2 * 4)
  record = json.loads((tmp_path / "out" / "provenance.json").read_text())
  assert (record["sha256"], record["alpha"]) == ({}, 0.5)
  assert [d["weight"] for d in record["deltas"]] == [0.5, 0.25]
  wrong = command(f"--tuned={tuned}", f"--instruct={instruct}", f"--out={tmp_path / 'x'}")
  assert (wrong.returncode, wrong.stderr) == (
    2,
    "error: --tuned needs --base: the delta is their difference\n",
  )
