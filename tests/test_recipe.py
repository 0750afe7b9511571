"""Deltas combined and stored: TIES, DARE, rounding, float32; alike for any chunks and threads."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from shadowft_jax.grafting import selection
from shadowft_jax.hf.folder import open_model
from shadowft_jax import delta, graft, machine
from shadowft_jax.grafting import chunks, delta_only, matching, recipe as recipes, sources, write
from shadowft_jax.grafting.settings import Cut, Recipe, check
from shadowft_jax.errors import InputError
from tests.test_write import (
  WEIGHTS,
  adapter,
  command,
  factors,
  load,
  raw,
  same_numbers,
  sides,
  trio,
  want_survival,
)

NAME = "model.layers.0.mlp.up_proj.weight"


def model(folder, tensors, dtype=torch.bfloat16, **config):
  tensors = {n: torch.as_tensor(w).to(dtype).clone() for n, w in tensors.items()}
  return raw(folder, tensors, "llama", **config)


def dense(folder, tensors):
  """A delta as train.py writes it."""
  folder.mkdir(parents=True)
  safetensors.torch.save_file(
    {n: torch.as_tensor(d).float().clone() for n, d in tensors.items()},
    folder / "delta.safetensors",
    {"format": "pt"},
  )
  return folder


def run(out, instruct, deltas, *, verify=False, **recipe):
  """Grafts [(folder, weight)]; the Outcome."""
  stored = [sources.stored(f, w) for f, w in deltas]
  plan = matching.plan(
    open_model(instruct), stored, scope=selection.Scope("all"), recipe=Recipe(**recipe)
  )
  return write.run(plan, out, verify=verify)


def random(*shape, seed=0, size=1.0):
  return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """An Instruct of several tensors and three deltas for it."""
  folder = tmp_path_factory.mktemp("made")
  shapes = {NAME: (90, 70), "model.embed_tokens.weight": (300, 16), "model.norm.weight": (16,)}
  model(folder / "instruct", {n: random(*s, seed=9) for n, s in shapes.items()})
  for i, name in enumerate("abc"):
    dense(folder / name, {n: random(*s, seed=i, size=0.3) for n, s in shapes.items()})
  return folder


# TIES.


def as_ties(ds, density):
  """Algorithm 1, element by element."""
  parts = []
  for d in ds:
    count = max(1, round(density * d.size)) if density else 0
    least = np.sort(abs(d).ravel())[::-1][count - 1] if count else np.inf
    parts.append(np.where(abs(d) >= least, d, 0))
  sign = np.sign(sum(parts))
  agree = [(np.sign(d) == sign) & (d != 0) for d in parts]
  total = sum(np.where(a, d, 0) for a, d in zip(agree, parts, strict=True))
  return total / np.maximum(sum(agree), 1)


def test_signs_are_elected_by_hand():
  ds = [np.float32(d) for d in ([1, -2, 3, 0, 5, 0], [2, 1, -4, 0, -5, 0], [3, -1, 0.5, 1, 0, 0])]
  got = recipes.ties(ds, np.zeros(3, np.uint32))
  assert got.tolist() == [2, -1.5, -4, 1, 0, 0]
  # Trimmed to what is at least 2 in magnitude, the second element is the first delta's alone.
  floor = np.float32([2]).view(np.uint32)[0]
  assert recipes.ties(ds, [floor] * 3).tolist() == [2.5, -2, -4, 0, 0, 0]
  assert as_ties(ds, 1.0).tolist() == [2, -1.5, -4, 1, 0, 0]


@pytest.mark.parametrize("chunk", [1024, 1 << 20])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.05, 0.5, 0.99, 1.0])
def test_ties_is_the_algorithm_of_the_paper(made, tmp_path, monkeypatch, density, chunk):
  monkeypatch.setattr(chunks, "CHUNK", chunk)
  weights = (1.0, 0.5, -2.0)
  named = list(zip(map(made.joinpath, "abc"), weights, strict=True))
  run(tmp_path / "out", made / "instruct", named, combine="ties", density=density, dtype="float32")
  w, got = load(made / "instruct"), load(tmp_path / "out")
  deltas = [safetensors.torch.load_file(made / n / "delta.safetensors") for n in "abc"]
  for n in w:
    d = as_ties([(x * d[n]).numpy() for d, x in zip(deltas, weights, strict=True)], density)
    np.testing.assert_allclose(got[n], w[n].float().numpy() + d, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "d",
  [
    np.zeros(5000),
    np.ones(5000),
    np.arange(5000),
    -np.arange(5000.0) // 7,
    [3.0],
    np.repeat([1e-30, -1e-3, 1e4], 1000),
    np.float32(1) + np.arange(3000) * 2.0**-23,
    random(3000).numpy(),
    random(3000).bfloat16().float().numpy(),
  ],
  ids=["zeros", "ones", "range", "repeated", "one", "scales", "last bits", "normal", "bfloat16"],
)
@pytest.mark.parametrize("density", [1e-4, 0.2, 0.5, 0.9999])
def test_the_least_magnitude_kept_is_exact(tmp_path, monkeypatch, d, density):
  monkeypatch.setattr(chunks, "CHUNK", 1024)
  d = np.asarray(d, np.float32)
  instruct = model(tmp_path / "i", {NAME: np.zeros(d.shape)})
  plan = matching.plan(
    open_model(instruct),
    [sources.stored(dense(tmp_path / "d", {NAME: d}))],
    scope=selection.Scope("all"),
    recipe=Recipe("ties", density),
  )
  got = recipes.thresholds(plan.targets[0], plan.recipe).view(np.float32)[0]
  count = max(1, round(density * d.size))
  assert got == (np.sort(abs(d))[::-1][count - 1] if count < d.size else 0)


def test_one_delta_by_ties_whole_or_dare_of_nothing_is_the_plain_sum(made, tmp_path):
  one = [(made / "a", 0.7)]
  run(tmp_path / "sum", made / "instruct", one)
  run(tmp_path / "ties", made / "instruct", one, combine="ties", density=1.0)
  run(tmp_path / "dare", made / "instruct", one, drop_rate=0.0, seed=5)
  a, b, c = ((tmp_path / n / WEIGHTS).read_bytes() for n in ("sum", "ties", "dare"))
  assert a == b == c != (made / "instruct" / WEIGHTS).read_bytes()


def test_ties_of_a_delta_with_itself_is_that_delta_and_with_its_opposite_nothing(made, tmp_path):
  run(tmp_path / "one", made / "instruct", [(made / "a", 1.0)], combine="ties", density=0.3)
  run(tmp_path / "two", made / "instruct", [(made / "a", 1.0)] * 2, combine="ties", density=0.3)
  run(
    tmp_path / "none",
    made / "instruct",
    [(made / "a", 1.0), (made / "a", -1.0)],
    combine="ties",
    density=0.3,
  )
  one, two, none = ((tmp_path / n / WEIGHTS).read_bytes() for n in ("one", "two", "none"))
  assert one == two != none == (made / "instruct" / WEIGHTS).read_bytes()


def test_a_delta_that_is_zero_or_one_number_makes_no_nan(tmp_path):
  tensors = {"model.norm.weight": torch.ones(1), NAME: torch.ones(3, 2)}
  instruct = model(tmp_path / "i", tensors)
  d = dense(tmp_path / "d", {"model.norm.weight": torch.ones(1), NAME: torch.zeros(3, 2)})
  for i, recipe in enumerate(
    (
      {"combine": "ties", "density": 0.0},
      {"drop_rate": 1 - 1e-12},
      {"combine": "ties", "density": 0.1},
      {"combine": "ties", "density": 0.1, "drop_rate": 0.999},
    )
  ):
    run(tmp_path / f"{i}", instruct, [(d, 1.0), (d, 1.0)], **recipe)
    got = load(tmp_path / f"{i}")
    assert torch.equal(got[NAME], torch.ones(3, 2).bfloat16())
    assert got["model.norm.weight"].item() == (2 if i == 2 else 1)


@pytest.mark.parametrize(
  "recipe",
  [
    {"combine": "ties", "density": 0.5},
    {"drop_rate": 0.999},
    {"combine": "ties", "drop_rate": 0.999},
  ],
  ids=str,
)
def test_nan_in_a_delta_is_named_and_neither_dropped_nor_outvoted(tmp_path, recipe):
  broken = torch.zeros(30, 2)
  broken[7, 1] = torch.nan
  instruct = model(tmp_path / "i", {NAME: torch.ones(30, 2)})
  ds = [
    (dense(tmp_path / "d", {NAME: broken}), 1.0),
    (dense(tmp_path / "e", {NAME: torch.ones(30, 2)}), 1.0),
  ]
  with pytest.raises(InputError, match=f"{NAME} of the delta contains NaN or infinity in"):
    run(tmp_path / "out", instruct, ds, **recipe)


# Chance.


def test_bits_are_threefry_of_the_index_alone():
  whole = recipes.draw(jnp.uint32([3, 4]), jnp.uint32([0, 0]), 5000)
  for first, count in ((0, 1), (1, 1024), (4000, 1000)):
    part = recipes.draw(jnp.uint32([3, 4]), recipes.split_index(first), count)
    assert (part == whole[first : first + count]).all()
  # Source: the known answer of Random123 1.14, kat_vectors, threefry2x32 20.
  assert recipes.draw(jnp.uint32([0, 0]), recipes.split_index(0), 1)[0] == 0x6B200159
  over = recipes.draw(jnp.uint32([3, 4]), recipes.split_index(2**32 - 2), 4)
  assert (over[2:] == recipes.draw(jnp.uint32([3, 4]), recipes.split_index(2**32), 2)).all()
  assert (over[2:] != whole[:2]).all()


def test_dare_drops_its_share_and_keeps_the_mean(tmp_path):
  d = random(40, 50, seed=1)
  instruct = model(tmp_path / "i", {NAME: torch.zeros(40, 50)})
  folder = dense(tmp_path / "d", {NAME: d})
  p, draws = 0.75, []
  for seed in range(25):
    run(tmp_path / f"{seed}", instruct, [(folder, 1.0)], drop_rate=p, seed=seed, dtype="float32")
    draws.append(load(tmp_path / f"{seed}")[NAME])
    assert torch.equal(draws[-1][draws[-1] != 0], (d * 4)[draws[-1] != 0])
  draws = torch.stack(draws)
  shares = (draws != 0).double().mean(0)
  assert abs(shares.mean() - 0.25) < 4 * (p * (1 - p) / draws.numel()) ** 0.5
  assert shares.min() < 0.2 < 0.3 < shares.max()  # no element is in favour
  # Of each element's mean, the standard error is |d| sqrt(p / (1 - p) / seeds).
  z = (draws.mean(0) - d) / (d.abs() * (p / (1 - p) / len(draws)) ** 0.5)
  assert abs(z.mean()) < 4 / z.numel() ** 0.5 and abs(z.std() - 1) < 0.1


def test_two_deltas_and_two_tensors_are_dropped_apart(tmp_path):
  names = (NAME, NAME.replace("0", "1"))
  instruct = model(tmp_path / "i", dict.fromkeys(names, torch.zeros(40, 50)))
  ones = dense(tmp_path / "d", dict.fromkeys(names, torch.ones(40, 50)))
  run(tmp_path / "out", instruct, [(ones, 1.0), (ones, 10.0)], drop_rate=0.5)
  got = load(tmp_path / "out")
  for n in names:
    share = [(got[n] == x).float().mean().item() for x in (0, 2, 20, 22)]
    assert all(abs(s - 0.25) < 0.05 for s in share), share
  assert abs((got[names[0]] == got[names[1]]).float().mean() - 0.25) < 0.05


@pytest.mark.parametrize(
  "recipe",
  [
    {},
    {"drop_rate": 0.5, "seed": 3},
    {"rounding": "stochastic"},
    {"dtype": "float32"},
    {"combine": "ties", "density": 0.3, "drop_rate": 0.2, "rounding": "stochastic"},
  ],
  ids=str,
)
def test_bytes_are_the_same_for_any_chunks_and_threads(made, tmp_path, monkeypatch, recipe):
  deltas = [(made / "a", 0.7), (made / "b", 0.4)]
  outputs = []
  for chunk, threads in ((1 << 20, 2), (1024, 1), (3072, 5)):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    monkeypatch.setattr(machine, "cores", lambda n=threads: n)
    run(tmp_path / f"{chunk}", made / "instruct", deltas, **recipe)
    outputs.append((tmp_path / f"{chunk}" / WEIGHTS).read_bytes())
  assert outputs[0] == outputs[1] == outputs[2] != (made / "instruct" / WEIGHTS).read_bytes()
  if recipe.get("drop_rate") or recipe.get("rounding"):
    run(tmp_path / "seed", made / "instruct", deltas, **{**recipe, "seed": 8})
    assert (tmp_path / "seed" / WEIGHTS).read_bytes() != outputs[0]


def test_a_tied_table_that_is_stored_twice_is_drawn_once(tmp_path):
  table = random(30, 8)
  instruct = model(
    tmp_path / "i",
    {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()},
    tie_word_embeddings=True,
  )
  d = dense(tmp_path / "d", {"model.embed_tokens.weight": random(30, 8, seed=1)})
  run(tmp_path / "out", instruct, [(d, 1.0)], drop_rate=0.5, rounding="stochastic")
  got = load(tmp_path / "out")
  assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])


# Rounding.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_by_chance_is_to_a_neighbour_and_right_on_average(dtype):
  x = np.float32(
    [
      1 + 1 / 300,
      -1 - 1 / 300,
      0.3,
      -3e4 / 7,
      5e-6,
      -1.3e-7,
      3e-8,
      2.0**-14 * 0.9999,
      1.5,
      -0.25,
      65504,
      2.0**-24,
      1e-30,
    ]
  )
  seeds = 4000
  near = x.astype(jnp.dtype(dtype))
  toward = np.where(near.astype(np.float32) < x, np.inf, -np.inf).astype(near.dtype)
  other = np.where(near.astype(np.float32) == x, near, np.nextafter(near, toward))
  low, high = np.sort(np.float64([near, other]), axis=0)
  bits = recipes.draw(jnp.uint32([1, 2]), recipes.split_index(0), x.size * seeds)
  got = delta.add(jnp.zeros(x.size * seeds, dtype), jnp.tile(jnp.asarray(x), seeds), random=bits)
  got = np.float64(got).reshape(seeds, -1)
  assert got.dtype == np.float64 and ((got == low) | (got == high)).all()
  share = np.where(low < high, (x - low) / np.where(low < high, high - low, 1), 1)
  error = abs((got == high).mean(0) - share)
  assert (error <= 4.5 * np.sqrt(share * (1 - share) / seeds) + 1e-6).all()
  assert (low < high).any() == (dtype != "float32")
  # A value that the dtype has stays, whatever is drawn.
  same = jnp.asarray(np.float32(near))
  for drawn in (0, 2**32 - 1):
    bits = jnp.full(same.shape, drawn, jnp.uint32)
    got = delta.add(jnp.zeros(same.shape, dtype), same, random=bits)
    np.testing.assert_array_equal(got, near)


def test_rounding_is_drawn_apart_from_what_is_dropped():
  w, d = jnp.zeros(256, jnp.bfloat16), jnp.full(256, 1 + 1 / 300, jnp.float32)
  recipe = Recipe(rounding="stochastic").static
  store = lambda *keys: recipes.stored(
    w, d, keys=jnp.uint32(keys), first=recipes.split_index(0), recipe=recipe
  ).tolist()
  want = store((1, 1), (2, 2), (3, 3))
  assert want == store((4, 4), (5, 5), (3, 3)) and want != store((1, 1), (2, 2), (4, 4))


def test_a_combined_delta_is_read_whole_in_any_chunks(made, monkeypatch):
  plan = matching.plan(
    open_model(made / "instruct"),
    [sources.stored(made / name, 1.0) for name in "ab"],
    scope=selection.Scope("all"),
    recipe=Recipe(),
  )
  deltas = [safetensors.torch.load_file(made / name / "delta.safetensors") for name in "ab"]
  for target in plan.targets:
    for chunk in (1024, 1 << 20):
      monkeypatch.setattr(chunks, "CHUNK", chunk)
      got = recipes.whole(target, plan.recipe)
      np.testing.assert_allclose(got, sum(d[target.name] for d in deltas), atol=1e-6)


def test_stochastic_rounding_changes_no_weight_without_a_delta(tmp_path):
  w = torch.tensor([1.0, -0.0, 1e-40, -1e-40, 3.14, 0.0]).bfloat16().reshape(3, 2)
  d = torch.tensor([0.0, 0, 0, -0.0, 6e-3, 6e-3]).reshape(3, 2)
  instruct = raw(tmp_path / "i", {NAME: w}, "llama")
  folder = dense(tmp_path / "d", {NAME: d})
  seen = set()
  for seed in range(12):
    run(tmp_path / f"{seed}", instruct, [(folder, 1.0)], rounding="stochastic", seed=seed)
    got = load(tmp_path / f"{seed}")[NAME]
    assert torch.equal(got.view(torch.int16)[:2], w.view(torch.int16)[:2])
    seen.add(got[2, 0].item())
  assert seen == {3.140625, 3.15625}
  run(tmp_path / "near", instruct, [(folder, 1.0)])
  assert load(tmp_path / "near")[NAME][2, 0].item() == 3.140625


# Float32.


def test_a_result_in_float32_holds_the_sum_itself(tmp_path):
  folder = trio(tmp_path, "qwen2", max_shard_size="20KB")
  config = json.loads((folder / "instruct" / "config.json").read_text())
  key = "dtype" if "dtype" in config else "torch_dtype"
  nested = {
    **config,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "part": {"dtype": "bfloat16", "torch_dtype": None, "n": 1},
  }
  (folder / "instruct" / "config.json").write_text(json.dumps(nested))
  plan = matching.plan(
    open_model(folder / "instruct"),
    [sources.difference(folder / "base", folder / "tuned")],
    scope=selection.Scope(),
    recipe=Recipe(dtype="float32"),
  )
  done = write.run(plan, tmp_path / "out", card="card")
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (
    written
    == {
      **config,
      "dtype": "float32",
      "torch_dtype": "float32",
      "part": {"dtype": "float32", "torch_dtype": None, "n": 1},
    }
    and config[key]
  )
  b, t, w, got = (load(d) for d in [*sides(folder), tmp_path / "out"])
  want = {n: w[n].float() + (t[n].float() - b[n].float() if "_proj" in n else 0) for n in w}
  assert got.keys() == w.keys() and all(torch.equal(got[n], want[n]) for n in w)
  for survival in done.survival:
    n = survival.name
    same_numbers(
      survival, want_survival(n, t[n].float() - b[n].float(), w[n].float(), got[n], b[n])
    )
  index = json.loads((tmp_path / "out" / f"{WEIGHTS}.index.json").read_text())
  old = json.loads((folder / "instruct" / f"{WEIGHTS}.index.json").read_text())
  assert index["weight_map"] == old["weight_map"] and len(plan.shards) > 2
  assert index["metadata"]["total_size"] == sum(4 * x.numel() for x in got.values())
  with safetensors.safe_open(tmp_path / "out" / plan.shards[0].name, "pt") as file:
    assert file.metadata() == {"format": "pt"}
  hf, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(info.values()) and hf.dtype == torch.float32
  for n, x in hf.state_dict().items():
    assert torch.equal(x, want[n]), n


def test_float32_output_keeps_other_dtypes_and_the_values_of_other_tensors(tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, "CHUNK", 1024)
  monkeypatch.setattr(chunks, "BUFFER", 4096)
  tensors = {
    "a.mask": torch.tensor([True, False, True]),
    NAME: random(60, 50).half(),
    "model.b.weight": random(70, 50).bfloat16(),
    "z.position": torch.arange(9),
    "model.norm.weight": torch.tensor([-0.0, 1e-40, 1e-7, 3e38]).bfloat16(),
    "model.c.weight": random(3),
    "empty": torch.zeros(0, 4).half(),
  }
  instruct = raw(tmp_path / "i", tensors, "llama", torch_dtype="float16")
  d = dense(tmp_path / "d", {NAME: torch.eye(60, 50)})
  run(tmp_path / "out", instruct, [(d, 1.0)], verify=True, dtype="float32")
  got = load(tmp_path / "out")
  for n, w in tensors.items():
    want = w.float() if w.is_floating_point() else w
    want = want + torch.eye(60, 50) if n == NAME else want
    assert got[n].dtype == want.dtype and torch.equal(got[n], want), n
  bits = got["model.norm.weight"].view(torch.int32)
  assert torch.equal(bits, tensors["model.norm.weight"].float().view(torch.int32))
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


# The command.


def test_the_flags_reach_the_plan_and_the_record(made, tmp_path):
  flags = [
    f"--delta={made / 'a'}:0.7",
    f"--delta={made / 'b'}:0.3",
    "--scope=all",
    f"--instruct={made / 'instruct'}",
    f"--out={tmp_path / 'out'}",
    "--combine=ties",
    "--density=0.2",
    "--drop-rate=0.1",
    "--rounding=stochastic",
    "--seed=4",
  ]
  result = command(*flags, "--dry-run")
  assert result.returncode == 0, result.stderr
  for text in (
    "DARE: drops 0.1 of",
    "TIES: keeps",
    "the largest 0.2",
    "stochastic rounding",
    "seed 4",
  ):
    assert text in result.stderr
  assert command(*flags).returncode == 0
  record = json.loads((tmp_path / "out" / "provenance.json").read_text())
  assert {k: record[k] for k in Recipe._fields} == {
    "combine": "ties",
    "density": 0.2,
    "drop_rate": 0.1,
    "cut": None,
    "rounding": "stochastic",
    "dtype": None,
    "seed": 4,
  }
  run(
    tmp_path / "again",
    made / "instruct",
    [(made / "a", 0.7), (made / "b", 0.3)],
    combine="ties",
    density=0.2,
    drop_rate=0.1,
    rounding="stochastic",
    seed=4,
  )
  a, b = ((tmp_path / n / WEIGHTS).read_bytes() for n in ("out", "again"))
  assert a == b


@pytest.mark.parametrize(
  "recipe, message",
  [
    ({"density": 0.5}, "has an effect only with --combine=ties"),
    ({"rounding": "stochastic", "dtype": "float32"}, "has no effect"),
  ],
  ids=str,
)
def test_invalid_recipes(recipe, message):
  with pytest.raises(InputError, match=message):
    check(Recipe(**recipe))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"density": 1.5}, "--density must be at least 0 and at most 1; got 1.5"),
    ({"density": float("nan")}, "--density must be at least 0 and at most 1; got nan"),
    ({"drop_rate": 1.0}, "--drop-rate must be at least 0 and below 1; got 1.0"),
    ({"drop_rate": -0.1}, "--drop-rate must be at least 0 and below 1; got -0.1"),
    ({"seed": -1}, "--seed must be at least 0; got -1"),
    ({"alpha": float("inf")}, "--alpha must be finite; got inf"),
    ({"include": "("}, "--include is not a regular expression"),
    ({"exclude": "*"}, "--exclude is not a regular expression"),
    ({"match": "q_proj,v_proj"}, "--match is a regular expression; .* by |: 'q_proj|v_proj'"),
  ],
  ids=str,
)
def test_invalid_flags(fields, message):
  with pytest.raises(InputError, match=message.replace("|", r"\|")):
    graft.Options(instruct="i", out="o", **fields)


def test_an_adapter_that_was_trained_again_is_read_anew(tmp_path):
  instruct = model(tmp_path / "i", {"model.layers.0.self_attn.q_proj.weight": random(32, 32)})
  results = []
  for i in range(2):
    tensors = {n: t * (i + 1) for n, t in factors().items()}
    if i:
      safetensors.torch.save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    else:
      adapter(tmp_path / "a", tensors)
    run(tmp_path / f"{i}", instruct, [(tmp_path / "a", 1.0)], dtype="float32")
    results.append(load(tmp_path / f"{i}")["model.layers.0.self_attn.q_proj.weight"])
  w = load(instruct)["model.layers.0.self_attn.q_proj.weight"].float()
  torch.testing.assert_close(results[1] - w, 4 * (results[0] - w))


@pytest.mark.parametrize("rows", [3, 32, 40, 48, 49])
def test_an_adapter_is_multiplied_in_steps_of_either_size(tmp_path, monkeypatch, rows):
  monkeypatch.setattr(chunks, "CHUNK", 1 << 15)
  name = "model.layers.0.self_attn.q_proj.weight"
  instruct = model(tmp_path / "i", {name: random(rows, 1024)}, torch.float32)
  module = "base_model.model." + name.removesuffix(".weight")
  pair = {
    f"{module}.lora_A.weight": random(4, 1024, seed=1),
    f"{module}.lora_B.weight": random(rows, 4, seed=2),
  }
  run(tmp_path / "out", instruct, [(adapter(tmp_path / "low", pair), 1.0)])
  a, b = pair.values()
  torch.testing.assert_close(load(tmp_path / "out")[name], load(instruct)[name] + 2 * (b @ a))


# In the place of a whole model.


@pytest.mark.parametrize(
  "recipe",
  [
    {"combine": "ties", "density": 0.3},
    {"drop_rate": 0.4},
    {"combine": "ties", "density": 0.7, "drop_rate": 0.5},
  ],
  ids=str,
)
def test_the_delta_or_the_adapter_of_a_recipe_grafts_to_the_same(made, tmp_path, recipe):
  deltas = [sources.stored(made / n) for n in "abc"]
  plan = matching.plan(
    open_model(made / "instruct"), deltas, scope=selection.Scope(), recipe=Recipe(**recipe)
  )
  write.run(plan, tmp_path / "direct")
  delta_only.run(plan, tmp_path / "delta", delta_only.Output("delta"))
  whole = plan._replace(recipe=plan.recipe._replace(cut=Cut(energy=1.0)))
  delta_only.run(whole, tmp_path / "adapter", delta_only.Output("adapter"))
  by = {}
  for name in ("delta", "adapter"):
    record = json.loads((tmp_path / name / "provenance.json").read_text())
    assert record["combine"] == recipe.get("combine", "sum") and record["drop_rate"] == recipe.get(
      "drop_rate", 0
    )
    once = matching.plan(plan.instruct, [sources.stored(tmp_path / name)], scope=selection.Scope())
    write.run(once, tmp_path / f"by {name}")
    by[name] = load(tmp_path / f"by {name}")[NAME]
  want = load(tmp_path / "direct")[NAME]
  assert torch.equal(by["delta"], want) and not torch.equal(want, load(made / "instruct")[NAME])
  torch.testing.assert_close(by["adapter"], want, rtol=8e-3, atol=1e-4)


def test_adapters_are_not_joined_where_numbers_are_dropped(made, tmp_path):
  module = "base_model.model." + NAME.removesuffix(".weight")
  low = adapter(tmp_path / "low", factors(d_in=70, d_out=90, module=module))
  for recipe in ({"combine": "ties"}, {"drop_rate": 0.1}, {}):
    plan = matching.plan(
      open_model(made / "instruct"),
      [sources.stored(low)],
      scope=selection.Scope(),
      recipe=Recipe(**recipe),
    )
    if recipe:
      with pytest.raises(InputError, match="with TIES or DARE, is a low-rank approximation"):
        delta_only.check(plan, tmp_path / "out", delta_only.Output("adapter"))
      plan = plan._replace(recipe=plan.recipe._replace(cut=Cut(rank=4)))
    delta_only.check(plan, tmp_path / "out", delta_only.Output("adapter"))


def test_how_sums_are_stored_is_for_whole_models(made, tmp_path):
  for flag in ("--rounding=stochastic", "--dtype=float32"):
    result = command(
      f"--delta={made / 'a'}",
      f"--instruct={made / 'instruct'}",
      "--output=delta",
      f"--out={tmp_path / 'out'}",
      flag,
    )
    assert result.returncode == 2 and "are for --output=shadow" in result.stderr
