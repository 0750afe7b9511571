"""The authors' graft, its steps and arithmetic written anew: a benchmark's peer.

  python third_party/authors_graft.py BASE TUNED INSTRUCT OUT

Three models are loaded whole; where a name contains one of seven, the difference is taken and then
added, both in the stored dtype; the result is written in shards of 5 GB, configuration and
tokenizer beside it.  Needs torch, safetensors and huggingface_hub.
Source: wutaiqiang/Shadow-FT fc3c50d, src/shadow/apply_diff.py.
"""

import pathlib
import shutil
import sys

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

CONTAINED = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj")
COPIED = ("config", "tokenizer", "special", "generation")


def load(folder):
  """{name: tensor} of every safetensors file in a folder."""
  return {
    name: tensor
    for path in sorted(pathlib.Path(folder).glob("*.safetensors"))
    for name, tensor in load_file(path).items()
  }


def main(base, tuned, instruct, out):
  before, after, shadow = load(base), load(tuned), load(instruct)
  learnt = {
    name: after[name] - before[name]
    for name in after
    if name in before and any(part in name.lower() for part in CONTAINED)
  }
  shadow = {name: w + learnt[name] if name in learnt else w for name, w in shadow.items()}
  out = pathlib.Path(out)
  out.mkdir()
  save_torch_state_dict(shadow, out, max_shard_size="5GB")
  for path in pathlib.Path(instruct).iterdir():
    if (
      path.name.startswith(COPIED) or path.suffix in (".md", ".json", ".py")
    ) and not path.name.endswith(".index.json"):
      shutil.copy(path, out)


if __name__ == "__main__":
  main(*sys.argv[1:])
