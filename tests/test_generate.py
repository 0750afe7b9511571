"""A local engine: stop strings, streams, deltas in memory, meshes, limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from shadowft_jax import delta as delta_lib, models, sharding, tree
from shadowft_jax.errors import InputError
from shadowft_jax.generation import decode, local, steps, texts
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.grafting import matching, selection, sources, write
from shadowft_jax.hf import deltas
from shadowft_jax.hf.folder import open_model
from tests import pico, runs

QUESTIONS = ("red", "Say blue green again.", "iron", "Say salt wind rain moon leaf.", "gold")
ASKED = [[{"role": "user", "content": q}] for q in QUESTIONS]
GREEDY = Sampling(24)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  return runs.make_pair(tmp_path_factory.mktemp("pair"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def engine(pair):
  loaded = local.load(pair / "instruct", batch_size=2)
  loaded.decoder = loaded.decoder.clone(dtype=jnp.float32)
  return loaded


def texts_of(engine, sampling=GREEDY):
  return [[one.text for one in some] for some in engine.complete(ASKED, sampling)]


def test_answers_are_received_as_they_end_and_returned_in_order(engine):
  received = []
  sampling = Sampling(40, n=2, temperature=1.5)
  answers = engine.complete(ASKED, sampling, lambda *one: received.append(one))
  assert sorted((i, j) for i, j, _ in received) == [(i, j) for i in range(5) for j in range(2)]
  assert all(answers[i][j] == one for i, j, one in received)
  assert all(
    one.finish_reason == ("length" if one.tokens == 40 else "stop") for *_, one in received
  )
  assert engine.complete([], sampling) == []


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"top_k": 5, "top_p": 0.9, "min_p": 0.01}, {}])
def test_a_sample_depends_on_seed_prompt_and_number_alone(engine, changes):
  sampling = Sampling(12, n=3, temperature=1.0, **changes)
  want = texts_of(engine, sampling)
  assert all(len(set(some)) > 1 for some in want)
  for batch_size in (1, 16):
    engine.batch_size = batch_size
    got = engine.complete([ASKED[3], ASKED[1], ASKED[3]], dataclasses.replace(sampling, n=2))
    assert [[x.text for x in some] for some in got] == [want[3][:2], want[1][:2], want[3][:2]]
  engine.batch_size = 2
  assert texts_of(engine, dataclasses.replace(sampling, seed=64)) != want


def test_an_answer_ends_before_the_earliest_stop_string(engine):
  [[whole]] = engine.complete(ASKED[1:2], Sampling(24))
  assert len(whole.text) > 12 and whole.finish_reason == "length"
  first, last = whole.text[4:6], whole.text[10:12]
  for stop in ((first,), (last, first)):
    [[cut]] = engine.complete(ASKED[1:2], Sampling(24, stop=stop))
    assert cut.text == whole.text[: whole.text.index(first)]
    assert cut.finish_reason == "stop" and 0 < cut.tokens < 24
  # It comes with the last token that is allowed: a stop, no cut.
  few = cut.tokens
  [[cut]] = engine.complete(ASKED[1:2], Sampling(few, stop=(first,)))
  assert (cut.finish_reason, cut.tokens) == ("stop", few)
  [[cut]] = engine.complete(ASKED[1:2], Sampling(few - 1, stop=(first,)))
  assert cut.finish_reason == "length"


def test_a_stream_is_the_answer_in_pieces(engine):
  [[whole]] = engine.complete(ASKED[1:2], Sampling(40))
  for stop in ((), (whole.text[20:22], "no such")):
    sampling = Sampling(40, stop=stop)
    for question in ASKED[1:3]:
      *pieces, last = engine.stream(question, sampling)
      assert "".join(pieces) == last.text
      assert [[last]] == engine.complete([question], sampling)
      assert isinstance(last, Completion) and all(pieces)
      assert len(pieces) > 1 or stop or question != ASKED[1]


def test_text_that_a_later_token_may_change_is_held_back():
  assert texts.settled("caf\ufffd", ()) == "caf"
  assert texts.settled("one\nQ", ("\nQuestion:",)) == "one"
  assert texts.settled("one\nQ: ", ("\nQuestion:",)) == "one\nQ: "
  assert texts.settled("a###", ("####",)) == "a"
  end = texts.ended(list("one two three"), ("tw", "thr"), "".join)
  assert end == texts.Ended("one ", True, 6)
  assert texts.ended(list("one"), ("two",), "".join) == texts.Ended("one", False, 3)


def random_delta(kind, folder, seed=0):
  """A delta of some size for the projections, on disk as a run writes it."""
  model, params = local.weights.load_model(folder)
  config = runs.presets.sft().delta
  config.kind, config.rank, config.alpha = kind, 4, 8.0
  zeros = delta_lib.zeros(jax.random.key(0), params, config)
  return pico.random_like(zeros, 0.05, seed), delta_lib.scale_of(config)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_delta_in_memory_answers_as_the_exported_folder(kind, pair, tmp_path):
  delta, scale = random_delta(kind, pair / "instruct")
  if kind == "lora":
    deltas.save_adapter(
      tmp_path / "delta",
      delta["lora"],
      rank=4,
      alpha=8.0,
      base_model=pair / "instruct",
      model_type="qwen3",
    )
  else:
    deltas.save_dense(tmp_path / "delta", delta["delta"])
  engine = local.load(pair / "instruct", delta=tmp_path / "delta", alpha=0.3)
  instruct, base = (open_model(pair / n) for n in ("instruct", "base"))
  for alpha in (0.3, 1.0):
    swept = engine if alpha == 0.3 else engine.with_alpha(alpha)
    plan = matching.plan(
      instruct,
      [sources.stored(tmp_path / "delta", alpha)],
      scope=selection.Scope(match="projections"),
      base=base,
    )
    write.run(plan, tmp_path / f"shadow{alpha}", verify=False)
    exported = local.load(tmp_path / f"shadow{alpha}")
    for name, x in tree.names(exported.variables).items():
      np.testing.assert_array_equal(tree.names(swept.variables)[name], x, err_msg=name)
    assert texts_of(swept) == texts_of(exported)
    assert swept.identity["alpha"] == alpha and swept.identity["model"] == str(pair / "instruct")
  assert engine.identity["delta_sha256"] == swept.identity["delta_sha256"]
  assert engine.identity["alpha"] == 0.3, "the first engine stays as it is"
  with pytest.raises(InputError, match="loaded without one; give --delta"):
    exported.with_alpha(2.0)


@pytest.mark.slow
def test_a_mesh_gives_the_tokens_of_one_device():
  model = models.from_config(pico.CONFIGS["qwen3"], dtype=jnp.float32, combine=delta_lib.combine)
  params = jax.tree.map(np.asarray, pico.random_like(models.abstract_params(model), 0.3))
  prompts = [[7, 8, 9, 10], [5], [11, 12], [3] * 20, [3, 4, 5, 6, 7, 8, 9]]
  keyed = [decode.Prompt(p, np.array([1, i], np.uint32)) for i, p in enumerate(prompts)]
  unrolled = model.clone(unrolled=True)

  def answers(variables, mesh, sampling):
    options = dict(stop=(263,), sampling=sampling, batch_size=4, mesh=mesh)
    progress = decode.answers(unrolled, variables, keyed, **options)
    return {one.prompt: one.tokens for one in progress}

  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  placed = jax.device_put(params, sharding.of(params, mesh))
  shared = steps.unrolled({"params": placed}, mesh=mesh)
  kernel = shared["params"]["model"]["layers_1"]["mlp"]["up_proj"]["kernel"]
  assert len({str(s.index) for s in kernel.addressable_shards}) == 4
  alone = steps.unrolled({"params": params})
  for sampling in (Sampling(12), Sampling(12, temperature=1.0, top_k=20)):
    assert answers(shared, mesh, sampling) == answers(alone, None, sampling)


def test_too_long_prompts_are_refused_before_any_answer(engine):
  engine.limit = 60
  try:
    longest = max(len(engine.prompt(question)) for question in ASKED)
    room = 60 - longest
    too_long = f"has {longest} tokens and its answer up to {room + 1}, .* made for 60 in all"
    with pytest.raises(InputError, match=too_long):
      engine.complete(ASKED, Sampling(room + 1), lambda *_: pytest.fail("answered"))
    with pytest.raises(InputError, match="1 of 1 prompt too long: the longest has 65 tokens"):
      engine.logprobs([([5] * 30, [6] * 35)])
  finally:
    engine.limit = 512
  with pytest.raises(InputError, match="a prompt is empty"):
    engine.logprobs([([], [1])])


def test_the_room_of_an_answer_is_its_prompt_s_own(engine):
  whole = engine.complete(ASKED, Sampling(40))
  engine.limit = max(len(engine.prompt(question)) for question in ASKED) + 3
  try:
    fitted = engine.complete(ASKED, Sampling(40, fit_context=True))
  finally:
    limit, engine.limit = engine.limit, 512
  rooms = [limit - len(engine.prompt(question)) for question in ASKED]
  assert len(set(rooms)) > 1 and min(rooms) == 3
  for [full], [one], room in zip(whole, fitted, rooms, strict=True):
    assert one.tokens == min(full.tokens, room) and full.text.startswith(one.text.rstrip("\ufffd"))
    assert (one.finish_reason == "length") == (
      full.tokens >= room or full.finish_reason == "length"
    )


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"max_new": 0}, "max_new is 0; expected at least 1"),
    ({"temperature": -1.0, "top_k": -1}, "temperature is -1.0; .*; top_k is -1; expected 0 or"),
    ({"top_p": 0.0}, "top_p is 0.0; expected above 0 and at most 1"),
    ({"stop": ("a", "")}, "expected texts that are not empty"),
  ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
  with pytest.raises(InputError, match=message):
    Sampling(**{"max_new": 1, **settings})
