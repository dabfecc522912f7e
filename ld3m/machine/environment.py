"""What a bug report needs to know about the machine and what is installed; a broken part does not hide the others."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

from ld3m.files import PACKAGE

PACKAGES = (
    "torch", "torchvision", "accelerate", "diffusers", "datasets", "deepspeed", "transformers", "huggingface-hub",
    "safetensors", "filelock", "numpy", "pillow", "psutil", "pyarrow", "pydantic", "pyyaml", "tqdm", "typer", "click",
    "timm", "matplotlib", "tensorboard", "trackio", "wandb",
)  # fmt: skip
PREFIXES = (
    "ACCELERATE_", "CUBLAS_", "CUDA_", "DS_", "FSDP_", "GLOO_", "HF_", "HUGGING", "LD3M_", "MASTER_", "MKL_", "NCCL_",
    "OMP_", "PARALLELISM_", "PYTORCH_", "SLURM_JOB_", "TORCH", "TRACKIO_", "TRANSFORMERS_", "WANDB_",
)  # fmt: skip
"""How environment variables begin that change what a command does."""
NAMES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "XDG_CACHE_HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""Other variables that do."""
SECRET = re.compile(r"TOKEN|KEY|PASS|SECRET|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
"""In names of variables whose value is never printed."""
SECONDS = 10
"""Time limit for another program to answer."""


def report() -> str:
    """The whole report, one `key: value` per line; a part that cannot be read is the name of its error."""
    return "\n".join(f"{key}: {value}" for key, value in _lines())


def machine() -> dict[str, str | int]:
    """What figures depend on besides a recipe, to be stored with them: code, PyTorch, processor, threads, GPUs."""
    import torch

    return {
        "ld3m": f"{_version('ld3m')}{_or_its_error(_commit)}",
        "torch": torch.__version__,
        "cpu": _or_its_error(_processor),
        "threads": torch.get_num_threads(),
        "gpus": _or_its_error(_gpus),
    }


def misfit(error: Exception) -> str | None:
    """What to do about a torchvision that was built for another PyTorch, if that is why an import failed.

    Builds for GPUs, which are the package index's, do not fit a CPU build of PyTorch; diffusers and timm import it.
    """
    if "operator torchvision::" not in str(error):
        return None
    return (
        f"torchvision {_version('torchvision')} was built for another PyTorch than the {_version('torch')} here, and "
        "what imports it fails; install its build for this one, or remove it: pip uninstall torchvision"
    )


def _lines() -> Iterator[tuple[str, str]]:
    parts: dict[str, Callable[[], str]] = {
        "ld3m": _ld3m,
        "python": lambda: f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        "platform": platform.platform,
        "CPUs": _processors,
        "memory": _memory,
        "CUDA": _cuda,
        "cuDNN": _cudnn,
        "GPUs": _gpus,
        "NVIDIA driver": _driver,
    }
    yield from ((key, _or_its_error(part)) for key, part in parts.items())
    for name in PACKAGES:
        yield name, _or_its_error(lambda name=name: _version(name))  # type: ignore[misc]
    yield "Accelerate configuration", _or_its_error(_accelerate)
    yield "ld3m's cache", _or_its_error(_cache)
    yield "Hub's cache", _or_its_error(_hub_cache)
    yield "Hub token found", _or_its_error(_has_token)
    for name in sorted(os.environ):
        if name.startswith(PREFIXES) or name in NAMES:
            yield name, _printable(name, os.environ[name])


def _or_its_error(part: Callable[[], str]) -> str:
    try:
        return part()
    except Exception as error:
        return f"({type(error).__name__})"


# --- secrets -----------------------------------------------------------------------------------------------


def _printable(name: str, value: str) -> str:
    """A value in one line that is fit for everyone to read."""
    return "set" if SECRET.search(name) else without_secrets(" ".join(value.splitlines()))


def without_secrets(value: str) -> str:
    """A text without the users, passwords and queries of its URLs, and without tokens of the Hub."""
    value = re.sub(r"//[^/\s]*@", "//", value)
    value = re.sub(r"(://[^\s?]*)\?\S*", r"\1", value)
    return re.sub(r"hf_\w+", "(a token)", value)


# --- the parts ---------------------------------------------------------------------------------------------


def _ld3m() -> str:
    return f"{_version('ld3m')}{_commit()}, {PACKAGE}"


def _commit() -> str:
    """The commit of a checkout, or of what pip installed from a repository."""
    folder = PACKAGE.parent
    if (folder / ".git").exists() and shutil.which("git"):
        commit = _answer("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
        changed = _answer("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
        return f" (commit {commit}{', changed' if changed else ''})"
    try:
        origin = importlib.metadata.distribution("ld3m").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    installed = json.loads(origin).get("vcs_info", {}).get("commit_id") if origin else None
    return f" (commit {installed[:12]})" if installed else ""


def _answer(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processors() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{os.cpu_count()}, {usable} of them usable, {platform.machine()}"


def _processor() -> str:
    """Its name, as Linux or else Python has it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> str:
    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"


def _cuda() -> str:
    import torch

    if torch.version.cuda:
        return f"{torch.version.cuda}, {'available' if torch.cuda.is_available() else 'not available'}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "not in this torch"


def _cudnn() -> str:
    import torch

    return str(torch.backends.cudnn.version() or "not available")


def _gpus() -> str:
    import torch

    if not torch.accelerator.is_available():
        return "none"
    if not torch.cuda.is_available():
        return f"{torch.accelerator.device_count()} of {torch.accelerator.current_accelerator()}"
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(
        f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in gpus
    )


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "not installed"
    versions = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return ", ".join(dict.fromkeys(versions))


def _accelerate() -> str:
    """The file that `accelerate launch` reads by default, as one line."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "accelerate"
    path = next((path for name in ("yaml", "json") if (path := folder / f"default_config.{name}").is_file()), None)
    if path is None:
        return f"no default_config.yaml in {folder}"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    return ", ".join([str(path), *(f"{key}={_printable(key, str(value))}" for key, value in settings.items())])


def _cache() -> str:
    from ld3m.files import cache_folder

    return _with_room(cache_folder())


def _hub_cache() -> str:
    from huggingface_hub import constants

    return _with_room(Path(constants.HF_HUB_CACHE))


def _with_room(folder: Path) -> str:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return f"{folder}, {shutil.disk_usage(there).free / 1e9:,.1f} GB free"


def _has_token() -> str:
    from huggingface_hub import get_token

    return "yes" if get_token() else "no"
