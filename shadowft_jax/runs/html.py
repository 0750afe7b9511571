"""A page of results: one HTML file that needs nothing else, and its pictures as files.

  page = Page("Shadow-FT of Qwen3-0.6B", sections=[Section("Result", [table, picture])])
  write(page, pathlib.Path("runs/a/report.html"))

The page has no script and loads nothing, and its Content-Security-Policy forbids both.  Every text
may come from data or a model: the template escapes all of them.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from shadowft_jax import files
from shadowft_jax.errors import InputError
from shadowft_jax.runs import pictures, svg

if TYPE_CHECKING:
  from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).parents[1] / "assets" / "page"
OURS = '<meta name="generator" content="shadowft_jax">'
REPORT = "report.html"  # the page of a folder
PICTURES = "pictures"  # the folder of the pictures, beside the page
WORDS = {"good": "better", "bad": "worse"}  # for the mark of a cell, beside its colour


@dataclass(frozen=True)
class Cell:
  """The cell of a table; `mark` is "good", "bad" or "" for neither."""

  text: str
  mark: str = ""


@dataclass(frozen=True)
class Table:
  """A table whose first `labels` columns name the row.

  Attributes:
    is_folded: the reader opens it.
    is_words: the cells are text, not numbers.
  """

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str | Cell]]
  labels: int = 1
  is_folded: bool = False
  is_words: bool = False
  kind: str = "table"


@dataclass(frozen=True)
class Picture:
  """A figure: inside the page, and as NAME.png and NAME.svg.

  Attributes:
    name: of the files; unique in the page.
    alt: what it shows, with the numbers that matter.
    note: what a reader has to know to read it.
  """

  name: str
  figure: "Figure"
  alt: str
  note: str = ""
  kind: str = "picture"


@dataclass(frozen=True)
class Text:
  """A paragraph; `mark` is "good", "bad" or "" for neither."""

  text: str
  mark: str = ""
  kind: str = "text"


@dataclass(frozen=True)
class Code:
  """A command, or a file."""

  text: str
  title: str = ""
  kind: str = "code"


@dataclass(frozen=True)
class Sample:
  """A training example: its parts, and whether the loss covers each."""

  title: str
  parts: Sequence[tuple[str, bool]]
  kind: str = "sample"


@dataclass(frozen=True)
class Answer:
  """The answer of a model; `state` is right, wrong, unparsed or cut."""

  text: str
  state: str
  extracted: str | None = None

  @property
  def mark(self) -> str:
    """Whether it counts as right, as a mark."""
    return "good" if self.state == "right" else "bad"


@dataclass(frozen=True)
class Image:
  """An image of a question as a data URL, and what it is of."""

  url: str
  alt: str


@dataclass(frozen=True)
class Question:
  """A question and the answers of all models.

  Attributes:
    id: of the question.
    text, reference: the question and the right answer, where they are known.
    answers: of each model, in their order.
    images: of the question.
  """

  id: str
  text: str
  reference: str
  answers: Sequence[Answer]
  images: Sequence[Image] = ()


@dataclass(frozen=True)
class Questions:
  """Answers side by side, with filters that work without a script.

  Attributes:
    name: unique in the page.
    title: of the list.
    models: their names.
    filters: {name of a filter: the numbers of the questions that it shows}.
    note: what is left out.
  """

  name: str
  title: str
  models: Sequence[str]
  questions: Sequence[Question]
  filters: Mapping[str, frozenset[int]]
  note: str = ""
  kind: str = "questions"


Part = Table | Picture | Text | Code | Sample | Questions


@dataclass(frozen=True)
class Section:
  """A heading and what is under it."""

  title: str
  parts: Sequence[Part]

  @property
  def anchor(self) -> str:
    """Its place in the page."""
    return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
  """A page.

  Attributes:
    title: its heading.
    subtitle: what it is of, in a line.
    facts: {what: value}, at the top.
    missing: what the page lacks and why, a sentence each.
    sections: the rest; those without parts are left out.
  """

  title: str
  subtitle: str = ""
  facts: Mapping[str, str | Cell] = field(default_factory=dict)
  missing: Sequence[str] = ()
  sections: Sequence[Section] = ()


def write(page: Page, path: pathlib.Path) -> None:
  """Writes a page and its pictures, as PNG and SVG in the folder PICTURES beside it.

  Raises:
    InputError: there is a file at `path` that is no page of this program.
  """
  if path.is_dir() or path.exists() and OURS not in path.read_text(errors="replace")[:2000]:
    raise InputError(
      f"{path} is there and is no page of shadowft_jax; name another file with --out"
    )
  drawn = {}
  for picture in _pictures(page):
    drawn[picture.name] = pictures.svg(picture.figure)
    folder = path.parent / PICTURES
    files.write(folder / f"{picture.name}.svg", drawn[picture.name])
    files.write(folder / f"{picture.name}.png", pictures.png(picture.figure))
  files.write(path, _rendered(page, drawn).encode(errors="replace"))


def render(page: Page) -> str:
  """A page as HTML."""
  return _rendered(page, {p.name: pictures.svg(p.figure) for p in _pictures(page)})


def _pictures(page):
  return [part for section in page.sections for part in section.parts if part.kind == "picture"]


def _rendered(page, drawn):
  inline = {p.name: svg.inline(drawn[p.name], p.name, svg.plain(p.alt)) for p in _pictures(page)}
  sections = [section for section in page.sections if section.parts]
  style = Markup((FOLDER / "page.css").read_text())
  return _template().render(
    page=page, sections=sections, svg=inline, style=style, words=WORDS, ours=Markup(OURS)
  )


@functools.cache
def _template():
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=_final,
  )
  return environment.get_template("page.html.jinja")


def _final(value: Any) -> Any:
  return svg.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
