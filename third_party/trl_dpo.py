"""Runs DPO by trl on given batches and adapter, and writes the loss of every step.

  python -m venv trl
  trl/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
  trl/bin/python third_party/trl_dpo.py GIVEN.json LOSSES.json

GIVEN.json: {"base": folder with a tokenizer, "adapter": PEFT folder, "precompute": bool, "beta",
"lr", "warmup": steps, "steps": [[{"prompt", "chosen", "rejected"}, ...] a step]}.  The order of the
rows is kept.  With SHADOWFT_TRL=trl/bin/python, tests/test_dpo.py compares it with ours.
"""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import peft
import torch
import transformers
import trl

ARGS = dict(
  num_train_epochs=1,
  gradient_accumulation_steps=1,
  max_length=None,
  lr_scheduler_type="cosine",
  max_grad_norm=1.0,
  logging_steps=1,
  report_to="none",
  save_strategy="no",
  use_cpu=True,
  bf16=False,
  gradient_checkpointing=False,
  disable_dropout=False,
  disable_tqdm=True,
)


class InOrder(trl.DPOTrainer):
  """Trains on the rows as they come."""

  def _get_train_sampler(self, dataset=None):
    return torch.utils.data.SequentialSampler(dataset or self.train_dataset)


def talk(row):
  """A row as a conversation, which trl renders by the chat template."""
  said = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
  return {key: [{"role": role, "content": row[key]}] for key, role in said.items()}


def losses(given, output):
  model = transformers.AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32)
  model = peft.PeftModel.from_pretrained(model, given["adapter"], is_trainable=True)
  size = len(given["steps"][0])
  if any(len(step) != size for step in given["steps"]):
    raise SystemExit("steps of different sizes: trl has one batch size")
  args = trl.DPOConfig(
    output,
    per_device_train_batch_size=size,
    beta=given["beta"],
    learning_rate=given["lr"],
    warmup_steps=given["warmup"],
    precompute_ref_log_probs=given["precompute"],
    **ARGS,
  )
  rows = datasets.Dataset.from_list([talk(row) for step in given["steps"] for row in step])
  trainer = InOrder(
    model,
    args=args,
    train_dataset=rows,
    processing_class=transformers.AutoTokenizer.from_pretrained(given["base"]),
  )
  trainer.train()
  return [record["loss"] for record in trainer.state.log_history if "loss" in record]


if __name__ == "__main__":
  with open(sys.argv[1]) as file, tempfile.TemporaryDirectory() as folder:
    found = losses(json.load(file), folder)
  with open(sys.argv[2], "w") as file:
    json.dump(found, file)
