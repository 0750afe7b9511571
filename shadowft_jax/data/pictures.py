"""References to images in rows -> checked images: paths, data URLs, base64 and bytes."""

import base64
import binascii
import dataclasses
import hashlib
import io
import pathlib
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps

from shadowft_jax import files
from shadowft_jax.errors import InputError

MOST_BYTES = 200 << 20  # of a file
MOST_PIXELS = 80_000_000  # of an image
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")  # shorter text is a path


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image that has been decoded once; two are equal if their files have the same bytes."""

  digest: str  # SHA-256 of the file
  source: pathlib.Path | bytes = dataclasses.field(compare=False, repr=False)

  @property
  def name(self) -> str:
    """The path of its file, or its digest."""
    return f"sha256:{self.digest}" if isinstance(self.source, bytes) else str(self.source)

  def decoded(self) -> Image.Image:
    """The image in RGB, turned as its EXIF data say.

    Raises:
      InputError: the file has changed and cannot be decoded.
    """
    return _decoded(_bytes(self.source, self.name), self.name)

  def url(self) -> str:
    """The bytes of its file as a data URL.

    Raises:
      InputError: the file cannot be read any more.
    """
    data = _bytes(self.source, self.name)
    with Image.open(io.BytesIO(data)) as image:
      kind = Image.MIME.get(image.format or "", "image/png")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def opened(
  reference: Any,
  folders: Sequence[pathlib.Path],
  where: str,
  is_known: Callable[[str], bool] = lambda digest: False,
) -> Picture:
  """The image of a reference, which is read and decoded to check it.

  Args:
    reference: a path, a data URL, base64 text, bytes, an image of PIL, or {"bytes" or "path": one
      of these}.
    folders: where relative paths begin; the first in which the file exists counts.
    where: "FILE row N", for errors.
    is_known: digest -> whether an image has been decoded before.

  Raises:
    InputError: the image is missing, broken, too large or animated; names the row.
  """
  source, name = _source(reference, folders, where)
  data = _bytes(source, name)
  digest = hashlib.sha256(data).hexdigest()
  if not is_known(digest):
    _decoded(data, name)
  return Picture(digest, source)


def _source(reference, folders, where):
  """(the path or bytes of a reference, its name in errors)."""
  if isinstance(reference, dict):
    given = [reference[k] for k in ("bytes", "path", "url", "image") if reference.get(k)]
    reference = given[0] if given else reference
  if isinstance(reference, Image.Image):
    file = io.BytesIO()
    reference.save(file, "png")
    reference = file.getvalue()
  if isinstance(reference, bytes | bytearray):
    return bytes(reference), f"{where}: an image of {len(reference):,} bytes"
  if not isinstance(reference, str):
    raise InputError(
      f"{where}: an image is {reprlib.repr(reference)}; expected a path, a data URL, base64 or "
      "bytes"
    )
  head, _, data = reference.partition(",")
  if head.startswith("data:") and head.endswith(";base64"):
    return _from_base64(data, where), f"{where}: an image in a data URL"
  if re.match(r"(https?|ftp|s3|gs)://", reference):
    raise InputError(
      f"{where}: the image {reprlib.repr(reference)} is on the web; download it and give its path"
    )
  if BASE64.fullmatch(reference) and len(reference) > 255:
    return _from_base64(reference, where), f"{where}: an image in base64"
  path = pathlib.Path(reference.removeprefix("file://")).expanduser()
  places = [folder / path for folder in folders]
  found = next((p for p in places if p.is_file()), None)
  if found is None:
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise InputError(
      f"{where}: there is no image {looked}; its path begins in the folder of the data, or for "
      "`train` in --config.data.image_folder"
    )
  return found, f"{where}: the image {found}"


def _from_base64(text, where):
  try:
    return base64.b64decode(text, validate="\n" not in text)
  except binascii.Error as error:
    raise InputError(f"{where}: an image is not valid base64: {error}") from error


def _bytes(source, name):
  if isinstance(source, bytes):
    return source
  try:
    files.check_regular(source, MOST_BYTES)
    return source.read_bytes()
  except OSError as error:
    raise InputError(f"{name} cannot be read: {error}") from error


def _decoded(data, name):
  """The RGB image in the bytes of a file."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      frames, pixels = getattr(image, "n_frames", 1), image.width * image.height
      if frames == 1 and pixels <= MOST_PIXELS:
        return ImageOps.exif_transpose(image).convert("RGB")
  except Exception as error:  # PIL raises many types, by format and by what is wrong
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "its format is not known"
    raise InputError(f"{name} cannot be decoded: {reason}; replace it, or leave it out") from error
  if frames > 1:
    raise InputError(f"{name} is animated, with {frames} frames; save one of them as a still image")
  raise InputError(f"{name} has {pixels:,} pixels; at most {MOST_PIXELS:,} are read: scale it down")
