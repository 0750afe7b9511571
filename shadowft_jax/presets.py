"""All fields of an experiment (default, meaning, range), and the paper's presets.

A config (configs/, or --config.field=value) changes a few of them.  This module imports only
field.py, so that configs load fast; a test checks the choices against the registries.
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
  return Field(default, f"{meaning}; -1: all remaining devices", least=-1, is_nonzero=True)


SCOPE = "projections (the linear layers of every block), all, or a regex on parameter names"
# SFT with LoRA of rank 128.  Source: arXiv 2505.12716, section 4.1 and its code.
# fmt: off
FIELDS: dict[str, Field] = {
    "pair": Field("", "name of a released pair; sets base and instruct if they are empty"),
    "base": Field("", "the Base model: a Hugging Face folder or a Hub id",
                  hint="FOLDER (or --config.pair=NAME)"),
    "instruct": Field("", "the Instruct model, onto which the delta is grafted and whose chat "
                      "template is used: a Hugging Face folder or a Hub id",
                      hint="FOLDER (or --config.pair=NAME)"),
    "learn_on": Field("base", "the model to train; base: Shadow-FT, instruct: plain fine-tuning, "
                      "for comparison", ("base", "instruct")),
    "seed": Field(42, "seed of the data order and of the adapter's initialisation", least=0),
    "dtype": Field("bfloat16", "dtype of the frozen weights and of matrix products in training",
                   ("bfloat16", "float32")),
    "frozen_dtype": Field("", "dtype in memory of the linear layers that an adapter is trained on; "
                          "int8: half of bfloat16; empty: dtype", ("", "int8")),
    "gradient_dtype": Field("float32", "dtype of accumulated gradients; bfloat16 only for full "
                            "fine-tuning", ("float32", "bfloat16")),
    "moment_dtype": Field("float32", "dtype of Adam's first moment", ("float32", "bfloat16")),
    "attention": Field("auto", "attention backend; auto: the first that agrees with the reference "
                       "implementation on this device",
                       ("auto", "xla", "chunked", "cudnn", "flash", "splash")),
    "remat": Field("full", "activation checkpointing; what the backward pass recomputes: full: "
                   "whole blocks, dots: all but matrix products, none", ("full", "dots", "none")),
    "mesh.data": _axis(1, "data parallelism: number of copies of the model"),
    "mesh.fsdp": _axis(-1, "FSDP: number of devices over which the weights are sharded"),
    "mesh.tensor": _axis(1, "tensor parallelism: number of devices that share each matrix product"),
    "mesh.context": _axis(1, "context parallelism: number of devices that share the tokens of each "
                          "row"),

    "delta.kind": Field("lora", "lora: train an adapter; full: train the weights themselves",
                        ("lora", "full")),
    "delta.match": Field("projections", f"parameters to train: {SCOPE}", is_regex=True),
    "delta.vision": Field("", "vision parameters to train, a regex on parameter names such as "
                          "multi_modal_projector; empty: none",
                          is_regex=True),
    "delta.rank": _count(128, "LoRA rank"),
    "delta.alpha": _count(256.0, "LoRA alpha: the adapter is scaled by alpha / rank"),
    "delta.rslora": Field(False, "rsLoRA: scale the adapter by alpha / sqrt(rank) instead"),
    "delta.init": Field("", "delta to start from, of the same kind and rank: a run's folder, its "
                        "delta/ or a PEFT adapter; empty: start from zero"),

    "objective": Field("sft", "sft: supervised fine-tuning; dpo: preference tuning on pairs; kto: "
                       "on answers labelled good or bad", ("sft", "dpo", "kto")),
    "dpo.beta": _count(0.1, "strength of the KL penalty; smaller lets the policy move further "
                       "from the reference"),
    "dpo.loss": Field("sigmoid", "the preference loss", ("sigmoid", "ipo", "hinge")),
    "dpo.label_smoothing": Field(0.0, "assumed share of mislabelled pairs, for dpo.loss=sigmoid",
                                 least=0, below=0.5),
    "dpo.length_normalised": Field(False, "average log-probabilities over an answer's tokens "
                                   "instead of summing them"),
    "dpo.ftx": Field(0.0, "weight of an added SFT loss on the chosen answers", least=0),
    "dpo.reference": Field("precomputed", "when to compute the reference log-probabilities, also "
                           "of KTO: once before training, or at every step",
                           ("precomputed", "on_the_fly")),

    "kto.beta": _count(0.1, "strength of the penalty for moving away from the reference"),
    "kto.desirable_weight": _count(1.0, "weight of the loss of good answers"),
    "kto.undesirable_weight": _count(1.0, "weight of the loss of bad answers"),

    "data.set": Field("", "name of one of the paper's datasets, used if data.train is empty"),
    "data.train": Field("", "file, FOLDER[:SUBSET] or Hub id ORG/NAME[:SUBSET][@REVISION]; several "
                        "as A*2,B*0.5: *W repeats W times per epoch", hint="FILE"),
    "data.validation": Field("", "validation data, in the same forms; empty: data.val_ratio of the "
                             "training rows"),
    "data.split": Field("train", "training split of a Hub dataset, or of a folder whose file names "
                        "contain splits"),
    "data.validation_split": Field("validation", "validation split of data.validation"),
    **{f"data.columns.{name}": Field("", f"key or column of the {name} field; if all are empty, "
                                     "the format is detected from the rows")
       for name in ("prompt", "response", "system", "messages", "chosen", "rejected", "label",
                    "text", "images", "tools")},
    "data.skip_bad_rows": Field(False, "skip bad rows, and count and list them, instead of ending "
                                "the run"),
    "data.images": Field("train", "rows with images; train: on them (if the model takes images), "
                         "refuse: an error, ignore: on the text alone",
                         ("train", "refuse", "ignore")),
    "data.image_folder": Field("", "folder in which relative paths of images begin; empty: that of "
                               "the data file"),
    "data.image_max_pixels": Field(0, "scale images down to this many pixels before the model's "
                                   "own resizing; 589824: the authors' value; 0: off", least=0),
    "data.val_ratio": _share(0.01, "share of the training rows used for validation"),
    "data.max_examples": Field(0, "maximum number of rows to use from each training source; 0 or "
                               "-1: all", least=-1),
    "data.select": Field("first", "which rows data.max_examples uses: the first, or a uniform "
                         "sample", ("first", "uniform")),
    "data.recipe": Field("chat", "chat: the Instruct's own chat template; paper: the templates of "
                         "the authors' code", ("chat", "paper")),
    "data.template": Field("", "template for data.recipe=paper; empty: chosen by the Base's name"),
    "data.think": Field("trained", "loss on the paper's empty thinking block for Qwen3: trained or "
                        "masked", ("trained", "masked")),
    "data.template_args": Field({}, "arguments of the chat template for data.recipe=chat, each set "
                                "by name: template_args.enable_thinking=false"),
    "data.max_length": _count(4096, "maximum tokens per example, and the length of packed rows"),
    "data.layout": Field("packed", "packed: examples share rows; bucketed: one example per row, "
                         "padded to one of a few lengths", ("packed", "bucketed")),
    "data.cache": Field("", "folder for cached tokens and images; empty: ~/.cache/shadowft_jax"),

    "epochs": _count(1, "passes over the training data"),
    "max_steps": Field(0, "number of optimizer steps, over as many epochs as needed; 0 or -1: set "
                       "by epochs", least=-1),
    "batch_size": _count(256, "examples per optimizer step, over all devices"),
    "rows": _count(8, "packed rows per micro-batch, over all devices; determines the memory"),
    "loss_chunk": _count(512, "positions per chunk of the loss; fewer need less memory for logits"),
    "loss_mean": Field("token", "mean of the loss; token: over all tokens of a step, rank: per "
                       "device, as in the paper's trainer", ("token", "rank")),
    "ranks": _count(8, "for loss_mean=rank: number of devices"),
    "rank_examples": _count(2, "for loss_mean=rank: examples per device and micro-batch"),

    "lr": _count(2e-4, "peak learning rate"),
    "schedule": Field("cosine", "learning rate after the warm-up; cosine, linear: falls, constant, "
                      "wsd: constant, then a linear fall", ("cosine", "linear", "constant", "wsd")),
    "warmup_ratio": Field(0.1, "share of the steps used for linear warm-up", least=0, most=1),
    "warmup_steps": Field(0, "steps of linear warm-up; 0: set by warmup_ratio", least=0),
    "min_lr": Field(0.0, "learning rate at the end of a schedule that falls", least=0),
    "decay_ratio": Field(0.2, "for schedule=wsd: share of the steps in which the rate falls",
                         above=0, most=1),
    "loraplus_lr_ratio": _count(1.0, "LoRA+: learning rate of B divided by that of A, which is lr"),
    "b1": _share(0.9, "Adam's beta1"),
    "b2": _share(0.999, "Adam's beta2"),
    "eps": _count(1e-8, "Adam's epsilon"),
    "weight_decay": Field(
      0.0, "AdamW weight decay of the delta: of A and B (LoRA), or towards W_B (full)", least=0
    ),
    "grad_clip_norm": Field(1.0, "clip gradients to this global norm; 0: off", least=0),
    "eval_every": Field(10, "steps between validations, each of which saves a checkpoint; 0: only "
                        "at the end", least=0),
    "early_stopping": Field(0, "end training after this many validations in a row without a lower "
                            "validation loss; 0: off", least=0),
    "guard.skips": _count(5, "skipped updates in a row that end the run; an update is skipped if "
                          "its loss or gradient is not finite"),
    "guard.window": Field(0, "also skip updates whose loss is a spike, judged by this many last "
                          "losses; 0: off", least=0),
    "guard.sigma": _count(6.0, "a spike is a loss above their mean by more than this many standard "
                          "deviations"),
    "debug_nans": Field(False, "at the first loss or gradient that is not finite, end the run and "
                        "name the module in which it arises; one process only"),
    "samples": Field(0, "validation prompts that are answered with each validation, and at the end "
                     "by the Instruct and the grafted model", least=0),
    "tracker": Field("none", "where metrics are also sent, beside TensorBoard", ("none", "wandb")),
    "graft.match": Field("projections", f"trained parameters to graft: {SCOPE}", is_regex=True),
    "graft.checkpoint": Field("newest", "checkpoint to graft: newest, or best by validation loss",
                              ("newest", "best")),
}
# fmt: on
OPEN = "data.template_args"  # the group whose field names are chosen by the user
# (field, value in older versions) -> current value.
RENAMED = {("data.think", "learnt"): "trained"}
FREE = ("debug_nans",)  # fields that a resumed run may have with another value
ARMS = {"shadow": "base", "ft": "instruct"}  # arm of the paper's tables -> learn_on
PAIRED = ("dpo",)  # objectives that train on preference pairs
REFERENCED = ("dpo", "kto")  # objectives that compare with the model before training


def field_of(name: str) -> Field | None:
  """The field of a dotted name; any name in the open group is a field; None if there is none."""
  if name.startswith(f"{OPEN}.") and name.count(".") == OPEN.count(".") + 1:
    return Field(None, "argument of the chat template")
  return FIELDS.get(name)


def current(fields: Mapping[str, Any]) -> dict[str, Any]:
  """{dotted name: value}, with values of older versions replaced by their current names."""
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
  """SFT with LoRA of rank 128: the defaults."""
  from ml_collections import ConfigDict  # not installed where only a training step is benchmarked

  return ConfigDict(defaults())


def paper(kind: str = "lora") -> Config:
  """`sft` with the templates of the authors' code and the loss mean and steps of their trainer.

  docs/paper.md lists the remaining differences from their code, with reasons.

  Args:
    kind: lora, of rank 128; or full.
  """
  c = sft()
  c.delta.kind, c.delta.rank, c.delta.alpha, c.lr = kind, 128, 256.0, 2e-4
  if kind == "full":
    c.delta.match, c.lr = "all", 1e-5  # norms and embeddings are trained, but not grafted
  c.data.recipe = "paper"  # data.set adds the limit of 2,000 rows
  c.data.select, c.data.val_ratio = "first", 0.01
  c.data.max_length, c.data.layout = 4096, "packed"
  c.epochs, c.batch_size = 1, 256  # 2 examples x 16 accumulated x 8 devices
  c.loss_mean, c.ranks, c.rank_examples = "rank", 8, 2
  c.warmup_ratio = 0.1
  return c


def dpo() -> Config:
  """Preference tuning with DPO (arXiv 2505.12716, section 5.3).

  The paper gives the ranks, 8 and 128, and 1,000 pairs.  The rest is from LLaMA-Factory's example
  (examples/train_lora/llama3_lora_dpo.yaml), with its 8 pairs on each of 8 devices.
  """
  c = sft()
  c.objective = "dpo"
  c.delta.rank, c.delta.alpha, c.data.max_length = 8, 16.0, 4096  # half for each side of a pair
  c.lr, c.warmup_ratio, c.epochs, c.batch_size = 5e-6, 0.1, 3, 64  # pairs
  return c


def is_paired(config: Config) -> bool:
  """Whether the objective trains on preference pairs."""
  return config.objective in PAIRED


def has_reference(config: Config) -> bool:
  """Whether the objective compares with the model before training."""
  return config.objective in REFERENCED


def flat(value: Any, name: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  if not isinstance(value, dict):
    return {name: value}
  return {
    k: v
    for key, part in value.items()
    for k, v in flat(part, f"{name}.{key}" if name else key).items()
  }
