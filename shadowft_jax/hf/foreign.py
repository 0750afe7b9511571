"""Weights in forms that are not read: what they are, and the command that converts them."""

import os
import pathlib
import re
from collections.abc import Iterable

from shadowft_jax.errors import InputError, listing

StrPath = str | os.PathLike[str]

PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pth", "*.pt", "*.ckpt")
# Pickles of a training run that hold no weights.
STATES = r"(rng_state|scheduler|optimizer|scaler|training_args)"
# What wrappers of PyTorch put into the names of tensors: torch.compile, FSDP, activation
# checkpointing, DDP, and PEFT into those of a raw state dict.
WRAPPERS = (
  r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[.]|^module[.]"
  r"|(?<=_orig_mod[.])module[.]|(?<=^base_model[.]model[.])module[.]|(?<=lora_[AB])[.]default(?=[.]weight)"
)
OTHERS = {
  "*.gguf": "GGUF",
  "*.onnx": "ONNX",
  "*.h5": "TensorFlow",
  "*.msgpack": "Flax",
  "*.npz": "MLX",
  "*.nemo": "NeMo",
}


def refuse(directory: StrPath) -> None:
  """Checks that a folder's weights are not only in a form that is not read.

  Raises:
    InputError: they are; says what it is, and the command that converts it.
  """
  directory = pathlib.Path(directory)
  files = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
  if any(f.endswith(".safetensors") and not f.startswith("consolidated") for f in files):
    return
  for look in (_fsdp, _zero, _consolidated, _pickles, _others):
    if found := look(directory, files):
      what, how = found
      more = "" if "config.json" in files else ", and copy the Base's config.json beside the result"
      raise InputError(f"{directory} {what}" + (f"{more}: {how}" if how else ""))


def _fsdp(directory, files):
  if any(re.fullmatch(r"model_world_size_\d+_rank_\d+\.pt", f) for f in files):
    return (
      "is a sharded checkpoint of verl (FSDP), no model's folder; merge the shards (needs verl and "
      "their size in memory)",
      f"python -m verl.model_merger merge --backend fsdp --local_dir {quoted(directory)} "
      f"--target_dir {quoted(directory)}",
    )
  parts = [p.parent for pattern in ("*.distcp", "*/*.distcp") for p in directory.glob(pattern)]
  if parts := sorted({p for p in parts if not p.name.startswith("optimizer")}):
    return (
      f"is a sharded checkpoint of PyTorch FSDP ({parts[0].name}/*.distcp), no model's folder; "
      "merge the shards (needs accelerate and their size in memory)",
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
    "is a sharded checkpoint of DeepSpeed ZeRO, no model's folder; merge the shards (needs "
    "deepspeed and their size in memory)",
    f"python {how} {quoted(directory)} {quoted(directory)} --safe_serialization",
  )


def _consolidated(directory, files):
  found = [f for f in files if re.fullmatch(r"consolidated.*\.(pth|pt|safetensors)", f)]
  if not found:
    return None
  family = "mistral" if found[0].endswith(".safetensors") else "llama"
  place = f"src/transformers/models/{family}/convert_{family}_weights_to_hf.py"
  return (
    f"holds the maker's own format ({found[0]}), whose tensors have other names; download the "
    f"model in Hugging Face's format, or convert it by {place} of "
    "https://github.com/huggingface/transformers, with your model's size in the place of 8B",
    f"python {place} --input_dir {quoted(directory)} --model_size 8B "
    f"--output_dir {quoted(f'{directory}-hf')}",
  )


def _pickles(directory, files):
  names = {p.name for pattern in PICKLES for p in directory.glob(pattern)}
  for pattern in PICKLES:
    found = sorted(p.name for p in directory.glob(pattern) if not re.match(STATES, p.name))
    if found:
      return (
        f"has only pickled weights ({found[0]}), which can run code when opened and are not read; "
        "convert them (needs torch and their size in memory)",
        conversion(directory, pattern),
      )
  if names:
    return (
      f"has no weights, only the state of a training run{listing(names, limit=3)}\nname the folder "
      "that the model was saved to",
      "",
    )
  return None


def _others(_, files):
  for pattern, name in OTHERS.items():
    if found := [f for f in files if f.lower().endswith(pattern[1:])]:
      return (
        f"has only {name} weights ({found[0]}), which are packed for another program; download the "
        "original model in safetensors",
        "",
      )
  return None


def check_names(directory: StrPath, tensors: Iterable[str]) -> None:
  """Checks that no wrapper of PyTorch left its name in those of tensors.

  Raises:
    InputError: it did; gives the command that renames them.
  """
  if bad := [n for n in tensors if re.search(WRAPPERS, n)]:
    found = sorted({m[0] for n in bad for m in re.finditer(WRAPPERS, n)})
    raise InputError(
      f"{directory}: {len(bad)} names of tensors have {', '.join(map(repr, found))} in them, which "
      f"a wrapper of PyTorch put there ({bad[0]}); rename them: "
      f"python -m shadowft_jax.hf.unwrap {quoted(directory)}"
    )


def conversion(directory: StrPath, pattern: str = PICKLES[0]) -> str:
  """The shell command that writes a folder's pickles as safetensors, into the same folder.

  It reads only tensors: neither pickled code nor the model's own code runs.  Of a table that is
  the head too, the table's name is kept.
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
  """A word of a shell's command, in double quotes."""
  escaped = re.sub(r'([\\"$`])', r"\\\1", str(text))
  return '"' + escaped.replace("!", "\"'!'\"") + '"'
