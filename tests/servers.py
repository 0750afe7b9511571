"""A stand-in for an OpenAI-compatible server, in a thread."""

import contextlib
import http.server
import json
import threading

NAMES = ("tiny", "other")


def answer(text, reason="stop", tokens=3, **message):
  """The body of a chat completion."""
  message = {"role": "assistant", "content": text, **message}
  choice = {"index": 0, "message": message, "finish_reason": reason}
  return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def error(message, kind="invalid_request_error"):
  """The body of an error, in OpenAI's form."""
  return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def models(*names):
  """The body of the list of models."""
  entry = {"object": "model", "owned_by": "test", "root": "/m", "max_model_len": 512}
  return {"object": "list", "data": [{"id": x, "created": 7, **entry} for x in names]}


class Server:
  """What the server does: `respond(body)` gives (status, body), or None to hang up.

  Attributes:
    requests: (path, headers, body) of each request.
  """

  def __init__(self):
    self.respond = lambda body: (200, answer("yes"))
    self.listed = (200, models(*NAMES))
    self.requests, self.lock = [], threading.Lock()

  def handler(self):
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def _answer(self, response):
        if response is None:
          self.close_connection = True
          return
        status, body, *headers = response
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(*headers).items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def do_GET(self):
        self._answer(owner.listed if self.path == "/v1/models" else (404, error("no such path")))

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
          owner.requests.append((self.path, dict(self.headers), body))
        self._answer(owner.respond(body))

      def log_message(self, *args):
        pass

    return Handler


@contextlib.contextmanager
def running():
  """A Server with its `url`, until the context ends."""
  server = Server()
  listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), server.handler())
  listening.daemon_threads = True
  server.url = f"http://127.0.0.1:{listening.server_port}"
  thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    listening.shutdown()
    listening.server_close()
    thread.join()
