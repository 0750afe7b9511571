"""The training loop: starts or resumes, steps, validates and saves."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import jax
from jax.sharding import Mesh
import jax.numpy as jnp
import optax

from shadowft_jax import delta as delta_lib, hosts, presets, sharding, tree
from shadowft_jax.data.planned import Dataset
from shadowft_jax.data.packing import Arrays
from shadowft_jax.errors import InputError, listing
from shadowft_jax.hf import deltas, leaves
from shadowft_jax.hf.folder import ModelFolder
from shadowft_jax.learning import checkpoints, guards, nans, optim, reference
from shadowft_jax.learning import step as step_lib
from shadowft_jax.learning.recorder import Recorder
from shadowft_jax.learning.samples import Samples
from shadowft_jax.hf import int8
from shadowft_jax.presets import Config
from shadowft_jax.progress import Stopped, count, duration, say
from shadowft_jax.runs import trackers
from shadowft_jax.runs.metrics import Log
from shadowft_jax.runs.run import Run
from shadowft_jax.tree import Batch, Delta, Params

Metrics = dict[str, float]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Trainer:
  """Everything that stays the same from the first step to the last."""

  loss: step_lib.Loss
  base: Params  # frozen
  data: Dataset
  start: Delta | None  # the reference's, where it is neither W_B nor in the data
  tx: optax.GradientTransformation
  schedule: Callable[[int], float]
  config: Config
  mesh: Mesh
  samples: Samples | None

  def batches(self, first: int) -> Iterator[list[Arrays]]:
    """This process's micro-batches of each step from number `first` on, counted from 1.

    The batches of a step are packed while the devices compute the previous step.
    """
    share, steps = sharding.my_share(self.mesh), range(first - 1, len(self.data.steps))
    return prefetch(list(self.data.batches(i, share)) for i in steps)

  def prepared(
    self, state: step_lib.TrainState, arrays: Callable[[], Iterable[Arrays]]
  ) -> Iterable[Batch]:
    """The micro-batches of a step or split on the devices, as the loss needs them."""
    batches = lambda: step_lib.on_devices(arrays(), self.mesh)
    return step_lib.with_divergence(state.delta, self.base, batches, self.start, loss=self.loss)

  def step(
    self, state: step_lib.TrainState, arrays: Iterable[Arrays], limit: float
  ) -> tuple[step_lib.TrainState, Mapping[str, jax.Array]]:
    """One optimizer step; it is skipped if its loss is above `limit`.

    It does not wait for the devices.
    """
    arrays = list(arrays)
    batches = self.prepared(state, lambda: arrays)
    # The gradients stay unnamed so that their memory is freed before the next step allocates.
    state, metrics = step_lib.update(
      state,
      *step_lib.gradients(
        state.delta,
        self.base,
        batches,
        self.start,
        loss=self.loss,
        dtype=self.config.gradient_dtype,
      ),
      self.config.lr,
      limit,
      tx=self.tx,
    )
    if self.config.debug_nans and not all(map(jnp.isfinite, metrics.values())):
      batches = self.prepared(state, lambda: arrays)  # the update was skipped: the same delta
      where = nans.fault(state.delta, self.base, batches, self.start, loss=self.loss)
      raise FloatingPointError(f"not finite at step {int(state.step)}: first {where}")
    return state, metrics

  def validate(self, state: step_lib.TrainState) -> Metrics:
    """The metrics on the validation split; {} without one."""
    if not self.data.valid:
      return {}
    batches = self.prepared(state, lambda: step_lib.valid_arrays(self.data, self.mesh))
    means = step_lib.means(state.delta, self.base, batches, self.start, loss=self.loss)
    return {f"valid_{k}": v for k, v in means.items()}

  def answer(self, state: step_lib.TrainState) -> None:
    """Answers sample prompts, if there are any."""
    if self.samples:
      model, scale = self.loss.model, self.loss.scale
      self.samples.during(int(state.step), model, self.base, state.delta, scale)

  def is_due(self, number: int) -> bool:
    """Whether step `number` ends with a validation and a checkpoint."""
    every = self.config.eval_every
    return number == len(self.data.steps) or bool(every) and number % every == 0


def prefetch(items: Iterator[T]) -> Iterator[T]:
  """Yields the items of an iterator; a thread makes the next one while the current one is used."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    upcoming = pool.submit(next, items, None)
    while (item := upcoming.result()) is not None:
      upcoming = pool.submit(next, items, None)
      yield item


def learn(
  loss: step_lib.Loss,
  base: Params,
  data: Dataset,
  config: Config,
  run: Run,
  mesh: Mesh,
  *,
  trained: ModelFolder,
  samples: Samples | None = None,
) -> Delta:
  """Trains W_B + delta from where the run left off; returns the newest delta, or the best.

  Args:
    base: the frozen parameters, of the folder `trained`.
    samples: answered with each validation.

  Raises:
    InputError: config.delta.init does not fit the config.
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  if config.debug_nans and hosts.is_several():
    raise InputError("config.debug_nans needs one process; run the command on one machine, alone")
  tx, schedule = optim.make(config, len(data.steps))
  start = load_start(config, base, mesh)
  state = step_lib.init_state(config, base, tx, mesh, start)
  is_precomputed = presets.has_reference(config) and config.dpo.reference == "precomputed"
  if is_precomputed:
    folders = filter(None, [trained.directory, config.delta.init])
    data = reference.loaded_or_computed(
      start, base, data, folders, loss=loss, mesh=mesh, workdir=run.directory
    )
  say(*_size(base, state.delta, data, config))
  start = start if presets.has_reference(config) and not is_precomputed else None
  trainer = _Trainer(loss, base, data, start, tx, schedule, config, mesh, samples)
  with checkpoints.open_checkpoints(run.checkpoints) as saved:
    resumed = hosts.agree(saved.latest.step if saved.latest else None)
    if resumed is not None:
      state = checkpoints.restore(saved, state, resumed)
      say(f"resuming {run.directory} from step {resumed}")
    first, began = int(state.step), time.monotonic()
    if samples:
      samples.restart(first)
    tracker = trackers.opened(run.directory, config)
    with Log(run.directory, first, len(data.steps), config.eval_every, tracker) as log:
      state = _steps(state, trainer, saved, log)
    last, best = int(state.step), checkpoints.best_step(saved)
    say(f"trained {count(last - first, 'step')} in {duration(time.monotonic() - began)}")
    if last < len(data.steps):
      say(
        f"stopped early, at step {last} of {len(data.steps)}; the validation loss is lowest at "
        f"step {best}, and config.graft.checkpoint={config.graft.checkpoint} is grafted"
      )
    given = load_start(config, base, mesh)  # `state` may have given its arrays to the steps
    guards.check_changed(state.delta, given, config, last)
    if config.graft.checkpoint == "best":
      state = checkpoints.restore(saved, state, best)
      guards.check_changed(state.delta, given, config, last, best)
  return state.delta


def _size(base, delta, data, config):
  """Yields two lines: the number of parameters; the number of steps and the learning rate."""
  how = f"LoRA of rank {config.delta.rank}" if config.delta.kind == "lora" else "full tuning"
  yield f"{int8.parameters(base):,} parameters frozen, {tree.size(delta):,} trained ({how})"
  steps, batch = len(data.steps), max(len(s.examples) for s in data.steps)
  unit = "pair" if presets.is_paired(config) else "example"
  epochs = "" if config.max_steps > 0 else f" in {count(config.epochs, 'epoch')}"
  yield (
    f"{count(steps, 'step')} of {count(batch, unit)}{epochs}; learning rate: "
    f"{optim.describe(config, steps)}"
  )


def _steps(
  state: step_lib.TrainState, trainer: _Trainer, saved: checkpoints.Checkpointer, log: Log
) -> step_lib.TrainState:
  """Runs the optimizer from `state` to the last step, or an early stop; returns the last state.

  Raises:
    Stopped: a signal has asked for it; the state is saved.
  """
  guard = guards.Guard.of(trainer.config, hosts.agree(checkpoints.guard_of(saved)))
  done, data = int(state.step), trainer.data
  if done == 0:
    log.write(0, **trainer.validate(state))
    trainer.answer(state)
  elif trainer.is_due(done) and data.valid and saved.latest and not saved.latest.metrics:
    _validate_and_save(state, trainer, saved, log, guard)  # it was stopped before it had
  if checkpoints.has_stalled(saved, done, trainer.config):
    return state
  with Recorder(data, trainer.schedule, guard, saved, log) as recorder:
    for number, arrays in enumerate(trainer.batches(done + 1), done + 1):
      saved.check()
      state, metrics = trainer.step(state, arrays, guard.limit)
      recorder.take(number, metrics)
      if trainer.is_due(number) or hosts.stop_asked():
        recorder.finish(tell=False)
        _validate_and_save(state, trainer, saved, log, guard)
        log.report(number)
      elif guard.window:  # the next step's limit depends on this loss
        recorder.finish()
      if checkpoints.has_stalled(saved, number, trainer.config):
        break
  return state


def _validate_and_save(state, trainer, saved, log, guard):
  """Validates and saves the state; if a signal stops it, the state is saved without a loss."""
  number = int(state.step)
  try:
    hosts.check_stop()
    validation = trainer.validate(state)
    trainer.answer(state)
  except Stopped:
    checkpoints.save(saved, state, number, None, guard.state)
    saved.wait()
    say(f"saved step {number:,} of {len(trainer.data.steps):,}")
    raise
  guards.check_finite(validation, number, saved)
  log.write(number, **validation)
  checkpoints.save(saved, state, number, validation.get("valid_loss"), guard.state)
  log.restart_clock()


def load_start(config: Config, base: Params, mesh: Mesh) -> Delta | None:
  """The initial delta of config.delta.init, in the form that the run trains; None if not set.

  Raises:
    InputError: its kind, rank, alpha or leaves differ from the config.
  """
  c = config.delta
  if not c.init:
    return None
  start, scale = deltas.load(c.init, mesh=mesh, runs=leaves.runs_of(tree.names(base)))
  want = jax.eval_shape(lambda: delta_lib.zeros(jax.random.key(0), base, c))
  forms = [
    f"a delta of {', '.join(d)}, scale {s:g}, {tree.size(d):,} parameters"
    for d, s in ((start, scale), (want, delta_lib.scale_of(c)))
  ]
  if forms[0] != forms[1]:
    raise InputError(
      f"config.delta.init={c.init} holds {forms[0]}; config.delta, of kind "
      f"{c.kind}, match {c.match}, rank {c.rank} and alpha {c.alpha:g}, makes "
      f"{forms[1]}; set them as in the run that made it"
    )
  if bad := [n for n, x in tree.names(start).items() if not jnp.isfinite(x).all()]:
    raise InputError(f"config.delta.init={c.init} contains NaN or infinity:{listing(bad)}")
  tree.check_fits(start, want, part_is=f"config.delta.init={c.init}", whole_is="the Base")
  return start
