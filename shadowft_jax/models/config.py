"""What every dense family writes alike in its config.json."""

from shadowft_jax.errors import InputError, listing
from shadowft_jax.models.decoder import DecoderConfig
from shadowft_jax.models.layers import ROPE_TYPES, Rope

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads")
# Options of config.json that would change the computation, and the values that do not.
PORTED = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0, 0.0, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
}


def refuse(hf, **ported):
  """Refuses an option whose value is not among those `ported`.

  Raises:
    InputError: names the option, its value and what is ported.
  """
  for name, values in ported.items():
    if name in hf and hf[name] not in values:
      wanted = " or ".join(repr(v) for v in values[:1])
      raise InputError(f"config.json of model_type {hf.get('model_type')!r}: {name} is "
                       f"{hf[name]!r}; only {wanted} is ported")


def read_rope(hf):
  """Rotary settings, as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) has them.

  Raises:
    InputError: a kind of scaling that is not ported.
  """
  scaling = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  theta = scaling.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
  kind = scaling.pop("type", None)
  scaling.setdefault("rope_type", kind or "default")
  if scaling["rope_type"] not in ROPE_TYPES:
    raise InputError(f"config.json: rope_type is one of {', '.join(ROPE_TYPES)}; "
                     f"got {scaling['rope_type']!r}")
  refuse({**scaling, "model_type": hf.get("model_type")},
         partial_rotary_factor=PORTED["partial_rotary_factor"])
  return Rope(float(theta), tuple(sorted(scaling.items())))


def read(hf, **options):
  """config.json -> DecoderConfig, with a family's `options` set.

  Raises:
    InputError: a field is missing, or an option has a value that is not ported.
  """
  missing = [n for n in REQUIRED if hf.get(n) is None]
  if missing:
    raise InputError(f"config.json lacks{listing(missing)}")
  refuse(hf, **PORTED)
  if any(kind != "full_attention" for kind in hf.get("layer_types") or ()):
    raise InputError("config.json: layer_types other than full_attention are not ported")
  heads = hf["num_attention_heads"]
  return DecoderConfig(
      **{n: hf[n] for n in REQUIRED},
      num_key_value_heads=hf.get("num_key_value_heads") or heads,
      head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
      rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
      rope=read_rope(hf),
      tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
      **options)
