"""Breaks input at random, and runs commands on it: `python -m tests.support.mutating KIND ...`.

A process of its own, without torch for all kinds but tokenizers, so that time and memory are those
of the commands. It prints as JSON what ended otherwise than well or with a message.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from hybridize.cli import main
from hybridize.model.manifest import sealed

MOST_SECONDS, MOST_BYTES = 20, 2_000_000_000  # of a processor, whatever else runs; and of memory
WAITING = 300  # seconds, after which a case waits for something that never comes
LONGEST_MESSAGE = 30_000  # characters: 20 findings, shortened
RUNAWAY = 12 << 30  # bytes; beyond it the system is to refuse, for the sake of the machine

NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 10**9, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "x", "0-3", "3-0", "0-999999999", "a", "llama", "mamba", "../../etc",
    "/", "~", "~nobody", "a\0b", "x" * 5000, "\ud800", "*" * 300, "**/*", "1GB", "0B", "[", "{}",
    [], [[]], [None], [0] * 50, {}, {"a": None}, {"from": "a"}, {"": ""}, NESTED, ["x"] * 2000,
]  # fmt: skip

ODD_BYTES = [b"\0", b"\xff", b'"', b"{", b"]", b"\n", b"9" * 40, b"[" * 5000]


def broken_bytes(data: bytes, source: random.Random) -> bytes:
    """A bit flipped, a stretch lost, doubled or filled with something else, or the end cut off."""
    found = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        at = source.randrange(len(found) + 1)
        end = min(len(found), at + source.choice((1, 2, 9, 100)))
        match source.randrange(5):
            case 0 if at < len(found):
                found[at] ^= 1 << source.randrange(8)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end]
            case 3:
                found[at:end] = source.choice(
                    (b"\0", b"\xff", b'"', b"{", b"]", b"\n", b"9" * 40, b"[" * 5000)
                )
            case _:
                del found[at:]
        if not found:
            break
    return bytes(found)


def broken(document: Any, source: random.Random) -> Any:
    """A document in which some nodes are odd, lost, renamed, or stand elsewhere."""
    document = copy.deepcopy(document)
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        places = list(_places(document))
        if not places:
            break
        holder, key = source.choice(places)
        match source.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[source.choice(("x", "", "from", str(key) + "s"))] = holder.pop(key)
            case 2:
                other, there = source.choice(places)
                holder[key] = copy.deepcopy(other[there])
            case _:
                holder[key] = copy.deepcopy(source.choice(ODD))
    return document


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def broken_json(data: bytes, source: random.Random) -> bytes:
    if source.random() < 0.3:
        return broken_bytes(data, source)
    return json.dumps(broken(json.loads(data), source)).encode()


def broken_yaml(data: bytes, source: random.Random) -> bytes:
    if source.random() < 0.5:
        return broken_bytes(data, source)
    text = yaml.safe_dump(broken(yaml.safe_load(data), source), sort_keys=False)
    if source.random() < 0.2:  # a tag, or an anchor
        word = source.choice(("!!timestamp", "!!bool", "!!binary", "!!set", "!x", "&a", "*a", "!!"))
        text = text.replace(": ", f": {word} ", source.randrange(4))
    return text.encode("utf-8", "surrogatepass")


def broken_header(data: bytes, source: random.Random) -> bytes:
    """A safetensors file with another header; what follows stays."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    changed = broken_json(header, source)
    told = len(changed) if source.random() < 0.8 else source.choice((0, 1, length, 2**63, 2**40))
    return told.to_bytes(8, "little") + changed + rest[: source.choice((0, 9, None, None, None))]


def broken_manifest(data: bytes, source: random.Random) -> bytes:
    """One that was changed on purpose, mostly, and sealed again."""
    if source.random() < 0.2:
        return broken_bytes(data, source)
    text = sealed_if_it_can_be(broken(json.loads(data), source))
    return text.encode("utf-8", "surrogatepass")


def sealed_if_it_can_be(manifest: Any) -> str:
    try:
        return sealed(manifest)
    except (AttributeError, UnicodeEncodeError):
        return json.dumps(manifest)


def read_tokenizer(folder: Path, _: Path) -> None:
    """As every stage that reads text does (torch)."""
    from hybridize.torch_model.windows import Reader

    Reader("a", folder / "a", rows=10**6).encode(["In 2023, naïve text."])


def run(*arguments: str) -> Callable[[Path, Path], None]:
    """A command; it may end well, or with a message and a status of ours."""

    def command(folder: Path, file: Path) -> None:
        places = {"FILE": str(file), "FOLDER": str(file.parent)}
        words = [places.get(word, word) for word in arguments]
        done = CliRunner().invoke(main, [*words, "--offline"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in (0, 1, 2), f"status {done.exit_code}"
        assert "Traceback" not in done.output, done.output[:2000]
        if done.exit_code == 2:
            assert done.stderr.strip(), "no message"
            assert len(done.stderr) < LONGEST_MESSAGE, f"a message of {len(done.stderr)}"

    return command


#: Kind -> file that is broken (of several, one at a time), how, and what then reads it.
KINDS: dict[str, tuple[list[str], Callable[[bytes, random.Random], bytes], list[Any]]] = {
    "recipes": (["rich.yaml", "plain.yaml"], broken_yaml, [run("plan", "FILE")]),
    "headers": (
        ["a/model.safetensors"],
        broken_header,
        [run("inspect", "a"), run("plan", "plain.yaml")],
    ),
    "configs": (
        ["a/config.json", "moe/config.json", "mamba/config.json"],
        broken_json,
        [run("inspect", "FOLDER"), run("plan", "all.yaml"), run("plan", "all.yaml", "--json")],
    ),
    "indexes": (
        ["parts/model.safetensors.index.json"],
        broken_json,
        [run("inspect", "parts"), run("plan", "parts.yaml")],
    ),
    "manifests": (
        ["built/hybridize.json"],
        broken_manifest,
        [
            run("verify", "built", "--load", "none"),
            run("cpt", "built", "--forecast", "--text", "text.txt"),
        ],
    ),
    "tokenizers": (
        ["a/tokenizer.json", "a/tokenizer_config.json"],
        broken_json,
        [run("plan", "two.yaml"), read_tokenizer],
    ),
}  # fmt: skip


class TooLong(BaseException):
    """A case took more than its time."""


def _too_long(*_: object) -> None:
    raise TooLong


def one(kind: str, folder: Path, number: int, seed: int) -> tuple[str | None, float]:
    """What went wrong in one case, and its seconds."""
    from hybridize.errors import HybridizeError

    names, damage, readers = KINDS[kind]
    source = random.Random(f"{kind}-{seed}-{number}")
    file = folder / names[number % len(names)]
    whole = file.read_bytes()
    start = time.process_time()
    try:
        file.write_bytes(damage(whole, source))
        signal.alarm(WAITING)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        for reader in readers:
            reader(folder, file)
    except HybridizeError:
        pass
    except BaseException:
        kept = folder / f"failed-{kind}-{number}"
        shutil.copyfile(file, kept)
        return traceback.format_exc(limit=-6), time.process_time() - start
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        file.write_bytes(whole)
    return None, time.process_time() - start


def mutate(kind: str, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Break input `count` times.

    Returns:
        `failures` by number, `slowest` in seconds, and `peak` of memory in bytes.
    """
    resource.setrlimit(resource.RLIMIT_AS, (RUNAWAY, RUNAWAY))
    for late in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(late, _too_long)
    if kind == "tokenizers":
        import hybridize.torch_model.windows  # noqa: F401 - its seconds are not the first case's
    failures, slowest = {}, 0.0
    for number in range(count):
        wrong, seconds = one(kind, folder, number, seed)
        slowest = max(slowest, seconds)
        if wrong:
            failures[number] = wrong
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"failures": failures, "slowest": slowest, "peak": peak}


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[2])
    answer = json.dumps(mutate(sys.argv[1], Path(), int(sys.argv[3]), int(sys.argv[4])))
    print(answer, file=sys.__stdout__)  # a case that was broken off may have left another one
