"""Trains and asks the models of a cell: a record for each run."""

import functools
import itertools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab import measure
from lab.study import models, pairs, world
from lab.study.cells import Cell, SEEDS, SIZES
from lab.study.pairs import Store
from lab.study.world import Rows
from shadowft_jax import delta as delta_lib, tree
from shadowft_jax.learning import optim
from shadowft_jax.tree import Params

ROWS, VALIDATION = 2048, 300
NEW_SHARE, NOISE, REPLAYED = 0.2, 0.15, 10  # every tenth row
LORA_SCALE = 2.0  # alpha / rank
OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.scale(-1.0)
)
# Tuning sets: share of the new skill, share of wrong answers, whether the answers show working.
DATA = {
  "broad": (NEW_SHARE, 0.0, False),
  "own": (NEW_SHARE, 0.0, True),
  "noisy": (NEW_SHARE, NOISE, False),
  "narrow": (1.0, 0.0, False),
}
Record = dict[str, Any]


class Run(NamedTuple):
  """One run, or all of them with a leading axis."""

  tuned: Any  # number of the model that is trained, among the Bases and then the Instructs
  served: Any  # of that onto which the delta is added
  data: Any  # of its rows
  seed: Any
  index: Any  # rows of each update [S, B]
  rate: Any  # of each update [S]
  alphas: Any  # [A]


class Name(NamedTuple):
  """What tells runs of a cell apart."""

  arm: str
  pair: int
  seed: int
  rate: float


def tuning_rows(data: str, seed: str, count: int) -> Rows:
  """Rows of a tuning set."""
  new_share, noise, worked = DATA[data]
  return world.conversations(world.broad(count, seed, new_share, noise), worked)


def schedule(rate: float, steps: int) -> np.ndarray:
  """Rates [S]: a warm-up over a tenth of the steps, then a cosine to 0, as `train` has it."""
  warmup = math.ceil(0.1 * steps)
  rates = optim.Shape("cosine", steps, warmup, steps - warmup, 0.0).of(rate)
  return np.array([rates(i) for i in range(steps)], np.float32)


def divergence(params: Params, variables: Any, batch: Rows) -> jax.Array:
  """KL(model of `params` || model of `variables`) a reply's token, in nats."""
  ours, theirs = (
    jax.nn.log_softmax(models.logits(v, batch.token)[:, :-1])
    for v in (variables, {"params": params})
  )
  weight_BT = batch.weight[:, 1:]
  kl_BT = jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)
  return jnp.sum(kl_BT * weight_BT) / jnp.sum(weight_BT)


def tuner(delta: str, with_kl: bool) -> Callable[..., dict[str, jax.Array]]:
  """Training of one run, its graft, and the replies of the result at each alpha."""
  kind, _, rank = delta.partition(" ")
  config = types.SimpleNamespace(kind=kind, match="projections", rank=int(rank or 0))
  scale = LORA_SCALE if kind == "lora" else 1.0

  def loss(trained, params, batch):
    variables = delta_lib.variables(params, trained, scale)
    if "delta" in variables:
      variables = delta_lib.combine(variables)
    value = models.mean_loss(variables, batch)
    return value + divergence(params, variables, batch) if with_kl else value

  def tune(run, stack, data, validation, prompts):
    params, served = (jax.tree.map(lambda x: x[i], stack) for i in (run.tuned, run.served))
    trained = delta_lib.zeros(jax.random.key(run.seed), params, config)

    def step(carry, now):
      trained, state = carry
      index, rate = now
      batch = Rows(*(column[run.data, index] for column in data))
      updates, state = OPTIMIZER.update(jax.grad(loss)(trained, params, batch), state)
      return (jax.tree.map(lambda d, u: d + rate * u, trained, updates), state), None

    start = (trained, OPTIMIZER.init(trained))
    (trained, _), _ = jax.lax.scan(step, start, (run.index, run.rate))
    dense = delta_lib.densify(trained, scale)

    def at(alpha):
      grafted = models.stored(tree.map_named(lambda n, w: w + alpha * dense.get(n, 0.0), served))
      loss = models.mean_loss({"params": grafted}, validation)
      return {"loss": loss, "replies": models.answer(grafted, prompts)}

    norm = jnp.sqrt(sum(jnp.sum(d**2) for d in dense.values()))
    return {"norm": norm, **jax.lax.map(at, run.alphas)}

  return tune


@functools.cache
def compiled(delta: str, with_kl: bool, width: int) -> Callable[..., Any]:
  """`tuner` over all runs of a block, `width` at a time."""
  return models.many(tuner(delta, with_kl), width)


@functools.cache
def questions() -> tuple[list[world.Item], list[world.Item]]:
  """The test questions and those of the development set."""
  test = world.test_items("test", *pairs.TEST)
  return test, world.test_items("development", *pairs.DEVELOPMENT)


def all_prompts() -> world.Prompts:
  """The prompts of both, the test first."""
  return world.prompts_of([item for part in questions() for item in part])


def validation_rows(cell: Cell) -> Rows:
  """The validation split of a cell's tuning data."""
  return tuning_rows(cell.data, "validation", VALIDATION)


def names(cell: Cell) -> list[Name]:
  """The runs of a cell."""
  return [Name(*x) for x in itertools.product(cell.arms, pairs.SEEDS, SEEDS, cell.rates)]


def models_of(arm: str, pair: int) -> tuple[int, int]:
  """(number of the tuned model, number of the served one), see `Run`."""
  count = len(pairs.SEEDS)
  if arm == "tuned Base":
    return pair, pair
  if arm == "another pair's Base":
    return (pair + 1) % count, count + pair
  return (pair if arm == "Shadow-FT" else count + pair), count + pair


def tuning_data(cell: Cell, store: Store) -> Rows:
  """The rows of every pair and seed [pair x seed, ROWS, LENGTH]; pairs mostly share them."""
  plain = [tuning_rows(cell.data, str(seed), ROWS) for seed in SEEDS]
  rows = [replayed(cell, store, pair) if "10%" in cell.control else plain for pair in pairs.SEEDS]
  return Rows(*(np.concatenate(column) for column in zip(*map(stacked, rows), strict=True)))


def stacked(rows: Sequence[Rows]) -> Rows:
  """Rows of equal shape with a leading axis."""
  return Rows(*(np.stack(column) for column in zip(*rows, strict=True)))


def replayed(cell: Cell, store: Store, pair: int) -> list[Rows]:
  """A pair's rows by seed, of which every tenth is general text or the Instruct's own answer."""
  mixed = []
  for seed in SEEDS:
    rows = tuning_rows(cell.data, str(seed), ROWS)
    if cell.control == "FT + 10% text":
      other = world.pretraining(len(rows.token[::REPLAYED]), f"replay {seed}", 0.0, 0.0)
    else:
      items = world.broad(ROWS, str(seed), DATA[cell.data][0])[::REPLAYED]
      prompts = world.prompts_of(items)
      instruct = pairs.one(store.instruct(cell.kind), pair)
      other = world.with_replies(prompts, np.asarray(answer(instruct, prompts)))
    for ours, theirs in zip(rows, other, strict=True):
      ours[::REPLAYED] = theirs
    mixed.append(rows)
  return mixed


answer = jax.jit(models.answer)


def alphas(cell: Cell, name: Name, norms: dict[tuple, float]) -> list[float]:
  """Factors of a run's delta; `norms` has those of earlier runs by cell and name."""
  if cell.control == "FT at Shadow-FT's norm":
    primary = f"{cell.data}, {cell.steps} updates"
    ours, theirs = (norms[primary, *name._replace(arm=arm)] for arm in ("FT", "Shadow-FT"))
    return [theirs / ours]
  return [0.5] if cell.control == "FT interpolated" else list(cell.alphas)


def arguments(
  cell: Cell, store: Store, chosen: Sequence[Name], norms: dict[tuple, float]
) -> tuple[Any, ...]:
  """What a `tuner` gets: `chosen` runs of a cell, models, rows, validation rows, questions."""
  size = SIZES[cell.steps]
  runs = Run(
    *np.array([models_of(n.arm, n.pair) for n in chosen], np.int32).T,
    np.array([n.pair * len(SEEDS) + SEEDS.index(n.seed) for n in chosen], np.int32),
    np.array([n.seed for n in chosen], np.int32),
    np.stack([models.order(ROWS, size, cell.steps, n.seed) for n in chosen]),
    np.stack([schedule(n.rate, cell.steps) for n in chosen]),
    np.array([alphas(cell, n, norms) for n in chosen], np.float32),
  )
  stack = jax.tree.map(
    lambda *x: np.concatenate(x), store.base(cell.kind.base), store.instruct(cell.kind)
  )
  return runs, stack, tuning_data(cell, store), validation_rows(cell), all_prompts()


def run(
  cell: Cell, store: Store, chosen: Sequence[Name], norms: dict[tuple, float], size: int
) -> Iterator[Record]:
  """Trains and asks up to `size` runs of a cell in one program."""
  filled = [*chosen, *chosen[-1:] * (size - len(chosen))]  # one shape, one program
  tune = compiled(cell.delta, cell.control == "FT + KL", min(store.width, size))
  runs, *shared = arguments(cell, store, filled, norms)
  out = jax.device_get(tune(runs, *shared))
  for i, name in enumerate(chosen):
    for j, alpha in enumerate(runs.alphas[i]):
      yield {
        "cell": cell.name,
        **name._asdict(),
        **{"alpha": float(alpha), "norm": float(out["norm"][i]), "loss": float(out["loss"][i, j])},
        **graded(out["replies"][i, j]),
      }


def graded(replies: np.ndarray) -> Record:
  """The shares of right replies to the test and development questions, and which are right."""
  test, development = questions()
  right, worked = world.grade([*test, *development], replies)
  n = len(test)
  shares = {k: float(v) for k, v in pairs.shares(test, right[:n], worked[:n]).items()}
  held = pairs.shares(development, right[n:], worked[n:])
  return {
    **shares,
    **{f"development {key}": float(held[key]) for key in ("old", "new")},
    "right": np.packbits(right[:n]).tobytes().hex(),
  }


@functools.cache
def compiled_answers(width: int) -> Callable[..., Any]:
  """The loss and the replies of models as they are."""

  def one(params, validation, prompts):
    return models.mean_loss({"params": params}, validation), models.answer(params, prompts)

  return models.many(one, width)


def untuned(cell: Cell, store: Store) -> Iterator[Record]:
  """A record for each Base and each Instruct of a cell, before any tuning."""
  stacks = {"Base": store.base(cell.kind.base), "Instruct": store.instruct(cell.kind)}
  shared = validation_rows(cell), all_prompts()
  for arm, stack in stacks.items():
    losses, replies = jax.device_get(
      compiled_answers(min(store.width, len(pairs.SEEDS)))(stack, *shared)
    )
    for pair in pairs.SEEDS:
      base, instruct = (pairs.one(x, pair) for x in stacks.values())
      yield {
        "cell": cell.name,
        **Name(arm, pair, 0, 0.0)._asdict(),
        **{"alpha": 0.0, "norm": 0.0, "loss": float(losses[pair])},
        "gap_ratio": measure.gap_ratio(base, instruct),
        **graded(replies[pair]),
      }
