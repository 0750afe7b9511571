"""What is compared: models, with and without deltas, a server's models, or saved answers.

Qwen/Qwen3-0.6B                         a folder, a run's folder, or a Hub id
Shadow-FT=runs/a                        the same with a label
Qwen/Qwen3-0.6B+runs/a@0.25,0.5,1       a model and a delta at three strengths: three arms
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

from shadowft_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arm:
  """One column of a comparison.

  Attributes:
    label: its name in tables and the name of its folder.
    kind: "model", "server" or "outputs".
    source: a model's folder or id, its name at the server, or the place of saved answers.
    delta: a delta that is grafted onto the model; "" for none.
    alpha: its strength.
    tokenizer_of: the model whose tokenizer and chat template it answers in; "" for its own.
  """

  label: str
  kind: str
  source: str
  delta: str = ""
  alpha: float = 1.0
  tokenizer_of: str = ""


def parse(
  models: Sequence[str] = (),
  *,
  names: Sequence[str] = (),
  outputs: Sequence[str] = (),
  delta: str = "",
  alphas: Sequence[str] = (),
) -> list[Arm]:
  """The arms that the flags describe; the others are compared with the first.

  Args:
    models: [LABEL=]MODEL[+DELTA[@ALPHA,...]].
    names: [LABEL=]NAME of models at a server.
    outputs: [LABEL=]PLACE of saved answers.
    delta: of each model that names none.
    alphas: strengths of `delta`, and of deltas that name none.

  Raises:
    InputError: an alpha is no number, or two arms have one label.
  """
  labelled: list[tuple[str, Arm]] = []
  for text in models:
    label, rest = _labelled(text)
    source, own, listed = _with_delta(rest)
    chosen = own or delta
    strengths = listed or [_number(a) for text in alphas for a in text.split(",")] or [1.0]
    if not chosen and listed:
      raise InputError(f"--model {text}: an alpha needs a delta; write MODEL+DELTA@ALPHA")
    for alpha in strengths if chosen else [1.0]:
      suffix = f"@{alpha:g}" if chosen and (len(strengths) > 1 or not label) else ""
      labelled.append(
        (f"{label}{suffix}" if label else "", Arm("", "model", source, chosen, alpha))
      )
  labelled += [(label, Arm("", "server", rest)) for label, rest in map(_labelled, names)]
  labelled += [(label, Arm("", "outputs", rest)) for label, rest in map(_labelled, outputs)]
  return _named(labelled)


def _labelled(text):
  """(label or "", the rest) of LABEL=REST."""
  match = re.fullmatch(r"([^=/\\]+)=(.+)", text)
  return (match[1], match[2]) if match and not pathlib.Path(text).exists() else ("", text)


def _with_delta(text):
  """(model, delta or "", alphas) of MODEL+DELTA@ALPHA,..."""
  if pathlib.Path(text).exists() or "+" not in text:
    return text, "", []
  model, _, delta = text.partition("+")
  place, at, listed = delta.rpartition("@")
  if at and not pathlib.Path(delta).exists():
    return model, place, [_number(alpha) for alpha in listed.split(",")]
  return model, delta, []


def _number(text):
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise InputError(f"alpha {text!r} is no number; expected one such as 0.5")
  return value


def _named(labelled):
  """The arms with their labels: given ones, otherwise the end of a path that tells them apart."""
  places = [_parts(arm) for _, arm in labelled]
  labels = []
  for (label, _), parts in zip(labelled, places, strict=True):
    others = [p for p in places if p is not parts]
    size = next(
      (n for n in range(1, len(parts) + 1) if all(p[-n:] != parts[-n:] for p in others)), len(parts)
    )
    labels.append(label or "-".join(parts[-size:]))
  for label in labels:
    if labels.count(label) > 1:
      raise InputError(f"two models are labelled {label!r}; name them, as in --model LABEL=MODEL")
    if label.startswith(".") or re.search(r"[/\\\0]", label):
      raise InputError(f"label {label!r} names a folder, too; expected a plain name")
  return [dataclasses.replace(arm, label=x) for x, (_, arm) in zip(labels, labelled, strict=True)]


def _parts(arm):
  """The parts of an arm's path."""
  parts = [p for p in re.split(r"[/\\]", arm.source) if p not in ("", ".", "..")]
  if arm.kind == "outputs" and parts:
    parts[-1] = parts[-1].removesuffix(".jsonl")
  if arm.delta:
    delta = [p for p in re.split(r"[/\\]", arm.delta) if p not in ("", ".", "..")]
    parts = [*parts[:-1], f"{parts[-1]}+{'-'.join(delta[-2:])}@{arm.alpha:g}"]
  return parts
