"""What storage leaves of a delta: the numbers by hand, the table, the warning and the files."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from shadowft_jax.grafting import survival
from shadowft_jax.grafting.survival import Survival as Row
from shadowft_jax.pairs import gap
from shadowft_jax.runs import heatmaps

pytestmark = pytest.mark.draws

BF16 = np.dtype(ml_dtypes.bfloat16)
Q, UP = ("model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight")
GAP = ("gap_norm", "gap_cosine", "gap_ratio", "with_base")


def row(name, w, d, dtype=BF16, base=None, round_to=None):
  """The Row of W_I + d, rounded to the nearest number of a dtype, or as `round_to` does."""
  w, d = np.asarray(w, dtype), np.asarray(d, np.float32)
  stored = (round_to or (lambda x: x.astype(dtype)))(w.astype(np.float32) + d)
  same = w.view(f"u{w.itemsize}") == stored.view(f"u{w.itemsize}")
  w, d = w.astype(np.float64), d.astype(np.float64)
  e = stored.astype(np.float64) - w
  sums = [(d * d).sum(), (e * e).sum(), (d * e).sum()]
  if base is not None:
    b = np.asarray(base, np.float64)
    sums += [
      ((w - b) ** 2).sum(),
      (d * (w - b)).sum(),
      abs(b).sum(),
      abs(w).sum(),
      abs(w - b).sum(),
      (b * b).sum(),
    ]
  return Row(name, w.size, int(same.sum()), int((same & (d != 0)).sum()), *map(float, sums))


def random(count=1000, scale=1.0, seed=0):
  return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


# Numbers.


def test_by_hand():
  """Delta (3, 4), of which (0, 4) is kept; the gap is (6, 8) and twice the delta."""
  one = Row(Q.format(0), 2, 1, 1, 25.0, 16.0, 16.0, 100.0, 50.0, 20.0, 8.0, 14.0)
  assert survival.numbers([one]) == pytest.approx(
    {
      "tensors": 1,
      "size": 2,
      "delta_norm": 5,
      "kept_norm": 4,
      "kept": 0.8,
      "cosine": 0.8,
      "mean_kept": 0.64,
      "unchanged": 0.5,
      "lost": 0.5,
      "with_base": 1,
      "gap_norm": 10,
      "gap_cosine": 1,
      "gap_ratio": 0.5,
    },
    rel=1e-15,
  )


def test_sums_are_added_up_before_any_root():
  rows = [
    row(Q.format(0), random(), random(scale=0.01, seed=1), base=random(seed=2)),
    row(Q.format(1), random(500, 3), random(500, 0.1, 3), base=random(500, seed=4)),
  ]
  both = row(
    "x",
    *(
      np.concatenate(pair)
      for pair in zip(
        (random(), random(scale=0.01, seed=1)), (random(500, 3), random(500, 0.1, 3)), strict=True
      )
    ),
    base=np.concatenate([random(seed=2), random(500, seed=4)]),
  )
  want = {**survival.numbers([both]), "tensors": 2, "with_base": 2}
  assert survival.numbers(rows) == pytest.approx(want, rel=1e-12)


def test_an_exact_result_survives_whole():
  numbers = survival.numbers([row("a", random(), random(), np.dtype(np.float32))])
  assert numbers["kept"] == pytest.approx(1, abs=1e-6) and numbers["cosine"] == pytest.approx(1)
  assert numbers["unchanged"] == 0 == numbers["lost"]
  exact = survival.numbers([row("a", [1, 2], [0.5, 0.25])])
  assert (exact["kept"], exact["cosine"], exact["mean_kept"]) == (1, 1, 1)


def test_less_than_half_an_ulp_is_lost():
  lost = row(Q.format(0), np.ones(8), np.full(8, 2.0**-10))  # an ulp of 1 is 2^-7
  numbers = survival.numbers([lost])
  assert (numbers["kept"], numbers["cosine"], numbers["mean_kept"]) == (0, 0, 0)
  assert (numbers["unchanged"], numbers["lost"]) == (1, 1)
  assert survival.warnings([lost])
  assert survival.warnings([row(Q.format(0), np.ones(8), np.full(8, 2.0**-7))]) == []


def test_no_delta_is_neither_lost_nor_kept():
  none = row(Q.format(0), random(), np.zeros(1000), base=random(seed=1))
  numbers = survival.numbers([none])
  assert (numbers["kept"], numbers["cosine"], numbers["gap_cosine"]) == (None, None, None)
  assert (numbers["unchanged"], numbers["lost"]) == (1, 0)
  assert survival.warnings([none]) == []


def test_the_delta_and_the_gap():
  w, b = random().astype(BF16).astype(np.float32), random(seed=1)
  cosine = lambda d: survival.numbers([row("a", w, d, base=b)])["gap_cosine"]
  assert cosine(w - b) == pytest.approx(1) and cosine(b - w) == pytest.approx(-1)
  assert abs(cosine(random(seed=2))) < 0.1
  equal = survival.numbers([row("a", w, b, base=w)])
  assert (equal["gap_cosine"], equal["gap_ratio"], equal["gap_norm"]) == (None, 0, 0)


def test_the_gap_ratio_is_that_of_gap():
  w, b = random().astype(BF16), random(seed=1)
  want = gap.sums(b, w).ratio
  assert survival.numbers([row("a", w, random(), base=b)])["gap_ratio"] == pytest.approx(want)


def test_noise_without_bias_keeps_the_mean():
  """Up or down by chance: the cosine is low, and the mean is the delta."""
  chance = np.random.default_rng(0)

  def stochastic(x):
    bits = x.view(np.uint32) + chance.integers(0, 1 << 16, x.shape, np.uint32)
    return (bits >> 16).astype(np.uint16).view(BF16)

  one = row("a", np.ones(100_000), np.full(100_000, 2.0**-10), round_to=stochastic)
  numbers = survival.numbers([one])
  assert numbers["mean_kept"] == pytest.approx(1, rel=0.03)
  assert numbers["cosine"] == pytest.approx(math.sqrt(1 / 8), rel=0.03)


def test_rows_without_a_base_are_not_in_the_gap():
  known = row(Q.format(0), random(), random(seed=1), base=random(seed=2))
  unknown = row(Q.format(1), random(), random(seed=3))
  both, one = survival.numbers([known, unknown]), survival.numbers([known])
  assert {k: both[k] for k in GAP} == {k: one[k] for k in GAP} and both["with_base"] == 1
  assert not set(GAP) & survival.numbers([unknown]).keys()
  assert both["delta_norm"] > one["delta_norm"]
  assert "1 of 2 tensors are not in the Base" in survival.table([known, unknown])
  assert "are not in the Base" not in survival.table([known])


def test_every_number_has_a_meaning():
  numbers = survival.numbers([row("a", random(), random(), base=random())])
  assert numbers.keys() == survival.MEANING.keys()
  assert {c[0] for c in survival.COLUMNS} <= survival.MEANING.keys()
  assert {p.key for p in heatmaps.PANELS} <= survival.MEANING.keys()


# Groups.


@pytest.fixture
def rows():
  """Three layers; layer 2 is lost in q; a norm and the embedding beside them."""
  rows_ = [row(UP.format(n), random(), random(scale=0.1, seed=n + 1)) for n in range(3)]
  rows_ += [
    row(Q.format(n), np.ones(8), np.full(8, 2.0**-10 if n == 2 else 0.25)) for n in range(3)
  ]
  rows_.append(row("model.language_model.embed_tokens.weight", random(), random(seed=5)))
  return [*rows_, row("model.layers.0.input_layernorm.weight", [1.0], [0.0])]


def test_groups(rows):
  assert list(survival.by_module(rows)) == ["attention q", "mlp up", "norms", "embedding"]
  assert survival.by_module(rows)["mlp up"] == survival.numbers(rows[:3])
  assert list(survival.by_layer(rows)) == [0, 1, 2]
  assert survival.by_layer(rows)[1] == survival.numbers([rows[1], rows[4]])
  cells = survival.cells(rows)
  assert list(cells) == [
    ("attention q", 0),
    ("attention q", 1),
    ("attention q", 2),
    ("mlp up", 0),
    ("mlp up", 1),
    ("mlp up", 2),
    ("norms", 0),
  ]
  assert cells["attention q", 2] == survival.numbers([rows[5]])


@pytest.mark.parametrize(
  "name, module",
  [
    ("lm_head.weight", "head"),
    ("language_model.lm_head.weight", "head"),
    ("model.embed_tokens.weight", "embedding"),
    ("model.norm.weight", "norms"),
    ("language_model.model.layers.3.mlp.experts.7.down_proj.weight", "mlp down"),
  ],
)
def test_prefixes_do_not_hide_a_module(name, module):
  one = row(name, [1.0], [1.0])
  assert one.module == module
  assert one.layer == (3 if "layers" in name else None)


# What is told.


def test_the_table(rows):
  head, *lines = survival.table(rows).splitlines()
  assert head.split() == [
    "module",
    "tensors",
    "elements",
    "norm",
    "norm",
    "kept",
    "survival",
    "cos",
    "unchanged",
    "lost",
  ]
  assert [line[:11].strip() for line in lines] == [
    "attention q",
    "mlp up",
    "norms",
    "embedding",
    "all",
    "norm: of th",
  ]
  assert lines[0].split() == [
    "attention",
    "q",
    "3",
    "24",
    "1",
    "1.0000",
    "1.0000",
    "33.33%",
    "33.33%",
  ]
  assert lines[2].split() == ["norms", "1", "1", "0", "-", "-", "100.00%", "0.00%"]
  with_base = survival.table([row(Q.format(0), [2.0], [1.0], base=[1.0])])
  assert with_base.splitlines()[1].split() == [
    "attention",
    "q",
    "1",
    "1",
    "1",
    "1.0000",
    "1.0000",
    "1.0000",
    "0.00%",
    "0.00%",
    "0.333333",
  ]


def test_the_warning_names_the_place_and_a_remedy(rows):
  warning, advice = survival.warnings(rows)
  assert warning == (
    "warning: attention q: survival cosine 0.0000, below 0.95 in 1 of 3 layers, lowest in layer 2"
  )
  worse = Row(Q.format(3), 1, 0, 0, 1.0, 1.0, -0.5)
  assert survival.warnings([*rows, worse])[0] == (
    "warning: attention q: survival cosine -0.5000, below 0.95 in 2 of 4 layers, lowest in layer 3"
  )
  for flag in ("--output=adapter", "--output=delta", "--dtype=float32", "--rounding=stochastic"):
    assert flag in advice
  assert "stochastic" not in survival.warnings(rows, rounding="stochastic")[1]
  table = row("model.embed_tokens.weight", np.ones(8), np.full(8, 2.0**-10))
  assert survival.warnings([table])[0] == ("warning: embedding: survival cosine 0.0000, below 0.95")


def test_the_warning_begins_below_its_limit():
  at = Row(Q.format(0), 1, 0, 0, 1.0, 1.0, survival.WARN_BELOW)
  assert not survival.warnings([at])
  assert survival.warnings([at._replace(dot=survival.WARN_BELOW - 1e-9)])


@pytest.mark.parametrize("with_base", [True, False])
def test_the_files(rows, tmp_path, with_base):
  if with_base:
    rows = [
      r._replace(gap2=4.0, gap_dot=0.1, base_abs=1.0, instruct_abs=2.0, gap_abs=1.0) for r in rows
    ]
  survival.write_report(tmp_path, rows, {"alpha": 0.5}, "a title", survival.warnings(rows))
  assert {p.name for p in tmp_path.iterdir()} == {"graft_report.json", "graft_report.png"}
  assert (tmp_path / "graft_report.png").read_bytes().startswith(b"\x89PNG")
  report = json.loads((tmp_path / "graft_report.json").read_text())
  assert report["settings"] == {"alpha": 0.5} and report["warnings"] == survival.warnings(rows)
  assert report["all"] == survival.numbers(rows) and ("gap_ratio" in report["all"]) == with_base
  assert report["modules"]["mlp up"] == survival.numbers(rows[:3])
  assert report["layers"]["2"] == survival.by_layer(rows)[2]
  assert [(t["name"], t["layer"], t["module"]) for t in report["tensors"][4:7]] == [
    (Q.format(1), 1, "attention q"),
    (Q.format(2), 2, "attention q"),
    ("model.language_model.embed_tokens.weight", None, "embedding"),
  ]
  assert report["tensors"][0].items() >= survival.numbers(rows[:1]).items()


def test_the_picture_shows_the_numbers(rows, tmp_path, monkeypatch):
  drawn = {}
  draw = Axes.pcolormesh

  def spy(self, x, y, grid, **options):
    drawn[self] = grid, options
    return draw(self, x, y, grid, **options)

  monkeypatch.setattr(Axes, "pcolormesh", spy)
  cells = survival.cells(rows)
  heatmaps.plot_survival(cells, "a title", tmp_path / "x.png", warn_below=survival.WARN_BELOW)
  drawn = {axes: x for axes, x in drawn.items() if axes.get_title("left")}  # no colour bars
  panels = [p for p in heatmaps.PANELS if not p.key.startswith("gap")]
  assert [axes.get_title("left") for axes in drawn] == [p.title.format(limit=0.95) for p in panels]
  for panel, (axes, (grid, _)) in zip(panels, drawn.items(), strict=True):
    want = [
      [cells[m, n][panel.key] if (m, n) in cells else None for n in range(3)]
      for m in ("attention q", "mlp up", "norms")
    ]
    np.testing.assert_array_equal(grid, np.array(want, float))
    written = [text.get_text() for text in axes.texts]
    assert written == [format(x, panel.form) for row in want for x in row if x is not None]
  marked = [line.get_xydata().tolist() for axes in drawn for line in axes.lines]
  assert marked == [[[2.38, 0]]]  # layer 2 of attention q, beside its number


def colour(panel, grid, value):
  """The colour of a number in a heat map of a grid of numbers."""
  found = heatmaps._colours(panel, np.array([grid], float), survival.WARN_BELOW)
  norm = found.get("norm") or Normalize(found["vmin"], found["vmax"])
  return np.array(colormaps.get_cmap(found["cmap"])(float(norm(value)))[:3])


def test_good_and_bad_have_the_same_colours_everywhere():
  """Good is blue and bad is orange, whichever end of the numbers is good."""
  panels = {p.key: p for p in heatmaps.PANELS}
  for key, good, bad in (("cosine", 1.0, 0.6), ("unchanged", 0.0, 1.0)):
    for value, first, last in ((good, 2, 0), (bad, 0, 2)):
      rgb = colour(panels[key], [good, bad], value)
      assert rgb[first] - rgb[last] > 0.3, (key, value, rgb)
  assert colour(panels["cosine"], [0.99, 1.0], 0.99)[2] > 0.6  # all good: nothing is orange


def test_cosines_with_the_gap_are_scaled_to_the_data():
  [panel] = [p for p in heatmaps.PANELS if p.key == "gap_cosine"]
  strong, none = (colour(panel, [-0.02, 0.01], x) for x in (-0.02, 0.0))
  assert heatmaps.luminance(strong) < 0.1 < 0.9 < heatmaps.luminance(none)


def test_without_layers_there_is_no_picture(tmp_path):
  survival.write_report(tmp_path, [row("a", [1.0], [1.0])], {}, "a title")
  assert [p.name for p in tmp_path.iterdir()] == ["graft_report.json"]
