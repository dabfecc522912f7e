"""`ld3m env`: what it says is so, what is secret stays so, and what is broken hides nothing else."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

from ld3m import __version__
from ld3m.machine import environment

TOKEN = "hf_secretsecretsecret"


def parts(done: Outcome) -> dict[str, str]:
    assert done.code == 0
    assert done.err == ""
    return dict(line.split(": ", 1) for line in done.out.splitlines())


def test_it_says_what_is_installed(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", (*environment.PACKAGES, "no-such-package"))
    said = parts(ld3m("env"))
    assert said["ld3m"].startswith(__version__)
    assert said["python"].startswith(platform.python_version())
    for package in ("torch", "accelerate", "diffusers", "datasets", "huggingface-hub", "safetensors", "numpy", "typer"):
        assert said[package] == importlib.metadata.version(package)
    assert said["no-such-package"] == "not installed"
    assert said["CPUs"].startswith(f"{os.cpu_count()}, ")
    assert said["ld3m's cache"].startswith(f"{os.environ['LD3M_CACHE']}, ")
    assert not any(value.endswith("Error)") for value in said.values())


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "ld3m").mkdir()
    (tmp_path / "ld3m" / "environment.py").touch()
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "ld3m")
    commit = git("rev-parse", "HEAD")[:12]
    assert f" (commit {commit})," in environment.report().splitlines()[0]
    (tmp_path / "ld3m" / "environment.py").write_text("changed")
    assert f" (commit {commit}, changed)," in environment.report().splitlines()[0]


def test_no_secret_is_printed(ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = {
        "HF_TOKEN": TOKEN,
        "WANDB_API_KEY": "0123secret",
        "LD3M_PASSWORD": "sesame-secret",
        "HF_ENDPOINT": "https://me:mysecret@hub.example:8080/path?sig=othersecret",
        "HTTPS_PROXY": "http://proxysecret@proxy.example",
        "HF_HUB_USER_AGENT_ORIGIN": f"with {TOKEN}\nin it",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("UNRELATED", "nobody asked")
    done = ld3m("env")
    said = parts(done)
    assert "secret" not in done.out
    assert "nobody asked" not in done.out
    assert said["HF_TOKEN"] == said["WANDB_API_KEY"] == said["LD3M_PASSWORD"] == "set"
    assert said["HF_ENDPOINT"] == "https://hub.example:8080/path"
    assert said["HTTPS_PROXY"] == "http://proxy.example"
    assert said["HF_HUB_USER_AGENT_ORIGIN"] == "with (a token) in it"
    assert said["HF_HUB_OFFLINE"] == "1"
    assert said["Hub token found"] == "yes"


def test_a_token_in_a_file_is_found_and_not_told(tmp_path: Path) -> None:
    """In a process of its own: the Hub's library decides on import where its files are."""
    left_out = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
    environ = {key: value for key, value in os.environ.items() if key not in left_out} | {"HF_HOME": str(tmp_path)}

    config = tmp_path / "accelerate" / "default_config.yaml"
    wanted = {tmp_path / "token": TOKEN}
    wanted[config] = f"distributed_type: MULTI_GPU\nnum_processes: 4\nsome_secret: {TOKEN}\n"
    files = {str(path): text for path, text in wanted.items()}
    program = f"""
import sys
from pathlib import Path
from ld3m.__main__ import main

def env():
    sys.argv = ["ld3m", "env"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code

env()
for name, text in {files!r}.items():
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
print("BETWEEN")
env()
"""
    arguments = [sys.executable, "-c", program]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environ)
    before, said = done.stdout.split("BETWEEN\n")
    assert "Hub token found: no\n" in before
    assert "Hub token found: yes\n" in said
    assert TOKEN not in said
    assert f"Accelerate configuration: {config}, distributed_type=MULTI_GPU, num_processes=4, some_secret=set" in said


def test_what_is_broken_is_named_and_hides_nothing(
    ld3m: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setitem(sys.modules, "torch", None)  # importing it is an error
    monkeypatch.setattr(environment.psutil, "virtual_memory", broken)
    monkeypatch.setattr(environment.importlib.metadata, "version", broken)
    said = parts(ld3m("env"))
    assert said["CUDA"] == said["GPUs"] == "(ModuleNotFoundError)"
    assert said["memory"] == said["numpy"] == "(OSError)"
    assert said["python"].startswith(platform.python_version())
    assert "Hub token found" in said


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/cache", "/home/me/cache"),
        ("https://a:b@c.example, http://d@e.example/f", "https://c.example, http://e.example/f"),
        ("https://c.example/f@v1?x=1 y", "https://c.example/f@v1 y"),
        ("a?b", "a?b"),
    ],
)
def test_urls_lose_who_and_what(value: str, shown: str) -> None:
    assert environment.without_secrets(value) == shown
