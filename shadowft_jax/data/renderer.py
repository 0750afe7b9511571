"""Chat templates, rendered in a process with limits that can be killed.

A template is a program of whoever wrote the model's folder.  transformers renders it in jinja2's
ImmutableSandboxedEnvironment, which keeps it from other objects and files, but limits neither time
nor memory: {{ 2 ** 2 ** 40 }}.
"""

import atexit
import contextlib
import math
import multiprocessing.connection
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from shadowft_jax.errors import InputError

SECONDS = 20  # of CPU, per rendering
MEMORY = 1 << 30  # bytes, besides those of the process itself
LENGTH = 20_000_000  # characters of the text
GOOD, BAD = b"+", b"-"  # the first byte of a reply
uses_torch = True  # whether transformers may import it in this process; commands set it
_lock = threading.Lock()
_running: list[tuple[int, subprocess.Popen, Connection]] = []  # at most one, and whose it is


def render(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  tools: list[Any] | None,
  is_prompt: bool,
  args: Mapping[str, Any],
) -> str:
  """The text of a conversation.

  Args:
    template: in jinja2's language.
    messages: the turns.
    tools: their descriptions.
    is_prompt: whether to add the generation prompt.
    args: the other arguments of the template.

  Raises:
    InputError: the template raises an error, or exceeds a limit.
  """
  with _lock:
    if not _running or _running[0][0] != os.getpid():  # a forked process needs its own
      _running[:] = [(os.getpid(), *start(f"from {__name__} import serve; serve({{}})"))]
    _, process, connection = _running[0]
    try:
      connection.send(
        (SECONDS, template, [dict(m) for m in messages], tools, is_prompt, dict(args))
      )
      reply = connection.recv_bytes()
    except (EOFError, OSError) as error:
      _stop()
      raise InputError(_reason(process.wait())) from error
    except BaseException:  # a late reply would answer the next question
      _stop()
      raise
  text = reply[1:].decode("utf-8", "surrogatepass")
  if reply[:1] != GOOD:
    raise InputError(text)
  return text


def _reason(code):
  if code == -signal.SIGXCPU:
    return f"it takes more than {SECONDS} s"
  return f"its process ended with exit code {code}; memory may have run out"


@contextlib.contextmanager
def torch_left_out() -> Iterator[None]:
  """Within it torch, which takes seconds to import, cannot be imported, unless `uses_torch`.

  Only within: to others, such as scipy, a blocked module looks like one that is broken.
  """
  if uses_torch or "torch" in sys.modules:
    yield
    return
  sys.modules["torch"] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules["torch"]


def start(code: str) -> tuple[subprocess.Popen, Connection]:
  """Starts a Python process; returns it and the connection to it.

  Args:
    code: what it runs, with "{}" for the file descriptor of its end of the connection.
  """
  ours, theirs = multiprocessing.connection.Pipe()
  # multiprocessing would import the main module, and jax with it; a loky process would outlive a
  # killed run.  torch is blocked because it takes seconds to import and tokenizers do not need it.
  path = f"import sys; sys.path = {sys.path!r}; sys.modules['torch'] = None; "
  with theirs:
    # In its own session it does not receive Ctrl-C; it ends when the run closes the connection.
    process = subprocess.Popen(
      [sys.executable, "-c", path + code.format(theirs.fileno())],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      start_new_session=True,
      env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
  return process, ours


@atexit.register
def _stop():
  for pid, process, connection in _running:
    connection.close()
    if pid == os.getpid():
      process.kill()
      process.wait()
  _running.clear()


def serve(descriptor: int) -> None:
  """The main loop of the process that renders."""
  from transformers.utils.chat_template_utils import render_jinja_template

  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower limit
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
  most_seconds = resource.getrlimit(resource.RLIMIT_CPU)[1]
  with contextlib.suppress(EOFError, OSError), Connection(descriptor) as connection:
    while True:
      seconds, template, messages, tools, is_prompt, args = connection.recv()
      end = math.ceil(time.process_time()) + seconds
      resource.setrlimit(resource.RLIMIT_CPU, (end, most_seconds))
      try:
        rendered: Any = render_jinja_template(
          [messages], tools, None, template, add_generation_prompt=is_prompt, **args
        )
        kind, text = GOOD, str(rendered[0][0])
        if len(text) > LENGTH:
          kind, text = BAD, f"its text has {len(text):,} characters; at most {LENGTH:,} are read"
      except MemoryError:
        kind, text = BAD, f"it needs more than {MEMORY >> 30} GB of memory"
      except Exception as error:  # a template may raise anything
        kind, text = BAD, str(error)[:2000] or type(error).__name__
      connection.send_bytes(kind + text.encode("utf-8", "surrogatepass"))
