"""The paper's data by name: where each set is, its columns, and how many rows were used.

`data.set` names one, for a run whose data.train is empty; what the user sets wins.  data.select
decides which rows are taken: the first, as the authors' code does, or a uniform sample, as the
paper says.
"""

import dataclasses
import difflib

from shadowft_jax.data.converters import FORMATS
from shadowft_jax.data.sources import Source
from shadowft_jax.errors import InputError
from shadowft_jax.presets import Config
from shadowft_jax.progress import say

INFO = "data/dataset_info.json of the authors' repository"


@dataclasses.dataclass(frozen=True)
class PaperSet:
  """A set of the paper (arXiv 2505.12716) as a config takes it."""

  source: str  # hub id ORG/NAME[:SUBSET]; empty: on no hub, see `note`
  columns: dict[str, str]  # of data.columns
  count: int  # rows that the paper uses
  note: str  # what the paper says of it, and what is not known
  origin: str  # where `source` and `columns` were read


SETS = {
  "baai-2k": PaperSet(
    source="",
    columns={"messages": "conversations"},
    count=2000,
    origin=INFO,
    note="Shadow_2k.parquet in data/ of https://github.com/wutaiqiang/Shadow-FT, or a set "
    "alike, made of BAAI/Infinity-Instruct:Gen by python -m shadowft_jax.select; the "
    "paper: rows of high reward, uniform over categories; not known: which reward, "
    "which categories, the order of the rows",
  ),
  "medical-o1": PaperSet(
    source="FreedomIntelligence/medical-o1-reasoning-SFT:en",
    columns={"prompt": "Question", "response": "Response"},
    count=1000,
    origin=INFO,
    note="the column Complex_CoT is not used; the paper samples 1000 rows, not known: which",
  ),
  "code-z1": PaperSet(
    source="efficientscaling/Z1-Code-Reasoning-107K",
    columns={"prompt": "question", "response": "response"},
    count=2000,
    origin="train/preprocess.py of https://github.com/efficientscaling/Z1",
    note="the authors' repository has no entry for it, so source and columns are those of "
    "Z1's own training code; not known: whether the authors used them so, and which rows",
  ),
  "limo": PaperSet(
    source="GAIR/LIMO",
    columns={"prompt": "question", "response": "solution"},
    count=817,
    origin=INFO,
    note="the paper uses all its rows",
  ),
  "openr1-math": PaperSet(
    source="llamafactory/OpenR1-Math-94k",
    columns={"messages": "messages"},
    count=2000,
    origin=INFO,
    note="the paper samples 2000 rows, not known: which",
  ),
  "math-step-dpo": PaperSet(
    source="xinlai/Math-Step-DPO-10K",
    columns={"prompt": "prompt", "chosen": "full_chosen", "rejected": "full_rejected"},
    count=1000,
    origin=INFO,
    note="preference pairs, for DPO; the paper uses 1000, not known: which, and the beta, "
    "learning rate and epochs",
  ),
  "chartmoe": PaperSet(
    source="Coobiw/ChartMoE-Data",
    columns={"messages": "conversations", "images": "image"},
    count=10_000,
    origin=INFO,
    note="charts with questions, for models that read images; the paper uses 10,000 rows, "
    "not known: which",
  ),
}


def resolve(config: Config, needed: bool = True) -> Config:
  """Fills config.data from the set that config.data.set names, if config.data.train is empty.

  Rows of the user's are no rows of the set: their number is not limited, and `columns_of` says
  which columns they have.  Prints what is used and what is not known of the set.

  Args:
    needed: whether a set that is on no hub, and not given, is an error.

  Returns:
    `config`, changed in place; as it was where data.set is empty.

  Raises:
    InputError: there is no such set, or it is on no hub and data.train is empty.
  """
  c = config.data
  if not c.set:
    return config
  if c.set not in SETS:
    near = difflib.get_close_matches(c.set, SETS, n=1)
    raise InputError(
      f"config.data.set is one of {', '.join(SETS)}; got {c.set!r}"
      + (f"; did you mean {near[0]}?" if near else "")
    )
  known = SETS[c.set]
  if c.train not in ("", known.source):
    if not c.max_examples:
      say(
        f"data.set={c.set} sets no limit on {c.train}: all its rows are used (the paper uses "
        f"{known.count:,}: --config.data.max_examples={known.count})"
      )
    return config
  c.train = known.source
  if not c.train:
    if not needed:
      return config
    raise InputError(
      f"config.data.set {c.set} is on no hub; set --config.data.train to your "
      f"copy of it: {known.note}"
    )
  if not any(c.columns.values()):
    c.columns.update(known.columns)
  c.max_examples = c.max_examples or known.count
  theirs = "" if c.max_examples == known.count else f" (the paper uses {known.count:,})"
  rows = f"at most {c.max_examples:,} rows" if c.max_examples > 0 else "all rows"
  say(f"{c.set}: {rows}{theirs} of {c.train}, data.select={c.select}; {known.note}")
  return config


def columns_of(source: Source, config: Config) -> dict[str, str]:
  """The columns of a source by the names of data.columns; {} where its rows have a known format.

  They are the user's, or those of data.set where all of them are in the rows: of a copy of the
  set, not of other rows beside it.
  """
  given = {key: column for key, column in config.data.columns.items() if column}
  theirs = SETS[config.data.set].columns if config.data.set else {}
  if given not in ({}, theirs):
    return given
  first = next((row for _, row in source.rows if isinstance(row, dict)), {})
  usual = {key for form in FORMATS.values() for key in form.keys}
  is_copy = first.keys() >= set(theirs.values())
  return theirs if is_copy and (given or not usual >= set(theirs.values())) else {}
