"""Writes README.md: the model card of a result, and the guide to a run's folder."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import huggingface_hub

from shadowft_jax.hf import model_card
from shadowft_jax.hf.model_card import Parent
from shadowft_jax.presets import Config, flat

PAPER = "[arXiv 2505.12716](https://arxiv.org/abs/2505.12716)"
# Fields of a config that a reader of the card asks for, and when.
SETTINGS = (
  "objective dpo.loss dpo.beta kto.beta kto.desirable_weight kto.undesirable_weight "
  "delta.kind delta.rank delta.alpha delta.rslora delta.match "
  "graft.match graft.checkpoint lr loraplus_lr_ratio schedule min_lr warmup_ratio warmup_steps "
  "weight_decay batch_size epochs max_steps data.max_length data.recipe data.image_max_pixels "
  "dtype seed"
).split()
SHOWN = ("loss", "accuracy", "margin")  # of the metrics, the first
MOST = 10  # files named
# Objectives other than SFT: what the loss is a mean over, and what `how` says of the data.
UNITS = {"dpo": "pair", "kto": "example"}
TRAINED_ON = {"dpo": " on preference pairs (DPO)", "kto": " on answers labelled good or bad (KTO)"}
BAR = "\\|"  # in the cell of a table


@dataclasses.dataclass(frozen=True)
class Origin:
  """The parents, data and settings of a result.

  Attributes:
    instruct: the model that serves it.
    base: its Base model, whose update it has, where that is known.
    is_graft: whether the update was trained on another model than the Instruct.
    how: the training, in a few words.
    data: hub ids and names of files of the training data.
    settings: {name: value}.
    others: hub ids of further models that the deltas name.
  """

  instruct: Parent
  base: Parent | None
  is_graft: bool
  how: str
  data: Sequence[str] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  others: Sequence[str] = ()

  @property
  def result(self) -> str:
    """The name of the result beside "Instruct"."""
    return "grafted Instruct" if self.is_graft else "tuned Instruct"


def of_run(
  config: Config, parents: Mapping[str, Parent], inputs: Mapping[str, Iterable[Any]]
) -> Origin:
  """The Origin of a run's results.

  Args:
    parents: {"base", "instruct"}.
    inputs: {"train": files or hub ids}.
  """
  c, fields = config.delta, flat(config.to_dict())
  how = f"LoRA of rank {c.rank}" if c.kind == "lora" else "full tuning"
  how += TRAINED_ON.get(config.objective, "")
  is_graft = config.learn_on == "base"
  settings = {
    n if is_graft else n.removeprefix("graft."): fields[n] for n in SETTINGS if _matters(n, config)
  }
  base = parents["base"] if is_graft else None
  return Origin(parents["instruct"], base, is_graft, how, _data(inputs["train"]), settings)


def _matters(name, config):
  """Whether a field of SETTINGS has an effect in a run."""
  group = name.partition(".")[0]
  if group in ("dpo", "kto"):
    return config.objective == group
  if name in ("delta.rank", "delta.alpha"):
    return config.delta.kind == "lora"
  if name in ("delta.rslora", "loraplus_lr_ratio"):
    return flat(config.to_dict())[name] not in (False, 1)
  if name == "graft.match":
    return config.learn_on == "base" or config.graft.match != config.delta.match
  if name == "warmup_ratio":
    return not config.warmup_steps
  if name == "data.image_max_pixels":
    return config.data.image_max_pixels > 0
  return name not in ("max_steps", "min_lr", "warmup_steps") or config[name] > 0


def _data(inputs):
  """Hub ids and the names of files, without the paths of this machine."""
  return [str(x) if _dataset_id(str(x)) else pathlib.Path(x).name for x in inputs]


def text(
  origin: Origin, form: str, *, losses: Mapping[str, float] | None = None, dtype: str | None = None
) -> str:
  """README.md of a result.

  Args:
    form: "model", "adapter" or "delta" (a dense one).
    losses: the last metrics of a run.
    dtype: of all weights of a model, where it is not the Instruct's.
  """
  parts = [
    f"---\n{_metadata(origin, form)}---\n# {_title(origin, form)}",
    _made(origin, form),
    _same(origin, dtype) if form == "model" else "",
    _use(origin, form),
    "## Training data\n\n" + _listed(origin.data) if origin.data else "",
    "## Settings\n\n" + _table(["field", "value"], origin.settings.items())
    if origin.settings
    else "",
    _results(origin, losses or {}),
    _licence(origin),
  ]
  return "\n\n".join(filter(None, parts)) + "\n"


def _metadata(origin, form):
  """The YAML of a card: what is known, and no path of this machine."""
  card = origin.instruct.card
  texts = {k: card.get(k) for k in ("license", "license_name", "license_link", "pipeline_tag")}
  texts = {k: v for k, v in texts.items() if isinstance(v, str)}
  language = card.get("language")
  language = [language] if isinstance(language, str) else language
  language = [x for x in language if isinstance(x, str)] if isinstance(language, list) else []
  parents = [origin.instruct.hub_id, origin.base and origin.base.hub_id, *origin.others]
  parents = [*dict.fromkeys(filter(None, parents))]
  relation = {"model": "merge" if origin.is_graft else "finetune", "adapter": "adapter"}.get(form)
  more = {"base_model_relation": relation} if relation else {}
  data = huggingface_hub.ModelCardData(
    base_model=parents or None,
    datasets=[*dict.fromkeys(filter(None, map(_dataset_id, origin.data)))] or None,
    language=language or None,
    library_name={"model": "transformers", "adapter": "peft"}.get(form),
    tags=[model_card.TAG] * origin.is_graft + ["lora"] * (form == "adapter") or None,
    **{"pipeline_tag": "text-generation", **texts, **more},
  )
  return data.to_yaml().rstrip("\n") + "\n"


def _dataset_id(name):
  name = name.split(":")[0].split("@")[0]
  return name if model_card.is_id(name) else None


WHAT = {"adapter": "LoRA adapter for", "delta": "weight update for"}


def _title(origin, form):
  what = f"{WHAT.get(form, '')} {origin.instruct.name.rpartition('/')[2]}".strip()
  return f"{what[0].upper()}{what[1:]}, {'Shadow-FT' if origin.is_graft else 'fine-tuned'}"


def _made(origin, form):
  """A paragraph on what the result is and how it was made."""
  instruct, article = f"`{origin.instruct.name}`", f"A {WHAT.get(form)} "
  if not origin.is_graft:
    start = f"{article}{instruct}, trained on it" if form in WHAT else f"{instruct}, trained"
    return f"{start} directly: {origin.how}."
  of = f"of its Base model `{origin.base.name}`" if origin.base else "of its Base model"
  equation = f"W_I' = W_I + (W_B' - W_B), Shadow-FT ({PAPER})"
  if form in WHAT:
    return f"{article}{instruct}: the update {of}, for {equation}. The update: {origin.how}."
  return f"{instruct} with the weight update {of} added: {equation}. The update: {origin.how}."


def _same(origin, dtype):
  """A paragraph on what a model shares with the Instruct."""
  same = "All other tensors, the configuration, the tokenizer"
  if dtype:
    same = f"All weights are stored in {dtype}, and the configuration says so. The tokenizer"
  readme = "; its own card is README.instruct.md" if origin.instruct.has_readme else ""
  return f"{same} and the chat template are those of the Instruct model, byte for byte{readme}."


def _use(origin, form):
  tag = origin.instruct.card.get("pipeline_tag") or "text-generation"
  if form == "delta" or tag != "text-generation":
    return ""
  load = "from transformers import AutoModelForCausalLM\n\n"
  if form == "model":
    return f'```python\n{load}model = AutoModelForCausalLM.from_pretrained("FOLDER")\n```'
  name = origin.instruct.hub_id or "INSTRUCT_FOLDER"
  return (
    f"```python\nfrom peft import PeftModel\n{load}"
    f'instruct = AutoModelForCausalLM.from_pretrained("{name}")\n'
    'model = PeftModel.from_pretrained(instruct, "FOLDER")\n```'
  )


def _listed(names):
  more = [f"- and {len(names) - MOST:,} more files"] if len(names) > MOST else []
  return "\n".join([*(f"- `{name}`" for name in names[:MOST]), *more])


def _table(head, rows):
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(str(x).replace('|', BAR) for x in row)} |" for row in lines)


def results(losses: Mapping[str, float]) -> dict[str, tuple[float, float]]:
  """{name of a metric: (of the Instruct, of the result)} on the validation split.

  Those that matter most come first.
  """
  names = [n.removeprefix("instruct_valid_") for n in losses if n.startswith("instruct_valid_")]
  names = [n for n in names if f"shadow_valid_{n}" in losses]
  names.sort(key=lambda n: SHOWN.index(n) if n in SHOWN else len(SHOWN))
  return {n: (losses[f"instruct_valid_{n}"], losses[f"shadow_valid_{n}"]) for n in names}


def _results(origin, losses):
  rows = [[n.replace("_", " "), *(f"{x:.4f}" for x in pair)] for n, pair in results(losses).items()]
  if not rows:
    return ""
  return "## Results\n\nOn the validation split:\n\n" + _table(
    ["", "Instruct", origin.result], rows
  )


def _licence(origin):
  """One line on the licences that apply."""
  names = []
  for p in filter(None, (origin.instruct, origin.base)):
    known = p.card.get("license_name") or p.card.get("license")
    names.append(f"`{p.name}`" + (f" ({known})" if isinstance(known, str) else ""))
  if len(names) > 1:
    return f"The licences of {' and '.join(names)} apply."
  return f"The licence of {names[0]} applies."


def guide(origin: Origin, losses: Mapping[str, float], kind: str) -> str:
  """README.md of a run's folder, which explains its files.

  Args:
    losses: the last metrics.
    kind: config.delta.kind.
  """
  model = "the grafted model" if origin.is_graft else "the tuned model (nothing was grafted)"
  delta = "a PEFT adapter" if kind == "lora" else "`delta.safetensors`"
  rows = [
    ("`shadow/`", f"{model}, a Hugging Face folder; its README.md is its model card"),
    ("`delta/`", f"the trained weight update: {delta}, for the Instruct model"),
    ("`config.json`", "every field of the run; the same command finds the run by it"),
    ("`metrics.jsonl`", "loss, learning rate and validation, one record a line"),
    ("`tensorboard/`", "the same for TensorBoard"),
    ("`report.html`", "a page of the run to look at or to send; it has training examples in it"),
    ("`pictures/`", "the pictures of the page, as PNG and SVG"),
    ("`preview.json`", "the training examples of the page"),
    ("`log.txt`", "all that the run printed, and details, with time stamps"),
    ("`checkpoints/`", "optimizer states, from which a stopped run resumes; may be deleted now"),
    ("`data.json`", "the digest of the training data: a run is resumed on the same data only"),
    ("`provenance.json`", "sha256 of every input, versions of packages; it marks a complete run"),
  ]
  made = "Shadow-FT" if origin.is_graft else "Fine-tuning"
  parts = [
    f"# {made} of {origin.instruct.name.rpartition('/')[2]}",
    "A run of shadowft_jax. " + _made(origin, "model"),
    _table(["entry", "what it is"], rows),
    _results(origin, losses),
  ]
  return "\n\n".join(filter(None, parts)) + "\n"
