"""Weights in unsupported formats: detects the format and gives the command that converts it."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from shadowft_jax.errors import InputError, listing, nearest

StrPath = str | os.PathLike[str]

PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pth", "*.pt", "*.ckpt")
# Pickles of a training run that contain no weights.
STATES = r"(rng_state|scheduler|optimizer|scaler|training_args)"
# Text that PyTorch wrappers add to tensor names: torch.compile, FSDP, activation checkpointing,
# DDP, and PEFT in a raw state dict.
WRAPPERS = (
  r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[.]|^module[.]"
  r"|(?<=_orig_mod[.])module[.]|(?<=^base_model[.]model[.])module[.]|(?<=lora_[AB])[.]default(?=[.]weight)"
)
# Hidden size of Ministral 3 -> its size in names; its Instructs are stored in FP8 and in BF16.
MINISTRAL3 = {3072: "3B", 4096: "8B", 5120: "14B"}
OTHERS = {
  "*.gguf": "GGUF",
  "*.onnx": "ONNX",
  "*.h5": "TensorFlow",
  "*.msgpack": "Flax",
  "*.npz": "MLX",
  "*.nemo": "NeMo",
}


def check_folder(directory: pathlib.Path) -> None:
  """Raises InputError if `directory` is not a folder."""
  if not directory.is_dir():
    what = "is a file" if directory.exists() else f"does not exist{nearest(directory)}"
    advice = "for a Hub model: `hf download <owner>/<name> --local-dir <folder>`"
    raise InputError(f"{directory} {what}; expected a folder on this disk ({advice})")


def refuse(directory: StrPath) -> None:
  """Raises an error if a folder has weights only in an unsupported format.

  Raises:
    InputError: names the format and the command that converts it.
  """
  directory = pathlib.Path(directory)
  files = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
  if any(f.endswith(".safetensors") and not f.startswith("consolidated") for f in files):
    return
  for look in (_fsdp, _zero, _consolidated, _pickles, _others):
    if finding := look(directory, files):
      what, how = finding
      more = (
        "" if "config.json" in files else ", and copy the Base's config.json next to the result"
      )
      raise InputError(f"{directory} {what}" + (f"{more}: {how}" if how else ""))


def _fsdp(directory, files):
  if any(re.fullmatch(r"model_world_size_\d+_rank_\d+\.pt", f) for f in files):
    return (
      "is a sharded verl (FSDP) checkpoint, not a model folder; merge the shards (needs verl, and "
      "as "
      "much memory as they have bytes)",
      f"python -m verl.model_merger merge --backend fsdp --local_dir {quoted(directory)} "
      f"--target_dir {quoted(directory)}",
    )
  parts = [p.parent for pattern in ("*.distcp", "*/*.distcp") for p in directory.glob(pattern)]
  if parts := sorted({p for p in parts if not p.name.startswith("optimizer")}):
    return (
      f"is a sharded PyTorch FSDP checkpoint ({parts[0].name}/*.distcp), not a model folder; merge "
      "the shards (needs accelerate, and as much memory as they have bytes)",
      f"accelerate merge-weights {quoted(parts[0])} {quoted(directory)}",
    )
  return None


def _zero(directory, files):
  if any("model_states" in f for f in files):
    directory = directory.parent
  elif not any(f == "zero_to_fp32.py" or f.startswith("global_step") for f in files):
    return None
  script = directory / "zero_to_fp32.py"
  how = quoted(script) if script.exists() else "-m deepspeed.utils.zero_to_fp32"
  return (
    "is a sharded DeepSpeed ZeRO checkpoint, not a model folder; merge the shards (needs "
    "deepspeed, "
    "and as much memory as they have bytes)",
    f"python {how} {quoted(directory)} {quoted(directory)} --safe_serialization",
  )


def _consolidated(directory, files):
  weights = [f for f in files if re.fullmatch(r"consolidated.*\.(pth|pt|safetensors)", f)]
  if not weights:
    return None
  family = "mistral" if weights[0].endswith(".safetensors") else "llama"
  place = f"src/transformers/models/{family}/convert_{family}_weights_to_hf.py"
  return (
    f"is in the model developer's original format ({weights[0]}), with different tensor names; "
    f"download the model in Hugging Face format, or convert it with {place} of "
    "https://github.com/huggingface/transformers, with your model's size instead of 8B",
    f"python {place} --input_dir {quoted(directory)} --model_size 8B "
    f"--output_dir {quoted(f'{directory}-hf')}",
  )


def _pickles(directory, files):
  names = {p.name for pattern in PICKLES for p in directory.glob(pattern)}
  for pattern in PICKLES:
    pickles = sorted(p.name for p in directory.glob(pattern) if not re.match(STATES, p.name))
    if pickles:
      return (
        f"has only pickled weights ({pickles[0]}), which are not read because a pickle can run "
        "code; convert them (needs torch, and as much memory as they have bytes)",
        conversion(directory, pattern),
      )
  if names:
    return (
      f"has no weights, only the state of a training run{listing(names, limit=3)}\ngive the folder "
      "in which the model was saved",
      "",
    )
  return None


def _others(_, files):
  for pattern, name in OTHERS.items():
    if weights := [f for f in files if f.lower().endswith(pattern[1:])]:
      return (
        f"has only {name} weights ({weights[0]}), which are for other programs; download the "
        "original "
        "model as safetensors",
        "",
      )
  return None


def check_names(directory: StrPath, tensors: Iterable[str]) -> None:
  """Checks that no PyTorch wrapper left its name in tensor names.

  Raises:
    InputError: gives the command that renames them.
  """
  if bad := [n for n in tensors if re.search(WRAPPERS, n)]:
    wrappers = sorted({m[0] for n in bad for m in re.finditer(WRAPPERS, n)})
    raise InputError(
      f"{directory}: tensor names contain {', '.join(map(repr, wrappers))}, added by a PyTorch "
      f"wrapper (tensors: {len(bad)}, such as {bad[0]}); rename them: "
      f"python -m shadowft_jax.hf.unwrap {quoted(directory)}"
    )


def conversion(directory: StrPath, pattern: str = PICKLES[0]) -> str:
  """The shell command that converts a folder's pickles to safetensors, in the same folder.

  It loads only tensors: neither pickled code nor the model's own code runs.  A tied head is saved
  only once, as the embedding.
  """
  code = (
    "import glob, os, re, sys, torch; from huggingface_hub import save_torch_state_dict as save; "
    "d, p = sys.argv[1:]; fs = sorted(glob.glob(os.path.join(glob.escape(d), p))); "
    f"fs = [f for f in fs if not re.match('{STATES}', os.path.basename(f))]; "
    "ss = [torch.load(f, map_location='cpu', weights_only=True) for f in fs]; "
    "ss = [next((s[k] for k in ('state_dict', 'model', 'module') if isinstance(s.get(k), dict)), "
    "s) for s in ss]; "
    f"s = {{re.sub('{WRAPPERS}', '', k): v for s in ss for k, v in s.items() "
    "if isinstance(v, torch.Tensor)}; "
    "save(s, d, shared_tensors_to_discard=[k for k in s if k.endswith('lm_head.weight')])"
  )
  return f'python -c "{code}" {quoted(directory)} {quoted(pattern)}'


def quoted(text: object) -> str:
  """A word of a shell command, in double quotes."""
  escaped = re.sub(r'([\\"$`])', r"\\\1", str(text))
  return '"' + escaped.replace("!", "\"'!'\"") + '"'


def unquantised(config: Mapping[str, Any]) -> str:
  """The Hub id of a quantised Instruct's unquantised weights, in parentheses; "" if unknown.

  Args:
    config: config.json, with the fields of its text_config merged in.
  """
  size = MINISTRAL3.get(config.get("hidden_size", 0))
  is_known = config.get("model_type") == "ministral3" and size
  return f" (mistralai/Ministral-3-{size}-Instruct-2512-BF16)" if is_known else ""
