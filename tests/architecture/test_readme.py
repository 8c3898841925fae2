"""A command that a reader is told to type exists: every make target, every gateway command, every option."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell", "console")
PROMISED_TARGETS = ("demo", "test", "check", "prove", "bench", "lock", "clean", "help")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(first: str) -> list[list[str]]:
    """The words of every line in a shell block of the documents that calls `first`, without what follows it."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for block in (block for language, block in FENCE.findall(text) if language in SHELLS):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ ").strip(), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0].rsplit("/", 1)[-1] == first:
                    end = next((i for i, word in enumerate(words) if word in {"|", ">", "&&", ";", "&"}), len(words))
                    found.append(words[1:end])
    return found


def test_the_makefile_keeps_its_promises():
    """The targets of the public interface are there, and each has its line in `make help`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in PROMISED_TARGETS:
        assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE), f"make {target} is missing, or says nothing"


def test_every_make_command_of_the_documents_exists():
    """`make something` in a shell block names a target of the Makefile."""
    named = {word for words in commands("make") for word in words[:1] if "=" not in word}
    assert named <= make_targets(), f"No such target: {sorted(named - make_targets())}"


@pytest.mark.skipif(importlib.util.find_spec("gateway.cli.root") is None, reason="the command line is not written yet")
def test_every_gateway_command_of_the_documents_exists():
    """`gateway a b --option` in a shell block names a command of the group, with options that it has."""
    root = importlib.import_module("gateway.cli.root").cli
    unknown = []
    for words in commands("gateway"):
        command, context, rest = root, click.Context(root), list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            child = command.get_command(context, name)
            if child is None:
                unknown.append(f"gateway {' '.join(words)}: no command {name!r}")
                break
            command, context = child, click.Context(child, parent=context)
        options = {option for parameter in command.get_params(context) for option in parameter.opts}
        options |= {option for parameter in command.get_params(context) for option in parameter.secondary_opts}
        missing = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
        unknown += [f"gateway {' '.join(words)}: no option {word!r}" for word in missing]
    assert not unknown, "\n".join(unknown)
