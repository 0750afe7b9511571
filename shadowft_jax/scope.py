"""The paper's scope: the projections of the layers, which are trained with LoRA and grafted.

The only definition, by module names, for training, graft, similarity and the pair check.
Source: arXiv 2505.12716, section 3.2; the authors' src/shadow/apply_diff.py, and LLaMA-Factory's
lora_target=all, with which they train: every linear layer.
"""

import re

# Projections of the trainable families, including the fused qkv_proj (Phi) and gate_up_proj
# (GLM-4), those of a gated delta-net (Qwen3.5) and those of a shared MLP (Granite 4).
DEFAULT = (
  *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
  *("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
  *("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
  *("input_linear", "output_linear"),
)
# Adds those of other families, which can only be grafted.
PROJECTIONS = frozenset(
  {
    *DEFAULT,
    # InternLM2, Baichuan, Mixtral, LFM2
    *("wqkv", "wo", "w1", "w2", "w3", "W_pack", "in_proj"),
    # attention with latent heads (DeepSeek, MiniCPM3)
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    # OPT, Phi, StarCoder2, GPT-2, Qwen
    *("fc1", "fc2", "dense", "c_attn", "c_proj", "c_fc"),
    # GPT-NeoX, Bloom, Falcon, ChatGLM, MPT, DBRX, OLMo
    *("query_key_value", "dense_h_to_4h", "dense_4h_to_h", "Wqkv", "v1"),
    *("att_proj", "attn_out", "ff_proj", "ff_out"),
    # linear attention (Qwen3-Next, Mamba)
    *("x_proj", "dt_proj"),
    *("in_proj_qkvz", "in_proj_ba"),
  }
)
# Matrices of layers that are not projections: routers, convolutions, and parameters per token or
# position.
NO_PROJECTION = (
  r"norm|\bgate\b|router|shared_expert_gate|conv|embed|bias|rotary|relative|A_log|per_layer|altup"
  r"|laurel"
)
# Names that `match` may have instead of a regex -> the regex on leaf names, including biases.
SCOPES = {"projections": rf"layers/.*/({'|'.join(DEFAULT)})/", "all": r""}


RUN = re.compile(r"(?<=layers/)\d+(-\d+)?of\d+/")  # in a leaf's name, see hf/leaves.py
VISION = re.compile(  # leaves beside the text model
  r"^model/(vision_tower|vision_model|multi_modal_projector)/"
)


def is_frozen(leaf: str) -> bool:
  """Whether a leaf is never trained: Gemma 4's factor of a layer, in transformers a buffer."""
  return leaf.endswith("/layer_scalar")


def is_trained(match: str, vision: str, leaf: str) -> bool:
  """Whether a leaf is trained: `match` is for the language model, `vision` for what sees images.

  Args:
    match: see `pattern`.
    vision: a regex on leaf names; "": none of the vision tower and projector.
    leaf: a leaf's name.
  """
  if VISION.search(leaf):
    return bool(vision and re.search(vision, leaf))
  return has(match, leaf)


def pattern(match: str) -> str:
  """The regex on leaf names for `match`, which is a name in SCOPES or a regex itself."""
  return SCOPES.get(match, match)


def has(match: str, leaf: str) -> bool:
  """Whether `match`, see `pattern`, selects a leaf; the run in its name is ignored."""
  return bool(re.search(pattern(match), RUN.sub("", leaf)))
