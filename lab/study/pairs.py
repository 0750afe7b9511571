"""Makes the study's pairs: 8 pretraining seeds, three Bases each, and Instructs from them."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab import pair
from lab.study import models, world
from shadowft_jax import tree
from shadowft_jax.tree import Params

SEEDS = tuple(range(8))
PLAIN_STEPS, MIXED_STEPS, BASE_RATE, SIZE = 900, 300, 4e-3, 128
CHUNK = 100  # steps in one program; every number of steps is a multiple of it
PLAIN_ROWS, MIXED_ROWS, CHAT_ROWS = 40_000, 16_000, 12_000
TEST, DEVELOPMENT = (100, 300), (40, 120)  # questions of each old skill, and of the new one
# (share of chats at the end of the pretraining, share of those with working)
BASES = {"bare chats": (0.25, 0.05), "no chats": (0.0, 0.0), "worked chats": (0.25, 0.9)}


@dataclasses.dataclass(frozen=True)
class Kind:
  """How the pairs of a cell are made."""

  base: str = "bare chats"  # a key of BASES
  worked: bool = True  # whether the Instruct's answers show their working
  steps: int = 600  # of post-training
  rate: float = 3e-4

  @property
  def name(self) -> str:
    """The file of such Instructs."""
    manner = "worked" if self.worked else "bare"
    return f"{self.base} {manner} {self.steps} steps of {self.rate:g}".replace(" ", "-")


def fit(width: int, optimizer: Any, starts: Params, data: Sequence[world.Rows], rate: np.ndarray):
  """Trains a model from each of `starts` on its own rows; len(rate) is a multiple of CHUNK."""
  order = np.stack(
    [models.order(len(rows.token), SIZE, len(rate), i) for i, rows in enumerate(data)]
  )
  params, state = starts, jax.vmap(optimizer.init)(starts)
  train = compiled(optimizer, min(width, len(data)))
  for i in range(0, len(rate), CHUNK):
    rows_NSB = order[:, i : i + CHUNK]
    batches = world.Rows(
      *(
        np.stack([column[index] for column, index in zip(columns, rows_NSB, strict=True)])
        for columns in zip(*data, strict=True)
      )
    )
    rates = np.broadcast_to(rate[i : i + CHUNK], (len(data), CHUNK))
    params, state = train((params, state, batches, rates))
  return jax.device_get(models.stored(params))


@functools.cache
def compiled(optimizer: Any, width: int) -> Callable[..., Any]:
  """`models.fit`, compiled for all pairs."""
  return models.many(models.fit(optimizer), width)


def rates(rate: float, steps: int, warm: int, end: float) -> np.ndarray:
  """A linear warm-up and then a linear decay to `end` of the rate."""
  schedule = pair.schedule(rate, steps, warm, end)
  return np.asarray(jax.vmap(schedule)(jnp.arange(1, steps + 1)), np.float32)


class Store:
  """The stacked models [8, ...] of a folder, made when they are first asked for."""

  def __init__(self, folder: pathlib.Path, width: int):
    self.folder, self.width = folder, width
    self.cache: dict[str, Params] = {}
    folder.mkdir(parents=True, exist_ok=True)

  def _get(self, name, make):
    path = self.folder / f"{name.replace(' ', '-')}.npz"
    if name not in self.cache:
      if not path.exists():
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **{n.replace("/", "."): x for n, x in tree.names(make()).items()})
        part.replace(path)
      with np.load(path) as arrays:
        self.cache[name] = tree.nest({n.replace(".", "/"): arrays[n] for n in arrays.files})
    return self.cache[name]

  def plain(self) -> Params:
    """Models pretrained on plain text alone."""

    def make():
      keys = jax.vmap(jax.random.key)(jnp.array(SEEDS))
      init = lambda key: models.MODEL.init(key, jnp.zeros((1, 8), jnp.int32))["params"]
      data = [world.pretraining(PLAIN_ROWS, f"{s} plain", 0.0, 0.0) for s in SEEDS]
      rate = rates(BASE_RATE, PLAIN_STEPS, 100, 1.0)
      return fit(self.width, models.MUON, jax.vmap(init)(keys), data, rate)

    return self._get("plain", make)

  def base(self, name: str) -> Params:
    """The Bases of a kind."""

    def make():
      data = [world.pretraining(MIXED_ROWS, f"{s} mixed", *BASES[name]) for s in SEEDS]
      rate = rates(BASE_RATE, MIXED_STEPS, 20, 0.02)
      return fit(self.width, models.MUON, self.plain(), data, rate)

    return self._get(f"base {name}", make)

  def instruct(self, kind: Kind) -> Params:
    """The Instructs of a kind."""

    def make():
      drawn = [itertools.islice(world.items(world.OLD, f"chat {s}"), CHAT_ROWS) for s in SEEDS]
      data = [world.conversations(items, kind.worked) for items in drawn]
      rate = rates(kind.rate, kind.steps, 20, 0.02)
      return fit(self.width, models.ADAM, self.base(kind.base), data, rate)

    return self._get(f"instruct {kind.name}", make)


def one(stacked: Params, i: int) -> Params:
  """The i-th of stacked models."""
  return jax.tree.map(lambda x: x[i], stacked)


def shares(items: Sequence[world.Item], right: np.ndarray, worked: np.ndarray) -> dict[str, Any]:
  """{measure: share [...]} from what `world.grade` says of replies [..., N].

  old: the mean over old skills; hard: of those that need working; new: of the new skill; worked:
  the share of the replies to hard questions that show working.
  """
  skills = np.array([item.skill for item in items])
  by = {name: right[..., skills == name].mean(-1) for name in (*world.OLD, world.NEW)}
  return {
    "old": np.mean([by[name] for name in world.OLD], 0),
    "hard": np.mean([by[name] for name in world.WORKED], 0),
    "new": by[world.NEW],
    "worked": worked[..., np.isin(skills, world.WORKED)].mean(-1),
  }
