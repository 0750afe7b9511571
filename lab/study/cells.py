"""The cells of the study, in the order in which they are run.

A cell is one setting: pairs, data, updates and kind of delta.  The primary cells come first; every
other changes one factor of "broad, 8 updates" or "broad, 32 updates".
"""

import dataclasses

from lab.study.pairs import Kind

RATES = (3e-4, 6e-4, 1.2e-3, 2.5e-3, 5e-3, 1e-2)
TWO_RATES = (2.5e-3, 1e-2)  # of the controls
SEEDS = (0, 1, 2)  # of the tuning: data, order and adapter
SIZES = {8: 256, 32: 64, 96: 64}  # updates -> examples in each
ARMS = ("FT", "Shadow-FT")
WEAK, STRONG = (
  Kind(steps=100, rate=2e-4),
  Kind(steps=400, rate=2e-3),
)  # gap ratios of about 0.015 and 0.07


@dataclasses.dataclass(frozen=True)
class Cell:
  """One setting; its runs are all pairs, seeds, rates and arms."""

  name: str
  steps: int  # updates
  data: str = "broad"  # see `runs.DATA`
  kind: Kind = Kind()
  delta: str = "lora 16"  # or "full"
  alphas: tuple[float, ...] = (1.0,)
  control: str = ""  # what is compared with both arms; see `runs.control`

  @property
  def rates(self) -> tuple[float, ...]:
    """Learning rates."""
    return TWO_RATES if self.control else RATES

  @property
  def arms(self) -> tuple[str, ...]:
    """The arms, or the control in their place."""
    return (self.control,) if self.control else ARMS


PRIMARY = tuple(
  Cell(f"{data}, {steps} updates", steps, data) for data in ("broad", "own") for steps in (8, 32)
)
# What changes -> the fields that differ from the primary cell.
FACTORS = {
  "Bases that met no chats": {"kind": Kind(base="no chats")},
  "Bases that met worked chats": {"kind": Kind(base="worked chats")},
  "Instructs without working": {"kind": Kind(worked=False)},
  "gap ratio 0.015": {"kind": WEAK},
  "gap ratio 0.07": {"kind": STRONG},
  "noisy data": {"data": "noisy"},
  "narrow data": {"data": "narrow"},
  "96 updates": {"steps": 96},
  "rank 4": {"delta": "lora 4"},
  "rank 64": {"delta": "lora 64"},
  "rank 128": {"delta": "lora 128"},
  "full tuning": {"delta": "full"},
}
SECONDARY = tuple(
  Cell(factor if "steps" in fields else f"{factor}, {steps} updates", **{"steps": steps, **fields})
  for factor, fields in FACTORS.items()
  for steps in ((8,) if "steps" in fields else (8, 32))
)
ALPHAS = tuple(Cell(f"alpha, {steps} updates", steps, alphas=(0.25, 0.5, 1.0)) for steps in (8, 32))
CONTROLS = tuple(
  Cell(f"{control}, {steps} updates", steps, control=control)
  for control in (
    "FT + 10% text",
    "FT + 10% own answers",
    "FT at Shadow-FT's norm",
    "FT interpolated",
    "FT + KL",
    "another pair's Base",
    "tuned Base",
  )
  for steps in (8, 32)
)
CELLS = (*PRIMARY, *SECONDARY, *ALPHAS, *CONTROLS)
