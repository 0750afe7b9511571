"""What runs a program of LiveCodeBench on its tests, inside the sandbox.

It follows lines that give values to source, inputs, outputs, name and SECONDS (for one test).
"""

HARNESS = """
import os, signal, sys
IMPORTS = "".join(f"from {m} import *\\n" for m in (
  "string re datetime collections heapq bisect copy math random statistics itertools functools "
  "operator io sys json builtins typing").split())
IMPORTS += "import string, re, datetime, collections, heapq, bisect, copy, math, random\\n"
IMPORTS += "import statistics, itertools, functools, operator, io, sys, json\\n"
IMPORTS += "sys.setrecursionlimit(600000)\\n"

def lines(text):
  return [line.strip() for line in text.strip().split("\\n") if line.strip()]

def alike(got, want):
  got, want = lines(got), lines(want)
  if got == want:
    return True
  try:
    a = [float(x) for line in got for x in line.split()]
    b = [float(x) for line in want for x in line.split()]
    whole = all(x.lstrip("-").isdigit() for line in want for x in line.split())
    return not whole and len(a) == len(b) and all(
      abs(x - y) <= 1e-8 + 1e-5 * abs(y) for x, y in zip(a, b))
  except ValueError:
    return False

def printed(stdin):
  with open("/tmp/in", "w") as file:
    file.write(stdin)
  child = os.fork()
  if not child:
    signal.alarm(SECONDS)
    os.dup2(os.open("/tmp/in", os.O_RDONLY), 0)
    os.dup2(os.open("/tmp/out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    globals().pop("outputs")
    try:
      exec(compile(IMPORTS + source, "solution.py", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
      if error.code not in (None, 0):
        raise
    sys.stdout.flush()
    os._exit(0)
  assert os.waitpid(child, 0)[1] == 0, "failed or took too long"
  return open("/tmp/out").read()

def called(text):
  signal.alarm(SECONDS)
  got = function(*map(json.loads, text.split("\\n")))
  signal.alarm(0)
  return list(got) if isinstance(got, tuple) else got

import json
if name:
  space = {"__name__": "solution"}
  exec(compile(IMPORTS + source, "solution.py", "exec"), space)
  function = getattr(space["Solution"]() if "Solution" in space else type(sys)("m"), name, None)
  function = function or space[name]
for given, want in zip(inputs, list(outputs)):
  right = called(given) == json.loads(want) if name else alike(printed(given), want)
  assert right, "wrong answer"
"""
