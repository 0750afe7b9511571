"""Plans: a config on a topology, changes that make it fit, and the search for the fastest."""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import math
from typing import Any

from shadowft_jax import models, presets, sharding
from shadowft_jax.learning import kernels
from shadowft_jax.planning import estimate, roofline, shapes as abstract, topologies
from shadowft_jax.errors import InputError
from shadowft_jax.models.decoder import REMAT
from shadowft_jax.presets import Config

COMPILED_AT_MOST = 6  # configs per search
NEAR = 1.15  # compile if the estimate is within this factor of the capacity
# Without a compiler: its figures are within 20 % of the estimates in `tests/aot`.
CAUTIOUS = 1 / 1.2
FIELDS = ("rows", "remat", "mesh.data", "mesh.fsdp", "mesh.tensor")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A config on a topology.

  Attributes:
    memory: {part: bytes per device}.
    compiled: whether `memory` is from the compiler.
    refused: the message of a compiler that ran out of memory, or "".
  """

  config: Config
  accelerator: topologies.Accelerator
  hosts: int
  run: abstract.Run
  memory: dict[str, float]
  compiled: bool = False
  refused: str = ""

  @property
  def total(self) -> float:
    """Bytes per device."""
    return sum(self.memory.values())

  @property
  def capacity(self) -> int:
    """Bytes per device that are available to a run."""
    return self.accelerator.memory - estimate.RESERVED[self.accelerator.platform]

  @property
  def fits(self) -> bool:
    """Whether the memory suffices, according to the compiler or the estimate."""
    return not self.refused and self.total <= self.capacity

  @property
  def images(self) -> int:
    """Images of a row."""
    return self.run.batch["pixel"].shape[1] if "pixel" in self.run.batch else 0

  @property
  def link(self) -> float:
    """Bytes per second to other devices, in one direction."""
    return roofline.HOST_LINK if self.hosts > 1 else self.accelerator.link / 2

  @property
  def seconds(self) -> roofline.Seconds:
    """See `roofline.Seconds`."""
    return roofline.seconds(self.run, self.accelerator, self.link)

  @property
  def seconds_a_row(self) -> float:
    """Seconds per row of a micro-batch."""
    return self.seconds.microbatch / self.config.rows


def make(
  config: Config,
  hf: Mapping[str, Any],
  topology: str,
  *,
  compile: bool = True,
  shapes: abstract.Shapes | None = None,
  images: int | None = None,
) -> Plan:
  """The Plan of a config.

  Args:
    config: see presets.py.
    hf: config.json of the model.
    topology: see `topologies.parse`.
    compile: whether to compile the step, if this environment has the compiler.
    shapes: `shapes.shapes_of` the config, if already computed.
    images: of a row, if that is known; see `shapes.images_a_row`.

  Raises:
    InputError: the topology or mesh is invalid, or the model family is not supported.
  """
  accelerator, shape = topologies.parse(topology)
  hosts = shape[0] if accelerator.platform == "cuda" and len(shape) == 2 else 1
  config = config.copy_and_resolve_references()
  if config.attention == "auto":
    platform = {"cuda": "gpu"}.get(accelerator.platform, accelerator.platform)
    cfg, sees = models.from_config(hf).cfg, abstract.images_a_row(config, hf, images) > 0
    config.attention, _ = kernels.expected(accelerator.kind, platform, cfg, config.dtype, sees)
  compile = compile and topologies.has_compiler(accelerator)
  mesh = (
    sharding.make_mesh(config.mesh, topologies.mesh_devices(topology))
    if compile
    else sharding.abstract_mesh(config.mesh, math.prod(shape))
  )
  sharding.check_batch(config.rows, config.data.max_length, mesh)
  run = abstract.abstract_run(config, hf, mesh, shapes, images)
  plan = Plan(config, accelerator, hosts, run, estimate.memory(run))
  if not compile:
    return plan
  try:
    memory = estimate.memory(run, abstract.compiled(run))
    return dataclasses.replace(plan, memory=memory, compiled=True)
  except abstract.DoesNotFit as error:
    memory = dict(plan.memory)
    if error.bytes:  # includes the program's own arrays: all parts except the optimizer
      memory["temporaries"] = max(
        0, error.bytes - sum(memory.values()) + memory["temporaries"] + memory["optimizer"]
      )
    return dataclasses.replace(plan, memory=memory, compiled=True, refused=str(error))


def changed(config: Config, **fields: Any) -> Config:
  """A copy of a config with `fields`, given by dotted names, changed."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def remedies(plan: Plan, hf: Mapping[str, Any], topology: str) -> list[str]:
  """The smallest sets of config changes estimated to make a plan fit; or more devices."""
  mesh, now = plan.run.mesh.shape, presets.flat(plan.config.to_dict())
  ways = mesh["data"] * mesh["fsdp"]
  changes: list[dict[str, Any]] = [
    {"remat": "full"},
    {"rows": ways},
    {"mesh.data": 1, "mesh.fsdp": ways},
    {"moment_dtype": "bfloat16"},
  ]
  if plan.config.delta.kind == "full" and plan.config.dtype == "bfloat16":
    changes.append({"gradient_dtype": "bfloat16"})
  if plan.config.delta.kind == "lora":
    changes.append({"frozen_dtype": "int8"})
  changes = [c for c in changes if any(now[k] != v for k, v in c.items())]

  def estimated(config):
    return make(config, hf, topology, compile=False, images=plan.images).total

  unseen = plan.total - estimated(plan.config)  # bytes that the estimate misses
  for count in range(1, len(changes) + 1):
    fitting = []
    for chosen in itertools.combinations(changes, count):
      fields = {k: v for change in chosen for k, v in change.items()}
      total = estimated(changed(plan.config, **fields)) + unseen
      if total <= plan.capacity:
        flags = " ".join(f"--config.{k}={v}" for k, v in fields.items())
        fitting.append(f"{flags} ({total / 2**30:.1f} GiB)")
    if fitting:
      return fitting
  arrays = sum(plan.memory[n] for n in ("Base", "delta", "optimizer", "gradients"))
  room = plan.capacity - plan.total + arrays
  if room <= 0:
    return ["shorter rows (config.data.max_length), or devices with more memory"]
  return [f"at least {math.ceil(plan.run.mesh.size * arrays / room)} such devices"]


def candidates(config: Config, count: int) -> Iterator[Config]:
  """Yields configs with other micro-batches, remat policies and meshes for `count` devices."""
  context = config.mesh.get("context", 1)
  for tensor, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8)):
    if count % (tensor * data * context):
      continue
    fsdp = count // (tensor * data * context)
    for rows, remat in itertools.product((1, 2, 4, 8), REMAT):
      yield changed(
        config,
        **{
          "rows": rows * data * fsdp,
          "remat": remat,
          "mesh.data": data,
          "mesh.fsdp": fsdp,
          "mesh.tensor": tensor,
        },
      )


def search(
  config: Config, hf: Mapping[str, Any], topology: str, images: int | None = None
) -> list[Plan]:
  """The plans that were compiled; the last is the fastest that fits, if any does.

  All candidates are estimated, and those that may fit are compiled, fastest first.  For the
  arguments see `make`.
  """
  accelerator, shape = topologies.parse(topology)
  plans: list[Plan] = []
  shapes = abstract.shapes_of(config, hf, images)
  for candidate in candidates(config, math.prod(shape)):
    try:
      plan = make(candidate, hf, topology, compile=False, shapes=shapes, images=images)
      plans.append(plan)
    except InputError:  # a mesh that does not divide the model
      continue
  if not plans:
    raise InputError(
      f"the model cannot be sharded over {math.prod(shape)} devices; choose another --topology"
    )
  can = topologies.has_compiler(accelerator)
  likely = [p for p in plans if p.total <= p.capacity * (NEAR if can else CAUTIOUS)]
  likely = sorted(likely, key=lambda p: p.seconds_a_row) or [min(plans, key=lambda p: p.total)]
  if not can:
    return likely[:1]
  tried: list[Plan] = []
  for plan in likely[:COMPILED_AT_MOST]:
    tried.append(make(plan.config, hf, topology, images=images))
    if tried[-1].fits:
      break
  return tried


def flags_of(plan: Plan) -> list[str]:
  """The flags that set the searched fields as in this plan."""
  now = presets.flat(plan.config.to_dict())
  return [f"--config.{name}={now[name]}" for name in FIELDS]
