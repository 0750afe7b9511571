"""The help of config fields, and the errors for fields and flags that do not exist."""

import difflib
import textwrap
from collections.abc import Iterable

from shadowft_jax import presets

# The first field of each section of --help-config -> its heading.
HEADINGS = {
  "pair": "Models",
  "seed": "Computation",
  "mesh.data": "Devices",
  "delta.kind": "Delta",
  "objective": "Objective",
  "data.set": "Data",
  "epochs": "Steps and batches",
  "lr": "Optimizer",
  "eval_every": "Validation and graft",
}


# Options of other tools that are not offered -> why, and what to do instead.
NOT_OFFERED = {
  "lora_dropout, dropout, attention_dropout, hidden_dropout": "the paper's recipe has none, and "
  "without random numbers in a step a resumed run gives the same weights",
  "neftune_noise_alpha, neftune": "noise on embeddings: the paper's recipe has none, and without "
  "random numbers in a step a resumed run gives the same weights",
  "label_smoothing_factor": "the loss is that of the paper; for preference pairs there is "
  "dpo.label_smoothing",
  "use_dora, dora, peft_use_dora": "it rescales the trained weights by their own norms, so the "
  "update depends on the Base's weights and no adapter can carry it over; train with PEFT, merge, "
  "then shadowft graft --base --tuned",
  "init_lora_weights, pissa, pissa_init, olora, loftq, loftq_config": "they change the frozen "
  "weights; train elsewhere, merge, then shadowft graft --base --tuned",
  "load_in_4bit, load_in_8bit, quantization_bit, quantization_config, qlora": "the adapter would "
  "also learn to undo the quantisation error of the Base, and carry that to an Instruct that does "
  "not have it; a QLoRA adapter made elsewhere can be grafted (--adapter), with that caveat",
  "modules_to_save, additional_target": "LoRA trains matrices of the layers; --config full trains "
  "everything, embeddings included",
  "resize_vocab, add_tokens, new_tokens": "Base and Instruct must agree on what a token id means",
  "optim, optimizer, use_muon, use_galore, use_apollo, use_badam": "AdamW, the paper's; "
  "moment_dtype=bfloat16 saves memory",
  "gradient_accumulation_steps, per_device_train_batch_size, micro_batch_size": "computed from "
  "batch_size, rows and the devices, so that a result does not depend on their number",
  "fp16": "float16 overflows; dtype is bfloat16 or float32",
  "group_by_length": "packing fills the rows",
  "neat_packing": "always: packed examples never see each other",
  "train_on_inputs, train_on_prompt": 'the loss covers answers; raw text ({"text": …}) is covered '
  "whole",
  "mlflow, comet, neptune, swanlab": "metrics.jsonl and tensorboard/ can be read into it; "
  "tracker=wandb is the one that is offered",
  "streaming": "data are read and tokenised once, and cached",
  "deepspeed, fsdp_config": "four numbers: mesh.data, mesh.fsdp, mesh.tensor, mesh.context",
  "reward_model, ppo, grpo, orpo, simpo": "the objectives are SFT, DPO and KTO; a delta from any "
  "other can be grafted: shadowft graft --base --tuned",
}
WHY = {name: why for names, why in NOT_OFFERED.items() for name in names.split(", ")}
# Field names of other tools -> ours.  docs/names.md has all of them.
ELSEWHERE = {
  "learning_rate": "lr",
  "lr_scheduler_type": "schedule",
  "lr_scheduler": "schedule",
  "num_train_epochs": "epochs",
  "num_epochs": "epochs",
  "adam_beta1": "b1",
  "adam_beta2": "b2",
  "adam_epsilon": "eps",
  "max_grad_norm": "grad_clip_norm",
  "eval_steps": "eval_every",
  "save_steps": "eval_every",
  "load_best_model_at_end": "graft.checkpoint",
  "early_stopping_patience": "early_stopping",
  "report_to": "tracker",
  "bf16": "dtype",
  "gradient_checkpointing": "remat",
  "attn_implementation": "attention",
  "flash_attn": "attention",
  "average_tokens_across_devices": "loss_mean",
  "cutoff_len": "data.max_length",
  "sequence_len": "data.max_length",
  "packing": "data.layout",
  "sample_packing": "data.layout",
  "dataset": "data.train",
  "datasets": "data.train",
  "dataset_name": "data.train",
  "val_size": "data.val_ratio",
  "val_set_size": "data.val_ratio",
  "eval_dataset": "data.validation",
  "max_samples": "data.max_examples",
  "chat_template_kwargs": "data.template_args",
  "enable_thinking": "data.template_args",
  "model_name_or_path": "base",
  "base_model": "base",
  "finetuning_type": "delta.kind",
  "lora_r": "delta.rank",
  "lora_rank": "delta.rank",
  "lora_alpha": "delta.alpha",
  "use_rslora": "delta.rslora",
  "target_modules": "delta.match",
  "lora_target": "delta.match",
  "lora_target_modules": "delta.match",
  "adapter_name_or_path": "delta.init",
  "lora_model_dir": "delta.init",
  "pref_beta": "dpo.beta",
  "rl_beta": "dpo.beta",
  "kto_chosen_weight": "kto.desirable_weight",
  "kto_rejected_weight": "kto.undesirable_weight",
  "kto_tag": "data.columns.label",
  "pref_loss": "dpo.loss",
  "pref_ftx": "dpo.ftx",
}


def hint(name: str) -> str:
  """What to say of an unknown field that other tools have: why it is not offered, or its name here.

  Returns:
    Words to put after the name; "" if the name is not known from elsewhere.
  """
  last = name.rpartition(".")[2].lower().replace("-", "_")
  if last in WHY:
    return f" is not offered: {WHY[last]}"
  return f" is called config.{ELSEWHERE[last]} here" if last in ELSEWHERE else ""


def help_text() -> str:
  """The text of --help-config: every field with its meaning, range and default."""
  lines = ["Fields of a config. Set them by --config.FIELD=VALUE or in the file given by --config."]
  for name, field in presets.FIELDS.items():
    if name in HEADINGS:
      lines += ["", f"{HEADINGS[name]}:"]
    default = "empty" if field.default in ("", {}) else field.default
    text = f"{field.description} Default: {default}."
    text = textwrap.fill(text, 88, break_on_hyphens=False)
    lines += [f"  {name}", textwrap.indent(text, 6 * " ")]
  return "\n".join(lines)


def unknown_flag(name: str, known: Iterable[str], has_config: bool) -> str:
  """The error text for an unknown flag; `has_config`: whether the command takes a config."""
  if has_config and (from_elsewhere := hint(name)):
    return f"unknown flag --{name}: it{from_elsewhere}"
  near = difflib.get_close_matches(name, known, n=1)
  return f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "")


def unknown_field(name: str, known: Iterable[str] = presets.FIELDS) -> str:
  """The error text for an unknown field, with a suggestion."""
  known = list(known)
  if name == presets.OPEN:
    return f"config.{name} is a group; set a name in it, such as {name}.enable_thinking=false"
  if group := [k for k in known if k.startswith(f"{name}.")]:
    return (
      f"unknown field config.{name}: it is a group; set one of its fields, such as "
      f"config.{group[0]}"
    )
  if from_elsewhere := hint(name):
    return f"unknown field config.{name}: it{from_elsewhere}"
  last = name.rpartition(".")[2]
  # Compares the whole name, and its last part: config.rank for config.delta.rank.
  places = {k.rpartition(".")[2]: k for k in reversed(known)} | {k: k for k in known}
  near = last if last in places else next(iter(difflib.get_close_matches(name, places, n=1)), "")
  return f"unknown field config.{name}" + (f"; did you mean config.{places[near]}?" if near else "")
