"""The arithmetic of graft.py in plain lines of torch, which hold three models: a benchmark's peer.

  python third_party/plain_graft.py BASE TUNED INSTRUCT OUT

Needs torch and safetensors; neither checks names and numbers nor waits for the disk.
"""

import pathlib
import re
import sys

from safetensors.torch import load_file, save_file

PROJECTIONS = r"\.(q|k|v|o|gate|up|down)_proj\."


def main(base, tuned, instruct, out):
  base, tuned, shadow = (
    load_file(pathlib.Path(d) / "model.safetensors") for d in (base, tuned, instruct)
  )
  for name in shadow:
    if re.search(PROJECTIONS, name):
      shadow[name] = (shadow[name].float() + (tuned[name].float() - base[name].float())).to(
        shadow[name].dtype
      )
  pathlib.Path(out).mkdir()
  save_file(shadow, pathlib.Path(out) / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
  main(*sys.argv[1:])
