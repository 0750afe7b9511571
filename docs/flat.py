"""Shadow-FT in one file, on the tiny pair of this repository: load, train, graft, export.

  python docs/flat.py OUT

Read it before the package: it has the whole method, without configs, packing, sharding, checkpoints
and checks.  From the package it takes models (Flax modules with Hugging Face's names) and deltas
(trees beside the weights).  It trains the delta that `shadowft train --config quickstart` trains.
"""

import json
import math
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.flax
from transformers import PreTrainedTokenizerFast

import shadowft_jax
from shadowft_jax import delta as deltas, scope, tree
from shadowft_jax.hf import weights

TINY = pathlib.Path(shadowft_jax.__file__).parent / "assets" / "tiny"
RANK, ALPHA = 32, 64.0  # the delta of a weight matrix is (ALPHA / RANK) A B
LR, WARMUP, EPOCHS, BATCH, SEED = 1e-3, 0.1, 3, 64, 42
LENGTH = 32  # tokens; the longest example has 31


# ---- data: conversations in the Instruct model's chat template; the loss covers the answers


def read_examples(path, tokenizer):
  """[(token ids, whether the loss covers each)] of a file of instructions and outputs."""
  examples = []
  for line in path.read_text().splitlines():
    row = json.loads(line)
    user = {"role": "user", "content": row["instruction"]}
    assistant = {"role": "assistant", "content": row["output"]}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    answer_from = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    examples.append((ids, [i >= answer_from for i in range(len(ids))]))
  return examples


def order_of(count, epoch):
  """A permutation of the examples, another one each epoch."""
  bits = np.random.Philox(np.random.SeedSequence((SEED, epoch))).random_raw(count)
  return np.argsort(bits, kind="stable")


def batch_of(examples):
  """Examples as arrays [B, T], padded; segment 0 is padding."""
  batch = {k: np.zeros((len(examples), LENGTH), np.int32) for k in ("token", "segment", "answer")}
  for row, (ids, is_answer) in enumerate(examples):
    for name, values in (("token", ids), ("segment", 1), ("answer", is_answer)):
      batch[name][row, : len(ids)] = values
  return batch


def batches_of(examples):
  """The batches of all epochs; the last one of an epoch may be short."""
  for epoch in range(1, EPOCHS + 1):
    order = order_of(len(examples), epoch)
    for start in range(0, len(order), BATCH):
      yield batch_of([examples[i] for i in order[start : start + BATCH]])


# ---- train: W_B + delta, where W_B is frozen


def mean_loss(model, base, delta, batch):
  """The mean of -log p(token) over the answer tokens of a batch, by the model W_B + delta."""
  variables = deltas.variables(base, delta, ALPHA / RANK)  # {"params": W_B, "lora": A and B}
  logits_BTV = model.apply(variables, batch["token"], batch["segment"])
  losses_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV[:, :-1], batch["token"][:, 1:]
  )
  answer_BT = batch["answer"][:, 1:]
  return jnp.sum(losses_BT * answer_BT) / jnp.sum(answer_BT)


def train(model, base, examples, steps):
  """Trains an adapter on all projections for `steps` steps and returns it as a delta."""
  projections = scope.SCOPES["projections"]
  delta = {"lora": deltas.init_adapter(jax.random.key(SEED), base, rank=RANK, match=projections)}
  schedule = optax.warmup_cosine_decay_schedule(0.0, LR, math.ceil(WARMUP * steps), steps)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

  @jax.jit
  def step(delta, state, base, batch):
    loss, gradients = jax.value_and_grad(mean_loss, argnums=2)(model, base, delta, batch)
    updates, state = optimizer.update(gradients, state, delta)
    return optax.apply_updates(delta, updates), state, loss

  state = optimizer.init(delta)
  for number, batch in zip(range(1, steps + 1), batches_of(examples), strict=False):
    delta, state, loss = step(delta, state, base, batch)
    print(f"step {number} of {steps}, loss {loss:.4f}")
  return delta


# ---- graft and export: W_I + delta, in the Instruct's own files


def dense(delta):
  """{tensor name: float32 delta of Hugging Face's shape [out, in]}, from stacked A and B."""
  named = deltas.densify(delta, ALPHA / RANK)  # {"model/layers/…/kernel": [layers, in, out]}
  return {
    name.replace("layers", f"layers.{layer}").replace("kernel", "weight").replace("/", "."): d.T
    for name, stacked in named.items()
    for layer, d in enumerate(stacked)
  }


def export(instruct, delta, out):
  """Copies the Instruct's folder to `out`, the delta added to its weights.

  Sums are taken in float32 and stored in the dtype of the file.
  """
  shutil.copytree(instruct, out)
  tensors = safetensors.flax.load_file(instruct / "model.safetensors")
  for name, d in dense(delta).items():
    w = tensors[name]
    tensors[name] = (w.astype(jnp.float32) + d).astype(w.dtype)
  safetensors.flax.save_file(tensors, out / "model.safetensors", {"format": "pt"})


def main(out, steps=None):
  """Writes OUT/delta.safetensors (A and B, stacked over layers) and OUT/shadow (W_I + delta)."""
  out.mkdir(parents=True)
  tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY / "instruct")
  examples = read_examples(TINY / "new_skill.jsonl", tokenizer)
  model, base = weights.load_model(TINY / "base", dtype=jnp.float32)
  delta = train(model, base, examples, steps or EPOCHS * math.ceil(len(examples) / BATCH))
  safetensors.flax.save_file(tree.names(delta["lora"]), out / "delta.safetensors")
  export(TINY / "instruct", delta, out / "shadow")
  print(f"grafted model: {out / 'shadow'}")
  return delta


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
