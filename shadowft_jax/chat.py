"""Talks to a model in a terminal, side by side with another, or serves it to other programs.

  shadowft chat --model runs/a --beside Qwen/Qwen3-0.6B
  shadowft chat --model DIR --delta runs/a --alpha 0.5
  shadowft chat --model runs/a --serve --port 8000

With --serve, any client of OpenAI's chat API can talk to it.
"""

import dataclasses
import importlib.util
import io
import pathlib
import shutil
import sys
from collections.abc import Iterator

from etils import epy

from shadowft_jax import command
from shadowft_jax.errors import InputError
from shadowft_jax.progress import count, say
from shadowft_jax.runs import config_file

with epy.lazy_imports():  # help and errors of flags and paths come before these
  from shadowft_jax import sharding
  from shadowft_jax.data import pictures
  from shadowft_jax.generation import columns, dialogue, engine, local, server, serving
  from shadowft_jax.hf import hub

HELP = """\
/alpha X      strength of the delta from now on
/system TEXT  the system prompt from now on; without TEXT, none
/image PATH   an image for the next question; several are possible
/reset        forget the conversation
/save FILE    write the conversation to a new file, as JSON lines of messages
/help         this list
/exit         end the chat; so does the end of the input
Ctrl-C stops an answer. A line that begins with // is sent with one slash."""


@dataclasses.dataclass(frozen=True)
class Options(command.Options):
  """Flags of `chat`."""

  model: str | None = command.option(
    None, help="The model that answers: a folder, a run's folder, or a Hub id."
  )
  delta: str | None = command.option(
    None, help="A delta to add to the model: a run's folder, its delta/, or a PEFT adapter."
  )
  alpha: float = command.option(1.0, help="Strength of the delta.")
  beside: str | None = command.option(
    None, help="A second model, which answers every turn too and has its own history."
  )
  server: str | None = command.option(
    None, help="URL of an OpenAI-compatible server that answers instead of --model."
  )
  name: str | None = command.option(
    None, help="Name of the model: at the --server, or for the clients of --serve."
  )
  system: str = command.option("", help="System prompt.")
  template_arg: tuple[str, ...] = command.option(
    (), help="Argument of the chat template, such as enable_thinking=false."
  )
  image_max_pixels: int | None = command.option(
    None, help="Scale larger images down to this area first. Default: as in training.", least=0
  )
  temperature: float = command.option(
    0.0, help="Sampling temperature; 0: greedy decoding.", least=0
  )
  top_p: float = command.option(
    1.0, help="Sample from the fewest tokens that have this probability in total.", above=0, most=1
  )
  top_k: int = command.option(0, help="Sample from the K most likely tokens; 0: from all.", least=0)
  min_p: float = command.option(
    0.0, help="Leave out tokens less likely than this times the most likely.", least=0, most=1
  )
  seed: int = command.option(0, help="Seed of the samples.")
  max_new_tokens: int = command.option(1024, help="Maximum tokens per answer.", least=1)
  mesh: str = command.option(
    "", help="Devices that share a model, such as data=2,tensor=4. Default: one device."
  )
  serve: bool = command.option(False, help="Serve OpenAI's chat API instead of chatting here.")
  host: str = command.option("127.0.0.1", help="Address that --serve listens on.")
  port: int = command.option(8000, help="Port of --serve; 0: a free one.", least=0, most=65535)


class Chat:
  """A chat: handles a person's lines, which are messages or commands."""

  def __init__(self, speakers: "list[dialogue.Speaker]", options: Options) -> None:
    self.speakers, self.system, self.alpha = speakers, options.system, options.alpha
    self.has_delta, self.images = options.delta is not None, list[pictures.Picture]()
    self.sampling = _sampling(options)
    names = ("alpha", "image", "system", "reset", "save", "help", "exit")
    self._commands = {name: getattr(self, f"_{name}") for name in names}

  def take(self, line: str) -> None:
    """Answers or obeys one line.

    Raises:
      InputError: it is a command that cannot be, or a model cannot answer.
      EOFError: it ends the chat.
    """
    if not line.strip():
      return
    if not line.startswith("/") or line.startswith("//"):
      self._say(line.removeprefix("/") if line.startswith("//") else line)
      return
    name, _, rest = line[1:].partition(" ")
    if name not in self._commands:
      raise InputError(f"no command is named /{name}; /help lists them")
    self._commands[name](rest.strip())

  def _say(self, text):
    heads = [one.name for one in self.speakers]
    images, self.images = self.images, []
    texts = [one.answer(text, self.system, self.sampling, images) for one in self.speakers]
    width = columns.width_of(shutil.get_terminal_size().columns, len(texts))
    try:
      if width:
        for row in columns.rows(heads, texts, width):
          print(row, flush=True)
      elif len(texts) > 1:
        _print(columns.one_below_the_other(heads, texts))
      else:
        _print(texts[0], end="\n")
    except KeyboardInterrupt:
      print(flush=True)
      say("stopped")
    finally:
      for one in texts:
        one.close()
    for one in self.speakers:
      if one.last and one.last.finish_reason == "length":
        say(f"{one.name}: cut at {one.last.tokens} tokens (--max-new-tokens, or its context)")
      if one.last and not one.last.text.strip():
        say(f"{one.name}: the answer is empty")

  def _alpha(self, text):
    if not self.has_delta:
      raise InputError("/alpha needs a delta: start with --model DIR --delta DIR")
    try:
      alpha = float(text)
    except ValueError:
      raise InputError(f"/alpha takes a number, such as /alpha 0.5; got {text!r}") from None
    self.speakers[0].engine = self.speakers[0].engine.with_alpha(alpha)
    self.alpha = alpha
    say(f"alpha is {alpha:g}")

  def _image(self, text):
    if not pathlib.Path(text).expanduser().is_file():
      raise InputError(f"/image takes the path of an image, such as /image chart.png; got {text!r}")
    self.images.append(pictures.opened(text, [pathlib.Path()], "/image"))
    say(f"{count(len(self.images), 'image')} for the next question")

  def _system(self, text):
    self.system = text
    say("the system prompt is set" if text else "there is no system prompt")

  def _reset(self, _):
    for one in self.speakers:
      one.history.clear()
    self.images = []
    say("the conversation is forgotten")

  def _save(self, text):
    if not text:
      raise InputError("/save needs the name of a file, such as /save talk.jsonl")
    settings = dataclasses.asdict(self.sampling)
    settings |= {"alpha": self.alpha} if self.has_delta else {}
    dialogue.save(pathlib.Path(text), self.speakers, self.system, settings)
    say(f"written: {text}")

  def _help(self, _):
    print(HELP, flush=True)

  def _exit(self, _):
    raise EOFError


def main(options: Options) -> None:
  """Talks on the terminal, or serves.

  Raises:
    InputError: the options contradict each other, or a model is missing or bad.
  """
  _check(options)
  hub.check_named(options.model, options.delta, options.beside)
  if options.serve:
    name = options.name or pathlib.Path(options.model or "").resolve().name
    serving.serve(_first(options), name, options.host, options.port, _sampling(options))
    return
  delta = f"+{options.delta}" if options.delta else ""
  name = f"{options.model or options.name}{delta}"
  speakers = [dialogue.Speaker(name, _first(options))]
  if options.beside:
    speakers.append(dialogue.Speaker(options.beside, _local(options, options.beside)))
  talk = Chat(speakers, options)
  say(f"{' and '.join(one.name for one in speakers)}: /help lists the commands")
  for line in _lines():
    try:
      talk.take(line)
    except InputError as error:
      say(f"error: {error}")
    except EOFError:
      return


def _first(options):
  if options.server:
    args = config_file.template_args(options.template_arg)
    return server.ServerEngine(options.server, options.name, template_args=args)
  delta = {"delta": options.delta, "alpha": options.alpha} if options.delta else {}
  return _local(options, options.model, **delta)


def _local(options, model, **delta):
  """The engine of a model."""
  return local.load(
    hub.locate_model(model),
    template_args=config_file.template_args(options.template_arg),
    mesh=sharding.mesh_of(options.mesh),
    image_max_pixels=options.image_max_pixels,
    **delta,
  )


def _sampling(o: Options) -> "engine.Sampling":
  return engine.Sampling(
    o.max_new_tokens,
    fit_context=True,
    temperature=o.temperature,
    top_k=o.top_k,
    top_p=o.top_p,
    min_p=o.min_p,
    seed=o.seed,
  )


def _lines() -> Iterator[str]:
  """The lines that a person writes; Ctrl-C and the end of the input end them."""
  is_terminal = sys.stdin.isatty()
  if isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(errors="replace")
  if is_terminal:
    import readline  # noqa: F401  input() then has a history, and keys to edit a line
  while True:
    try:
      line = input("> " if is_terminal else "")
    except (EOFError, KeyboardInterrupt):
      if is_terminal:
        print()
      return
    yield line


def _print(pieces, end=""):
  for piece in pieces:
    print(piece, end="", flush=True)
  print(end=end, flush=True)


def _check(o):
  """Raises InputError for options that do not go together."""
  if bool(o.model) == bool(o.server):
    raise InputError(
      f"--model and --server are {'both' if o.model else 'not'} given; expected one of them: "
      "--model DIR answers here, --server URL --name NAME elsewhere"
    )
  if o.server and not o.name:
    raise InputError("--server needs --name, the name of its model")
  if o.server and o.image_max_pixels is not None:
    raise InputError("--image-max-pixels is for --model; a server resizes images itself")
  if o.name and not (o.server or o.serve):
    raise InputError("--name needs --server or --serve")
  if o.delta and not o.model:
    raise InputError("--delta needs --model")
  if o.alpha != 1.0 and not o.delta:
    raise InputError("--alpha needs --delta, the delta that it scales")
  if not o.serve:
    return
  for other in ("server", "beside", "system"):
    if getattr(o, other):
      raise InputError(f"--serve and --{other} contradict each other; --serve serves one --model")
  if missing := [x for x in ("starlette", "uvicorn") if importlib.util.find_spec(x) is None]:
    raise InputError(
      f"--serve needs {' and '.join(missing)}, not installed here; run: "
      "pip install 'shadowft_jax[serve]'"
    )


if __name__ == "__main__":
  command.run(main, Options)
