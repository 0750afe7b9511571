"""Every field of an experiment: its default, meaning and range; and the paper's presets.

A config (configs/, or --config.field=value) changes a few of them.  It imports only
field.py, so that a config loads fast; a test holds the choices to the registries they name.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shadowft_jax.field import Field

if TYPE_CHECKING:
  from ml_collections import ConfigDict as Config
else:
  Config = Any


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
    "base": Field("", "the Base model: a Hugging Face folder, or its Hub id",
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

    "data.set": Field("", "name of one of the paper's datasets, for a run whose data.train is "
                      "empty"),
    "data.train": Field("", "file, FOLDER[:SUBSET] or Hub id ORG/NAME[:SUBSET][@REVISION]; several "
                        "as A*2,B*0.5, each passed so often in an epoch", hint="FILE"),
    "data.validation": Field("", "likewise; empty: val_ratio of the training rows"),
    "data.split": Field("train", "split to train on, of a Hub id or a folder whose files name "
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
    "data.think": Field("trained", "loss on the paper's empty thinking block for Qwen3: trained or "
                        "masked", ("trained", "masked")),
    "data.template_args": Field({}, "arguments of the chat template for data.recipe=chat, each set "
                                "by its name: template_args.enable_thinking=false"),
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
OPEN = "data.template_args"  # the group whose fields have names of the user's choice
# (field, value of older versions) -> its value now.
RENAMED = {("data.think", "learnt"): "trained"}
PAIRED = ("dpo",)  # objectives that train on preference pairs


def field_of(name: str) -> Field | None:
  """The field of a dotted name; of a name in the open group, one of any value; None: no field."""
  if name.startswith(f"{OPEN}.") and name.count(".") == OPEN.count(".") + 1:
    return Field(None, "argument of the chat template")
  return FIELDS.get(name)


def current(fields: Mapping[str, Any]) -> dict[str, Any]:
  """{dotted name: value} with values of older versions as they are named now."""
  return {
    name: RENAMED.get((name, value), value) if isinstance(value, str) else value
    for name, value in fields.items()
  }


def defaults() -> dict[str, Any]:
  """The defaults of FIELDS, nested."""
  config: dict[str, Any] = {}
  for name, field in FIELDS.items():
    *groups, last = name.split(".")
    node = config
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = {} if name == OPEN else field.default
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
