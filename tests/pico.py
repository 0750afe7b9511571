"""Tiny Hugging Face models, one a family, made on the fly: no norm is 1 and no bias is 0."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

from shadowft_jax import tree
from shadowft_jax.hf import leaves

# Every size is a multiple of 8, so that 8 devices divide it.  Of the 264 tokens a tokenizer
# uses 259: like released models, these have a table longer than their vocabulary.
SIZES = {
  "vocab_size": 264,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 512,
  "rope_theta": 10_000.0,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
# Of the 8 pairs of a head some are kept, some interpolated and some stretched.
LLAMA3_ROPE = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
# Windows of 6 and 8 are shorter than any text of a test.  No padding token, since torch leaves
# its row of the table without a gradient.
GEMMA = {
  **SIZES,
  "pad_token_id": None,
  "rms_norm_eps": 1e-6,
  "hidden_act": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 24,
  "sliding_window": 6,
  "tie_word_embeddings": True,
}
GEMMA3 = {
  **GEMMA,
  "model_type": "gemma3_text",
  "rope_theta": 1e6,
  "rope_local_base_freq": 1e4,
  "rope_scaling": {"rope_type": "linear", "factor": 8.0},
  "num_hidden_layers": 3,
  "sliding_window_pattern": 2,
}
GEMMA4 = {
  **GEMMA,
  "model_type": "gemma4_text",
  "num_hidden_layers": 6,
  "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
  "global_head_dim": 32,
  "num_global_key_value_heads": 1,
  "attention_k_eq_v": True,
  "hidden_size_per_layer_input": 0,
  "final_logit_softcapping": 3.0,
}
YARN = {
  "rope_type": "yarn",
  "factor": 8.0,
  "original_max_position_embeddings": 64,
  "attention_factor": 1.2,
  "beta_fast": 32,
  "beta_slow": 1,
}
OLMO3 = {
  **SIZES,
  "model_type": "olmo3",
  "rope_theta": 500_000.0,
  "sliding_window": 8,
  "pad_token_id": None,
  "num_hidden_layers": 5,
}
SMOLLM3 = {
  **SIZES,
  "model_type": "smollm3",
  "rope_theta": 5e6,
  "no_rope_layer_interval": 2,
  "pad_token_id": None,
}
QWEN3_MOE = {
  **SIZES,
  "model_type": "qwen3_moe",
  "rope_theta": 1e6,
  "rms_norm_eps": 1e-6,
  "num_experts": 8,
  "num_experts_per_tok": 3,
  "moe_intermediate_size": 16,
}
QWEN35 = {
  **SIZES,
  "model_type": "qwen3_5_text",
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e6,
    "partial_rotary_factor": 0.25,
    "mrope_section": [1, 1, 0],
  },
  "rms_norm_eps": 1e-6,
  "pad_token_id": None,
  "num_hidden_layers": 8,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 16,
}
# The scale of queries takes five steps within a test's 40 tokens.
MINISTRAL3 = {
  **{k: v for k, v in SIZES.items() if k != "rope_theta"},
  "model_type": "ministral3",
  "pad_token_id": None,
  "sliding_window": None,
  "rope_parameters": {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4,
  },
}
GRANITE = {
  **SIZES,
  "model_type": "granite",
  "head_dim": 8,
  "embedding_multiplier": 3.0,
  "residual_multiplier": 0.22,
  "attention_multiplier": 0.2,
  "logits_scaling": 6.0,
}
GRANITE4 = {
  **GRANITE,
  "model_type": "granitemoehybrid",
  "intermediate_size": 40,
  "shared_intermediate_size": 64,
  "num_local_experts": 0,
  "position_embedding_type": "rope",
  "layer_types": ["attention", "attention"],
  "mamba_n_heads": 4,
}
CONFIGS = {
  "llama3": {**SIZES, "model_type": "llama", "rope_scaling": LLAMA3_ROPE},
  "llama3_tied": {
    **SIZES,
    "model_type": "llama",
    "rope_scaling": LLAMA3_ROPE,
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
  },
  "llama_bias": {**SIZES, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
  "yi": {**SIZES, "model_type": "llama", "rope_theta": 5e6, "rms_norm_eps": 1e-6, "head_dim": 8},
  "falcon3": {
    **SIZES,
    "model_type": "llama",
    "rope_theta": 1e6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_size": 24,
  },
  "qwen2": {
    **SIZES,
    "model_type": "qwen2",
    "rope_theta": 1e6,
    "head_dim": 8,
    "num_hidden_layers": 3,
  },
  "qwen2_tied": {
    **SIZES,
    "model_type": "qwen2",
    "rope_theta": 1e6,
    "head_dim": 8,
    "tie_word_embeddings": True,
  },
  "qwen3": {**SIZES, "model_type": "qwen3", "rope_theta": 1e6, "rms_norm_eps": 1e-6},
  "qwen3_tied": {
    **SIZES,
    "model_type": "qwen3",
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
  },
  "qwen3_moe": {**QWEN3_MOE, "norm_topk_prob": True},
  "qwen3_moe_unnormed": {
    **QWEN3_MOE,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "tie_word_embeddings": True,
  },
  "gemma2": {
    **GEMMA,
    "model_type": "gemma2",
    "num_hidden_layers": 3,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
  },
  "gemma3": GEMMA3,
  "gemma3_untied": {**GEMMA3, "tie_word_embeddings": False, "rope_scaling": None},
  "gemma4": GEMMA4,
  "gemma4_unified": {
    **GEMMA4,
    "model_type": "gemma4_unified_text",
    "attention_k_eq_v": False,
    "attention_bias": True,
    "tie_word_embeddings": False,
  },
  "mistral": {**SIZES, "model_type": "mistral", "sliding_window": 8},
  "mistral_nemo": {**SIZES, "model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
  "olmo2": {**SIZES, "model_type": "olmo2", "rope_theta": 5e5, "pad_token_id": None, "head_dim": 8},
  "olmo3": {**OLMO3, "head_dim": 8},
  "olmo3_yarn": {**OLMO3, "head_dim": 8, "rope_scaling": YARN, "num_hidden_layers": 4},
  "smollm3": {**SMOLLM3, "tie_word_embeddings": True, "num_hidden_layers": 3, "head_dim": 8},
  "smollm3_bias": {**SMOLLM3, "no_rope_layers": [0, 1], "attention_bias": True, "head_dim": 8},
  "glm4": {
    **SIZES,
    "model_type": "glm4",
    "pad_token_id": None,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
  },
  "qwen3_5": QWEN35,
  "qwen3_5_tied": {
    **QWEN35,
    "tie_word_embeddings": True,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
  },
  "qwen3_5_moe": {
    **{k: v for k, v in QWEN35.items() if k != "intermediate_size"},
    "model_type": "qwen3_5_moe_text",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
  },
  "ministral3": MINISTRAL3,
  "ministral3_tied": {
    **MINISTRAL3,
    "tie_word_embeddings": True,
    "sliding_window": 8,
    "rope_parameters": {**MINISTRAL3["rope_parameters"], "mscale": 2.0, "mscale_all_dim": 0.5},
  },
  "granite": {**GRANITE, "tie_word_embeddings": True, "num_hidden_layers": 3},
  "granite_bias": {**GRANITE, "attention_bias": True, "mlp_bias": True},
  "granite4": {**GRANITE4, "tie_word_embeddings": True, "attention_bias": True},
  "granite4_nope": {**GRANITE4, "position_embedding_type": "nope"},
  "apertus": {
    **SIZES,
    "model_type": "apertus",
    "head_dim": 8,
    "hidden_act": "xielu",
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 10_000.0, **LLAMA3_ROPE},
  },
  "glm4_32b": {**SIZES, "model_type": "glm4", "pad_token_id": None, "attention_bias": False},
}
PIXTRAL = {
  "model_type": "pixtral",
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "head_dim": 8,
  "image_size": 28,
  "patch_size": 14,
}
# A folder that holds more than the text model.
VISION = {
  "gemma3_vision": {
    "model_type": "gemma3",
    "text_config": {k: v for k, v in GEMMA3.items() if k != "model_type"},
    "vision_config": {
      "hidden_size": 16,
      "intermediate_size": 32,
      "num_hidden_layers": 1,
      "num_attention_heads": 2,
      "image_size": 28,
      "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 263,
    "boi_token_index": 262,
    "eoi_token_index": 261,
  },
  # Two periods of three layers.  The token of images is beyond the head's 264 rows.
  "mllama_vision": {
    "model_type": "mllama",
    "text_config": {
      **{k: v for k, v in SIZES.items() if k not in ("head_dim", "rope_theta")},
      "num_hidden_layers": 6,
      "cross_attention_layers": [1, 4],
      "rope_parameters": {"rope_theta": 10_000.0, **LLAMA3_ROPE},
      "pad_token_id": None,
    },
    "vision_config": {
      "hidden_size": 16,
      "intermediate_size": 32,
      "num_hidden_layers": 3,
      "num_global_layers": 2,
      "attention_heads": 2,
      "image_size": 28,
      "patch_size": 14,
      "vision_output_dim": 48,
      "intermediate_layers_indices": [0, 2],
    },
    "image_token_index": 264,
  },
  "gemma4_vision": {
    "model_type": "gemma4",
    "text_config": {**{k: v for k, v in GEMMA4.items() if k != "model_type"}, "pad_token_id": 0},
    "vision_config": {
      "hidden_size": 16,
      "intermediate_size": 32,
      "num_hidden_layers": 1,
      "num_attention_heads": 2,
      "num_key_value_heads": 2,
      "head_dim": 8,
      "position_embedding_size": 16,
    },
    "audio_config": None,
    "image_token_id": 263,
    "video_token_id": 262,
    "audio_token_id": 261,
  },
  "gemma4_unified_vision": {
    "model_type": "gemma4_unified",
    "text_config": {**{k: v for k, v in GEMMA4.items() if k != "model_type"}, "pad_token_id": 0},
    "vision_config": {"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 8},
    "audio_config": {"audio_embed_dim": 16},
    "image_token_id": 263,
    "video_token_id": 262,
    "audio_token_id": 261,
  },
  "ministral3_vision": {
    "model_type": "mistral3",
    "text_config": {**MINISTRAL3, "tie_word_embeddings": True},
    "vision_config": PIXTRAL,
    "tie_word_embeddings": True,
    "image_token_index": 263,
  },
  "mistral3_vision": {
    "model_type": "mistral3",
    "text_config": {**SIZES, "model_type": "mistral", "sliding_window": None},
    "vision_config": PIXTRAL,
    "tie_word_embeddings": False,
    "image_token_index": 263,
  },
  "qwen3_5_vision": {
    "model_type": "qwen3_5",
    "text_config": {**QWEN35, "num_hidden_layers": 4},
    "vision_config": {
      "depth": 1,
      "hidden_size": 16,
      "intermediate_size": 32,
      "num_heads": 2,
      "patch_size": 8,
      "out_hidden_size": 32,
      "num_position_embeddings": 16,
    },
    "tie_word_embeddings": False,
    "image_token_id": 263,
    "video_token_id": 262,
    "vision_start_token_id": 261,
    "vision_end_token_id": 260,
  },
}
# As the released Instruct, whose images are larger than the Base's.
VISION["mllama_instruct"] = {
  **VISION["mllama_vision"],
  "vision_config": {**VISION["mllama_vision"]["vision_config"], "image_size": 42},
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # tokens 0, 1, 2
CHAT_TEMPLATE = (
  "{%- for message in messages %}"
  "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
  "{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def hf_model(name, seed=0):
  """The float32 torch model of CONFIGS or VISION; a seed gives the same weights every time."""
  options = dict({**CONFIGS, **VISION}[name])
  config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
  kind = "ImageTextToText" if name in VISION else "CausalLM"
  model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
  random = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter_name, w in parameters(model).items():
      if w.ndim > 1:
        w.copy_(0.2 * torch.randn(w.shape, generator=random))
        continue
      # 0.1 to 0.6 to either side of what it would be if it did nothing.
      away = 0.1 + 0.5 * torch.rand(w.shape, generator=random)
      sign = 2 * torch.randint(2, w.shape, generator=random) - 1
      is_scale = parameter_name.endswith(("norm.weight", "layer_scalar")) and (
        "gemma" not in config.model_type or "gemma4" in config.model_type
      )
      w.copy_(away * sign + is_scale)
  for name, w in model.named_buffers():
    w.requires_grad_(name.endswith("layer_scalar"))
  return model


def parameters(model):
  """{name: torch tensor} of the weights in a folder: Gemma 4 has factors that are buffers."""
  scalars = {n: w for n, w in model.named_buffers() if n.endswith("layer_scalar")}
  return {**dict(model.named_parameters()), **scalars}


def random_like(shapes, scale, seed=0):
  """A tree of normal numbers of these shapes and dtypes; numpy makes them, so nothing compiles."""
  random = np.random.default_rng(seed)

  def draw(x):
    return jnp.asarray((scale * random.standard_normal(x.shape)).astype(x.dtype))

  return jax.tree.map(draw, shapes)


def per_expert(named):
  """{tensor name: array} as files have them, of what transformers 5 fuses in memory."""
  out = {}
  for name, x in named.items():
    experts, _, fused = name.rpartition(".experts.")
    if not experts:
      out[name] = x
      continue
    parts = fused.removesuffix("_proj").split("_")
    rows = x.shape[1] // len(parts)
    for e in range(len(x)):
      for i, part in enumerate(parts):
        out[f"{experts}.experts.{e}.{part}_proj.weight"] = x[e, i * rows : (i + 1) * rows]
  return out


def save(model, directory, dtype=torch.float32, max_shard_size="50GB", with_tokenizer=False):
  """Writes a Hugging Face folder; the model keeps its dtype, but the rounding of `dtype` too."""
  own_dtype = model.dtype
  model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
  model.to(own_dtype)
  if with_tokenizer:
    save_tokenizer(directory)
  return pathlib.Path(directory)


def load(read, abstract):
  """Fills a tree of shapes from `read(tensor name) -> np.ndarray`, on the host."""

  def leaf(name, want):
    parts = [
      read(n).T if leaves.is_transposed(name) else read(n)
      for n in leaves.hf_names(name, want.shape)
    ]
    stack = want.shape[: leaves.stacked_axes(name)]
    return np.stack(parts).reshape(*stack, *parts[0].shape).astype(want.dtype)

  return tree.map_named(leaf, abstract)


def save_tokenizer(directory):
  """Writes a byte-level tokenizer without merges (a byte is a token) and a ChatML template."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
  bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    eos_token=SPECIALS[2],
    pad_token=SPECIALS[0],
    additional_special_tokens=list(SPECIALS[:2]),
    chat_template=CHAT_TEMPLATE,
    clean_up_tokenization_spaces=False,
    model_max_length=512,
  ).save_pretrained(directory)
