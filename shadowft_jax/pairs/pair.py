"""Pair: a released Base and its Instruct; and the families that can only be grafted."""

import dataclasses

# model_type -> why it cannot be trained here.  Such models can still be grafted and compared.
WHY_NOT_TRAIN = {
  kind: (
    f"{kind} models need remote code, which is never run, and are not implemented in JAX here: "
    "train the Base elsewhere, then graft with --base and --tuned"
  )
  for kind in ("internlm2", "baichuan")
}
# Option of config.json that a family may have -> what it is, where that cannot be trained here.
NOT_PORTED = {
  "hidden_size_per_layer_input": "per-layer embeddings",
  "num_kv_shared_layers": "keys and values shared between layers",
  "enable_moe_block": "experts beside the MLP",
}


def why_not_option(model_type: str, option: str) -> str:
  """Why models of a trainable family with an option of NOT_PORTED cannot be trained here."""
  return (
    f"{model_type} models with {NOT_PORTED[option]} ({option}) are not implemented in JAX here: "
    "train the Base elsewhere, then graft with --base and --tuned"
  )


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
    option: the key of NOT_PORTED that keeps it from being trained; "" for none.
  """

  base: str
  instruct: str
  model_type: str
  template: str | None
  note: str = ""
  option: str = ""

  @property
  def why_not_train(self) -> str | None:
    """Why the pair can only be grafted; None if it can be trained."""
    if self.option:
      return why_not_option(self.model_type, self.option)
    return WHY_NOT_TRAIN.get(self.model_type)
