"""The model card of a grafted folder."""

import pathlib

from shadowft_jax.presets import Config


def model_card(
  *, base: str, instruct: str, learn_on: str, kind: str, match: str, dtype: str | None = None
) -> str:
  """README.md of a grafted folder: both parents, in the hub's own metadata fields.

  `dtype` is that of all weights, where it is not the Instruct's.
  """
  parents = [instruct] if learn_on == "instruct" else [instruct, base]
  kind = "LoRA" if kind == "lora" else "full-parameter"
  listed = "".join(f"\n- {p}" for p in parents)
  made = (
    f"{kind} tuning of `{instruct}` itself"
    if learn_on == "instruct"
    else f"{kind} tuning of `{base}`, whose weight update was added to `{instruct}` "
    "(Shadow-FT, arXiv 2505.12716): W_I' = W_I + (W_B' - W_B)"
  )
  same = (
    "All other tensors, the configuration, the tokenizer"
    if dtype is None
    else f"All weights are stored in {dtype}, and the configuration says so. The tokenizer"
  )
  return (
    f"---\nbase_model:{listed}\nbase_model_relation: merge\ntags:\n- shadow-ft\n---\n"
    f"# {pathlib.Path(instruct).name}, tuned\n\nMade by shadowft_jax: {made}. Grafted "
    f"leaves: `{match}`. {same} and the "
    "chat template are those of the Instruct model, byte for byte; its own card is "
    "README.instruct.md, and its licence applies.\n"
  )


def run_card(config: Config) -> str:
  """The card of the grafted model of a run."""
  return model_card(
    base=config.base,
    instruct=config.instruct,
    learn_on=config.learn_on,
    kind=config.delta.kind,
    match=config.graft.match,
  )
