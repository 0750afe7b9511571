"""Every family against transformers: logits, gradients, and a story told by real weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shadowft_jax import delta, models, tree
from shadowft_jax.generation import decode
from shadowft_jax.hf import leaves, weights
from shadowft_jax.learning import loss
from shadowft_jax.errors import InputError
from shadowft_jax.models import layers
from tests import pico

TOLERANCE = 2e-4  # of the largest logit; of a leaf's gradient norm


def both(name):
  """The same random model in torch and here: (torch module, our model, our params)."""
  hf = pico.hf_model(name)
  model = models.from_config(hf.config.to_dict(), dtype=jnp.float32, combine=delta.combine)
  named = pico.per_expert({n: p.detach().numpy() for n, p in pico.parameters(hf).items()})
  return hf, model, pico.load(named.__getitem__, models.abstract_params(model))


def tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 96, shape)


@pytest.mark.parametrize(
  "name, backend",
  [
    *((name, "xla") for name in pico.CONFIGS),
    ("gemma2", "chunked"),
    ("gemma3", "chunked"),
    ("gemma4", "chunked"),
  ],
)
def test_logits_and_gradients_agree_with_transformers(name, backend):
  hf, model, params = both(name)
  model = model.clone(backend=backend)
  token_BT = tokens((2, 40))
  out = hf(torch.tensor(token_BT), labels=torch.tensor(token_BT))
  want = out.logits.detach().numpy()
  got = jax.jit(model.apply)({"params": params}, jnp.array(token_BT))
  assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()

  out.loss.backward()
  grads = pico.per_expert({n: p.grad.numpy() for n, p in pico.parameters(hf).items()})
  want_grads = pico.load(grads.__getitem__, params)

  def mean_nll(params):
    h_BTD, head_DV = model.apply({"params": params}, jnp.array(token_BT), method="hidden_and_head")
    return -jnp.sum(
      loss.token_logprobs(
        h_BTD, head_DV, jnp.array(token_BT), 16, model.cfg.final_logit_softcapping
      )
    ) / (2 * 39)

  # States carry rounding along, and experts enlarge it: 1.7e-4 or 3.5e-4 by the order of sums.
  tolerance = 1e-3 if name == "qwen3_5_moe" else TOLERANCE
  got_grads = tree.names(jax.jit(jax.grad(mean_nll))(params))
  for leaf, g in tree.names(want_grads).items():
    norm = np.linalg.norm(g)
    assert norm > 0, leaf
    assert np.linalg.norm(got_grads[leaf] - g) <= tolerance * norm, leaf


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3_tied", "gemma3"])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(name, remat):
  _, model, params = both(name)
  token_BT = jnp.array(tokens((1, 12)))
  total = lambda p, m: jnp.sum(m.apply({"params": p}, token_BT) ** 2)
  gradients = jax.jit(jax.grad(total), static_argnums=1)
  want, got = (gradients(params, m) for m in (model, model.clone(remat=remat)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3), got, want)


def test_dots_computes_only_the_products_of_attention_again():
  model = models.from_config(pico.CONFIGS["llama3"], dtype=jnp.float32)
  params, token_BT = models.abstract_params(model), jnp.ones((1, 8), jnp.int32)

  def products(remat):
    total = lambda p: jnp.sum(model.clone(remat=remat).apply({"params": p}, token_BT))
    return str(jax.make_jaxpr(jax.grad(total))(params)).count("dot_general[")

  assert products("dots") == products("none") + 2
  assert products("full") == products("none") + 8  # q, k, v, o, gate, up, and two of attention


LLAMA32 = dict(
  hidden_size=2048,
  num_attention_heads=32,
  head_dim=64,
  max_position_embeddings=131072,
  rope_theta=500000.0,
  rope_scaling=dict(
    factor=32.0,
    high_freq_factor=4.0,
    low_freq_factor=1.0,
    original_max_position_embeddings=8192,
    rope_type="llama3",
  ),
)


def test_llama_3_2_frequencies_agree_with_transformers():
  rope = models.config.read_rope(LLAMA32)
  want, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**LLAMA32), "cpu")
  np.testing.assert_allclose(layers.rope_frequencies(64, rope), want.numpy(), rtol=1e-6)


def test_both_spellings_of_rope_settings_read_alike():
  old = dict(LLAMA32, model_type="llama")
  new = {k: v for k, v in old.items() if not k.startswith("rope_")}
  new["rope_parameters"] = dict(old["rope_scaling"], rope_theta=old["rope_theta"])
  assert models.config.read_rope(old) == models.config.read_rope(new)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(model_type="mamba"), "model_type is one of .*llama, .*qwen3, .*; got 'mamba'"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu'; only 'silu' is supported"),
    (dict(use_sliding_window=True), "use_sliding_window is True; only False is supported"),
    (dict(layer_types=["sliding_attention"]), "layer_types other than full_attention"),
    (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "got 'yarn'"),
    (dict(quantization_config=dict(bits=4)), "quantization_config"),
    (dict(attention_dropout=0.1), "attention_dropout is 0.1"),
    (dict(hidden_size=None), "config.json lacks\n  hidden_size"),
  ],
)
def test_unsupported_options_are_refused_by_name(change, message):
  hf = dict(pico.CONFIGS["qwen3"], model_type="qwen3")
  with pytest.raises(InputError, match=message):
    models.from_config({**hf, **change})


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Llama-3.2-3B-Instruct", "Qwen2.5-7B-Instruct"])
def test_real_configs_make_the_tensors_transformers_makes(name, shared_data):
  path = shared_data("hf_configs") / name / "config.json"
  hf = json.loads(path.read_text())
  ours = tree.names(models.abstract_params(models.from_config(hf)))
  with torch.device("meta"):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path.parent))
  want = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
  assert leaves.file_shapes(ours) == want


def read_llama2c(path):
  """karpathy's legacy llama2.c file -> (header, {tensor name: array}).

  Source: doc/stories260K.md and export.py (legacy_export) of karpathy/llama2.c.  Its rotary
  pairs are neighbours; Hugging Face's are half a head apart, so rows of q and k are permuted.
  """
  raw = path.read_bytes()
  dim, hidden, depth, heads, kv_heads, vocab, _ = np.frombuffer(raw, np.int32, 7).tolist()
  at, values = 0, np.frombuffer(raw, np.float32, offset=28)
  head = dim // heads

  def take(*shape):
    nonlocal at
    size = int(np.prod(shape))
    at += size
    return values[at - size : at].reshape(shape)

  def halves(w_LOD, count):
    w = w_LOD.reshape(depth, count, head // 2, 2, dim)
    return w.transpose(0, 1, 3, 2, 4).reshape(depth, count * head, dim)

  out = {"model.embed_tokens.weight": take(vocab, dim)}
  stacks = {
    "input_layernorm": take(depth, dim),
    "self_attn.q_proj": halves(take(depth, dim, dim), heads),
    "self_attn.k_proj": halves(take(depth, kv_heads * head, dim), kv_heads),
    "self_attn.v_proj": take(depth, kv_heads * head, dim),
    "self_attn.o_proj": take(depth, dim, dim),
    "post_attention_layernorm": take(depth, dim),
    "mlp.gate_proj": take(depth, hidden, dim),
    "mlp.down_proj": take(depth, dim, hidden),
    "mlp.up_proj": take(depth, hidden, dim),
  }
  for module, stack in stacks.items():
    for i, w in enumerate(stack):
      out[f"model.layers.{i}.{module}.weight"] = w
  out["model.norm.weight"] = take(dim)
  config = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=vocab,
    hidden_size=dim,
    intermediate_size=hidden,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    hidden_act="silu",
  )
  return config, out


def read_vocabulary(path):
  """llama2.c's tokenizer.bin -> the bytes of each token."""
  raw, at, out = path.read_bytes(), 4, []
  while at < len(raw):
    length = int(np.frombuffer(raw, np.int32, 1, at + 4)[0])
    out.append(raw[at + 8 : at + 8 + length])
    at += 8 + length
  return out


def test_real_weights_tell_the_published_story(shared_data, tmp_path):
  from safetensors.numpy import save_file

  folder = shared_data("stories260K")
  config, tensors = read_llama2c(folder / "stories260K.bin")
  (tmp_path / "config.json").write_text(json.dumps(config))
  save_file(
    {k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors"
  )
  model, params = weights.load_model(tmp_path)
  [story] = decode.generate(model, {"params": params}, [[1]], max_new=300, stop=(1,))
  vocabulary = read_vocabulary(folder / "tok512.bin")
  text = (
    b"".join(
      bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") else piece
      for piece in (vocabulary[i] for i in story)
    )
    .decode()
    .lstrip(" ")
  )
  card = (folder / "stories260K.md").read_text()
  want = card.split("-t 0.0\n")[1].split("\n```")[0]
  assert text[: len(want)] == want
