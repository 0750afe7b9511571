"""The pages in headless Chromium: at two widths, in two schemes, without a script, printed.

`make chromium` installs Debian's Chromium; without it, or without playwright, these are left out.
"""

import contextlib
import os
import shutil

import pytest

from shadowft_jax import report
from tests import pages as made

pytestmark = pytest.mark.draws
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TEXT = "a word <script>alert(1)</script> and " + "a_long_word_without_a_space" * 20


@pytest.fixture(scope="module")
def browser():
  program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
  if not program:
    pytest.skip("needs Chromium: make chromium")
  playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -c constraints.txt -e '.[test]'"
  )
  with playwright.sync_playwright() as driver:
    # The pages are our own, and root has no sandbox.
    with contextlib.closing(
      driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
    ) as view:
      yield view


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  """The pages of a run with its scores, of an evaluation, a sweep and a comparison."""
  folder = tmp_path_factory.mktemp("pages")
  run = made.write_run(folder / "run", layers=36, text=TEXT)
  made.write_scores(run / "scores", text=TEXT, count=12)
  places = {
    "run": run,
    "scores": run / "scores",
    "sweep": made.write_sweep(folder / "sweep", text=TEXT),
    "comparison": made.write_comparison(folder / "comparison", text=TEXT),
  }
  for place in places.values():
    report.main(report.Options(dir=str(place)))
  return {name: place / "report.html" for name, place in places.items()}


class Opened:
  """A page with everything that went wrong on it."""

  def __init__(self, page, path):
    self.page, self.faults, self.requests = page, [], []
    page.on("console", lambda message: self.faults.append(message.text))
    page.on("pageerror", lambda error: self.faults.append(str(error)))
    page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: self.requests.append(request.url))
    page.goto(path.as_uri())
    assert self.requests == [path.as_uri()]


@contextlib.contextmanager
def opened(browser, path, width=1600, scheme="light", **options):
  size = {"width": width, "height": 900}
  context = browser.new_context(viewport=size, color_scheme=scheme, **options)
  try:
    view = Opened(context.new_page(), path)
    yield view
    assert not view.faults and len(view.requests) == 1
  finally:
    context.close()


SLOW = pytest.mark.slow
VIEWS = [
  *(("run", 390, "dark"), ("scores", 1600, "light")),
  *(("sweep", 390, "light"), ("comparison", 390, "dark")),
  *(
    pytest.param(n, w, s, marks=SLOW) for n, w, s in (("run", 1600, "light"), ("run", 390, "light"))
  ),
  *(pytest.param("scores", w, "dark", marks=SLOW) for w in (390, 1600)),
  *(pytest.param(n, 1600, "dark", marks=SLOW) for n in ("sweep", "comparison")),
]


@pytest.mark.parametrize("name, width, scheme", VIEWS)
def test_a_page_fits_and_is_accessible(browser, paths, name, width, scheme):
  """No message, no request, nothing wider than the screen, and nothing that axe complains of."""
  axe = pytest.importorskip("axe_playwright_python.sync_playwright")
  with opened(browser, paths[name], width, scheme, bypass_csp=True) as view:  # for axe's script
    page = view.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator("figure svg").evaluate_all("x => x.map(e => e.getBoundingClientRect())")
    assert boxes and all(300 <= box["width"] <= width for box in boxes)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper[4:].split(",")[0]) > 128) == (scheme == "light")
    violations = axe.Axe().run(page).response["violations"]
    assert not violations, [(v["id"], [n["html"] for n in v["nodes"]]) for v in violations]


def test_the_filters_need_no_script(browser, paths):
  with opened(browser, paths["scores"], java_script_enabled=False) as view:
    rows = view.page.locator(".list > li")
    assert rows.count() == 12 == rows.locator("visible=true").count()
    view.page.get_by_label("FT right, Instruct wrong").first.check()
    # Of 12 questions, Instruct answers every second one wrong, and FT every third.
    assert rows.locator("visible=true").count() == 4
    rows.locator("visible=true").first.locator("summary").click()
    assert rows.locator("visible=true").first.locator(".answers > div").count() == 3
    view.page.get_by_label("all (12)").check()
    assert rows.locator("visible=true").count() == 12


def test_a_page_is_printed_in_light_colours_with_its_numbers(browser, paths):
  with opened(browser, paths["run"], scheme="dark") as view:
    page = view.page
    table = page.locator("details.folded table").first
    assert not table.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert table.is_visible() and not page.locator("nav").is_visible()
