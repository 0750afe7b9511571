"""Pair: a released Base and its Instruct; and the families that can only be grafted."""

import dataclasses

# model_type -> why it cannot be trained here.  Such models can still be grafted and compared.
WHY_NOT_TRAIN = {
  kind: (
    f"{kind} models {needs}not implemented in JAX here: train the Base elsewhere, then graft with "
    "--base and --tuned"
  )
  for kind, needs in {
    "internlm2": "need remote code, which is never run, and are ",
    "baichuan": "need remote code, which is never run, and are ",
    "mllama": "(with images) are ",
    **dict.fromkeys(("gemma4", "gemma4_unified"), "are "),
  }.items()
}


@dataclasses.dataclass(frozen=True)
class Pair:
  """A Base and its Instruct on the Hub.

  Attributes:
    base: Hub id of the Base.
    instruct: Hub id of the Instruct.
    model_type: the model_type in config.json.
    template: the template in the authors' code; None if they have none for it, in which case the
      Instruct's own template is used.
    note: known differences and particulars.
  """

  base: str
  instruct: str
  model_type: str
  template: str | None
  note: str = ""

  @property
  def why_not_train(self) -> str | None:
    """Why the pair can only be grafted; None if it can be trained."""
    return WHY_NOT_TRAIN.get(self.model_type)
