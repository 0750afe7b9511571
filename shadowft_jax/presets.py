"""The fields of an experiment, with the paper's values; a config changes a few of them."""

import ml_collections

from shadowft_jax.delta import KINDS
from shadowft_jax.errors import InputError
from shadowft_jax.models.attention import BACKENDS
from shadowft_jax.models.decoder import REMAT
from shadowft_jax.objectives import OBJECTIVES

CHOICES = {
    "learn_on": ("base", "instruct"),
    "dtype": ("bfloat16", "float32"),
    "gradient_dtype": ("float32", "bfloat16"),
    "moment_dtype": ("float32", "bfloat16"),
    "attention": ("auto", *BACKENDS),
    "remat": tuple(REMAT),
    "objective": tuple(OBJECTIVES),
    "delta.kind": KINDS,
    "graft.checkpoint": ("newest", "best"),
    "loss_mean": ("token", "rank"),
    "data.images": ("refuse", "ignore"),
    "data.select": ("first", "uniform"),
    "data.recipe": ("chat", "paper"),
    "data.think": ("learnt", "masked"),
    "data.layout": ("packed", "bucketed"),
}
GIVEN = {"base": "FOLDER (or --config.pair=NAME)", "instruct": "FOLDER (or --config.pair=NAME)",
         "data.train": "FILE"}
POSITIVE = ("lr", "batch_size", "rows", "epochs", "loss_chunk", "delta.rank", "data.max_length",
            "ranks", "rank_examples")


def sft():
  """Supervised tuning by LoRA of rank 128 (arXiv 2505.12716, section 4.1 and its code)."""
  c = ml_collections.ConfigDict()
  c.pair = ""                # a name in pairs.py: fills what is empty of base and instruct
  c.base = ""                # the Base model: a Hugging Face folder, or its id on the hub
  c.instruct = ""            # the Instruct model: it is grafted, and it renders the chat
  c.learn_on = "base"        # base: Shadow-FT; instruct: the usual fine-tuning, for comparison
  c.seed = 42

  c.dtype = "bfloat16"       # of the frozen weights and of matrix products while training
  c.gradient_dtype, c.moment_dtype = "float32", "float32"   # of full tuning; of Adam's first
  c.attention = "auto"       # auto, or a name in models/attention.py; checked before it is used
  c.remat = "full"           # none, dots, full: what is computed again in the backward pass
  c.mesh = dict(data=1, fsdp=-1, tensor=1)    # devices on each axis; -1 takes what is left

  c.delta = ml_collections.ConfigDict(dict(
      kind="lora",           # lora, full
      match="projections",   # projections, all, or a regex over leaf names: what is trained
      rank=128,
      alpha=256.0))          # the adapter's product is multiplied by alpha / rank

  c.objective = "sft"        # a name in objectives.py
  c.data = _data()

  c.epochs = 1
  c.max_steps = 0            # ends, and decays the learning rate, by then; 0: by epochs
  c.batch_size = 256         # examples an optimizer step, over all devices
  c.rows = 8                 # packed rows a micro-batch, over all devices; sets the memory
  c.loss_chunk = 512         # positions whose logits exist at a time

  c.loss_mean = "token"      # token: over all that a step learns; rank: as the paper's trainer
  c.ranks, c.rank_examples = 8, 2    # of loss_mean=rank: devices, and what each takes at a time

  c.lr, c.warmup_ratio = 2e-4, 0.1
  c.b1, c.b2, c.eps = 0.9, 0.999, 1e-8
  c.weight_decay, c.grad_clip_norm = 0.0, 1.0

  c.eval_every = 10          # steps between validations, each with a checkpoint; 0: at the end
  c.graft = ml_collections.ConfigDict(dict(
      match="projections",   # projections, all, or a regex: which trained leaves are grafted
      checkpoint="newest"))  # newest, or best: the lowest validation loss
  return c


def _data():
  """What is learnt, and how it becomes rows of tokens."""
  return ml_collections.ConfigDict(dict(
      set="",                # a name in data/sets.py: the paper's data; fills what is empty below
      train="",              # file, folder or hub id ORG/NAME[:SUBSET][@REVISION]; A*2,B*0.5:
      #                        several, each with how often it is passed in an epoch
      validation="",         # likewise; empty: val_ratio of the training rows
      split="train",         # of a hub id, or of a folder whose files name splits
      validation_split="validation",
      columns=dict(          # what the rows call these; all empty: found by looking at the rows
          prompt="", response="", system="", messages="", chosen="", rejected="", text="",
          images="", tools=""),
      skip_bad_rows=False,   # leave them out, counted and listed, where they would end the run
      images="refuse",       # refuse, ignore: of rows with images, learn the text alone
      val_ratio=0.01,
      max_examples=0,        # of the training rows, before any shuffling; 0: all
      select="first",        # first, uniform: which of them
      recipe="chat",         # chat: the Instruct's own template; paper: the authors' framing
      template="",           # of the paper's recipe: a name in data/paper.py; empty: by the Base
      think="learnt",        # learnt, masked: the paper's empty block of thoughts for qwen3
      max_length=4096,       # tokens an example at most, and tokens a packed row
      layout="packed",       # packed, bucketed: one example a row, padded to a few lengths
      cache=""))             # folder of tokens made before; empty: ~/.cache/shadowft_jax


def paper():
  """`sft` with the framing of the authors' text and the means and steps of their trainer.

  configs/README.md lists what still differs from their code, and why.
  """
  c = sft()
  c.data.recipe = "paper"
  c.data.max_examples = 2000
  c.data.select = "first"
  c.data.val_ratio = 0.01
  c.data.max_length = 4096
  c.data.layout = "packed"
  c.epochs = 1
  c.batch_size = 256         # 2 examples x 16 accumulated x 8 devices
  c.loss_mean, c.ranks, c.rank_examples = "rank", 8, 2
  c.warmup_ratio = 0.1
  return c


def flat(value, name=""):
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  if not isinstance(value, dict):
    return {name: value}
  return {k: v for key, part in value.items()
          for k, v in flat(part, f"{name}.{key}" if name else key).items()}


def check(config):
  """Raises InputError for a field whose value cannot be right."""
  fields = flat(config.to_dict())
  for name in GIVEN:
    if not fields[name]:
      raise InputError(f"config.{name} is empty; set --config.{name}={GIVEN[name]}")
  check_values(config)


def check_values(config):
  """`check`, but for what must be given."""
  fields = flat(config.to_dict())
  for name, known in CHOICES.items():
    if fields[name] not in known:
      raise InputError(f"config.{name} is one of {', '.join(known)}; got {fields[name]!r}")
  for name in POSITIVE:
    if not fields[name] > 0:
      raise InputError(f"config.{name} must be above 0; got {fields[name]}")
  if config.gradient_dtype == "bfloat16" and (config.delta.kind, config.dtype) != (
      "full", "bfloat16"):
    raise InputError("config.gradient_dtype=bfloat16 needs config.delta.kind=full and "
                     f"config.dtype=bfloat16; got {config.delta.kind} and {config.dtype}; leave "
                     "it at float32")
