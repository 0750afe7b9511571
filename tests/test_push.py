"""--push-to: checked before any work, and uploaded to a stand-in for the Hub on this machine."""

import base64
import http.server
import json
import re
import threading

import huggingface_hub
import huggingface_hub.constants
import pytest

from shadowft_jax import graft, train
from shadowft_jax.errors import InputError
from shadowft_jax.hf import hub
from tests import commands

REPO = "lab/my-model"


class Hub(http.server.BaseHTTPRequestHandler):
  """Takes repositories and commits of small files, as the Hub's API has them."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"])).decode()
    assert self.headers["authorization"] == "Bearer hf_secret"
    server, path = self.server, self.path
    if path == "/api/repos/create":
      made = json.loads(body)
      name = f"{made['organization']}/{made['name']}"
      if name.startswith("other/"):
        return self._answer(403, {"error": f"you may not write to {name}"})
      server.made[name] = made
      return self._answer(200, {"url": f"{server.url}/{name}"})
    if path.endswith("/preupload/main"):
      files = [f["path"] for f in json.loads(body)["files"]]
      modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
      return self._answer(200, {"files": modes})
    repo = re.fullmatch(r"/api/models/(.+)/commit/main.*", path)[1]
    for line in body.splitlines():
      entry = json.loads(line)
      if entry["key"] == "file":
        content = base64.b64decode(entry["value"]["content"])
        server.files[repo, entry["value"]["path"]] = content
    self._answer(200, {"commitUrl": f"{server.url}/{repo}/commit/1", "commitOid": "1"})

  def _answer(self, code, value):
    data = json.dumps(value).encode()
    self.send_response(code)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *args):
    """Says nothing."""


@pytest.fixture
def stand_in(monkeypatch):
  """A hub on this machine: `made` {repo: what was asked for}, `files` {(repo, path): bytes}."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  server.made, server.files = {}, {}
  server.url = f"http://127.0.0.1:{server.server_port}"
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  yield server
  server.shutdown()
  server.server_close()


def test_a_folder_is_uploaded_into_a_private_repository(stand_in, tmp_path):
  for name, data in {"config.json": b"{}", "model.safetensors": b"\0\1", "sub/a.txt": b"a"}.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
  hub.check_push(REPO)
  assert hub.push(tmp_path, REPO) == f"{stand_in.url}/{REPO}"
  assert stand_in.made[REPO]["visibility"] == "private"
  assert stand_in.files == {
    (REPO, "config.json"): b"{}",
    (REPO, "model.safetensors"): b"\0\1",
    (REPO, "sub/a.txt"): b"a",
  }


def test_a_failed_upload_leaves_the_files_and_prints_the_command_to_repeat_it(stand_in, tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(InputError) as error:
    hub.push(tmp_path, "other/model")
  text = str(error.value)
  assert text.startswith(f"{tmp_path} is written, but could not be uploaded as other/model: ")
  assert text.endswith(f"hf upload other/model {tmp_path} --private")
  assert not stand_in.files and (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
  "repo, message",
  [
    ("model", "--push-to=model has no owner; expected ORG/NAME"),
    ("a/b/c", "--push-to=a/b/c is not a valid Hub id"),
    ("a b/c", "--push-to=a b/c is not a valid Hub id"),
    ("https://huggingface.co/a/b", "is not a valid Hub id"),
    ("a/" + "b" * 95, "is not a valid Hub id"),  # too long with "-delta"
  ],
)
def test_a_name_is_checked_before_any_work(stand_in, tmp_path, repo, message):
  with pytest.raises(InputError, match=re.escape(message)):
    hub.check_push(repo)


def test_the_hub_must_be_in_reach(stand_in, monkeypatch):
  monkeypatch.delenv("HF_TOKEN")
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
  with pytest.raises(InputError, match="run `hf auth login`, or set HF_TOKEN"):
    hub.check_push(REPO)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
    hub.check_push(REPO)


def test_commands_check_the_name_first_and_upload_their_output(stand_in, monkeypatch, tmp_path):
  pushed = []
  monkeypatch.setattr(hub, "push", lambda folder, repo: pushed.append((str(folder), repo)) or repo)
  monkeypatch.setattr(train, "train", lambda config, workdir: pushed.append("trained"))
  flags = ["--config=quickstart", f"--push-to={REPO}"]
  assert commands.run("train", *flags, f"--workdir={tmp_path}").returncode == 0
  assert pushed == ["trained", (f"{tmp_path}/shadow", REPO), (f"{tmp_path}/delta", f"{REPO}-delta")]
  pushed.clear()
  for more in (["--push-to=x", f"--workdir={tmp_path}"], ["--preview=1"], []):
    result = commands.run("train", *flags, *more)
    assert result.returncode == 2 and "--push-to" in result.stderr
  monkeypatch.setattr(graft, "_plan", lambda options: pytest.fail("it has begun to work"))
  result = commands.run("graft", "--delta=x", "--instruct=x", "--out=x", "--push-to=x")
  assert result.returncode == 2 and "--push-to=x has no owner" in result.stderr
  assert not pushed
