"""Run by test_sharding.py in two processes: pull-backs of priors whole and sharded, compared, and parameters counted.

Arguments: OUT FOLDER …; a row of each prior's folder goes to OUT/<rank>.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ld3m import priors
from ld3m.machine.processes import start
from ld3m.priors.sharding import shard_denoiser
from ld3m.recipe import SamplerRecipe
from ld3m.sampling import Schedule, render

STEPS = 2


def held(denoiser: nn.Module) -> list[Tensor]:
    """What an engine keeps a denoiser's parameters in: its part of them, and where it gathers."""
    tensors: list[Tensor] = []
    for parameter in denoiser.parameters():
        if hasattr(parameter, "ds_tensor"):  # ZeRO-3: the parameter itself is empty unless gathered
            tensors += [parameter.ds_tensor, parameter]
    for layer in denoiser.modules():
        group = layer._get_fsdp_state()._fsdp_param_group if hasattr(layer, "_get_fsdp_state") else None
        for each in group.fsdp_params if group else ():
            tensors += [each._sharded_param_data, *each.all_gather_outputs]
    return tensors


def resident(denoiser: nn.Module) -> int:
    """Elements of the parameters in this process's memory, by the storages that the engine fills and frees."""
    return sum(elements(tensor) for tensor in held(denoiser))


def elements(tensor: Tensor) -> int:
    """What the storage of a tensor has room for."""
    return tensor.untyped_storage().size() // tensor.element_size()


class Peak(TorchDispatchMode):
    """The most elements resident at any operation on a layer's parameters, of forward and backward alike.

    What an engine has let go of counts for as long as a graph holds it.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(part in function.name() for part in ("conv", "mm", "norm")):
            self.storages = {key: kept for key, kept in self.storages.items() if not kept[0].expired()}
            for tensor in held(self.denoiser):
                if (storage := tensor.untyped_storage()).size():
                    self.storages[storage._cdata] = StorageWeakRef(storage), elements(tensor)
                else:
                    self.storages.pop(storage._cdata, None)  # emptied in its place
            self.most = max(self.most, sum(count for _, count in self.storages.values()))
        return function(*args, **(kwargs or {}))


def main(out: Path, folders: list[str]) -> None:
    processes = start()
    rows = []
    for folder in folders:
        recipe = SamplerRecipe(source=folder, steps=STEPS, keep_graph_steps=0)
        prior: Any = priors.load(recipe)
        embedding = float(prior.class_embeddings(["circle"]).abs().sum())
        schedule = Schedule.of(prior.noise_schedule, STEPS, "reference", 3.0)
        draws = torch.Generator().manual_seed(processes.process_index)
        z, noise = torch.randn(2, 2, *prior.latent_shape, generator=draws)
        c = torch.randn(2, *prior.conditioning_shape, generator=draws)
        layers = [sum(each.numel() for each in layer.parameters(recurse=False)) for layer in prior.denoiser.modules()]

        def gradients(keep: int) -> tuple[Tensor, Tensor]:
            pixels, pull_back = render(prior, schedule, z, c, noise, keep_graph_steps=keep)  # noqa: B023
            return pull_back(torch.ones_like(pixels))

        whole = gradients(0)
        shard_denoiser(prior, recipe, processes.accelerator)
        row = {"embedding": embedding, "all": sum(layers), "layer": max(layers), "before": resident(prior.denoiser)}
        for keep in (0,) if processes.accelerator.deepspeed_plugin else (0, STEPS):
            with Peak(prior.denoiser) as peak:
                sharded = gradients(keep)
            differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(sharded, whole, strict=True)]
            after = resident(prior.denoiser)
            row[f"keep {keep}"] = {"peak": peak.most, "after": after, "difference": max(differences)}
        rows.append(row)
    (out / f"{processes.process_index}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
