"""report.html without a browser: what is on it, what it lacks, and that data stays data."""

import base64
import html.parser
import io
import json
import re

import pytest
from PIL import Image

from shadowft_jax import command, report
from shadowft_jax.data.pictures import opened
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import page as scores_page, thumbnails
from shadowft_jax.runs import heatmaps, html as pages, page, pictures, svg, sweep_page
from tests import pages as made

pytestmark = pytest.mark.draws
VOID = {"meta", "input", "br", "img"}


class Reader(html.parser.HTMLParser):
  """The elements of a page, and its text by element."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.open, self.text, self.said = [], [], [], ""
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    self.text.append((tuple(self.open), data))
    if "style" not in self.open:
      self.said += data

  def within(self, *tags):
    """The texts directly in an element of these tags."""
    return [text for where, text in self.text if where[-len(tags) :] == tags and text.strip()]

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


def shown(folder, *argv):
  """The page that the command writes of a folder."""
  report.main(command.parse(report.Options, [str(folder), *argv]))
  return Reader((folder / "report.html").read_text())


@pytest.fixture
def undrawn(monkeypatch):
  """Figures are made and not drawn, which takes most of the time."""
  empty = f'<svg xmlns="{svg.SVG}" viewBox="0 0 1 1"><g /></svg>'
  monkeypatch.setattr(pictures, "png", lambda figure, dpi=200: b"")
  monkeypatch.setattr(pictures, "svg", lambda figure: empty)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return made.write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def run_page(run):
  return shown(run)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
  return made.write_scores(tmp_path_factory.mktemp("scores") / "scores")


@pytest.fixture(scope="module")
def scores_shown(scores):
  return shown(scores)


def test_the_page_of_a_run_has_all_of_it(run, run_page):
  names = ["loss", "lr", "tokens-per-second", "grad-norm"]
  names += ["delta-norm", "gap-cosine", "gap-ratio", "cosine", "unchanged"]
  assert {p.name for p in (run / "pictures").iterdir()} == {
    f"{n}.{kind}" for n in names for kind in ("png", "svg")
  }
  assert len(run_page.all("svg")) == len(names)
  for words in (
    "Shadow-FT of org/instruct",
    "LoRA of rank 128 of base, grafted onto org/instruct",
    "3.0000 → 0.5000",
    "-2.5000 better",
    "shadowft train",
    "ab" * 32,
    "data.train",
  ):
    assert words in run_page.said, words
  assert "Not on this page" not in run_page.said
  marked = run_page.within("mark")
  assert marked == ["hello trained"]
  # The median of 901 … 912; the time is the sum of all steps.
  assert "906" in run_page.said and "1.3 s" in run_page.said


def test_pictures_have_names_with_their_numbers(run_page):
  titles = run_page.within("svg", "title")
  assert len(titles) == len(run_page.all("svg"))
  assert titles[0] == (
    "Training loss from 3 at step 1 to 0.25 at step 12; validation loss from 3 at step 0 to 0.2583 "
    "at step 12."
  )
  assert "from 0.433 in mlp down of layer 3" in titles[-2]  # the delta that storing lost
  ids = [attrs["id"] for _, attrs in run_page.elements if "id" in attrs]
  assert len(ids) == len(set(ids))
  labelled = [x for attrs in run_page.all("svg") for x in attrs["aria-labelledby"].split()]
  assert set(labelled) <= set(ids) and all(x["role"] == "img" for x in run_page.all("svg"))


def test_the_page_loads_nothing_and_runs_nothing(run_page, scores_shown):
  for reader in (run_page, scores_shown):
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in reader.elements}
    policy = [m["content"] for m in reader.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attrs in reader.elements:
      assert not [name for name in attrs if name.startswith("on") or name == "src"], tag
      links = [x for name, x in attrs.items() if name.endswith("href")]
      assert all(x.startswith(("#", "data:image/png;")) for x in links), links
    assert reader.all("html") == [{"lang": "en"}]


def test_tables_have_headers_with_their_scope(run_page, scores_shown):
  for reader in (run_page, scores_shown):
    scopes = [attrs["scope"] for attrs in reader.all("th")]
    assert {"row", "col"} == set(scopes)
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert len(reader.within("th")) >= 10


def test_images_of_questions_are_in_the_page_scaled_down_up_to_a_limit(
  undrawn, tmp_path, monkeypatch
):
  paths = [tmp_path / f'{n} "><b>.png' for n in range(4)]
  for n, path in enumerate(paths):
    Image.effect_noise((900 - n, 600), 90).save(path)
  charts = [opened(str(path), [tmp_path], "it") for path in paths]
  folder = made.write_scores(tmp_path / "scores", images=[*charts, charts[0]])
  for path in paths:
    path.unlink()  # the page needs them no more
  reader = shown(folder)
  images = reader.all("img")
  assert [x["alt"] for x in images] == [
    f'The image of the question: {n} "><b>.png' for n in (0, 1, 2, 3, 0)
  ]
  head, sizes = "data:image/webp;base64,", [len(x["src"]) for x in images]
  for one in images:
    assert one.keys() == {"src", "alt"} and one["src"].startswith(head)
    with Image.open(io.BytesIO(base64.b64decode(one["src"].removeprefix(head)))) as image:
      assert image.width == thumbnails.SIDE
  assert images[0] == images[4] and "images are left out" not in reader.said
  monkeypatch.setattr(thumbnails, "MOST", sum(sizes[:3]))
  reader = shown(folder)
  assert reader.all("img") == images[:3]
  assert "2 images are left out, so that the page stays small." in reader.said
  assert str(paths[3]) in reader.said


@pytest.mark.parametrize("kind", ["run", "scores"])
def test_what_comes_from_data_stays_text(undrawn, tmp_path, kind):
  # A run's config.json with half of a surrogate pair is refused when it is read.
  text = made.NASTY.replace("\ud800", "") if kind == "run" else made.NASTY
  write = made.write_run if kind == "run" else made.write_scores
  reader = shown(write(tmp_path / "it", text=text))
  assert "script" not in {tag for tag, _ in reader.elements} and not reader.all("img")
  assert '</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>"&' in reader.said
  assert "⟨U+202E⟩" in reader.said and not re.search("[\x00\x1b\u202e]", reader.said)
  assert "\ufffd[31m" in reader.said and "$x^" in reader.said


def test_names_of_models_do_no_harm_in_a_picture():
  names = ("A $x^ & <b>", "B \x07\ud83d", "模型 \u202e")
  reader = {name: {"gsm8k": suite_score()} for name in names}
  from shadowft_jax.evaluation import picture

  text = pictures.svg(picture.figure_of(reader))
  shown = str(svg.inline(text, "scores", svg.plain(names[1])))
  assert "A $x^ &amp; &lt;b&gt;" in shown and "B \ufffd\ufffd" in shown and "模型 ⟨U+202E⟩" in shown


def suite_score():
  from shadowft_jax.evaluation.graded import Score

  return Score("gsm8k", 10, 1, 0.5, 0.2, 0.8, 0.5, 0, 0, 0, 0, None, {})


def test_a_run_without_validation_says_so_and_shows_the_rest(undrawn, tmp_path):
  reader = shown(made.write_run(tmp_path / "run", valid=False))
  assert "Validation: the run has no validation split. --config.data.val_ratio=0.05" in reader.said
  assert "Result" not in reader.within("h2") and "Training" in reader.within("h2")
  assert len(reader.all("svg")) == 9 and "validation loss not measured" in reader.said


def test_a_run_that_goes_on_shows_what_there_is(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run", steps=5, complete=False)
  reader = shown(run)
  assert "not finished: 5 steps so far" in reader.said
  assert "The end of the run: it has not finished." in reader.said
  assert [p.name for p in sorted((run / "pictures").glob("*.png"))] == [
    *("grad-norm.png", "loss.png", "lr.png", "tokens-per-second.png")
  ]
  for name in ("metrics.jsonl", "preview.json", "log.txt"):
    (run / name).unlink()
  reader = shown(run)
  assert "not finished: 0 steps so far" in reader.said and "no step is recorded" in reader.said
  assert "has no preview.json" in reader.said and not reader.all("svg")
  (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "lr": 0.0}\n{"step": 2, "lo')
  assert "not finished: 1 step so far" in shown(run).said


def test_the_report_of_an_older_graft_is_missing_and_named(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run")
  path = run / "shadow" / "graft_report.json"
  graft = json.loads(path.read_text())
  del graft["cells"]
  path.write_text(json.dumps(graft))
  reader = shown(run)
  assert "Heat maps: shadow/graft_report.json has no numbers by layer" in reader.said
  assert "The delta by module, as numbers" in reader.said and len(reader.all("svg")) == 4


def test_examples_can_be_left_out(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run", complete=False)
  reader = shown(run, "--no-examples")
  assert "hello trained" not in reader.said and "Training examples" not in reader.said


def test_preference_pairs_have_their_own_curves(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run", objective="dpo", learn_on="instruct")
  rows = page.metrics.read_metrics(run)
  rows = [{**r, "accuracy": 0.5, "margin": 0.1} if "loss" in r else r for r in rows]
  rows[-1] |= {"instruct_valid_accuracy": 0.5, "shadow_valid_accuracy": 0.4}
  (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  reader = shown(run)
  assert "Fine-tuning of org/instruct" in reader.said and "(DPO)" in reader.said
  assert "-0.1000 worse" in reader.said and "-2.5000 better" in reader.said
  assert len(reader.all("svg")) == 11


def test_the_page_of_scores(scores_shown):
  reader = scores_shown
  assert (
    "Instruct, FT and Shadow-FT" in reader.said and "3 models on the same questions" in reader.said
  )
  # Wrong are every second, third and fourth of 30 questions: 15, 20 and 22 are right.
  for words in ("50.0%", "66.7%", "73.3%", "FT minus Instruct on gsm8k: +16.7 points"):
    assert words in reader.said, words
  boxes = reader.all("input")
  assert {x["type"] for x in boxes} == {"radio"} and [x for x in boxes if "checked" in x] == boxes[
    :1
  ]
  classes = [x["class"].split()[1:] for x in reader.all("li") if "class" in x]
  counts = {n: sum(f"f{n}" in x for x in classes) for n in range(1, 7)}
  right = [[n % k > 0 for k in (2, 3, 4)] for n in range(30)]
  assert counts[1] == sum(r[0] and not r[1] for r in right) == 5 and len(classes) == 30
  assert counts[2] == sum(r[1] and not r[0] for r in right)
  assert counts[5] == sum(map(all, right)) and counts[6] == sum(not any(r) for r in right)
  assert f"all right ({counts[5]})" in reader.said
  style = "".join(reader.within("style"))
  assert "#questions-1:has(#questions-1-6:checked) li:not(.f6) { display: none; }" in style


def test_many_questions_are_cut_to_those_that_differ(scores, tmp_path):
  report.main(report.Options(dir=str(scores), out=str(tmp_path / "x.html"), questions=6))
  reader = Reader((tmp_path / "x.html").read_text())
  assert "6 of 30 questions are shown" in reader.said and "all right (0 of 10)" in reader.said
  assert len([x for x in reader.all("li") if "class" in x]) == 6


def test_worked_examples_are_not_repeated_in_every_question():
  shots = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
  dialogues = [[*shots, {"role": "user", "content": q}] for q in "abc"]
  assert scores_page._shared(dialogues) == 2
  assert scores_page._shared(dialogues[:1]) == 0 == scores_page._shared([])
  assert scores_page._shared([*dialogues, dialogues[0][1:]]) == 0
  one = scores_page.question("x", dialogues[1][2:], 3, [])
  assert (one.text, one.reference) == ("b", "3")


def test_the_page_of_a_run_has_its_scores(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run")
  made.write_scores(run / "scores", models=("run",))
  reader = shown(run)
  assert "Right answer: 7" in reader.said and "right (15)" in reader.said
  titles = reader.within("h2")
  assert titles[:3] == ["Result", "Scores", "Answers"] and "Training" in titles


def write_sweep(folder, rows, *more):
  folder.mkdir()
  names = ["run", "lr", "delta.rank", "learn_on", "seed", "state"]
  names += ["instruct_valid_loss", "shadow_valid_loss", "chosen", *more]
  text = "\n".join(",".join(map(str, row)) for row in (names, *rows))
  (folder / "sweep.csv").write_text(text + "\n")
  return folder


SWEEP = [
  ("a", 1e-4, 8, "base", 1, "done", 3.0, 1.0, ""),
  ("b", 1e-4, 8, "base", 2, "done", 3.0, 2.0, ""),
  ("c", 1e-3, 8, "base", 1, "done", 3.0, 0.5, "*"),
  ("d", 1e-3, 8, "instruct", 1, "done", 3.0, 0.25, ""),
  ("e", 1e-3, 8, "instruct", 2, "failed: no <memory>", "", "", ""),
]


def test_the_page_of_a_sweep(undrawn, tmp_path):
  reader = shown(write_sweep(tmp_path / "rates", SWEEP))
  for words in ("Sweep rates", "5 runs: 2 values of lr × 1 value of delta.rank, 2 seeds", "4 of 5"):
    assert words in reader.said, words
  assert "e: failed: no <memory>" in reader.said and "has asked no questions" in reader.said
  cells = [text.strip() for text in reader.within("td")]
  assert {"1.5000 ± 0.7071", "0.5000", "1 of 2", "0.2500", "Shadow-FT", "FT", "–"} <= {*cells}
  assert cells.count("*") == 1  # FT's lowest is not complete
  assert len(reader.all("svg")) == 1


def drawn_of(folder):
  """The axes of the figure on the page of a sweep."""
  parts = [part for section in sweep_page.of_folder(folder).sections for part in section.parts]
  [picture] = [part for part in parts if part.kind == "picture"]
  return picture.figure.axes[0]


def test_the_figure_of_a_sweep_has_means_and_spreads(tmp_path):
  axes = drawn_of(write_sweep(tmp_path / "rates", SWEEP))
  shadow, ft = axes.containers
  assert [(c.get_label()) for c in axes.containers] == [
    "Shadow-FT, delta.rank 8",
    "FT, delta.rank 8",
  ]
  assert shadow[0].get_xydata().tolist() == [[1e-4, 1.5], [1e-3, 0.5]]
  [bars] = shadow[2]
  heights = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
  assert heights == pytest.approx([2 * 0.5**0.5, 0])  # of 1 and 2, two standard deviations
  assert ft[0].get_xydata().tolist() == [[1e-3, 0.25]] and axes.get_xscale() == "log"
  assert "loss" in axes.get_ylabel()
  words = [(*row[:1], "x y" if row[1] == 1e-4 else "$z", *row[2:]) for row in SWEEP]
  axes = drawn_of(write_sweep(tmp_path / "words", words))
  assert [x.get_text() for x in axes.get_xticklabels()] == ["x y", "$z"]


def test_fields_that_are_set_together_are_one_axis_of_the_figure(tmp_path):
  rows = [
    (f"{rank}{arm}", 1e-4, rank, arm, 1, "done", 3.0, 1 / rank, "", 0.5, rank / 100)
    for rank in (8, 16)
    for arm in ("base", "instruct")
  ]
  folder = write_sweep(tmp_path / "ranks", rows, "instruct_accuracy", "shadow_accuracy")
  axes = {"delta.rank,lr": [[8, 1e-4], [16, 1e-4]], "learn_on": [["base"], ["instruct"]]}
  (folder / "sweep.json").write_text(json.dumps({"axes": axes, "config": {}, "order": []}))
  axes = drawn_of(folder)
  assert axes.get_ylabel() == "right answers (%)"
  for line in axes.containers:
    assert line[0].get_xydata().tolist() == [[8, 8.0], [16, 16.0]]
  level = next(line for line in axes.lines if line.get_label() == "Instruct, untuned")
  assert set(level.get_ydata()) == {50.0}
  (folder / "sweep.json").write_text(json.dumps({"axes": {"learn_on": [["base"]]}, "config": {}}))
  assert not any(part.kind == "picture" for part in sweep_page.of_folder(folder).sections[0].parts)


def test_a_table_that_is_no_sweep_is_refused(tmp_path):
  (tmp_path / "sweep.csv").write_text("run,lr\na,1\n")
  with pytest.raises(InputError, match="sweep.csv has no run, or not the columns run, learn_on"):
    shown(tmp_path)


def test_what_is_no_run_is_refused(undrawn, tmp_path):
  with pytest.raises(InputError, match="none is no folder.*expected that of a run"):
    shown(tmp_path / "none")
  with pytest.raises(InputError, match="not the folder of a run.*it has nothing"):
    shown(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
  with pytest.raises(InputError, match="not the folder of a run.*it has config.json"):
    shown(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match="config.json is not valid JSON"):
    shown(tmp_path)
  (tmp_path / "scores.json").write_text("{}")
  with pytest.raises(InputError, match="scores.json is not of `shadowft evaluate`"):
    shown(tmp_path)
  (tmp_path / "scores.json").write_text('{"models": {"a": 3}, "options": {}}')
  with pytest.raises(InputError, match="damaged, or of another version"):
    shown(tmp_path)
  assert not (tmp_path / "report.html").exists()


def test_a_page_of_someone_else_is_not_overwritten(undrawn, tmp_path):
  run = made.write_run(tmp_path / "run", complete=False)
  (run / "report.html").write_text("<p>mine")
  with pytest.raises(InputError, match="report.html is there and is no page of shadowft_jax"):
    shown(run)
  assert not (run / "pictures").exists()
  (run / "report.html").unlink()
  first = shown(run).said
  assert shown(run).said == first


def test_the_same_run_is_the_same_page(tmp_path):
  run = made.write_run(tmp_path / "run", complete=False)
  texts = {pages.render(page.of_run(run)) for _ in range(2)}
  assert len(texts) == 1


def test_colours_of_figures_are_variables_of_the_page(run):
  style = (pages.FOLDER / "page.css").read_text()
  assert all(f"{name}:" in style for name in svg.VARIABLES.values())
  text = (run / "pictures" / "loss.svg").read_text()
  inline = str(svg.inline(text, "x", "y"))
  assert all(colour in text for colour in (pictures.INK, pictures.PAPER, pictures.BLUE))
  assert not [colour for colour in svg.VARIABLES if colour in inline]


def channels(colour):
  return [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]


def contrast(a, b):
  low, high = sorted(heatmaps.luminance(channels(x)) for x in (a, b))
  return (high + 0.05) / (low + 0.05)


def test_contrast_in_both_schemes():
  """WCAG AA: 4.5 for text, 3 for the lines of figures."""
  style = (pages.FOLDER / "page.css").read_text()
  blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
  light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
  assert light.keys() == dark.keys() and light != dark
  for scheme in (light, dark):
    for text in ("ink", "muted", "good", "bad", "link"):
      assert all(contrast(scheme[text], scheme[under]) >= 4.5 for under in ("paper", "card")), text
    assert contrast(scheme["ink"], scheme["trained"]) >= 4.5
    assert all(contrast(scheme[x], scheme["card"]) >= 3 for x in ("blue", "orange", "green"))
