"""What a run leaves for people: the loss picture, the model card, where everything came from."""

import concurrent.futures
import hashlib
import importlib.metadata
import os
import pathlib

PACKAGES = ("shadowft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers",
            "safetensors", "numpy")


def plot_loss(records, path):
  """Draws training and validation loss over the steps of `records` (metrics.jsonl) as PNG."""
  # Here, since a graft need not wait for it.
  import matplotlib
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
  for key, label, style in (("loss", "training", "-"), ("valid_loss", "validation", "o--"),
                            ("shadow_valid_loss", "validation, grafted Instruct", "*")):
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if points:
      size = 10 if style == "*" else 4
      axes.plot(*zip(*points, strict=True), style, label=label, markersize=size)
  axes.set(xlabel="optimizer step", ylabel="loss per answer token (nats)")
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(path, dpi=150)
  plt.close(figure)


def model_card(*, base, instruct, learn_on, kind, match):
  """README.md of a grafted folder: both parents, by the hub's own metadata fields."""
  parents = [instruct] if learn_on == "instruct" else [instruct, base]
  kind = "LoRA" if kind == "lora" else "full-parameter"
  listed = "".join(f"\n- {p}" for p in parents)
  made = (f"{kind} tuning of `{instruct}` itself" if learn_on == "instruct" else
          f"{kind} tuning of `{base}`, whose weight update was added to `{instruct}` "
          "(Shadow-FT, arXiv 2505.12716): W_I' = W_I + (W_B' - W_B)")
  return (f"---\nbase_model:{listed}\nbase_model_relation: merge\ntags:\n- shadow-ft\n---\n"
          f"# {pathlib.Path(instruct).name}, tuned\n\nMade by shadowft_jax: {made}. Grafted "
          f"leaves: `{match}`. All other tensors, the configuration, the tokenizer and the "
          "chat template are those of the Instruct model, byte for byte; its own card is "
          "README.instruct.md, and its licence applies.\n")


def sha256(path):
  """The hex digest of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def provenance(inputs, *, seed):
  """Digest of every input file, versions of what made the run, and its seed.

  Args:
    inputs: {role: files or folders}; of a folder, the files directly in it; what is neither, such
      as an id of the hub, has the digest None.
  """
  files = {}
  for role, paths in inputs.items():
    found = [p for path in map(pathlib.Path, paths)
             for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if not p.is_dir()]
    files[role] = {str(p): p for p in found}
  paths = {p for group in files.values() for p in group.values() if p.is_file()}
  # The longest first, so that no core is left with it at the end.
  paths = sorted(paths, key=lambda p: (-p.stat().st_size, p))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = dict(zip(paths, pool.map(sha256, paths), strict=True))
  files = {role: {name: digests.get(p) for name, p in group.items()}
           for role, group in files.items()}
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = "not installed as a package"
  return {"sha256": files, "versions": versions, "seed": seed}
