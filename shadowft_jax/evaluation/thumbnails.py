"""Small copies of the images of questions: kept beside the answers, shown in the page."""

import base64
import concurrent.futures
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowft_jax import files, machine
from shadowft_jax.data.pictures import Picture
from shadowft_jax.evaluation.tasks.task import Example
from shadowft_jax.generation.engine import images_of
from shadowft_jax.runs import html

SIDE, QUALITY = 480, 75  # pixels, and of WebP: a chart has about 9 kB
MOST = 3 << 20  # bytes of all of them in a page, which can still be mailed then


def keep(out: pathlib.Path, examples: Iterable[Example]) -> None:
  """Writes a small copy of each image of questions into the folder of the page's pictures."""
  distinct = {picture for one in examples for picture in images_of(one.messages)}
  with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
    list(pool.map(lambda picture: _keep(out, picture), distinct))


def _keep(out: pathlib.Path, picture: Picture) -> None:
  path = _path(out, picture.digest)
  if path.exists():
    return
  image, file = picture.decoded(), io.BytesIO()
  image.thumbnail((SIDE, SIDE))
  image.save(file, "webp", quality=QUALITY)
  files.write(path, file.getvalue())


def _path(out, digest):
  return out / html.PICTURES / f"{digest}.webp"


class Thumbnails:
  """Those of a page, of MOST bytes in all."""

  def __init__(self, out: pathlib.Path) -> None:
    """Reads nothing yet; `out` is the folder that `keep` was given."""
    self.out, self.left, self.left_out = out, MOST, 0

  def shown(self, messages: Sequence[Mapping[str, Any]]) -> list[html.Image]:
    """The images of a question that are kept, as far as the page has room.

    Args:
      messages: of `as_json`.
    """
    named = [
      pair for m in messages for pair in zip(m.get("images", ()), m.get("sha256", ()), strict=False)
    ]
    out = []
    for number, (name, digest) in enumerate(named, 1):
      path = _path(self.out, digest)
      if not path.exists():
        continue
      data = base64.b64encode(path.read_bytes()).decode()
      if len(data) > self.left:
        self.left_out += 1
        continue
      self.left -= len(data)
      which = f"Image {number}" if named[1:] else "The image"
      alt = f"{which} of the question: {pathlib.Path(name).name}"
      out.append(html.Image(f"data:image/webp;base64,{data}", alt))
    return out

  def note(self) -> str:
    """What of the images since the last call is left out, or ""."""
    count, self.left_out = self.left_out, 0
    words = f" {count:,} images are left out, so that the page stays small." if count else ""
    return words.replace(" 1 images are", " 1 image is")
