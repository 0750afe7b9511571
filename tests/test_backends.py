"""The choice of an attention backend: what disagrees is not used, and what agreed is remembered."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from shadowft_jax.learning import kernels, passed
from shadowft_jax.errors import InputError
from shadowft_jax.models import attention, chunked
from shadowft_jax.models.config import ATTENTION, CROSS, DecoderConfig
from shadowft_jax.models.layers import Rope

CFG = DecoderConfig(
  vocab_size=8,
  hidden_size=8,
  intermediate_size=8,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rms_norm_eps=1e-6,
  kinds=(ATTENTION,) * 2,
  windows=(None, 4096),
  ropes=(Rope(),) * 2,
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "shadowft_jax" / "attention.json"


def replaced(monkeypatch, name, **changes):
  changed = dataclasses.replace(attention.BACKENDS[name], **changes)
  monkeypatch.setitem(attention.BACKENDS, name, changed)


def reference_with(**changes):
  """The reference, but for what it is told."""

  def attend(q, k, v, rows, **options):
    if "rows" in changes:
      rows = changes["rows"](rows)
    options.update(
      (name, change(options[name])) for name, change in changes.items() if name != "rows"
    )
    return attention.reference(q, k, v, rows, **options)

  return attend


# What a backend might do wrong, and what is then wrong with it.
FAULTS = {
  "segments": dict(
    rows=lambda rows: rows._replace(
      segment_BT=jnp.ones_like(rows.segment_BT),
      segment_BS=jnp.ones_like(rows.segment_BS),
      position_BT=rows.index_BT,
      position_BS=rows.index_BT,
    )
  ),
  "window": dict(window=lambda window: window - 1),
  "softcap": dict(softcap=lambda softcap: None),
  "scale": dict(scale=lambda scale: 1.05 * scale),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_backend_that_is_wrong_is_not_used(monkeypatch, cache, fault, dtype):
  replaced(monkeypatch, "chunked", attend=reference_with(**FAULTS[fault]))
  cfg = dataclasses.replace(CFG, attn_logit_softcapping=1.0)
  with pytest.raises(
    InputError,
    match=r"attention=chunked does not work here: it disagrees with "
    r"the reference by \d.*\(output\), .*\(dq\).*; set it to auto.*\n  xla",
  ):
    kernels.choose("chunked", cfg, dtype, 512)
  assert kernels.choose("auto", cfg, dtype, 512) == "xla"
  assert not cache.exists()


def test_a_wrong_gradient_is_found(monkeypatch):
  right = attention.BACKENDS["chunked"].attend

  def attend(q, k, v, rows, **options):  # a backward pass that forgets the keys
    return right(q, jax.lax.stop_gradient(k), v, rows, **options)

  replaced(monkeypatch, "chunked", attend=attend)
  assert "100.00% (dk)" in kernels.refusal("chunked", CFG, "float32")


def test_a_nan_is_no_agreement(monkeypatch):
  replaced(
    monkeypatch, "chunked", attend=lambda q, *args, **options: jnp.full_like(q, jnp.nan) + q * 0
  )
  assert "nan% (output)" in kernels.refusal("chunked", CFG, "float32")


def test_a_passed_check_is_not_run_again(monkeypatch, cache, capfd, verbose):
  assert kernels.choose("auto", CFG, "float32", 512) == "chunked"
  assert "chunked agrees with the reference within 0.00%" in capfd.readouterr().err
  [(key, error)] = json.loads(cache.read_text())["passed"].items()
  assert "jax 0." in key and "cpu" in key and max(error.values()) < 1e-5

  def forbidden(*args):
    raise AssertionError("it was run again")

  monkeypatch.setattr(kernels, "disagreement", forbidden)
  assert kernels.choose("chunked", CFG, "float32", 512) == "chunked"
  other = dataclasses.replace(CFG, head_dim=16)
  assert "it was run again" in kernels.refusal("chunked", other, "float32")
  assert "it was run again" in kernels.refusal("chunked", CFG, "bfloat16")
  monkeypatch.setattr(chunked, "__file__", __file__)  # other code
  assert "it was run again" in kernels.refusal("chunked", CFG, "float32")


def test_a_read_only_cache_is_reported(cache, capfd):
  cache.parent.write_text("in the way")
  assert kernels.refusal("chunked", CFG, "float32") is None
  assert "cannot cache the check for the next run" in capfd.readouterr().err


def test_a_broken_cache_is_made_anew(cache):
  cache.parent.mkdir()
  cache.write_text('{"chunked')
  assert kernels.choose("auto", CFG, "float32", 512) == "chunked"
  assert len(json.loads(cache.read_text())["passed"]) == 1


def test_a_check_that_nobody_ran_is_run(monkeypatch, cache):
  """An entry that was written by hand has no digest that fits."""
  assert kernels.choose("chunked", CFG, "float32", 512) == "chunked"
  record = json.loads(cache.read_text())
  other = dataclasses.replace(CFG, head_dim=16)
  record["passed"][passed.key("chunked", other, "float32")] = {"output": 0.0}
  cache.write_text(json.dumps(record))
  ran = []
  monkeypatch.setattr(kernels, "disagreement", lambda *_: ran.append(1) or {"output": 0.0})
  monkeypatch.setattr(passed, "MOST_CHECKS", 2)
  for cfg in (other, CFG, dataclasses.replace(CFG, head_dim=32), other):
    assert kernels.refusal("chunked", cfg, "float32") is None
  assert len(ran) == 4  # the last one was the oldest of three, of which two were kept
  assert len(json.loads(cache.read_text())["passed"]) == 2


@pytest.mark.parametrize(
  "name, dtype, message",
  [
    ("flash", "bfloat16", "it runs only on gpu, and this is cpu"),
    ("splash", "bfloat16", "it runs only on tpu, and this is cpu"),
  ],
)
def test_a_backend_of_another_platform_is_refused_by_name(name, dtype, message):
  with pytest.raises(
    InputError,
    match=f"config.attention={name} does not work here: {message}; "
    "set it to auto, or to one that does:\n  chunked\n  xla",
  ):
    kernels.choose(name, CFG, dtype, 512)


def test_unsupported_features_of_a_backend_are_named():
  softcapped = dataclasses.replace(CFG, attn_logit_softcapping=30.0)
  assert kernels.unsuited("cudnn", CFG, "bfloat16", "gpu") is None
  assert "does not support softcapping, which the model uses (30.0)" in kernels.unsuited(
    "cudnn", softcapped, "bfloat16", "gpu"
  )
  assert "supports only bfloat16 and float16, and config.dtype is float32" in kernels.unsuited(
    "cudnn", CFG, jnp.float32, "gpu"
  )


def test_a_backend_that_sees_nothing_ahead_is_used_where_images_are_not_in_the_row(monkeypatch):
  """Their tokens see one another in Gemma 3; in Llama 3.2 Vision other layers attend to them."""
  replaced(monkeypatch, "chunked", images=False)
  crossed = dataclasses.replace(CFG, kinds=(ATTENTION, CROSS))
  with pytest.raises(InputError, match="it does not support images, whose tokens also see later"):
    kernels.choose("chunked", CFG, "float32", 512, images=True)
  assert kernels.choose("chunked", crossed, "float32", 512, images=True) == "chunked"
  names = [kernels.expected("TPU v5", "tpu", c, "bfloat16", True)[0] for c in (CFG, crossed)]
  assert names == ["chunked", "splash"]


def test_a_failure_to_compile_is_a_reason_not_a_crash(monkeypatch, capfd):
  def fails(*args, **options):
    raise NotImplementedError("no such kernel\nat all")

  replaced(monkeypatch, "chunked", attend=fails)
  assert kernels.choose("auto", CFG, "float32", 512) == "xla"
  assert "attention: xla on cpu; not chunked: NotImplementedError: no such kernel\n" in (
    capfd.readouterr().err
  )


def test_short_rows_on_a_cpu_take_the_reference_unchecked(monkeypatch, cache):
  monkeypatch.setattr(kernels, "disagreement", None)
  assert kernels.choose("auto", CFG, "float32", 64) == "xla"
  assert not cache.exists()


@pytest.mark.parametrize(
  "kind, platform, backend, words",
  [
    ("NVIDIA A100-SXM4-80GB", "gpu", "flash", "compiles for it, and was never run there"),
    ("TPU v5", "tpu", "splash", "compiles for it, and was never run there"),
    ("TPU v9", "tpu", "chunked", "no backend was verified"),
  ],
)
def test_for_an_absent_device_the_table_speaks(kind, platform, backend, words):
  got, sentence = kernels.expected(kind, platform, CFG, "bfloat16")
  assert got == backend
  assert kind in sentence and words in sentence
