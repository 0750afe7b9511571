"""Tiny Hugging Face models, one a family, made on the fly: no norm is 1 and no bias is 0."""

import pathlib

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

# Every size is a multiple of 8, so that 8 devices divide it.  Of the 264 tokens a tokenizer
# uses 259: like released models, these have a table longer than their vocabulary.
SIZES = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "rope_theta": 10_000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
# Of the 8 pairs of a head some are kept, some interpolated and some stretched.
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama3": {**SIZES, "model_type": "llama", "rope_scaling": LLAMA3_ROPE},
    "llama3_tied": {**SIZES, "model_type": "llama", "rope_scaling": LLAMA3_ROPE,
                    "num_hidden_layers": 3, "tie_word_embeddings": True},
    "llama_bias": {**SIZES, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "yi": {**SIZES, "model_type": "llama", "rope_theta": 5e6, "rms_norm_eps": 1e-6,
           "head_dim": 8},
    "falcon3": {**SIZES, "model_type": "llama", "rope_theta": 1e6, "num_attention_heads": 3,
                "num_key_value_heads": 1, "hidden_size": 24},
    "qwen2": {**SIZES, "model_type": "qwen2", "rope_theta": 1e6, "head_dim": 8,
              "num_hidden_layers": 3},
    "qwen2_tied": {**SIZES, "model_type": "qwen2", "rope_theta": 1e6, "head_dim": 8,
                   "tie_word_embeddings": True},
    "qwen3": {**SIZES, "model_type": "qwen3", "rope_theta": 1e6, "rms_norm_eps": 1e-6},
    "qwen3_tied": {**SIZES, "model_type": "qwen3", "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                   "tie_word_embeddings": True},
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")     # tokens 0, 1, 2
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def hf_model(name, seed=0):
  """The float32 torch model of CONFIGS[name]; a seed gives the same weights every time."""
  options = dict(CONFIGS[name])
  config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  random = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter_name, w in model.named_parameters():
      if w.ndim == 2:
        w.copy_(0.2 * torch.randn(w.shape, generator=random))
        continue
      # 0.1 to 0.6 to either side of what it would be if it did nothing.
      away = 0.1 + 0.5 * torch.rand(w.shape, generator=random)
      sign = 2 * torch.randint(2, w.shape, generator=random) - 1
      w.copy_(away * sign + parameter_name.endswith("norm.weight"))
  return model


def save(model, directory, dtype=torch.float32, max_shard_size="50GB", with_tokenizer=False):
  """Writes a Hugging Face folder; the model keeps its dtype, but the rounding of `dtype` too."""
  own_dtype = model.dtype
  model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
  model.to(own_dtype)
  if with_tokenizer:
    save_tokenizer(directory)
  return pathlib.Path(directory)


def save_tokenizer(directory):
  """Writes a byte-level tokenizer without merges (a byte is a token) and a ChatML template."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
  bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=bpe, eos_token=SPECIALS[2], pad_token=SPECIALS[0],
      additional_special_tokens=list(SPECIALS[:2]), chat_template=CHAT_TEMPLATE,
      clean_up_tokenization_spaces=False, model_max_length=512).save_pretrained(directory)
