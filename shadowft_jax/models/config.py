"""The shape and options of a decoder, and how they are read from config.json."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import reprlib
from typing import Any, TypeVar

from shadowft_jax.errors import InputError, check_kinds, listing
from shadowft_jax.models.layers import Rope

Value = TypeVar("Value")
SIZES = ("vocab_size", "hidden_size", "intermediate_size")
REQUIRED = (*SIZES, "num_hidden_layers", "num_attention_heads")
SCALING = {
  "rope_type": "a string",
  **dict.fromkeys(("rope_theta", "partial_rotary_factor", "factor"), "a number above 0"),
  **dict.fromkeys(("low_freq_factor", "high_freq_factor"), "a number above 0"),
  **dict.fromkeys(("beta_fast", "beta_slow", "attention_factor"), "a number above 0"),
  **dict.fromkeys(("mscale", "mscale_all_dim", "llama_4_scaling_beta"), "a number above 0"),
  "original_max_position_embeddings": "an integer above 0",
}
# Options of config.json that would change the computation, and the values that do not.
PORTED = {"hidden_act": ("silu", "swish"), "attention_dropout": (0, 0.0, None)}
# Kinds of rope scaling, and the fields each must have; YaRN only where a family asks for it.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
  "default": (),
  "linear": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
YARN = {"yarn": ("factor", "original_max_position_embeddings")}
ATTENTION, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")
# Layers of different kinds have different parameters; others differ in `windows` and `ropes`.
LINEAR, CROSS = "linear_attention", "cross_attention"


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig:
  """The shape of a gated delta-net; see `models/delta_net.py`."""

  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  taps: int  # tokens that the convolution covers

  @property
  def channels(self) -> int:
    """Channels of the convolution: queries, keys and values of all heads."""
    return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclasses.dataclass(frozen=True)
class Heads:
  """What differs in the attention of one kind of layers, by its names in `DecoderConfig`."""

  head_dim: int
  num_key_value_heads: int
  k_is_v: bool


def distinct(values: Iterable[Value]) -> tuple[Value, ...]:
  """The distinct values, in order of first occurrence."""
  return tuple(dict.fromkeys(values))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape and options; fields keep their config.json names where one exists."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rms_norm_eps: float
  # One entry per layer: its kind, as above; the window (number of visible keys, None:
  # all); and the rope.
  kinds: tuple[str, ...]
  windows: tuple[int | None, ...]
  ropes: tuple[Rope, ...]
  rope_dim: int | None = None  # Qwen3.5: only the first of a head are rotated, as if it had no more
  rope_interleaved: bool = False  # GLM-4
  tie_word_embeddings: bool = False
  extra_rows: int = 0  # Llama 3.2 Vision: rows of the embedding beyond those of the head
  qkv_bias: bool = False  # Qwen2; Llama, Qwen3, … with attention_bias
  o_bias: bool = False  # Llama, Qwen3, … with attention_bias
  mlp_bias: bool = False  # Llama and SmolLM3 with mlp_bias
  qk_norm: str | None = None  # of each "head" (Qwen3, Gemma 3), or of the "whole" (OLMo 2)
  attention_gate: bool = False  # Qwen3.5: q_proj also gives a gate of the output
  delta_net: DeltaNetConfig | None = None  # Qwen3.5, of its linear_attention
  full_heads: Heads | None = None  # Gemma 4, of its full_attention
  k_is_v: bool = False  # Gemma 4: no v_proj; the values are the keys before norm and rope
  v_norm: bool = False  # Gemma 4, of each head, without a weight
  layer_scalar: bool = False  # Gemma 4: a factor of the block's output
  mlp: str = "mlp"  # GraniteMoeHybrid: shared_mlp
  # The MLP's projections, the last one from its width to D; a single one before it is fused.
  mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
  num_experts: int = 0  # Qwen3-MoE: experts replace the MLP
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  norm_topk_prob: bool = False
  shared_expert_intermediate_size: int = 0  # Qwen3.5-MoE
  hidden_act: str = "silu"
  # The norms before and after attention, before and after the MLP.
  norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
  norm_offset: float = 0.0  # Gemma: 1
  embedding_scale: float = 1.0  # Gemma: sqrt(hidden_size)
  residual_scale: float = 1.0  # Granite, of what a layer adds
  logit_divisor: float = 1.0  # Granite
  query_pre_attn_scalar: float | None = None  # Gemma, Granite; head_dim where None
  query_scaling: tuple[float, int] | None = None  # Ministral 3: beta, and tokens between steps
  attn_logit_softcapping: float | None = None  # Gemma 2
  final_logit_softcapping: float | None = None  # Gemma 2

  def of(self, kind: str) -> "DecoderConfig":
    """The config of the layers of one kind, as if the model had no others."""
    layers = [i for i, k in enumerate(self.kinds) if k == kind]
    by_layer = {n: getattr(self, n) for n in ("kinds", "windows", "ropes")}
    changes: dict[str, Any] = {n: tuple(x[i] for i in layers) for n, x in by_layer.items()}
    if kind == ATTENTION and self.full_heads:
      changes |= dataclasses.asdict(self.full_heads)
    return dataclasses.replace(self, num_hidden_layers=len(layers), full_heads=None, **changes)

  def of_attention(self) -> "tuple[DecoderConfig, ...]":
    """`of` each kind of layers that attend to the tokens of the row."""
    return tuple(self.of(k) for k in distinct(self.kinds) if k not in (LINEAR, CROSS))


def refuse(hf: Mapping[str, Any], **ported: Sequence[Any]) -> None:
  """Raises an error for an option with an unsupported value.

  Raises:
    InputError: names the option, its value and the supported values.
  """
  for name, values in ported.items():
    if name in hf and hf[name] not in values:
      supported = " or ".join(repr(v) for v in values[:1])
      raise InputError(
        f"config.json of model_type {hf.get('model_type')!r}: {name} is "
        f"{hf[name]!r}; only {supported} is supported"
      )


def read_rope(
  hf: Mapping[str, Any], *, kinds: Mapping[str, tuple[str, ...]] = ROPE_TYPES, partial: bool = False
) -> Rope:
  """Reads rotary settings of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters).

  Args:
    hf: config.json.
    kinds: {rope_type: its required fields}.
    partial: whether the rotation may cover only part of each head (partial_rotary_factor).

  Raises:
    InputError: a kind of scaling that is not ported, or one that lacks a field.
  """
  check_kinds("config.json", hf, dict.fromkeys(("rope_parameters", "rope_scaling"), "an object"))
  scaling: dict[str, Any] = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
  check_kinds("the rope of config.json", scaling, SCALING)
  theta = scaling.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
  fraction = scaling.pop("partial_rotary_factor", hf.get("partial_rotary_factor"))
  kind: str = scaling.setdefault("rope_type", scaling.pop("type", None) or "default")
  if not isinstance(kind, str) or kind not in kinds:
    raise InputError(f"config.json: rope_type is one of {', '.join(kinds)}; got {kind!r}")
  if missing := [n for n in kinds[kind] if scaling.get(n) is None]:
    raise InputError(f"config.json: rope_type {kind!r} lacks{listing(missing)}")
  if odd := [n for n, x in scaling.items() if isinstance(x, list | dict)]:
    raise InputError(f"config.json: rope_type {kind!r} has no {listing(odd)}")
  if kind == "llama3" and scaling["low_freq_factor"] == scaling["high_freq_factor"]:
    raise InputError("config.json: low_freq_factor and high_freq_factor of the rope are equal")
  refuse(
    {**scaling, "partial_rotary_factor": fraction, "model_type": hf.get("model_type")},
    partial_rotary_factor=(fraction,) if partial or kind == "proportional" else (1, 1.0, None),
    truncate=(True, None),
  )
  return Rope(float(theta), tuple(sorted(scaling.items())), 1.0 if fraction is None else fraction)


def local_and_global(
  hf: Mapping[str, Any],
  windows: tuple[int | None, ...],
  *,
  local_theta: float,
  global_theta: float,
  kinds: Mapping[str, tuple[str, ...]] = ROPE_TYPES,
) -> tuple[Rope, ...]:
  """The rope of every layer, for models with a separate rope in layers with a window.

  Transformers 4 scales only the layers with full attention (rope_scaling); 5 has settings for each
  layer type in rope_parameters.
  """
  nested = hf.get("rope_parameters") or {"full_attention": hf.get("rope_scaling")}

  def rope(layer_type, theta):
    own = {"rope_theta": theta, "rope_parameters": nested.get(layer_type)}
    return read_rope({"model_type": hf.get("model_type"), **own}, kinds=kinds)

  whole, local = rope("full_attention", global_theta), rope("sliding_attention", local_theta)
  return tuple(whole if w is None else local for w in windows)


def read_windows(hf: Mapping[str, Any], full_every: int) -> tuple[int | None, ...]:
  """The attention window of each layer, None for full attention, by layer_types.

  Args:
    hf: config.json.
    full_every: if layer_types is absent, every layer of this number has full attention (2: every
      second one).

  Raises:
    InputError: a layer type is unknown, or a length or the window is missing.
  """
  full, sliding = LAYER_TYPES
  kinds = read_kinds(hf, LAYER_TYPES, [*[sliding] * (full_every - 1), full])
  window = hf.get("sliding_window")
  if "sliding_attention" in kinds and not (isinstance(window, int) and window > 0):
    raise InputError(f"config.json: sliding_window must be a number of tokens; got {window!r}")
  return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def read_kinds(
  hf: Mapping[str, Any], known: Sequence[str], period: Sequence[str]
) -> tuple[str, ...]:
  """The kind of each layer, by layer_types, or by repeating `period` if that is absent.

  Raises:
    InputError: a kind is not `known`, or their number is not that of the layers.
  """
  _check_required(hf)
  count = hf["num_hidden_layers"]
  kinds = hf.get("layer_types") or [period[i % len(period)] for i in range(count)]
  if len(kinds) != count or any(kind not in known for kind in kinds):
    raise InputError(
      f"config.json: layer_types must have {' or '.join(known)} for each of {count} layers; "
      f"got {reprlib.repr(kinds)}"
    )
  return tuple(kinds)


def text_part(hf: Mapping[str, Any], tied: bool = False) -> dict[str, Any]:
  """The fields of the language model in the config.json of a multimodal model.

  Args:
    hf: config.json.
    tied: whether the embeddings are tied where config.json does not say.
  """
  text = hf.get("text_config") or {}
  return {
    **text,
    "model_type": hf.get("model_type"),
    "tie_word_embeddings": hf.get("tie_word_embeddings", text.get("tie_word_embeddings", tied)),
  }


def _check_required(hf):
  if missing := [n for n in REQUIRED if hf.get(n) is None]:
    raise InputError(f"config.json lacks{listing(missing)}")


def read(hf: Mapping[str, Any], **options: Any) -> DecoderConfig:
  """config.json -> DecoderConfig, with a family's `options` set.

  Raises:
    InputError: a field is missing, or an option has an unsupported value.
  """
  _check_required(hf)
  refuse(hf, **{n: v for n, v in PORTED.items() if n not in options})
  count, heads = hf["num_hidden_layers"], hf["num_attention_heads"]
  if "windows" not in options:
    options["windows"] = (None,) * count
    if any(kind != "full_attention" for kind in hf.get("layer_types") or ()):
      raise InputError("config.json: layer_types other than full_attention are not supported")
  if "ropes" not in options:
    options["ropes"] = (read_rope(hf),) * count
  options.setdefault("kinds", (ATTENTION,) * count)
  cfg = DecoderConfig(
    **{n: hf[n] for n in REQUIRED},
    num_key_value_heads=hf.get("num_key_value_heads") or heads,
    head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
    rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
    tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    **options,
  )
  for own in cfg.of_attention():
    kv_heads, head_dim = own.num_key_value_heads, own.head_dim
    if heads % kv_heads:
      raise InputError(
        f"config.json: num_attention_heads {heads} is not a multiple of "
        f"num_key_value_heads {kv_heads}"
      )
    if not head_dim or head_dim % 2:
      raise InputError(f"config.json: head_dim {head_dim}: the rope needs an even number above 0")
  return cfg
