"""Mutants of the method: a fixed sample of small faults, of which the tests must find nearly all.

  python -m tests.mutate

Each mutant is one change to the syntax tree of a module: another operator or number, a condition
negated, a statement left out, None returned.  It runs a few tests of its module in a fork of an
interpreter that has imported all packages but ours, which the fork imports anew; it falls if a
test fails.  Prints the survivors; exit code 1 if fewer than LEAST of the mutants that are not
equivalent fall, or a survivor is not in mutants.md, which has the reasons.
"""

import argparse
import ast
import collections
import dataclasses
import importlib.util
import os
import pathlib
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests import conftest

COUNT, SEED, LEAST = 200, 0, 0.9
CPU_S, WALL_S = 90, 600  # of one mutant; one that takes longer has fallen
REASONS = pathlib.Path(__file__).with_name("mutants.md")


def named(file: str, *names: str) -> list[str]:
  """pytest's names of some tests of a file."""
  return [f"tests/test_{file}.py::test_{name}" for name in names]


# The modules of the method, and the tests that run for their mutants, the quickest first.
TESTS: dict[str, list[str]] = {
  "data/packing": ["tests/test_packing.py"],
  "delta": [
    *named("lora_variants", "the_scale_of_rslora"),
    *named("guards", "a_delta_is_zero_where_it_adds_nothing"),
    *named("laws", "a_zero_delta_keeps_every_bit", "sums_are_taken_in_float32_and_rounded_once"),
    *named("laws", "grafting_the_difference_onto_the_base_gives_the_tuned_model"),
    *named("laws", "the_graft_has_the_sharding_of_the_instruct_and_can_donate_its_buffers"),
    *named("laws", "roles_swapped_it_is_the_chat_vector"),
    *named(
      "laws", "leaves_outside_the_scope_keep_their_bits", "a_delta_that_does_not_fit_says_where"
    ),
    *named("laws", "a_scope_that_selects_nothing_is_an_error"),
    *named("laws", "a_is_uniform_within_one_over_the_root_of_its_inputs"),
    *named("laws", "a_live_adapter_is_the_merged_adapter", "every_factor_of_an_adapter_acts"),
    *named("recipe", "rounding_by_chance_is_to_a_neighbour_and_right_on_average"),
    *named("laws", "a_delta_added_inside_the_blocks_is_a_delta_added_before"),
  ],
  "grafting/recipe": ["tests/test_recipe.py"],
  "learning/loss": [
    *named("laws", "the_chunked_loss_is_the_plain_loss", "a_label_replaces_the_predicted_token"),
    *named("laws", "a_frozen_head_is_multiplied_twice_a_trained_one_four_times"),
    *named("laws", "full_logits_never_exist_in_training"),
  ],
  "learning/objectives": [
    *named("dpo", "sums_are_by_answer", "each_loss_is_its_equation"),
    *named("dpo", "the_metrics_agree_with_their_definitions"),
    *named("dpo", "a_chosen_answer_of_one_token_counts_once"),
    *named("dpo", "swapping_chosen_and_rejected_mirrors_the_margin"),
    *named("laws", "the_first_token_of_a_packed_example_is_never_a_target"),
    *named("kto", "the_loss_and_its_slopes_are_those_of_trl"),
    *named("laws", "the_mean_over_ranks_is_the_mean_of_their_token_means"),
    *named("kto", "before_training_the_loss_is_a_half_and_its_slope_follows_the_labels"),
    *named("laws", "the_sums_of_tuning_are_those_of_the_answers_losses_and_tokens"),
    *named("kto", "the_metrics_agree_with_their_definitions"),
    *named("kto", "the_defaults_of_the_objectives_are_those_of_the_presets"),
    *named("kto", "micro_batches_change_nothing"),
    *named("dpo", "packing_changes_nothing"),
  ],
  "learning/optim": [
    *named("schedules", "the_schedule_is_that_of_the_hugging_face_trainer"),
    *named("schedules", "a_schedule_falls_to_the_smallest_rate_and_not_below"),
    *named("schedules", "a_decay_that_leaves_no_room_for_the_warm_up_starts_after_it"),
    *named("schedules", "a_schedule_in_words"),
    *named("guards", "some_update_has_the_peak_rate"),
    *named("step", "the_first_moment_has_the_dtype_of_the_config"),
    *named("lora_variants", "lora_plus_multiplies_the_updates_of_b_alone"),
    *named("laws", "training_the_delta_is_training_the_model"),
  ],
  "learning/step": [
    *named("guards", "a_skipped_update_changes_nothing_but_the_step"),
    *named("step", "an_update_is_on_the_mean_gradient"),
    *named("step", "gradients_have_the_sharding_of_the_delta"),
    *named("step", "gradients_in_bfloat16_are_those_of_the_frozen_weights"),
    *named("step", "a_micro_batch_makes_no_second_set_of_gradients"),
    *named("laws", "the_mean_over_ranks_is_the_mean_of_their_token_means"),
    *named("kto", "micro_batches_change_nothing"),
    *named("laws", "training_the_delta_is_training_the_model"),
    *named("dpo", "from_a_delta_the_loss_starts_at_log_2_too"),
    *named("guards", "a_run_goes_on_after_a_bad_step"),
  ],
}
SWAPS: dict[type, type] = {
  **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
  **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
  **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
  **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
  **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
  **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
ANNOTATIONS = {"annotation", "returns", "type_params"}


@dataclasses.dataclass(frozen=True)
class Mutant:
  """The `number`-th change of a module (-1: none); `text` says what it changes where."""

  module: str
  number: int
  line: int
  text: str


def variants(node: ast.AST) -> Iterator[ast.AST]:
  """What may stand in the place of a node, each with one fault."""
  fields = dict(ast.iter_fields(node))
  match node:
    case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPS:
      yield type(node)(**{**fields, "op": SWAPS[type(node.op)]()})
    case ast.Compare() if type(node.ops[0]) in SWAPS:
      yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    case ast.UnaryOp(op=ast.Not() | ast.USub()):
      yield node.operand
    case ast.IfExp() | ast.If() | ast.While():
      yield type(node)(**{**fields, "test": ast.UnaryOp(ast.Not(), node.test)})
    case ast.Constant(value=bool() as value):
      yield ast.Constant(not value)
    case ast.Constant(value=int() | float() as value):
      yield ast.Constant(value + 1)
    case ast.Return(value=ast.AST()):
      yield ast.Return(ast.Constant(None))
  is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise) and not is_text:
    yield ast.Pass()


def changes(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST, Any, ast.AST]]:
  """(function, node, a function that replaces it, its variant) of all mutants, in order."""
  for field, value in ast.iter_fields(tree):
    if field in ANNOTATIONS:
      continue
    for i, node in enumerate(value if isinstance(value, list) else [value]):
      if not isinstance(node, ast.AST):
        continue
      replace = (
        (lambda new, v=value, i=i: v.__setitem__(i, new))
        if isinstance(value, list)
        else (lambda new, f=field: setattr(tree, f, new))
      )
      for variant in variants(node):
        yield function, node, replace, variant
      yield from changes(node, getattr(node, "name", function))


def parse(module: str) -> tuple[pathlib.Path, ast.Module]:
  path = conftest.ROOT / "shadowft_jax" / f"{module}.py"
  return path, ast.parse(path.read_text())


def mutants(module: str) -> list[Mutant]:
  """All mutants of a module."""
  path, tree = parse(module)
  lines = path.read_text().splitlines()

  def text(function, node, new):
    line, end = lines[node.lineno - 1], node.end_col_offset
    end = end if node.end_lineno == node.lineno else len(line)
    start = node.col_offset
    new = ast.unparse(ast.fix_missing_locations(new)).partition("\n")[0]
    marked = f"{line[:start].lstrip()}«{line[start:end]}»{line[end:]}"
    return f"`{module} {function}: {marked}` to `{new}`"

  every = enumerate(changes(tree))
  return [Mutant(module, i, x.lineno, text(where, x, new)) for i, (where, x, _, new) in every]


def sample(count: int, seed: int) -> list[Mutant]:
  """So many of all mutants, by module and line."""
  every = [m for module in TESTS for m in mutants(module)]
  chosen = random.Random(seed).sample(every, min(count, len(every)))
  return sorted(chosen, key=lambda m: (m.module, m.number))


class Finder:
  """Imports a module of ours as a mutant."""

  def __init__(self, mutant: Mutant):
    self.name = f"shadowft_jax.{mutant.module.replace('/', '.')}"
    self.path, self.tree = parse(mutant.module)
    _, _, replace, new = [*changes(self.tree)][mutant.number]
    replace(new)
    ast.fix_missing_locations(self.tree)

  def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
    if name != self.name:
      return None
    loader = importlib.machinery.SourceFileLoader(name, str(self.path))
    loader.get_code = lambda _: compile(self.tree, str(self.path), "exec")
    return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def import_packages() -> None:
  """Imports what the tests need except our modules, and starts no thread."""
  import datasets  # noqa: F401
  import flax.linen  # noqa: F401
  import jax
  import jax.experimental.multihost_utils
  import ml_collections  # noqa: F401
  import optax  # noqa: F401
  from orbax.checkpoint import v1  # noqa: F401
  import peft  # noqa: F401
  import pytest  # noqa: F401
  import torch  # noqa: F401
  import transformers.models.llama.modeling_llama  # noqa: F401

  assert not jax._src.xla_bridge._backends, "JAX must not have started before a fork"
  assert not [name for name in sys.modules if name.startswith("shadowft_jax")]
  assert threading.active_count() == 1, threading.enumerate()


def test(mutant: Mutant, out: int) -> None:
  """Runs the tests of a mutant in this process, which ends with pytest's exit code."""
  import pytest

  signal.alarm(WALL_S)
  resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
  os.dup2(out, 1)
  os.dup2(out, 2)
  if mutant.number >= 0:
    sys.meta_path.insert(0, Finder(mutant))
  code = 1
  try:
    code = int(
      pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS[mutant.module]])
    )
  finally:
    sys.stdout.flush()
    os._exit(code)


def run(chosen: list[Mutant], workers: int) -> Iterator[tuple[Mutant, int, str]]:
  """Yields (mutant, exit code of its tests, their output)."""
  left, running = chosen[::-1], {}
  while left or running:
    while left and len(running) < workers:
      mutant, out = left.pop(), os.memfd_create("out")
      if not (child := os.fork()):
        test(mutant, out)
      running[child] = mutant, out
    child, status = os.wait()
    mutant, out = running.pop(child)
    with open(out, "rb") as file:
      file.seek(0)
      yield mutant, os.waitstatus_to_exitcode(status), file.read().decode(errors="replace")


def reasons() -> dict[str, bool]:
  """{text of a survivor: whether it is equivalent} of mutants.md."""
  found = {}
  for part in re.split("^## ", REASONS.read_text(), flags=re.MULTILINE)[1:]:
    texts = re.findall("^- (.*` to `.*`): ", part, flags=re.MULTILINE)
    found |= dict.fromkeys(texts, part.startswith("Equivalent"))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=COUNT)
  parser.add_argument("--seed", type=int, default=SEED)
  parser.add_argument("--module", choices=TESTS, action="append", help="all by default")
  parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument(
    "--only", default="", help="a regex of the mutants to run; prints their tests"
  )
  options = parser.parse_args()
  began, modules = time.monotonic(), options.module or [*TESTS]
  import_packages()
  for module, code, text in run([Mutant(m, -1, 0, "") for m in modules], options.workers):
    if code:
      sys.exit(f"the tests of {module.module} fail without a mutant ({code}):\n{text}")
  print(f"the tests pass without a mutant, after {time.monotonic() - began:.0f} s", flush=True)
  sampled = [m for m in sample(options.count, options.seed) if m.module in modules]
  chosen = [m for m in sampled if re.search(options.only, m.text)]
  counts: collections.Counter = collections.Counter()
  survivors, known = [], reasons()
  for mutant, code, text in run(chosen, options.workers):
    how = "survived" if code == 0 else "fell" if code > 0 else "took too long or crashed"
    counts[how, mutant.module] += 1
    counts[how, "all"] += 1
    if code == 0:
      survivors.append(mutant.text)
      print(f"survived, line {mutant.line}: {mutant.text}", flush=True)
    if options.only:
      print(how, mutant.text, text)
  equivalent = [text for text in survivors if known.get(text)]
  unknown = [text for text in survivors if text not in known]
  for module in (*modules, "all"):
    print(module, {how: n for (how, where), n in sorted(counts.items()) if where == module})
  real, used = len(chosen) - len(equivalent), resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = used.ru_utime + used.ru_stime
  share = 1 - (len(survivors) - len(equivalent)) / max(real, 1)
  print(
    f"{len(chosen)} mutants, {len(survivors)} survivors, {len(equivalent)} of them equivalent; "
    f"{share:.1%} of the others fell; {time.monotonic() - began:.0f} s, of CPU {cpu:.0f} s"
  )
  print(*(f"not in {REASONS.name}: {text}" for text in unknown), sep="\n")
  sys.exit(bool(unknown) or share < LEAST)


if __name__ == "__main__":
  main()
