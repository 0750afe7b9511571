"""Regular expressions of an adapter's config, matched in a process that can be killed.

A pattern such as "(a+)+b" takes exponential time, and Python cannot interrupt it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from shadowft_jax import files
from shadowft_jax.errors import InputError

SECONDS, MEMORY = 10, 1 << 30  # for all patterns of a config; bytes
LENGTH = 10_000  # characters of a pattern
PLAIN = re.compile(r"([\w-]|\\?\.|[$^])*")  # without repetition: module names, as PEFT writes them
# Source: peft 0.21, utils, get_pattern_key: the end of a module's name.
CODE = rf"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
given, matches = json.load(sys.stdin), {{}}
for pattern in given["patterns"]:
  try:
    whole = re.compile(rf"(.*\.)?({{pattern}})$")
    matches[pattern] = [n for n in given["names"] if whole.match(n)]
  except (re.error, OverflowError, RecursionError, MemoryError) as error:
    matches[pattern] = str(error) or type(error).__name__
json.dump(matches, sys.stdout)
"""


def matching(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
  """{pattern: the module names whose end it matches, as PEFT does}.

  Raises:
    InputError: a pattern is not a regular expression, or takes too long.
  """
  patterns, names = list(patterns), list(names)
  if long := [p for p in patterns if len(p) > LENGTH]:
    raise InputError(f"the pattern {long[0][:60]!r}… has {len(long[0]):,} characters")
  if all(PLAIN.fullmatch(p) for p in patterns):
    whole = {p: re.compile(rf"(.*\.)?({p})$") for p in patterns}
    return {p: [n for n in names if x.match(n)] for p, x in whole.items()}
  try:
    done = subprocess.run(
      [sys.executable, "-I", "-S", "-c", CODE],
      input=json.dumps({"patterns": patterns, "names": names}),
      capture_output=True,
      text=True,
      timeout=6 * SECONDS,  # on a busy machine
      check=True,
    )
  except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
    raise InputError(
      f"matching the patterns {', '.join(map(repr, patterns))[:300]} takes more than {SECONDS} s; "
      "write module names in their place"
    ) from error
  matches = files.parse_json(done.stdout, "the result")
  if bad := [f"{p!r}: {x}" for p, x in matches.items() if isinstance(x, str)]:
    raise InputError(f"not a regular expression: {bad[0]}")
  return matches
