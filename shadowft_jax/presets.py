"""Every field of an experiment: its default, meaning and range; and the paper's presets.

A config (configs/, or --config.field=value) changes a few of them.  This module imports nothing of
ours, so that a config loads fast; a test holds the choices to the registries they name.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ml_collections import ConfigDict as Config
else:
  Config = Any

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
LARGEST = 2**32 - 1  # a whole number; generators of random numbers take no larger seed
FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # the least and the largest size, which compute


@dataclasses.dataclass(frozen=True)
class Field:
  """One setting.

  Attributes:
    default: if there is one.
    meaning: one line, for --help and the docs.
    choices: all values that are allowed, if there are a few.
    above, least, below, most: bounds of a number; `above` and `below` are exclusive.
    is_nonzero: 0 is not allowed.
    is_regex: the value is a regular expression over names of tensors or leaves.
    hint: what to set, where an empty value is an error.
  """

  default: Any
  meaning: str
  choices: tuple[Any, ...] = ()
  above: float | None = None
  least: float | None = None
  below: float | None = None
  most: float | None = None
  is_nonzero: bool = False
  is_regex: bool = False
  hint: str = ""

  @property
  def range(self) -> str:
    """The bounds in words; "" where there are none."""
    bounds = {
      "above": self.above,
      "at least": self.least,
      "below": self.below,
      "at most": self.most,
    }
    told = {
      n: f"{x:,}" if isinstance(x, int) else f"{x:g}" for n, x in bounds.items() if x is not None
    }
    return " and ".join([f"{name} {x}" for name, x in told.items()] + ["not 0"] * self.is_nonzero)

  def contains(self, value: float) -> bool:
    """Whether a number is finite and within the bounds."""
    return (
      (isinstance(value, int) or math.isfinite(value))
      and not (self.is_nonzero and value == 0)
      and (self.above is None or value > self.above)
      and (self.least is None or value >= self.least)
      and (self.below is None or value < self.below)
      and (self.most is None or value <= self.most)
    )

  def fault(self, value: Any) -> str:
    """The rule that a value breaks; "" if it is right."""
    if self.choices:
      return "" if value in self.choices else f"is one of {', '.join(map(str, self.choices))}"
    if self.is_regex:
      return _regex_fault(value)
    if self.range and not self.contains(value):
      is_open = self.below is None and self.most is None
      is_finite = isinstance(value, int) or math.isfinite(value)
      return f"must be {self.range}" + " and finite" * (is_open and not is_finite)
    return _number_fault(value)

  def mistyped(self, value: Any) -> str:
    """What a value should be, if it is of another type than the default; "" if it is right."""
    kind = type(self.default)
    is_right = isinstance(value, int | float if kind is float else kind)
    is_bool = isinstance(value, bool)  # which Python counts as a number
    return "" if is_right and is_bool == (kind is bool) else f"needs {KINDS[kind]}"


def _regex_fault(value):
  """As `Field.fault`, of a regular expression over the names of tensors or leaves."""
  try:
    re.compile(value)
  except (re.error, OverflowError, RecursionError) as error:
    return f"is not a regular expression ({error})"
  # No name has a comma: who writes one means several names.
  if "," in re.sub(r"\{\d*,\d*\}", "", value):
    names = "|".join(filter(None, (part.strip() for part in value.split(","))))
    return f"is a regular expression, which separates names by |: '{names}'"
  return ""


def _number_fault(value):
  """As `Field.fault`, of a number that is in the range."""
  if isinstance(value, float):
    if not math.isfinite(value):
      return "must be finite"
    if value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
      return f"must have a size from {FLOAT32[0]:.2g} to {FLOAT32[1]:.2g}, as a 32-bit float"
  if isinstance(value, int) and abs(value) > LARGEST:
    return f"must be at most {LARGEST:,}"
  return ""


def _share(default: float, meaning: str) -> Field:
  return Field(default, meaning, least=0, below=1)


def _count(default: float, meaning: str) -> Field:
  return Field(default, meaning, above=0)


def _axis(default: int, meaning: str) -> Field:
  return Field(default, f"{meaning}; -1: all devices that are left", least=-1, is_nonzero=True)


SCOPE = "projections (of the layers), all, or a regex over leaf names"
# Supervised tuning by LoRA of rank 128.  Source: arXiv 2505.12716, section 4.1 and its code.
# fmt: off
FIELDS: dict[str, Field] = {
    "pair": Field("", "name of a released pair: fills base and instruct where they are empty"),
    "base": Field("", "the Base model: a Hugging Face folder, or its id on the hub",
                  hint="FOLDER (or --config.pair=NAME)"),
    "instruct": Field("", "the Instruct model, which is grafted and whose chat template is used",
                      hint="FOLDER (or --config.pair=NAME)"),
    "learn_on": Field("base", "the model to train; base: Shadow-FT, instruct: plain fine-tuning, "
                      "for comparison", ("base", "instruct")),
    "seed": Field(42, "seed of the data order and of the adapter", least=0),
    "dtype": Field("bfloat16", "dtype of the frozen weights and of matrix products in training",
                   ("bfloat16", "float32")),
    "gradient_dtype": Field("float32", "dtype of accumulated gradients; bfloat16 for full tuning "
                            "only", ("float32", "bfloat16")),
    "moment_dtype": Field("float32", "dtype of Adam's first moment", ("float32", "bfloat16")),
    "attention": Field("auto", "attention backend; auto takes the first that agrees with the "
                       "reference on this device",
                       ("auto", "xla", "chunked", "cudnn", "flash", "splash")),
    "remat": Field("full", "what the backward pass computes again: full, dots or none",
                   ("full", "dots", "none")),
    "mesh.data": _axis(1, "devices that hold copies of the model"),
    "mesh.fsdp": _axis(-1, "devices that each hold a share of the model"),
    "mesh.tensor": _axis(1, "devices that each compute a share of every product"),
    "mesh.context": _axis(1, "devices that each take a share of every row's tokens"),

    "delta.kind": Field("lora", "lora: low-rank adapter; full: all weights", ("lora", "full")),
    "delta.match": Field("projections", f"which leaves are trained: {SCOPE}", is_regex=True),
    "delta.rank": _count(128, "rank of the adapter"),
    "delta.alpha": _count(256.0, "the adapter's product is multiplied by alpha / rank"),
    "delta.init": Field("", "delta to start from, of the same kind and rank: a run's folder, its "
                        "delta/ or an adapter; empty: none"),

    "objective": Field("sft", "sft: supervised tuning; dpo: preference pairs", ("sft", "dpo")),
    "dpo.beta": _count(0.1, "strength of the KL penalty; smaller lets the policy move further "
                       "from the reference"),
    "dpo.loss": Field("sigmoid", "loss of a preference pair", ("sigmoid", "ipo", "hinge")),
    "dpo.label_smoothing": Field(0.0, "assumed share of swapped pairs, for dpo.loss=sigmoid",
                                 least=0, below=0.5),
    "dpo.length_normalised": Field(False, "log-probabilities as means over an answer's tokens "
                                   "instead of sums"),
    "dpo.ftx": Field(0.0, "weight of the chosen answer's cross-entropy in the loss", least=0),
    "dpo.reference": Field("precomputed", "when the reference's log-probabilities are computed: "
                           "once before training, or at every step",
                           ("precomputed", "on_the_fly")),

    "data.set": Field("", "name of one of the paper's data sets, for a run whose data.train is "
                      "empty"),
    "data.train": Field("", "file, FOLDER[:SUBSET] or hub id ORG/NAME[:SUBSET][@REVISION]; several "
                        "as A*2,B*0.5, each passed so often in an epoch", hint="FILE"),
    "data.validation": Field("", "likewise; empty: val_ratio of the training rows"),
    "data.split": Field("train", "split to train on, of a hub id or a folder whose files name "
                        "splits"),
    "data.validation_split": Field("validation", "split to validate on, likewise"),
    **{f"data.columns.{name}": Field("", f"column of the {name}; all empty: found by looking at "
                                     "the rows")
       for name in ("prompt", "response", "system", "messages", "chosen", "rejected", "text",
                    "images", "tools")},
    "data.skip_bad_rows": Field(False, "leave bad rows out, counted and listed, instead of ending "
                                "the run"),
    "data.images": Field("refuse", "rows with images: refuse them, or ignore the images and train "
                         "on the text", ("refuse", "ignore")),
    "data.val_ratio": _share(0.01, "share of the training rows used for validation"),
    "data.max_examples": Field(0, "training rows to use, before any shuffling; 0 or -1: all",
                               least=-1),
    "data.select": Field("first", "which of them: first or uniform", ("first", "uniform")),
    "data.recipe": Field("chat", "chat: the Instruct's own template; paper: the authors' framing",
                         ("chat", "paper")),
    "data.template": Field("", "template of the paper's recipe; empty: by the Base's name"),
    "data.think": Field("learnt", "loss on the paper's empty thinking block for Qwen3: learnt or "
                        "masked", ("learnt", "masked")),
    "data.max_length": _count(4096, "tokens of an example at most, and of a packed row"),
    "data.layout": Field("packed", "packed: examples share rows; bucketed: one example a row, "
                         "padded to a few lengths", ("packed", "bucketed")),
    "data.cache": Field("", "folder of cached tokens; empty: ~/.cache/shadowft_jax"),

    "epochs": _count(1, "passes over the training data"),
    "max_steps": Field(0, "optimizer steps, over as many epochs as that takes; 0 or -1: by epochs",
                       least=-1),
    "batch_size": _count(256, "examples per optimizer step, over all devices"),
    "rows": _count(8, "packed rows per micro-batch, over all devices; sets the memory"),
    "loss_chunk": _count(512, "positions whose logits exist at a time"),
    "loss_mean": Field("token", "mean of the loss: over a step's tokens, or over ranks as in the "
                       "paper's trainer", ("token", "rank")),
    "ranks": _count(8, "loss_mean=rank: number of devices"),
    "rank_examples": _count(2, "loss_mean=rank: examples a device takes at a time"),

    "lr": _count(2e-4, "peak learning rate"),
    "warmup_ratio": Field(0.1, "share of the steps with linear warm-up", least=0, most=1),
    "b1": _share(0.9, "Adam's beta1"),
    "b2": _share(0.999, "Adam's beta2"),
    "eps": _count(1e-8, "Adam's epsilon"),
    "weight_decay": Field(
      0.0, "AdamW's decay of the delta: of its factors (LoRA), or towards W_B (full)", least=0
    ),
    "grad_clip_norm": Field(1.0, "clip gradients to this global norm; 0: off", least=0),
    "eval_every": Field(10, "steps between validations, each with a checkpoint; 0: at the end "
                        "only", least=0),
    "graft.match": Field("projections", f"which trained leaves are grafted: {SCOPE}",
                         is_regex=True),
    "graft.checkpoint": Field("newest", "checkpoint to graft: newest, or best by validation loss",
                              ("newest", "best")),
}
# fmt: on
PAIRED = ("dpo",)  # objectives that train on preference pairs


def defaults() -> dict[str, Any]:
  """The defaults of FIELDS, nested."""
  config: dict[str, Any] = {}
  for name, field in FIELDS.items():
    *groups, last = name.split(".")
    node = config
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = field.default
  return config


def sft() -> Config:
  """Supervised tuning by LoRA of rank 128: the defaults."""
  from ml_collections import ConfigDict  # A bare machine, which benchmarks a step, has none.

  return ConfigDict(defaults())


def paper() -> Config:
  """`sft` with the framing of the authors' text and the means and steps of their trainer.

  docs/paper.md lists what still differs from their code, and why.
  """
  c = sft()
  c.data.recipe = "paper"  # its limit of 2000 rows is that of data.set
  c.data.select, c.data.val_ratio = "first", 0.01
  c.data.max_length, c.data.layout = 4096, "packed"
  c.epochs, c.batch_size = 1, 256  # 2 examples x 16 accumulated x 8 devices
  c.loss_mean, c.ranks, c.rank_examples = "rank", 8, 2
  c.warmup_ratio = 0.1
  return c


def dpo() -> Config:
  """`sft` with preference pairs in the place of answers (arXiv 2505.12716, section 5.3).

  The paper gives the ranks, 8 and 128, and 1000 pairs.  The rest is LLaMA-Factory's example of DPO
  by LoRA (examples/train_lora/llama3_lora_dpo.yaml), with its 8 pairs on each of 8 devices.
  """
  c = sft()
  c.objective = "dpo"
  c.delta.rank, c.delta.alpha, c.data.max_length = 8, 16.0, 4096  # half for each side of a pair
  c.lr, c.warmup_ratio, c.epochs, c.batch_size = 5e-6, 0.1, 3, 64  # pairs
  return c


def is_paired(config: Config) -> bool:
  """Whether the objective trains on preference pairs."""
  return config.objective in PAIRED


def flat(value: Any, name: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  if not isinstance(value, dict):
    return {name: value}
  return {
    k: v
    for key, part in value.items()
    for k, v in flat(part, f"{name}.{key}" if name else key).items()
  }
