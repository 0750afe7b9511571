"""Installs shadowft_jax; `constraints.txt` pins the exact set that is tested."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

setuptools.setup(
  name="shadowft_jax",
  version="0.1.0",
  description="Shadow-FT in JAX: tune the Base model, graft the update onto the Instruct model",
  long_description=(HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # configs/ and launch/ lie at the top of the repository, and in the package of a wheel.
  packages=[
    *setuptools.find_packages(include=["shadowft_jax", "shadowft_jax.*"]),
    "shadowft_jax.configs",
    "shadowft_jax.configs.paper",
    "shadowft_jax.launch",
  ],
  package_dir={"shadowft_jax.configs": "configs", "shadowft_jax.launch": "launch"},
  entry_points={"console_scripts": ["shadowft = shadowft_jax.__main__:main"]},
  package_data={
    "shadowft_jax": ["assets/**/*", "py.typed"],
    "shadowft_jax.configs.paper": ["numbers/*"],
    "shadowft_jax.launch": ["slurm.sh", "sky.yaml"],
  },
  install_requires=[
    "absl-py",
    "datasets",
    "etils[epy]",
    "flax>=0.12.8",
    "httpx2",
    "huggingface_hub",
    "jax>=0.10.2",
    "jinja2>=3.1.6",
    "matplotlib",
    "ml_collections>=1.1",
    "ml_dtypes",
    "numpy",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow",
    "pyarrow",
    "PyYAML",
    "scipy",
    "tensorboardX>=2.6",
    "tqdm",
    "transformers>=5.0",
    "xxhash",
  ],
  extras_require={
    "cuda13": ["jax[cuda13]"],
    "eval": ["lm_eval>=0.4.13", "math-verify"],
    "serve": ["starlette", "uvicorn"],
    "tpu": ["jax[tpu]"],
    "checks": ["pip-audit", "pytest-cov"],
    "docs": ["myst-parser>=5.2", "pydata-sphinx-theme>=0.24", "sphinx>=9"],
    "test": [
      *("axe-playwright-python", "lm_eval[api]", "mypy", "openai", "peft>=0.21", "playwright"),
      *("pytest", "pytest-xdist", "ruff", "starlette", "torch==2.13.0", "uvicorn"),
    ],
  },
)
