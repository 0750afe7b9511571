"""The paper's datasets by name: source, columns and number of rows used.

`data.set` selects one if data.train is empty; settings of the user take precedence.  data.select
decides which rows are used: the first, as in the authors' code, or a uniform sample, as stated in
the paper.
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
  """The settings of one of the paper's datasets (arXiv 2505.12716)."""

  source: str  # Hub id ORG/NAME[:SUBSET]; empty: not on the Hub, see `note`
  columns: dict[str, str]  # values for data.columns
  count: int  # rows that the paper uses
  note: str  # what the paper says about it, and what is unknown
  origin: str  # the source of `source` and `columns`


SETS = {
  "baai-2k": PaperSet(
    source="",
    columns={"messages": "conversations"},
    count=2000,
    origin=INFO,
    note="Shadow_2k.parquet in data/ of https://github.com/wutaiqiang/Shadow-FT, or a similar set "
    "made from BAAI/Infinity-Instruct:Gen with shadowft select; the paper: rows of high reward, "
    "uniform over categories; unknown: which reward, which categories, the order of the rows",
  ),
  "medical-o1": PaperSet(
    source="FreedomIntelligence/medical-o1-reasoning-SFT:en",
    columns={"prompt": "Question", "response": "Response"},
    count=1000,
    origin=INFO,
    note="the column Complex_CoT is not used; the paper samples 1,000 rows; unknown: which",
  ),
  "code-z1": PaperSet(
    source="efficientscaling/Z1-Code-Reasoning-107K",
    columns={"prompt": "question", "response": "response"},
    count=2000,
    origin="train/preprocess.py of https://github.com/efficientscaling/Z1",
    note="the authors' repository has no entry for it, so source and columns are those of "
    "Z1's own training code; unknown: whether the authors used the same, and which rows",
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
    note="the paper samples 2,000 rows; unknown: which",
  ),
  "math-step-dpo": PaperSet(
    source="xinlai/Math-Step-DPO-10K",
    columns={"prompt": "prompt", "chosen": "full_chosen", "rejected": "full_rejected"},
    count=1000,
    origin=INFO,
    note="preference pairs, for DPO; the paper uses 1,000; unknown: which, and the beta, "
    "learning rate and epochs",
  ),
  "chartmoe": PaperSet(
    source="Coobiw/ChartMoE-Data",
    columns={"messages": "conversations", "images": "image"},
    count=10_000,
    origin=INFO,
    note="charts with questions, for vision-language models; the paper uses 10,000 rows; "
    "unknown: which",
  ),
}


def resolve(config: Config, needed: bool = True) -> Config:
  """Fills config.data from the dataset config.data.set, if config.data.train is empty.

  The user's own rows are not limited in number; `columns_of` finds their columns.  Prints what is
  used and what is unknown about the dataset.

  Args:
    config: the config of a run.
    needed: whether an empty data.train is an error for a dataset that is not on the Hub.

  Returns:
    `config`, changed in place; unchanged if data.set is empty.

  Raises:
    InputError: there is no such dataset, or it is not on the Hub and data.train is empty.
  """
  c = config.data
  if not c.set:
    return config
  if c.set not in SETS:
    near = difflib.get_close_matches(c.set, SETS, n=1)
    raise InputError(
      f"config.data.set must be one of {', '.join(SETS)}; got {c.set!r}"
      + (f"; did you mean {near[0]}?" if near else "")
    )
  known = SETS[c.set]
  if c.train not in ("", known.source):
    if not c.max_examples:
      say(
        f"data.set={c.set} does not limit {c.train}: using all its rows (the paper uses "
        f"{known.count:,}: --config.data.max_examples={known.count})"
      )
    return config
  c.train = known.source
  if not c.train:
    if not needed:
      return config
    raise InputError(
      f"the dataset {c.set} (config.data.set) is not on the Hub; set --config.data.train to your "
      f"copy: {known.note}"
    )
  if not any(c.columns.values()):
    c.columns.update(known.columns)
  c.max_examples = c.max_examples or known.count
  theirs = "" if c.max_examples == known.count else f" (the paper uses {known.count:,})"
  rows = f"at most {c.max_examples:,} rows" if c.max_examples > 0 else "all rows"
  say(f"{c.set}: {rows}{theirs} of {c.train}, data.select={c.select}; {known.note}")
  return config


def columns_of(source: Source, config: Config) -> dict[str, str]:
  """The columns of a source, keyed as in data.columns; {} if its rows have a known format.

  These are the user's columns, or those of data.set if the rows have all of them, which marks a
  copy of the dataset rather than other rows.
  """
  given = {key: column for key, column in config.data.columns.items() if column}
  theirs = SETS[config.data.set].columns if config.data.set else {}
  if given not in ({}, theirs):
    return given
  first = next((row for _, row in source.rows if isinstance(row, dict)), {})
  usual = {key for form in FORMATS.values() for key in form.keys}
  is_copy = first.keys() >= set(theirs.values())
  return theirs if is_copy and (given or not usual >= set(theirs.values())) else {}
