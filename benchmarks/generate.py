"""Tokens a second of greedy generation beside transformers' `generate`, in one process, in turn.

  python benchmarks/generate.py [--repeats 5] [--batch 16] [--max-new 128]

A random Qwen3 of 29 M parameters (hidden 512, 8 layers, vocabulary 8192) in float32 continues
prompts of 20 to 120 random tokens; no token ends an answer.  Each side generates once, which
compiles, and then in turn with the other.  The peer gets the prompts padded on the left.  Prints
one JSON line: tokens a second of either side, CPU seconds of a call, the median of the pairs'
ratios of time and of CPU time, the first call's seconds, and how many tokens are equal; a row is
compared up to where the peer's two best logits differ by less than 1e-3.
"""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from train_vs_peft import CONFIG
from transformers import AutoConfig, AutoModelForCausalLM

from shadowft_jax.generation import decode, sampling, steps
from shadowft_jax.generation.engine import Sampling
from shadowft_jax.hf import weights

NEAR = 1e-3
SHORTEST, LONGEST = 20, 120
SPREAD = 0.05  # of random weights: answers that do not repeat one token


def make_model():
  """The peer's model."""
  torch.manual_seed(0)
  model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **CONFIG)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim > 1:
        parameter.normal_(0, SPREAD)
  return model


def peer(model, prompts, max_new):
  """A function that generates; its result has the sequences, with logits if asked."""
  width = max(map(len, prompts))
  token, mask = np.zeros((2, len(prompts), width), np.int64)
  for i, prompt in enumerate(prompts):
    token[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, 1
  token, mask = torch.tensor(token), torch.tensor(mask)

  def run(**options):
    with torch.inference_mode():
      out = model.generate(
        token,
        attention_mask=mask,
        max_new_tokens=max_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        **options,
      )
    return out.sequences[:, width:].numpy(), out.logits

  return run


def ours(folder, prompts, max_new):
  """A function that generates."""
  model, params = weights.load_model(folder, dtype=jnp.float32)
  model = model.clone(unrolled=True)
  variables = steps.unrolled({"params": params}, consume=True)
  keyed = [decode.Prompt(prompt, sampling.key(0, prompt, 0)) for prompt in prompts]

  def run():
    progress = decode.answers(
      model, variables, keyed, stop=(-1,), sampling=Sampling(max_new), batch_size=len(prompts)
    )
    last = {one.prompt: one.tokens for one in progress}
    return np.array([last[i] for i in range(len(prompts))])

  return run


def timed(run):
  """(seconds, seconds of CPU time)."""
  start = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - start[0], time.process_time() - start[1]


def equal_tokens(mine, theirs, logits):
  """(how many tokens of the peer's are equal, of how many compared)."""
  best = torch.topk(torch.stack(logits, 1), 2).values
  is_near = ((best[..., 0] - best[..., 1]) < NEAR).numpy()
  clear = np.cumsum(is_near, axis=1) == 0
  return int(np.sum((mine == theirs) & clear)), int(clear.sum())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--max-new", type=int, default=128)
  options = parser.parse_args()
  random = np.random.default_rng(0)
  prompts = [
    random.integers(3, CONFIG["vocab_size"], n).tolist()
    for n in random.integers(SHORTEST, LONGEST + 1, options.batch)
  ]
  model = make_model()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    my = ours(folder, prompts, options.max_new)
  their = peer(model, prompts, options.max_new)
  first = {"ours": timed(my), "peer": timed(their)}
  equal, compared = equal_tokens(my(), *their(output_logits=True))
  times = {"ours": [], "peer": []}
  for _ in range(options.repeats):
    for side, run in (("ours", my), ("peer", their)):
      times[side].append(timed(run))
  tokens = options.batch * options.max_new
  line = {"benchmark": "generate", "batch": options.batch, "max_new": options.max_new}
  line |= {"device": jax.devices()[0].platform, "threads": torch.get_num_threads()}
  for side, all_ in times.items():
    seconds, cpu_seconds = np.array(all_).T
    line[f"{side}_tokens_per_second"] = round(tokens / np.median(seconds))
    line[f"{side}_range"] = [round(tokens / max(seconds)), round(tokens / min(seconds))]
    line[f"{side}_first_seconds"] = round(first[side][0], 1)
    line[f"{side}_cpu_seconds"] = round(float(np.median(cpu_seconds)), 2)
  ratio = np.array(times["peer"]) / np.array(times["ours"])
  line["speed_over_peer"], line["cpu_over_peer"] = np.median(ratio, 0).round(2).tolist()
  line["speed_over_peer_range"] = [ratio[:, 0].min().round(2), ratio[:, 0].max().round(2)]
  line["equal_tokens"], line["compared_tokens"] = equal, compared
  print(json.dumps(line))
  if equal != compared:
    raise SystemExit("the tokens are not equal")


if __name__ == "__main__":
  main()
