"""The gap ratio in plain lines of torch, both models loaded whole: a benchmark's peer.

  python third_party/plain_similarity.py BASE INSTRUCT

Prints the mean over the tensors of layers, each on its own in float32, as the authors' sigma_v2.py
does.  Needs torch and safetensors; tensors that the Instruct lacks are skipped.
"""

import pathlib
import re
import sys

from safetensors.torch import load_file


def main(*folders):
  base, instruct = (
    {
      n: x
      for path in sorted(pathlib.Path(f).glob("*.safetensors"))
      for n, x in load_file(path).items()
    }
    for f in folders
  )
  found = []
  for name in base:
    if re.search(r"model\.layers\.\d+\.", name) and name in instruct:
      b, i = base[name].float(), instruct[name].float()
      found.append((b - i).abs().sum().item() / (b.abs().sum() + i.abs().sum()).item())
  print(sum(found) / len(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
