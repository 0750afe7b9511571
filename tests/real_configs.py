"""config.json of released pairs: CONFIGS[name] = (Base's, Instruct's); and published counts.

The fields that fix shapes, and those in which Base and Instruct differ, as in the files on the
hub; fields that say nothing of the model (dtype, version, cache) are left out.
"""

import copy
import functools


def _pair(common, base, instruct):
  return ({**copy.deepcopy(common), **base}, {**copy.deepcopy(common), **instruct})


def _llama3(hidden, layers, heads, kv, mlp, *, factor, tied):
  return _pair(
    dict(
      model_type="llama",
      vocab_size=128256,
      hidden_size=hidden,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=kv,
      intermediate_size=mlp,
      head_dim=hidden // heads,
      rms_norm_eps=1e-5,
      rope_theta=500000.0,
      rope_scaling=factor  # None: Llama 3, before 3.1
      and dict(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
      ),
      max_position_embeddings=131072 if factor else 8192,
      tie_word_embeddings=tied,
      attention_bias=False,
      mlp_bias=False,
      hidden_act="silu",
      bos_token_id=128000,
    ),
    dict(eos_token_id=128001),
    dict(eos_token_id=[128001, 128008, 128009]),
  )


def _qwen3(hidden, layers, heads, mlp, tied=False, **moe):
  return _pair(
    dict(
      model_type="qwen3",
      vocab_size=151936,
      hidden_size=hidden,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=8,
      intermediate_size=mlp,
      head_dim=128,
      rms_norm_eps=1e-6,
      rope_theta=1000000,
      rope_scaling=None,
      tie_word_embeddings=tied,
      attention_bias=False,
      use_sliding_window=False,
      sliding_window=None,
      max_window_layers=layers,
      hidden_act="silu",
      bos_token_id=151643,
      **moe,
    ),
    dict(max_position_embeddings=32768, eos_token_id=151643),
    dict(max_position_embeddings=40960, eos_token_id=151645),
  )


def _qwen25(hidden, layers, heads, kv, mlp, base_eps):
  return _pair(
    dict(
      model_type="qwen2",
      vocab_size=152064,
      hidden_size=hidden,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=kv,
      intermediate_size=mlp,
      rope_theta=1000000.0,
      tie_word_embeddings=False,
      use_sliding_window=False,
      sliding_window=131072,
      hidden_act="silu",
      bos_token_id=151643,
    ),
    dict(rms_norm_eps=base_eps, max_position_embeddings=131072, eos_token_id=151643),
    dict(rms_norm_eps=1e-6, max_position_embeddings=32768, eos_token_id=151645),
  )


def _falcon3(hidden, layers, heads, mlp):
  both = dict(
    model_type="llama",
    vocab_size=131072,
    hidden_size=hidden,
    head_dim=256,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=4,
    intermediate_size=mlp,
    rms_norm_eps=1e-6,
    rope_theta=1000042,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    hidden_act="silu",
    max_position_embeddings=32768,
    eos_token_id=11,
  )
  return _pair(both, dict(activation="swiglu"), {})


def _yi(hidden, layers, heads, kv, mlp, *, theta, eps, length):
  return _pair(
    dict(
      model_type="llama",
      vocab_size=64000,
      hidden_size=hidden,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=kv,
      intermediate_size=mlp,
      rms_norm_eps=eps,
      rope_theta=theta,
      max_position_embeddings=length,
      tie_word_embeddings=False,
      hidden_act="silu",
      bos_token_id=1,
    ),
    dict(eos_token_id=2),
    dict(eos_token_id=7),
  )


def _gemma2(hidden, layers, heads, kv, mlp):
  both = dict(
    model_type="gemma2",
    vocab_size=256000,
    hidden_size=hidden,
    head_dim=256,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    intermediate_size=mlp,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    sliding_window=4096,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
    attention_bias=False,
    max_position_embeddings=8192,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
  )
  return _pair(both, {}, {})


def _qwen35(hidden, layers, heads, kv, mlp, linear_values, *, tied):
  text = dict(
    model_type="qwen3_5_text",
    vocab_size=248320,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    intermediate_size=mlp,
    head_dim=256,
    linear_num_key_heads=16,
    linear_num_value_heads=linear_values,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
    full_attention_interval=4,
    rms_norm_eps=1e-6,
    rope_parameters=dict(
      rope_type="default",
      rope_theta=10_000_000,
      partial_rotary_factor=0.25,
      mrope_interleaved=True,
      mrope_section=[11, 11, 10],
    ),
    max_position_embeddings=262144,
    tie_word_embeddings=tied,
    attention_bias=False,
    hidden_act="silu",
    eos_token_id=248044,
  )
  return _pair(dict(model_type="qwen3_5", tie_word_embeddings=tied, text_config=text), {}, {})


def _gemma4(model_type, hidden, layers, heads, kv, full_kv, mlp, **towers):
  text = dict(
    model_type=f"{model_type}_text",
    vocab_size=262144,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    num_global_key_value_heads=full_kv,
    intermediate_size=mlp,
    head_dim=256,
    global_head_dim=512,
    attention_k_eq_v=True,
    attention_bias=False,
    hidden_size_per_layer_input=0,
    num_kv_shared_layers=0,
    enable_moe_block=False,
    use_bidirectional_attention="vision",
    rms_norm_eps=1e-6,
    rope_parameters=dict(
      full_attention=dict(
        rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1_000_000.0
      ),
      sliding_attention=dict(rope_type="default", rope_theta=10_000.0),
    ),
    sliding_window=1024,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * (layers // 6),
    final_logit_softcapping=30.0,
    max_position_embeddings=262144,
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=True,
  )
  both = dict(model_type=model_type, tie_word_embeddings=True, text_config=text, **towers)
  return _pair(both, {}, {})


def _gemma3(hidden, layers, mlp, **heads):
  """The text_config on the Hub leaves to the class whatever is its default."""
  both = dict(
    model_type="gemma3",
    image_token_index=262144,
    mm_tokens_per_image=256,
    boi_token_index=255999,
    eoi_token_index=256000,
    text_config=dict(
      model_type="gemma3_text",
      hidden_size=hidden,
      num_hidden_layers=layers,
      intermediate_size=mlp,
      sliding_window=1024,
      rope_scaling=dict(factor=8.0, rope_type="linear"),
      **heads,
    ),
    vision_config=dict(
      model_type="siglip_vision_model",
      hidden_size=1152,
      intermediate_size=4304,
      num_hidden_layers=27,
      num_attention_heads=16,
      patch_size=14,
      image_size=896,
      vision_use_head=False,
    ),
  )
  return _pair(both, {}, dict(eos_token_id=[1, 106]))


def _mllama(hidden, layers, heads, mlp):
  ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
  text = dict(
    model_type="mllama_text_model",
    vocab_size=128256,
    hidden_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=8,
    intermediate_size=mlp,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=dict(
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=8192,
      rope_type="llama3",
    ),
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    hidden_act="silu",
    cross_attention_layers=list(range(3, layers, 5)),
    pad_token_id=128004,
  )
  vision = dict(
    model_type="mllama_vision_model",
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_global_layers=8,
    attention_heads=16,
    patch_size=14,
    max_num_tiles=4,
    vision_output_dim=7680,
    intermediate_layers_indices=[3, 7, 15, 23, 30],
    supported_aspect_ratios=ratios,
  )
  return tuple(
    dict(
      model_type="mllama",
      image_token_index=128256,
      text_config=dict(text),
      vision_config=dict(vision, image_size=size),
    )
    for size in (448, 560)
  )


def _olmo3(hidden, layers, heads, kv, mlp):
  return _pair(
    dict(
      model_type="olmo3",
      vocab_size=100278,
      hidden_size=hidden,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=kv,
      intermediate_size=mlp,
      rms_norm_eps=1e-6,
      rope_theta=500000,
      rope_scaling=dict(
        rope_type="yarn",
        factor=8.0,
        original_max_position_embeddings=8192,
        beta_fast=32,
        beta_slow=1,
        attention_factor=1.2079441541679836,
      ),
      sliding_window=4096,
      layer_types=([*["sliding_attention"] * 3, "full_attention"] * (layers // 4)),
      attention_bias=False,
      tie_word_embeddings=False,
      hidden_act="silu",
      max_position_embeddings=65536,
      pad_token_id=100277,
      eos_token_id=100257,
    ),
    {},
    {},
  )


def _mistral(mlp, theta):
  return _pair(
    dict(
      model_type="mistral",
      vocab_size=131072,
      hidden_size=5120,
      num_hidden_layers=40,
      num_attention_heads=32,
      num_key_value_heads=8,
      head_dim=128,
      intermediate_size=mlp,
      rms_norm_eps=1e-5,
      rope_theta=theta,
      sliding_window=None,
      tie_word_embeddings=False,
      hidden_act="silu",
      bos_token_id=1,
      eos_token_id=2,
    ),
    {},
    {},
  )


CONFIGS = {
  "llama-3.2-1b": _llama3(2048, 16, 32, 8, 8192, factor=32.0, tied=True),
  "llama-3.2-3b": _llama3(3072, 28, 24, 8, 8192, factor=32.0, tied=True),
  "llama-3.1-8b": _llama3(4096, 32, 32, 8, 14336, factor=8.0, tied=False),
  "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
  "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
  "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
  "qwen3-8b": _qwen3(4096, 36, 32, 12288),
  "qwen3-14b": _qwen3(5120, 40, 40, 17408),
  "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18944, 1e-6),
  "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13824, 1e-5),
  "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27648, 1e-5),
  "falcon3-1b": _falcon3(2048, 18, 8, 8192),
  "falcon3-3b": _falcon3(3072, 22, 12, 9216),
  "falcon3-7b": _falcon3(3072, 28, 12, 23040),
  "falcon3-10b": _falcon3(3072, 40, 12, 23040),
  "gemma-2-2b": _gemma2(2304, 26, 8, 4, 9216),
  "gemma-2-9b": _gemma2(3584, 42, 16, 8, 14336),
  "qwen3.5-0.8b": _qwen35(1024, 24, 8, 2, 3584, 16, tied=True),
  "qwen3.5-9b": _qwen35(4096, 32, 16, 4, 12288, 32, tied=False),
  "gemma-4-31b": _gemma4(
    *("gemma4", 5376, 60, 32, 16, 4, 21504),
    vision_config=dict(
      model_type="gemma4_vision",
      hidden_size=1152,
      intermediate_size=4304,
      num_hidden_layers=27,
      num_attention_heads=16,
      num_key_value_heads=16,
      head_dim=72,
      standardize=True,
    ),
    audio_config=None,
  ),
  "gemma-4-12b": _gemma4(
    *("gemma4_unified", 3840, 48, 16, 8, 1, 15360),
    vision_config=dict(model_type="gemma4_unified_vision", mm_embed_dim=3840),
    audio_config=dict(model_type="gemma4_unified_audio", audio_embed_dim=640),
  ),
  "gemma-3-4b": _gemma3(2560, 34, 10240),
  "gemma-3-12b": _gemma3(3840, 48, 15360, num_attention_heads=16, num_key_value_heads=8),
  "gemma-3-27b": _gemma3(
    5376,
    62,
    21504,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=168,
  ),
  "llama-3.2-11b-vision": _mllama(4096, 40, 32, 14336),
  "llama-3.2-90b-vision": _mllama(8192, 100, 64, 28672),
  "yi-6b": _yi(4096, 32, 32, 4, 11008, theta=5000000.0, eps=1e-5, length=4096),
  "yi-coder-1.5b": _yi(2048, 24, 16, 16, 5504, theta=10000000.0, eps=1e-5, length=131072),
  "yi-coder-9b": _yi(4096, 48, 32, 4, 11008, theta=10000000.0, eps=1e-5, length=131072),
}
# The Instruct is newer than the Base: its positions turn slower.
CONFIGS["qwen3-4b-2507"] = (
  CONFIGS["qwen3-4b"][0],
  dict(CONFIGS["qwen3-4b"][1], rope_theta=5000000, max_position_embeddings=262144),
)
CONFIGS["qwen3-30b-a3b"] = tuple(
  dict(c, model_type="qwen3_moe", num_key_value_heads=4)
  for c in _qwen3(
    2048,
    48,
    32,
    6144,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    router_aux_loss_coef=0.001,
  )
)
CONFIGS["gemma-3-1b"] = _pair(
  dict(
    model_type="gemma3_text",
    vocab_size=262144,
    hidden_size=1152,
    num_hidden_layers=26,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    intermediate_size=6912,
    rms_norm_eps=1e-6,
    rope_theta=1000000,
    rope_local_base_freq=10000,
    rope_scaling=None,
    query_pre_attn_scalar=256,
    sliding_window=512,
    sliding_window_pattern=6,
    hidden_activation="gelu_pytorch_tanh",
    attention_bias=False,
    max_position_embeddings=32768,
    bos_token_id=2,
    pad_token_id=0,
  ),
  dict(eos_token_id=1),
  dict(eos_token_id=[1, 106]),
)
CONFIGS["mistral-7b"] = _pair(
  dict(
    model_type="mistral",
    vocab_size=32000,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    sliding_window=4096,
    tie_word_embeddings=False,
    hidden_act="silu",
    max_position_embeddings=32768,
    bos_token_id=1,
    eos_token_id=2,
  ),
  {},
  {},
)
CONFIGS["seed-coder-8b"] = _pair(
  dict(
    model_type="llama",
    vocab_size=155136,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=500000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    hidden_act="silu",
    max_position_embeddings=32768,
    bos_token_id=0,
    eos_token_id=2,
  ),
  {},
  {},
)
CONFIGS["glm-4-32b-0414"] = _pair(
  dict(
    model_type="glm4",
    vocab_size=151552,
    hidden_size=6144,
    num_hidden_layers=61,
    num_attention_heads=48,
    num_key_value_heads=2,
    head_dim=128,
    intermediate_size=23040,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    partial_rotary_factor=0.5,
    attention_bias=False,
    tie_word_embeddings=False,
    hidden_act="silu",
    max_position_embeddings=32768,
    pad_token_id=151329,
  ),
  {},
  {},
)

# Like Qwen3-4B-Instruct-2507, the thinking model has a longer context than the Base.
CONFIGS["qwen3-4b-thinking-2507"] = (CONFIGS["qwen3-4b-2507"][1],) * 2
CONFIGS["olmo-3-7b"] = _olmo3(4096, 32, 32, 32, 11008)
CONFIGS["olmo-3-7b-sft"] = CONFIGS["olmo-3-7b-dpo"] = CONFIGS["olmo-3-7b"]
CONFIGS["olmo-3-32b"] = _olmo3(5120, 64, 40, 8, 27648)
CONFIGS["smollm3-3b"] = _pair(
  dict(
    model_type="smollm3",
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=11008,
    rms_norm_eps=1e-6,
    rope_theta=5000000.0,
    no_rope_layer_interval=4,
    tie_word_embeddings=True,
    hidden_act="silu",
    max_position_embeddings=65536,
  ),
  dict(eos_token_id=128001),
  dict(eos_token_id=128012),
)
CONFIGS["llama-3-70b"] = _llama3(8192, 80, 64, 8, 28672, factor=None, tied=False)
CONFIGS["mistral-nemo-12b"] = _mistral(14336, theta=1e6)
CONFIGS["mistral-small-24b"] = _mistral(32768, theta=1e8)

# As in the defaults of the classes for these models in transformers 5.23.
_PIXTRAL = dict(
  model_type="pixtral",
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  head_dim=64,
  patch_size=14,
  image_size=1540,
  hidden_act="gelu",
)


def _mistral3(text, **fields):
  both = dict(model_type="mistral3", text_config=text, vision_config=_PIXTRAL, **fields)
  return _pair(dict(both, tie_word_embeddings=False, multimodal_projector_bias=False), {}, {})


CONFIGS["mistral-small-3.1-24b"] = _mistral3(_mistral(32768, theta=1e9)[0])
CONFIGS["mistral-small-3.2-24b"] = CONFIGS["mistral-small-3.1-24b"]
CONFIGS["ministral-3-8b"] = _mistral3(
  dict(
    model_type="ministral3",
    vocab_size=131072,
    hidden_size=4096,
    num_hidden_layers=34,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=14336,
    rms_norm_eps=1e-5,
    sliding_window=None,
    hidden_act="silu",
    tie_word_embeddings=False,
    rope_parameters=dict(
      rope_type="yarn",
      rope_theta=1000000.0,
      factor=16.0,
      original_max_position_embeddings=16384,
      beta_fast=32.0,
      beta_slow=1.0,
      mscale=1.0,
      mscale_all_dim=1.0,
      llama_4_scaling_beta=0.1,
    ),
  )
)

# Parameters of the Instruct, vision included, tied tables counted once: as its page on the Hub
# counts them; of Gemma 3 as keras-hub's presets do (12B without the last 64 rows of its table), and
# of Gemma 4 without the two buffers of the vision tower.
PARAMETERS = {
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.2-11b-vision": 10_670_220_835,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-4b-2507": 4_022_468_096,
  "qwen3-8b": 8_190_735_360,
  "qwen3-14b": 14_768_307_200,
  "qwen3-30b-a3b": 30_532_122_624,
  "qwen2.5-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "falcon3-1b": 1_669_408_768,
  "falcon3-3b": 3_227_655_168,
  "falcon3-7b": 7_455_550_464,
  "falcon3-10b": 10_305_653_760,
  "gemma-2-2b": 2_614_341_888,
  "gemma-2-9b": 9_241_705_984,
  "gemma-4-31b": 31_273_088_876 - 2 * 1152,
  "gemma-3-1b": 999_885_952,
  "gemma-3-4b": 4_300_079_472,
  "gemma-3-12b": 12_187_079_280 + 64 * 3840,
  "gemma-3-27b": 27_432_406_640,
  "mistral-7b": 7_241_732_096,
  "mistral-nemo-12b": 12_247_782_400,
  "mistral-small-24b": 23_572_403_200,
  "mistral-small-3.1-24b": 24_011_361_280,
  "llama-3-70b": 70_553_706_496,
  "smollm3-3b": 3_075_098_624,
  "olmo-3-7b": 7_298_011_136,
  "olmo-3-32b": 32_233_522_176,
  "yi-6b": 6_061_035_520,
  "yi-coder-9b": 8_829_407_232,
  "glm-4-32b-0414": 32_566_081_536,
}
# LoRA parameters per unit of rank: the seven projections of the language model.
LORA = {
  "llama-3.2-1b": 704_512,
  "llama-3.2-3b": 1_519_616,
  "llama-3.1-8b": 2_621_440,
  "llama-3.2-11b-vision": 3_276_800,
  "qwen3-0.6b": 630_784,
  "qwen3-4b": 2_064_384,
  "qwen3-8b": 2_727_936,
  "qwen3-14b": 4_014_080,
  "qwen3-30b-a3b": 52_740_096,
  "qwen2.5-32b": 8_388_608,
  "yi-6b": 2_269_184,
  "yi-coder-9b": 3_403_776,
  "falcon3-3b": 1_261_568,
  "falcon3-10b": 3_952_640,
  "gemma-3-4b": 1_862_656,
  "gemma-3-12b": 4_091_904,
  "gemma-3-27b": 7_094_784,
}


def on_meta(hf):
  """{tensor name: shape} of the model transformers builds from a config, without memory."""
  # Here, so that the configs can be read where there is no torch.
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

  from tests import pico

  auto = AutoModelForImageTextToText if "vision_config" in hf else AutoModelForCausalLM
  fields = dict(hf)
  with torch.device("meta"):
    model = auto.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
  return {n: tuple(p.shape) for n, p in pico.per_expert(pico.parameters(model)).items()}


@functools.cache
def theirs(name, side):
  """`on_meta` of CONFIGS[name][side]."""
  return on_meta(CONFIGS[name][side])
