"""The paper's scope: the projections of a layer, which are trained by LoRA and grafted.

The one definition that training, graft, similarity and the pair check share, as the last names of
modules.  Source: arXiv 2505.12716, section 3.2; the authors' src/shadow/apply_diff.py.
"""

# config.json's model_type -> the projections of a family that names or fuses them otherwise.
PROJECTIONS: dict[str, tuple[str, ...]] = {
  "internlm2": ("wqkv", "wo", "w1", "w2", "w3"),
  "baichuan": ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
# Those of all other families; fused ones are Phi's qkv_proj and GLM-4's gate_up_proj.
DEFAULT = (
  "q_proj",
  "k_proj",
  "v_proj",
  "qkv_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "gate_up_proj",
  "down_proj",
)


def projections(model_type: str | None) -> tuple[str, ...]:
  """The last names of the modules that the paper trains and grafts in a family's layers."""
  return PROJECTIONS.get(model_type or "", DEFAULT)
