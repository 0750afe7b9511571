"""What of a grafted delta is left once the sum is stored, by module type and by layer.

A row is one grafted tensor, any object with these sums over its elements.  W_I became W_I + d,
which is stored as W_I + e; the gap is g = W_I - W_B.
  name                        as the Instruct's files spell it
  size, unchanged, lost       elements; those whose bits stayed; of these, those where d is not 0
  delta2, kept2, dot          sums of d^2, e^2 and d e
  gap2, gap_dot               sums of g^2 and d g; None, like the next, where W_B is not known
  base_abs, instruct_abs, gap_abs     sums of |W_B|, |W_I| and |g|
"""

import math

from shadowft_jax.hf import names

TURNED = 0.95  # a survival cosine under this is warned of
MEANING = {
  "tensors": "grafted tensors",
  "size": "their elements",
  "delta_norm": "norm of the delta d, W_I + d being the exact result",
  "kept_norm": "norm of e, W_I + e being the result as it is stored",
  "kept": "kept_norm / delta_norm",
  "cosine": "survival cosine, that of e and d: 1 where the stored dtype kept the direction",
  "mean_kept": "e projected on d, over d: near 1 where rounding has no bias",
  "unchanged": "share of elements whose stored bits are the Instruct's",
  "lost": "share of elements that stayed although d is not 0 there",
  "with_base": "tensors for which W_B is known; what follows is over these",
  "gap_norm": "norm of W_I - W_B",
  "gap_cosine": "cosine of d and W_I - W_B",
  "gap_ratio": "sum|W_I - W_B| / (sum|W_B| + sum|W_I|)",
}
# Of a table: the key of MEANING, the heading, the format.
COLUMNS = (
  ("tensors", "tensors", ","),
  ("size", "elements", ","),
  ("delta_norm", "norm", ".4g"),
  ("gap_cosine", "cos(I-B)", ".4f"),
  ("kept", "norm kept", ".4f"),
  ("cosine", "survival cos", ".4f"),
  ("unchanged", "unchanged", ".2%"),
  ("lost", "lost", ".2%"),
  ("gap_ratio", "gap ratio", ".6f"),
)
LEGEND = (
  "norm: of the delta; norm kept and survival cos: of what is stored, against the delta; "
  "lost: unchanged, though the delta is not 0"
)
BASELESS = "{} of {} tensors have no counterpart in the Base, and are not in cos(I-B) and gap ratio"


def numbers(rows):
  """{key of MEANING: value} of all rows together.

  What would be 0 / 0 is None, such as the cosine of a delta that is 0.  Of a delta that is wholly
  lost it is 0.  Where no row knows its Base, what needs one is left out.
  """
  sums = lambda key, of: math.fsum(getattr(r, key) for r in of)
  delta, kept = (math.sqrt(sums(key, rows)) for key in ("delta2", "kept2"))
  size, dot = sum(r.size for r in rows), sums("dot", rows)
  out = {
    "tensors": len(rows),
    "size": size,
    "delta_norm": delta,
    "kept_norm": kept,
    "kept": _over(kept, delta),
    "cosine": _cosine(dot, kept, delta),
    "mean_kept": _over(dot, sums("delta2", rows)),
    "unchanged": _over(sum(r.unchanged for r in rows), size),
    "lost": _over(sum(r.lost for r in rows), size),
  }
  if known := [r for r in rows if r.gap2 is not None]:
    delta, gap_norm = (math.sqrt(sums(key, known)) for key in ("delta2", "gap2"))
    both = sums("base_abs", known) + sums("instruct_abs", known)
    out |= {
      "with_base": len(known),
      "gap_norm": gap_norm,
      "gap_cosine": _cosine(sums("gap_dot", known), gap_norm, delta) if gap_norm else None,
      "gap_ratio": _over(sums("gap_abs", known), both),
    }
  return out


def _over(part, whole):
  return part / whole if whole else None


def _cosine(dot, other, delta):
  """That of the delta and another vector, by their norms; 0 where the other is 0."""
  if not delta:
    return None
  return max(-1.0, min(1.0, dot / other / delta)) if other else 0.0


def module_of(row):
  """The key of names.MODULES that a row is of."""
  return names.module_of(row.name)


def layer_of(row):
  """The number of the layer that a row is of, or None."""
  return names.layer_of(names.short(row.name))


def _grouped(rows, key):
  out = {}
  for row in rows:
    out.setdefault(key(row), []).append(row)
  return out


def by_module(rows):
  """{module type: its numbers}, in the order of names.MODULES."""
  found = _grouped(rows, module_of)
  return {m: numbers(found[m]) for m in names.MODULES if m in found}


def by_layer(rows):
  """{layer: its numbers}; what is in no layer is left out."""
  found = _grouped(rows, layer_of)
  return {n: numbers(found[n]) for n in sorted(n for n in found if n is not None)}


def cells(rows):
  """{(module type, layer): its numbers}, in the order of names.MODULES and of layers."""
  found = _grouped(rows, lambda row: (module_of(row), layer_of(row)))
  layers = sorted({layer for _, layer in found if layer is not None})
  return {(m, n): numbers(found[m, n]) for m in names.MODULES for n in layers if (m, n) in found}


def table(rows):
  """The numbers of each module type and of all, as text; without a Base, less what needs one."""
  parts = {**by_module(rows), "all": numbers(rows)}
  columns = [c for c in COLUMNS if c[0] in parts["all"]]
  lines = [["module", *(heading for _, heading, _ in columns)]]
  for name, found in parts.items():
    values = [(found.get(key), form) for key, _, form in columns]
    lines.append([name, *("-" if value is None else format(value, form) for value, form in values)])
  text = [aligned(lines), LEGEND]
  without = sum(r.gap2 is None for r in rows)
  return "\n".join(text + [BASELESS.format(without, len(rows))] * (0 < without < len(rows)))


def aligned(lines):
  """Lists of cells as a table: the first column to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


def warnings(rows, *, rounding="nearest"):
  """Lines on where storage turned the delta, and what to do; [] where it did so nowhere.

  Args:
    rows: as above.
    rounding: how the sum was rounded, "nearest" or "stochastic".
  """
  lines, modules = [], _grouped(rows, module_of)
  for module in filter(modules.get, names.MODULES):
    layers = {
      n: numbers(found)["cosine"] for n, found in _grouped(modules[module], layer_of).items()
    }
    layers = {n: cosine for n, cosine in layers.items() if cosine is not None}
    turned = {n: cosine for n, cosine in layers.items() if cosine < TURNED}
    if turned:
      worst = min(turned, key=turned.get)
      where = f" in {len(turned)} of {len(layers)} layers, lowest in layer {worst}"
      lines.append(
        f"warning: {module}: survival cosine {turned[worst]:.4f}, below {TURNED}"
        + where * (worst is not None)
      )
  if lines:
    lines.append(
      "there the stored dtype changed the direction of the delta; to keep it, keep the "
      "delta apart (--output adapter for LoRA, else --output delta) or store float32 "
      "(--dtype float32)" + "; --rounding stochastic keeps it on average, with noise "
      "about it" * (rounding == "nearest")
    )
  return lines


def record(rows, settings, *, rounding="nearest"):
  """graft_report.json: `settings`, and the numbers of all, by module type, layer and tensor."""
  return {
    "settings": settings,
    "meaning": MEANING,
    "warnings": warnings(rows, rounding=rounding),
    "all": numbers(rows),
    "modules": by_module(rows),
    "layers": by_layer(rows),
    "tensors": [
      {"name": r.name, "layer": layer_of(r), "module": module_of(r), **numbers([r])} for r in rows
    ],
  }
