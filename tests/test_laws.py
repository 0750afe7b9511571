"""The algebra: what must hold whatever the weights are."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shadowft_jax.hf import arrays
from shadowft_jax import delta, models, presets, scope, sharding, tree
from shadowft_jax.learning import loss, objectives, optim, step
from shadowft_jax.data import packing
from shadowft_jax.data.chat import Example
from shadowft_jax.errors import InputError
from tests import pico


def random_params(model, seed, scale=0.3):
  params = pico.random_like(models.abstract_params(model), scale, seed)
  return tree.map_named(
    lambda n, x: jnp.asarray(np.asarray(x) + np.float32(n.endswith("scale"))), params
  )


@functools.cache
def setup(name="qwen3"):
  """A model and the weights of a Base, a tuned Base and an Instruct, float32."""
  model = models.from_config(pico.CONFIGS[name], dtype=jnp.float32, combine=delta.combine)
  return model, *(random_params(model, seed) for seed in range(3))


@jax.jit
def copied(params):
  """A tree whose buffers may be donated."""
  return jax.tree.map(jnp.copy, params)


@jax.jit
def minus(a, b):
  return {"delta": jax.tree.map(jnp.subtract, a, b)}


def initial_adapter(params, rank, match="_proj"):
  return jax.jit(lambda: delta.init_adapter(jax.random.key(0), params, rank=rank, match=match))()


def assert_bits_equal(a, b):
  bits = lambda x: np.ascontiguousarray(x).view(np.uint8)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def random_adapter(params, seed=7, rank=4):
  shapes = jax.eval_shape(
    lambda: delta.init_adapter(
      jax.random.key(0), params, rank=rank, match=scope.SCOPES["projections"]
    )
  )
  return pico.random_like(shapes, 0.1, seed)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_zero_delta_keeps_every_bit(dtype):
  _, base, _, instruct = setup()
  odd = jnp.array([-0.0, 1e-39, -1e-40, 6e-8], jnp.float32).astype(dtype)
  put = lambda x: x.astype(dtype).at[..., :4].set(odd[: x.shape[-1]])
  instruct = jax.jit(lambda params: jax.tree.map(put, params))(instruct)
  for zero in (minus(base, base), {"lora": initial_adapter(base, rank=2)}):
    shadow, leaves = delta.graft(instruct, zero, scale=2.0, match="all")
    assert leaves
    assert_bits_equal(shadow, instruct)


def test_grafting_the_difference_onto_the_base_gives_the_tuned_model():
  _, base, tuned, _ = setup()
  # On a grid of 2^-10 with few bits, differences and sums are exact in float32.
  # Adding 0 turns the -0.0 that rounding made into 0.0.
  grid = lambda t: jax.tree.map(
    lambda x: jnp.asarray(np.round(np.asarray(x) * 1024) / 1024 + np.float32(0)), t
  )
  base, tuned = grid(base), grid(tuned)
  shadow, _ = delta.graft(base, minus(tuned, base), match="all")
  assert_bits_equal(shadow, tuned)


def test_the_graft_has_the_sharding_of_the_instruct_and_can_donate_its_buffers():
  model, base, tuned, instruct = setup()
  mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
  placed = sharding.of(instruct, mesh)
  change = {"delta": jax.device_put(minus(tuned, base)["delta"], placed)}
  there = jax.device_put(copied(instruct), placed)
  whole, _ = delta.graft(there, change)
  assert not any(w.is_deleted() for w in jax.tree.leaves(there))
  shadow, leaves = delta.graft(there, change, donate=True)
  assert_bits_equal(jax.device_get(shadow), jax.device_get(whole))
  before, after, want = tree.names(there), tree.names(shadow), tree.names(placed)
  assert {n for n, w in before.items() if w.is_deleted()} == set(leaves)
  assert all(w.sharding.is_equivalent_to(want[n], w.ndim) for n, w in after.items())
  expected, _ = delta.graft(instruct, minus(tuned, base))
  assert_bits_equal(jax.device_get(shadow), jax.device_get(expected))


def test_roles_swapped_it_is_the_chat_vector():
  _, base, tuned, instruct = setup()
  shadow, _ = delta.graft(instruct, minus(tuned, base), match="all")
  vector, _ = delta.graft(tuned, minus(instruct, base), match="all")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-7), shadow, vector)


@pytest.mark.parametrize("match", ["projections", r"layers/mlp", "all"])
def test_leaves_outside_the_scope_keep_their_bits(match):
  _, base, tuned, instruct = setup("qwen2")
  shadow, leaves = delta.graft(instruct, minus(tuned, base), match=match)
  before, after = tree.names(instruct), tree.names(shadow)
  changed = sorted(n for n in before if not np.array_equal(before[n], after[n]))
  assert changed == leaves == sorted(n for n in before if re.search(scope.pattern(match), n))


def test_the_papers_scope_is_its_seven_projections_with_biases():
  _, base, tuned, instruct = setup("qwen2")
  _, leaves = delta.graft(instruct, minus(tuned, base))
  modules = {leaf.split("/")[-2] for leaf in leaves}
  assert modules == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
  assert sorted(leaf for leaf in leaves if leaf.endswith("bias")) == [
    f"model/layers/self_attn/{x}_proj/bias" for x in "kqv"
  ]


def test_sums_are_taken_in_float32_and_rounded_once():
  _, base, tuned, instruct = setup()
  instruct = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(jnp.bfloat16)), instruct)
  change = minus(tuned, base)
  shadow, _ = delta.graft(instruct, change, match="all")
  want = jax.tree.map(
    lambda w, d: (np.asarray(w, np.float32) + d).astype(jnp.bfloat16), instruct, change["delta"]
  )
  assert_bits_equal(shadow, want)


def apply(model, variables, token_BT):
  return np.asarray(jax.jit(model.apply)(variables, token_BT))


def test_a_live_adapter_is_the_merged_adapter():
  model, base, _, _ = setup()
  adapter = {"lora": random_adapter(base)}
  token_BT = jnp.array(np.random.default_rng(0).integers(0, 96, (2, 12)))
  live = apply(model, delta.variables(base, adapter, 2.0), token_BT)
  merged, _ = delta.graft(base, adapter, scale=2.0)
  want = apply(model, {"params": merged}, token_BT)
  assert np.abs(live - apply(model, {"params": base}, token_BT)).max() > 1e-2
  assert np.abs(live - want).max() <= 2e-4 * np.abs(want).max()


def test_every_factor_of_an_adapter_acts():
  """Also where everything is to be adapted: none is trained that the model would not read."""
  model, base, _, _ = setup()
  adapter = initial_adapter(base, rank=2, match=scope.pattern("all"))
  adapter = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + np.float32(0.1)), adapter)
  token_BT = jnp.array(np.random.default_rng(0).integers(0, 96, (1, 8)))

  def total(adapter):
    return jnp.sum(model.apply(delta.variables(base, {"lora": adapter}, 1.0), token_BT) ** 2)

  grads = jax.jit(jax.grad(total))(adapter)
  assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["qwen3_tied", "llama_bias"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_delta_added_inside_the_blocks_is_a_delta_added_before(name, remat):
  model, base, tuned, _ = setup(name)
  model = model.clone(remat=remat)
  change = minus(tuned, base)["delta"]
  token_BT = jnp.array(np.random.default_rng(0).integers(0, 96, (2, 12)))

  def inside(d):
    return jnp.mean(model.apply(delta.variables(base, {"delta": d}, 1.0), token_BT) ** 2)

  def before(d):
    return jnp.mean(model.apply({"params": jax.tree.map(jnp.add, base, d)}, token_BT) ** 2)

  value, grads = jax.jit(jax.value_and_grad(inside))(change)
  want, want_grads = jax.jit(jax.value_and_grad(before))(change)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, want_grads
  )


def test_the_sum_of_weights_and_delta_never_exists_for_the_whole_model():
  """The compiled step's temporaries stay well below a second copy of the layers."""
  config = dict(pico.CONFIGS["qwen3"], num_hidden_layers=32, hidden_size=128, intermediate_size=512)
  model = models.from_config(config, dtype=jnp.float32, combine=delta.combine, remat="full")
  params = models.abstract_params(model)
  token_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  forward = lambda p, d, t: model.apply({"params": p, "delta": d}, t).sum()
  memory = jax.jit(forward).lower(params, params, token_BT).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.25 * 4 * tree.size(params)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_program_does_not_grow_with_depth(kind):
  def lines(layers):
    model = models.from_config(
      dict(pico.CONFIGS["qwen3"], num_hidden_layers=layers),
      dtype=jnp.float32,
      combine=delta.combine,
    )
    shapes = models.abstract_params(model)
    batch = {
      k: jax.ShapeDtypeStruct((1, 8), jnp.int32) for k in ("token", "segment", "position", "answer")
    }
    trained = (
      jax.eval_shape(
        lambda: {"lora": delta.init_adapter(jax.random.key(0), shapes, rank=2, match="_proj")}
      )
      if kind == "lora"
      else {"delta": shapes}
    )
    method = step.Loss(model, objectives.sft, 1.0, 8)
    text = step.accumulate.lower(trained, trained, shapes, batch, loss=method).as_text()
    return len(text.splitlines())

  assert lines(4) == lines(32)


def test_a_frozen_head_is_multiplied_twice_a_trained_one_four_times():
  h, w = jax.ShapeDtypeStruct((1, 8, 16), "float32"), jax.ShapeDtypeStruct((16, 50), "float32")
  token_BT = jnp.zeros((1, 8), jnp.int32)

  def products(argnums):
    f = jax.grad(lambda h, w: loss.token_logprobs(h, w, token_BT, 4).sum(), argnums)
    return jax.jit(f).lower(h, w).compile().as_text().count("dot(")

  assert (products(0), products((0, 1))) == (2, 4)


@pytest.mark.parametrize("chunk, cap", [(3, None), (8, 0.7), (64, None)])
def test_the_chunked_loss_is_the_plain_loss(chunk, cap):
  key = jax.random.split(jax.random.key(0), 4)
  h_BTD, head_DV = jax.random.normal(key[0], (2, 13, 8)), jax.random.normal(key[1], (8, 50))
  token_BT = jax.random.randint(key[2], (2, 13), 0, 50)
  # None of them is a bfloat16: a backward pass that rounds its cotangents would show.
  weight_BT = jax.random.uniform(key[3], (2, 13), minval=1.0, maxval=25.0)

  def chunked(h, w):
    return jnp.sum(loss.token_logprobs(h, w, token_BT, chunk, cap) * weight_BT)

  def plain(h, w):
    logit = h @ w if cap is None else cap * jnp.tanh(h @ w / cap)
    logp = jax.nn.log_softmax(logit)[:, :-1]
    chosen = jnp.take_along_axis(logp, token_BT[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(chosen * weight_BT[:, :-1])

  got, want = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(h_BTD, head_DV) for f in (chunked, plain)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)


def test_full_logits_never_exist_in_training():
  model = models.from_config(
    dict(pico.CONFIGS["qwen3"], vocab_size=50_000), dtype=jnp.float32, remat="full"
  )
  shapes = models.abstract_params(model)
  batch = {
    k: jax.ShapeDtypeStruct((4, 512), jnp.int32) for k in ("token", "segment", "position", "answer")
  }
  method = step.Loss(model, objectives.sft, 1.0, 16)
  adapter = jax.eval_shape(
    lambda: {"lora": delta.init_adapter(jax.random.key(0), shapes, rank=2, match="_proj")}
  )
  compiled = step.accumulate.lower(adapter, adapter, shapes, batch, loss=method).compile()
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 0.25 * 4 * 512 * 50_000 * 4


# ---- what a step computes, however its examples lie


def examples(count=12, seed=0):
  rng = np.random.default_rng(seed)
  out = []
  for _ in range(count):
    length = int(rng.integers(6, 20))
    answer = (np.arange(length) >= length // 2).astype(np.int32)
    out.append(Example(token=rng.integers(1, 96, length).astype(np.int32), answer=answer, cut=0))
  return out


def step_gradients(batches, params, adapter, model):
  method = step.Loss(model, objectives.sft, 2.0, 8)
  grads, sums = step.gradients({"lora": adapter}, params, batches, loss=method)
  loss, count = (np.asarray(sums[name]) for name in ("loss", "count"))
  return loss / count, jax.tree.map(lambda g: np.asarray(g) / count, grads)


def assert_step_equal(got, want):
  np.testing.assert_allclose(got[0], want[0], rtol=1e-6)

  def close(a, b):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)

  jax.tree.map(close, got[1], want[1])


def padded(data):
  """One example a row, padded: what an ordinary trainer sees."""
  planned = packing.Step(list(range(len(data))), [[i] for i in range(len(data))])
  return packing.microbatches(planned, data, rows=len(data), row_length=20)


@functools.cache
def reference_step():
  model, base, _, _ = setup()
  adapter = random_adapter(base)
  return model, base, adapter, step_gradients(padded(examples()), base, adapter, model)


@pytest.mark.parametrize("row_length, rows", [(20, 1), (24, 3), (64, 2), (256, 8)])
def test_packing_padding_and_microbatches_change_neither_loss_nor_gradients(row_length, rows):
  model, base, adapter, want = reference_step()
  data = examples()
  [packed] = packing.plan(
    [len(e.token) for e in data], batch_size=len(data), epochs=1, row_length=row_length, seed=3
  )
  batches = packing.microbatches(packed, data, row_length=row_length, rows=rows)
  assert_step_equal(step_gradients(batches, base, adapter, model), want)


def test_unpacked_rows_of_a_few_lengths_give_the_same_loss_and_gradients():
  model, base, adapter, want = reference_step()
  data = examples()
  shape = dict(row_length=256, layout="bucketed")
  [step] = packing.plan(
    [len(e.token) for e in data], batch_size=len(data), epochs=1, seed=3, **shape
  )
  batches = list(packing.microbatches(step, data, rows=1, **shape))
  assert max(b["token"].shape[1] for b in batches) < 256
  assert_step_equal(step_gradients(batches, base, adapter, model), want)


def test_the_mean_over_ranks_is_the_mean_of_their_token_means():
  model, base, adapter, _ = reference_step()
  data = examples()
  n, ranks, at_a_time = len(data), 3, 2
  step = packing.Step(list(range(n))[::-1], [[i] for i in range(n)])

  def batches(places, weight=None):
    part = packing.Step([step.examples[p] for p in places], [[i] for i in range(len(places))])
    return packing.microbatches(part, data, rows=len(places), row_length=20, weight=weight)

  mine = [[p for p in range(n) if p // at_a_time % ranks == r] for r in range(ranks)]
  parts = [step_gradients(batches(places), base, adapter, model) for places in mine]
  mean = jax.tree.map(lambda *x: sum(x) / ranks, *parts)
  weight = packing.rank_weights(step, data, ranks, at_a_time)
  got = step_gradients(batches(range(n), weight), base, adapter, model)
  assert_step_equal(got, mean)
  token_mean = step_gradients(batches(range(n)), base, adapter, model)
  assert abs(float(got[0]) - float(token_mean[0])) > 1e-4 * abs(float(got[0]))


def test_a_label_replaces_the_predicted_token():
  model, base, _, _ = setup()
  [example] = examples(1)
  label = example.token.copy()
  label[4] = 7
  answer = np.zeros_like(example.answer)
  answer[4] = 1
  [batch] = packing.microbatches(
    packing.Step([0], [[0]]),
    [dataclasses.replace(example, answer=answer, label=label)],
    rows=1,
    row_length=len(label),
    labelled=True,
  )
  method = step.Loss(model, objectives.sft, 1.0, 8)
  sums = method.sums({"delta": {}}, base, batch)
  logits = model.apply({"params": base}, jnp.array(example.token)[None])[0, 3]
  np.testing.assert_allclose(sums["loss"], -jax.nn.log_softmax(logits)[7], rtol=1e-5)
  assert sums["count"] == 1 and example.token[4] != 7


def test_another_number_of_microbatches_compiles_nothing():
  model, base, adapter, _ = reference_step()
  data = examples(24)

  def run(count):
    [packed] = packing.plan(
      [len(e.token) for e in data[:count]], batch_size=count, epochs=1, row_length=32, seed=0
    )
    batches = list(packing.microbatches(packed, data, row_length=32, rows=2))
    step_gradients(batches, base, adapter, model)
    return len(batches)

  first = run(12)
  compiled = step.accumulate._cache_size(), step.add._cache_size()
  assert run(24) > first
  assert (step.accumulate._cache_size(), step.add._cache_size()) == compiled


@pytest.mark.parametrize("weight_decay", [0.0, 5.0])
def test_training_the_delta_is_training_the_model(weight_decay):
  """With AdamW, whose decay pulls the weights back to W_B, since it decays the delta."""
  model, base, _, _ = setup()
  config = presets.sft()
  config.lr, config.weight_decay = 1e-3, weight_decay
  tx, schedule = optim.make(config, 8)
  adamw = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.999, weight_decay=weight_decay)
  )
  method = step.Loss(model, objectives.sft, 1.0, 8)
  zero = minus(base, base)
  state = step.TrainState(jnp.int32(0), zero, jax.jit(tx.init)(zero))
  params, opt = base, jax.jit(adamw.init)(base)

  def plain(params, batch):
    sums = objectives.sft(method.logprobs({"params": params}), None, batch)
    return sums["loss"] / sums["count"]

  @jax.jit
  def trained(params, opt, batch):
    away = jax.tree.map(jnp.subtract, params, base)
    updates, opt = adamw.update(jax.grad(plain)(params, batch), opt, away)
    return optax.apply_updates(params, updates), opt

  for seed in range(8):
    [batch] = padded(examples(seed=seed))
    grads, sums = step.gradients(state.delta, base, [batch], loss=method)
    state, _ = step.update(state, grads, sums, config.lr, tx=tx)
    params, opt = trained(params, opt, batch)
  norm = lambda t: np.linalg.norm([np.linalg.norm(x) for x in jax.tree.leaves(t)])
  trained, want = state.delta, minus(params, base)
  assert norm(minus(trained, want)) <= 1e-3 * norm(want)


def test_the_first_token_of_a_packed_example_is_never_a_target():
  batch = {"segment": jnp.array([[1, 1, 2, 2, 0]]), "answer": jnp.array([[1, 1, 1, 1, 0]])}
  np.testing.assert_array_equal(objectives.answer_weight(batch), [[1, 0, 1, 0, 0]])


def test_the_sums_of_tuning_are_those_of_the_answers_losses_and_tokens():
  batch = {"segment": jnp.array([[1, 1, 1, 2, 2, 0]]), "answer": jnp.array([[0, 1, 1, 0, 1, 0]])}
  logp = jnp.array([[-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]])
  sums = objectives.sft(lambda _: logp, lambda _: logp, batch)
  assert {k: float(v) for k, v in sums.items()} == {"loss": 1 + 2 + 8, "count": 3}


def test_a_is_uniform_within_one_over_the_root_of_its_inputs():
  _, base, _, _ = setup()
  named = tree.names(delta.init_adapter(jax.random.key(0), base, rank=32, match="projections"))
  for name, x in named.items():
    bound = x.shape[-2] ** -0.5 if name.endswith("/a") else 0.0
    assert 0.98 * bound <= -float(x.min()) <= bound and 0.98 * bound <= float(x.max()) <= bound


def test_a_delta_that_does_not_fit_says_where():
  _, base, _, _ = setup()
  wrong = {
    "delta": {
      "model": {
        "layers": {"mlp": {"up_proj": {"kernel": jnp.zeros((3, 1, 1))}}},
        "vision": {"kernel": jnp.zeros(3)},
      }
    }
  }
  with pytest.raises(InputError) as error:
    delta.graft(base, wrong, match="all")
  assert re.search(
    r"mlp/up_proj/kernel: the delta \(3, 1, 1\), the model \(\d, 32, 64\)", str(error.value)
  )
  assert "model/vision/kernel: the delta (3,), the model has none" in str(error.value)


def test_a_scope_that_selects_nothing_is_an_error():
  _, base, tuned, instruct = setup()
  with pytest.raises(InputError, match="'vision' matches none of the delta's leaves"):
    delta.graft(instruct, minus(tuned, base), match="vision")
  for kind, words in (("full", "matches none of .*norm/scale"), ("lora", "matches no kernel")):
    config = presets.sft().delta
    config.kind, config.match = kind, "vision"
    with pytest.raises(InputError, match=f"delta.match 'vision' {words}") as error:
      delta.zeros(jax.random.key(0), base, config)
  kernels = str(error.value).partition("kernels: ")[2].split(", ")
  assert kernels and kernels == [n for n in tree.names(base) if re.search("/layers/.*/kernel$", n)]


def test_an_adapter_starts_uniform_within_one_over_the_root_of_its_inputs_and_adds_nothing():
  _, base, _, _ = setup()
  named = tree.names(delta.init_adapter(jax.random.key(0), base, rank=64, match="projections"))
  assert len(named) == 14
  for name, x in named.items():
    want = 1 / np.sqrt(x.shape[-2]) if name.endswith("/a") else 0.0
    assert 0.99 * want <= float(abs(x).max()) <= want
    assert abs(float(x.mean())) <= 0.1 * want and np.isclose(x.std(), want / 3**0.5, rtol=0.1)


@pytest.mark.parametrize("name", pico.CONFIGS)
def test_export_is_the_inverse_of_load(name):
  model, params, _, _ = setup(name)
  back = pico.load(dict(arrays.export(params)).__getitem__, params)
  assert_bits_equal(back, params)
