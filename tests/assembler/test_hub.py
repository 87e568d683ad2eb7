"""Models of the hub, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from hybridize.model.checkpoint import INDEX
from tests.support.stacks import load, save_donor, write_recipe
from tests.support.tokenizers import write_tokenizer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
RECIPE = {
    "donors": {"a": {"model": "org/tiny", "revision": "v1"}},
    "slots": [{"from": "a", "layers": "0-1"}],
}


class Hub(BaseHTTPRequestHandler):
    """The three calls that a download makes: what is the commit, which files, and their bytes."""

    model: Path
    sent: int  # bytes of weights
    asked: list[str]  # files whose content was sent
    breaking: int  # how many more requests for weights are answered by a broken connection

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        known = (
            f"/api/models/org/tiny/{kind}/{r}"
            for kind in ("revision", "tree")
            for r in ("v1", COMMIT)
        )
        if path in known:
            document = self._tree() if "/tree/" in path else {"id": "org/tiny", "sha": COMMIT}
            self._send(200, json.dumps(document).encode(), "application/json", body=body)
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._file(self.model / path.removeprefix(f"/org/tiny/resolve/{COMMIT}/"), body=body)
        else:
            self._send(404, b"{}", "application/json", body=body)

    def _tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": f.relative_to(self.model).as_posix(),
                "size": f.stat().st_size,
                "oid": self._etag(f),
            }
            for f in sorted(self.model.rglob("*"))
            if f.is_file()
        ]

    def _etag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def _file(self, file: Path, *, body: bool) -> None:
        data, status = file.read_bytes(), 200
        if (wanted := self.headers.get("range")) is not None:
            first, last = wanted.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        if body and file.suffix == ".safetensors":
            if type(self).breaking > 0:
                type(self).breaking -= 1
                self.connection.close()  # in the middle of the answer, as proxies do
                return
            type(self).sent += len(data)
        if body:
            self.asked.append(file.relative_to(self.model).as_posix())
        self._send(status, data, "application/octet-stream", body=body, etag=self._etag(file))

    def _send(self, status: int, data: bytes, kind: str, *, body: bool, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            unknown = "RevisionNotFound" if "org/tiny" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", unknown)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process whose hub this is."""
    save_donor(tmp_path / "model", "llama", num_hidden_layers=8, intermediate_size=4096)
    Hub.model, Hub.sent, Hub.asked, Hub.breaking = tmp_path / "model", 0, [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HYBRIDIZE_CACHE": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(env: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hybridize", *arguments]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_plan_fetches_headers_and_a_build_the_weights(
    tmp_path: Path, hub: dict[str, str]
) -> None:
    """Nobody wants to wait for 14 GB to be told that a layer does not exist."""
    write_recipe(tmp_path / "recipe.yaml", RECIPE)
    whole = (tmp_path / "model/model.safetensors").stat().st_size
    planned = run(hub, tmp_path, "plan", "recipe.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["donors"]["a"]["commit"] == COMMIT
    assert "fetching the headers of" in planned.stderr
    assert 0 < Hub.sent < whole / 10
    again = run(hub, tmp_path, "inspect", "org/tiny@v1", "--json")
    assert len(json.loads(again.stdout)["layers"]) == 8
    assert Hub.sent < whole / 10
    built = run(hub, tmp_path, "build", "recipe.yaml", "--check", "structure", "--json")
    assert built.returncode == 0, built.stderr
    assert Hub.sent > whole
    manifest = json.loads((tmp_path / "out/recipe/hybridize.json").read_text())
    assert manifest["donors"]["a"]["commit"] == COMMIT
    offline = run(hub, tmp_path, "verify", "out/recipe", "--load", "none", "--offline")
    assert offline.returncode == 0, offline.stdout
    assert "donor a: " in offline.stdout
    assert "not compared" not in offline.stdout


def test_what_the_hub_does_not_have_is_said(tmp_path: Path, hub: dict[str, str]) -> None:
    for donor, found in (
        ({"model": "org/tiny", "revision": "v2"}, "the hub has no revision org/tiny@v2"),
        ({"model": "org/none"}, "the hub refuses org/none@main: 404"),
    ):
        write_recipe(tmp_path / "recipe.yaml", RECIPE | {"donors": {"a": donor}})
        for command in ("plan", "build"):
            done = run(hub, tmp_path, command, "recipe.yaml")
            assert done.returncode == 2
            assert f"recipe.yaml:3:5: donors.a: {found}" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr


@pytest.fixture
def sharded(hub: dict[str, str]) -> dict[str, str]:
    """A hub whose model is in shards, among the files that one finds beside such."""
    model = Hub.model
    load(model).save_pretrained(model, max_shard_size="400KB")
    (model / "model.safetensors").unlink()
    shard = min(model.glob("*.safetensors")).read_bytes()
    write_tokenizer(model, auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    for name in CODE | UNNEEDED:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(shard if name.endswith(".safetensors") else b"{}")
    return hub


CODE = {"tokenization_own.py"}
NEEDED = CODE | {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
UNNEEDED = {
    "consolidated.safetensors", "original/model.safetensors", "original/params.json",
    "optimizer.bin", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx", "training.pt",
    "checkpoint-10/model.safetensors",
}  # fmt: skip


def test_only_what_the_index_names_is_fetched(tmp_path: Path, sharded: dict[str, str]) -> None:
    """consolidated.safetensors is the same weights once more: 14 GB for nothing."""
    write_recipe(tmp_path / "recipe.yaml", RECIPE)
    shards = set(json.loads((Hub.model / INDEX).read_text())["weight_map"].values())
    assert len(shards) > 1
    for command, *options in (("plan",), ("build", "--check", "structure")):
        done = run(sharded, tmp_path, command, "recipe.yaml", *options, "--json")
        assert done.returncode == 0, done.stderr
        assert shards | NEEDED <= set(Hub.asked)
        assert not UNNEEDED & set(Hub.asked)


def test_offline_nobody_misses_what_nobody_needs(tmp_path: Path, sharded: dict[str, str]) -> None:
    """A cache that another program has filled lacks the card, the licence, and other formats."""
    write_recipe(tmp_path / "recipe.yaml", RECIPE)
    (Hub.model / "README.md").write_text("---\nlicense: mit\n---\n")
    done = run(sharded, tmp_path, "build", "recipe.yaml", "--check", "structure", "--out", "first")
    assert done.returncode == 0, done.stderr
    (snapshot,) = (tmp_path / "home/hub/models--org--tiny/snapshots").iterdir()
    (snapshot / "README.md").unlink()
    env = sharded | {"HF_HUB_OFFLINE": "1"}
    done = run(env, tmp_path, "plan", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokenizer"] == "a"
    for name in (INDEX, "config.json"):
        (snapshot / name).unlink()
        done = run(env, tmp_path, "plan", "recipe.yaml")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path, hub: dict[str, str]) -> None:
    write_recipe(tmp_path / "recipe.yaml", RECIPE)
    Hub.breaking = 2
    done = run(hub, tmp_path, "plan", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert Hub.breaking == 0


@pytest.mark.parametrize("command", ["plan", pytest.param("build", marks=pytest.mark.slow)])
def test_a_connection_that_breaks_for_good_is_one_message(
    tmp_path: Path, hub: dict[str, str], command: str
) -> None:
    write_recipe(tmp_path / "recipe.yaml", RECIPE)
    Hub.breaking = 1000
    done = run(hub, tmp_path, command, "recipe.yaml")
    assert done.returncode == 2, done.stderr
    assert "the connection to the hub broke 4 times while org/tiny@v1 was fetched" in done.stderr
    assert "fix: run the same command again: what has arrived is kept" in done.stderr
    assert "Traceback" not in done.stderr
