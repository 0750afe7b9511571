"""Text for a terminal: messages and progress bars on stderr, numbers as people write them, tables.

`say` is for what a person needs; `detail` for the rest, which the terminal shows with --verbose
only.  Both go into the log file of a run.

Also signals: within `stopping`, long work ends where it calls `check_stop`.
"""

import contextlib
import errno
import logging
import logging.handlers
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

# Control characters but tab and newline, those that turn the direction of text, and half pairs.
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SIGPIPE_CODE = 141  # the exit code of a program whose reader has gone: 128 + SIGPIPE
INTERRUPTED_CODE = 130  # 128 + SIGINT
STOPPED_CODE = 75  # EX_TEMPFAIL: the same command goes on with the work
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ECHO_S = 1  # seconds within which a signal may arrive twice, once through the process group
LOG_ONLY = 1  # a level below all others: never on the terminal


class Stopped(BaseException):
  """A signal asked this process to stop; see `stopping`.

  Like KeyboardInterrupt it is no Exception, so that no code takes it for a failure.
  """


class _Terminal(logging.Handler):
  """Prints to stderr, above the progress bar if there is one."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.write(record.getMessage(), file=sys.stderr)


_terminal = _Terminal(logging.INFO)
_logger = logging.getLogger("shadowft_jax")
_logger.setLevel(LOG_ONLY)
_logger.propagate = False
_logger.addHandler(_terminal)
_title = ""  # of every bar
_stop = ""  # the name of the signal that asked for a stop
# From the own signal's name to that of a signal to any process of the run; `hosts` replaces it.
shared: Callable[[str], str] = str


def printable(text: str, most: int = 20_000) -> str:
  """A text that changes no terminal: control characters escaped, and at most `most` characters."""
  cut = f" … and {len(text) - most:,} more characters" if len(text) > most else ""
  return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text[:most]) + cut


def say(*lines: str) -> None:
  """Prints lines that a person needs, and logs them."""
  for line in lines:
    _logger.info("%s", printable(line))


def detail(*lines: str) -> None:
  """Logs lines, and prints them with --verbose."""
  for line in lines:
    _logger.debug("%s", printable(line))


def set_verbose(is_verbose: bool) -> None:
  """Decides whether details are printed from now on."""
  _terminal.setLevel(logging.DEBUG if is_verbose else logging.INFO)


def silence() -> None:
  """Nothing is printed or logged from now on: of several processes, only the first speaks."""
  _logger.disabled = True


@contextlib.contextmanager
def silenced() -> Iterator[None]:
  """Nothing is printed or logged within the context."""
  before, _logger.disabled = _logger.disabled, True
  try:
    yield
  finally:
    _logger.disabled = before


@contextlib.contextmanager
def titled(title: str) -> Iterator[None]:
  """Within the context messages are only logged, and `title` stands before the progress bars."""
  global _title
  before = _terminal.level, _title
  _terminal.setLevel(logging.WARNING)
  _title = title
  try:
    yield
  finally:
    _terminal.setLevel(before[0])
    _title = before[1]


@contextlib.contextmanager
def reader_may_leave(leave: Callable[[int], object]) -> Iterator[None]:
  """Within the context, a closed stdout or stderr (`shadowft … | head`) ends the process quietly;
  one on a full disk with code 2; one that was never open (`>&-`) prints nothing.

  The context is left by an exception, so files are written whole or not at all, as ever.

  Args:
    leave: ends the process with an exit code.
  """
  for name in ("stdin", "stdout", "stderr"):
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
  try:
    yield
    print(end="", flush=True)  # what is buffered must not fail after the context
  except OSError as error:
    is_pipe, is_full = isinstance(error, BrokenPipeError), error.errno == errno.ENOSPC
    closed = [s for s in (sys.stdout, sys.stderr) if is_full or is_pipe and _is_closed(s)]
    if not closed or error.filename:
      raise  # another pipe, or file
    if is_full:
      with contextlib.suppress(OSError):
        print(f"error: {error.strerror}: what is printed is lost", file=sys.stderr, flush=True)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in closed:
      os.dup2(null, stream.fileno())  # Python flushes the streams once more when it exits
    leave(SIGPIPE_CODE if is_pipe else 2)


@contextlib.contextmanager
def stopping(leave: Callable[[int], object], is_stoppable: bool = True) -> Iterator[None]:
  """Within the context, a signal ends the process with one line, and no traceback.

  Args:
    leave: ends the process with an exit code.
    is_stoppable: whether the work calls `check_stop`: then a first signal of STOPPING is answered
      at once, and the work ends where it is whole; a second one ends the process at once.
  """
  try:
    with _watching() if is_stoppable else contextlib.nullcontext():
      yield
  except Stopped as name:
    print(f"stopped by {name}; run the same command again to go on", file=sys.stderr)
    leave(STOPPED_CODE)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    leave(INTERRUPTED_CODE)


@contextlib.contextmanager
def _watching():
  """Within the context signals raise nothing: `_watch` answers them, and `check_stop` raises."""
  if threading.current_thread() is not threading.main_thread():  # only it can set handlers
    yield
    return
  global _stop
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  # What is ignored stays so (nohup).
  handled = [s for s in STOPPING if signal.getsignal(s) is not signal.SIG_IGN]
  before = {s: signal.signal(s, lambda *_: None) for s in handled}
  # Handlers in Python wait for the end of a compilation; this pipe is written to at once.
  fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
  watcher.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(fd)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    watcher.join()
    os.close(reader)
    _stop = ""


def _watch(reader):
  """Answers the signals whose numbers arrive in a pipe, until it is closed."""
  global _stop
  first = 0.0
  while number := os.read(reader, 1):
    if number[0] not in STOPPING:
      continue
    if not _stop:
      _stop, first = signal.Signals(number[0]).name, time.monotonic()
      say(f"{_stop}: stopping after the step under way; a second signal ends the process at once")
    elif time.monotonic() - first > ECHO_S:
      os._exit(128 + number[0])


def stop_asked() -> str:
  """The name of the signal that has asked this process, or its run, to stop; "" if none has."""
  return shared(_stop)


def check_stop() -> None:
  """Raises Stopped if a signal has asked this process to stop; see `stopping`."""
  if name := stop_asked():
    raise Stopped(name)


def _is_closed(stream):
  """Whether a stream is a pipe that nobody reads any more."""
  poll = select.poll()
  poll.register(stream, 0)  # errors and hang-ups are reported always
  return bool(poll.poll(0))


@contextlib.contextmanager
def recording() -> Iterator[Callable[[str | os.PathLike], None]]:
  """Keeps all messages of the context for a log file; an error is logged, too.

  Yields:
    A function of the file's path, to be called once the folder is there: what was said before is
    appended to the file, with time stamps, and then every message at once.
  """
  memory = logging.handlers.MemoryHandler(sys.maxsize, logging.CRITICAL + 1, flushOnClose=False)
  files: list[logging.FileHandler] = []

  def write_to(path: str | os.PathLike) -> None:
    files.append(logging.FileHandler(path, encoding="utf-8"))
    files[0].setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    memory.setTarget(files[0])
    memory.capacity = 1  # no message waits for another
    memory.flush()

  _logger.addHandler(memory)
  try:
    yield write_to
  except BaseException as error:
    _logger.log(LOG_ONLY, "%s", printable(f"error: {str(error) or type(error).__name__}"))
    raise
  finally:
    _logger.removeHandler(memory)
    memory.close()
    for file in files:
      file.close()


def bar(total: int, unit: str, **options: Any) -> tqdm:
  """A progress bar on a terminal; `options` are those of tqdm."""
  options.setdefault("disable", None)
  title = _title or None
  return tqdm(total=total, unit=unit, desc=title, leave=not title, dynamic_ncols=True, **options)


def count(number: int, noun: str, plural: str = "") -> str:
  """A number and its noun: "1 example", "2,096 tokens"; `plural`: where it is not noun + "s"."""
  return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
  """A time: "0.4 s", "24 s", "3 m 20 s", "2 h 5 m"."""
  if seconds < 9.95:
    return f"{seconds:.1f} s"
  minutes, seconds = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} m {seconds} s" if minutes else f"{seconds} s"
  return "{} h {} m".format(*divmod(minutes, 60))


def size(nbytes: float) -> str:
  """A number of bytes: "12 kB", "3.8 MB", "1.2 GB", "274 GB"."""
  units = ["bytes", "kB", "MB", "GB", "TB"]
  while nbytes >= 999.5 and len(units) > 1:
    nbytes, units = nbytes / 1000, units[1:]
  decimals = 1 if nbytes < 9.95 and units[0] != "bytes" else 0
  return f"{nbytes:,.{decimals}f} {units[0]}"


def rate(value: float) -> str:
  """A learning rate: "1e-3", "1.2e-4"."""
  mantissa, exponent = f"{value:.2e}".split("e")
  return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def aligned(lines: list[list[str]], left: int = 1) -> str:
  """Rows of cells as a text table: `left` columns to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(w) if i < left else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
