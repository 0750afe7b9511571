"""A figure as SVG inside a page: colours are variables of the page, and it has a name."""

import re
import unicodedata
from xml.etree import ElementTree

from markupsafe import Markup

from shadowft_jax.runs import pictures

FONT = " font-family: 'DejaVu Sans', sans-serif;"  # the page has its own
SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# The colours of figures that follow the scheme of the page, and their variables there.
VARIABLES = {
  pictures.INK: "--ink",
  pictures.FRAME: "--muted",
  pictures.GRID: "--line",
  pictures.PAPER: "--card",
  pictures.BLUE: "--blue",
  pictures.ORANGE: "--orange",
  pictures.GREEN: "--green",
  pictures.GREY: "--muted",
  pictures.MISSING: "--line",
}


def inline(text: str, name: str, alt: str) -> Markup:
  """An SVG file of a figure as an element of a page.

  Args:
    text: from `pictures.svg`.
    name: of the picture, unique on its page: its ids begin with it.
    alt: what the picture shows, for readers who do not see it.
  """
  ElementTree.register_namespace("", SVG)
  ElementTree.register_namespace("xlink", LINK)
  root = ElementTree.fromstring(text)
  used = set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", text))
  named = {a or b for a, b in used}
  for element in root.iter():
    for key, value in list(element.attrib.items()):
      if key == "id" and value not in named:
        del element.attrib[key]  # ids of two figures are the same
      elif key == "id":
        element.set(key, f"{name}-{value}")
      elif key == f"{{{LINK}}}href" and value.startswith("#"):
        element.set(key, f"#{name}-{value[1:]}")
      else:
        element.set(key, _coloured(value.replace("url(#", f"url(#{name}-").replace(FONT, "")))
  root[:] = [part for part in root if part.tag == f"{{{SVG}}}g" or part.find("*[@id]") is not None]
  for key in ("width", "height", "version"):
    root.attrib.pop(key, None)
  title = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{name}-title"})
  title.text = alt
  root.insert(0, title)
  root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title"}
  return Markup(ElementTree.tostring(root, encoding="unicode"))


def _coloured(value):
  return re.sub(r"#[0-9a-f]{6}", lambda m: _variable(m[0]), value)


def _variable(colour):
  return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def plain(text: str) -> str:
  """A text without what HTML and XML cannot hold: control characters and lone surrogates.

  Characters that turn the direction of the text round them are shown as their codes.
  """
  return "".join(_shown(c) for c in text)


def _shown(char):
  if char in "\n\t" or char.isprintable():
    return char
  is_turning = char in "\u200e\u200f\u061c" or "\u202a" <= char <= "\u2069"
  if is_turning and unicodedata.category(char) == "Cf":
    return f"⟨U+{ord(char):04X}⟩"
  is_text = unicodedata.category(char) in ("Zs", "Cf", "Co", "Cn") and ord(char) & 0xFFFE != 0xFFFE
  return char if is_text else "\ufffd"
