"""math-verify, asked in a process of its own that is killed when it hangs.

It comes with the extra `eval`; without it there is no second opinion.
"""

import atexit
import functools
import importlib.util
import json
import queue
import subprocess
import sys
import threading

SECONDS = 5.0  # for one answer; the process is started anew after one that took longer
_PROGRAM = r"""
import json, sys
import math_verify
print("ready", flush=True)
for line in sys.stdin:
  answer, gold = json.loads(line)
  try:
    parse = lambda text: math_verify.parse("$" + text + "$", parsing_timeout=None)
    is_equal = bool(math_verify.verify(parse(gold), parse(answer), timeout_seconds=None))
  except Exception:
    is_equal = False
  print(json.dumps(is_equal), flush=True)
"""


@functools.cache
def is_available() -> bool:
  """Whether math-verify is installed."""
  return importlib.util.find_spec("math_verify") is not None


def equal(answer: str, gold: str) -> bool:
  """Whether math-verify takes two LaTeX answers for equal; False if it does not say so in time."""
  if not is_available() or not answer.strip() or not gold.strip():
    return False
  with _lock:
    return _worker.ask([answer, gold])


class _Worker:
  """The process, started when it is first asked."""

  def __init__(self):
    self.process = None
    self.answers: queue.Queue = queue.Queue()

  def ask(self, question):
    if self.process is None:
      self._start()
    try:
      self.process.stdin.write(json.dumps(question) + "\n")
      self.process.stdin.flush()
      reply = self.answers.get(timeout=SECONDS)
    except (queue.Empty, BrokenPipeError):
      reply = None
    if reply is None:
      self.stop()
    return reply == "true\n"

  def _start(self):
    self.process = subprocess.Popen(
      [sys.executable, "-I", "-c", _PROGRAM],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    self.answers = queue.Queue()
    arguments = (self.process.stdout, self.answers)
    threading.Thread(target=_forward, args=arguments, daemon=True).start()
    try:
      self.answers.get(timeout=60)  # until it has imported sympy
    except queue.Empty:
      self.stop()

  def stop(self):
    if self.process is not None:
      self.process.kill()
      self.process.stdin.close()
      self.process.wait()
      self.process = None


def _forward(lines, answers):
  with lines:
    for line in lines:
      answers.put(line)
  answers.put(None)  # it has ended


_lock = threading.Lock()
_worker = _Worker()
atexit.register(_worker.stop)
