"""The frozen denoiser's parameters dealt to the processes: by DeepSpeed's ZeRO-3 or by PyTorch's FSDP2.

The launch configuration chooses, never the recipe: launch/zero3.yaml, launch/fsdp2.yaml. A layer's parameters are whole
on a process while that layer computes, so that every call of the denoiser is a collective.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.priors import Prior
from ld3m.recipe import SamplerRecipe

ONE_LAYER = {
    "stage3_param_persistence_threshold": 0,  # 100,000: a layer with fewer parameters stays whole
    "stage3_prefetch_bucket_size": 0,  # 50 M: what is gathered ahead
    "stage3_max_reuse_distance": 0,  # 1,000 M: what is used again so soon stays whole, here all of it
}
"""ZeRO-3's settings with which no more than one layer is whole; the comments give its defaults.

A `deepspeed_config_file` that sets them takes precedence: memory for speed.
"""


def wanted(accelerator: Accelerator | None) -> bool:
    """Whether the launch asks for sharding. ZeRO-2 does not: a frozen prior has no gradients or optimiser state."""
    if accelerator is None:
        return False
    zero = accelerator.deepspeed_plugin
    return zero.zero_stage == 3 if zero is not None else parse_flag_from_env("ACCELERATE_USE_FSDP")


def shard_denoiser(prior: Prior, recipe: SamplerRecipe, accelerator: Accelerator) -> None:
    """Leaves each process a part of the denoiser's parameters, on its device, wherever they are now.

    The rest of the prior stays whole on every process. From here on all processes must make the same calls of the
    denoiser, and of its parameters only the dtype can be read.

    Raises:
        UserError: for FSDP's first version; if the recipe keeps graphs, with which ZeRO-3 keeps every layer whole; if
            the prior has no denoiser.
    """
    denoiser = prior.denoiser
    if denoiser is None:
        raise UserError(
            f"prior.source: a {type(prior).__name__} has no denoiser to shard; launch without ZeRO-3 and FSDP"
        )
    for parameter in denoiser.parameters():  # which are cut up as they lie, and lie channels last on CPUs
        parameter.data = parameter.data.contiguous()
    if accelerator.deepspeed_plugin is None:
        plugin = FullyShardedDataParallelPlugin()  # on CPUs Accelerate does not make one
        if plugin.fsdp_version != 2:
            raise UserError(
                f"fsdp_version: {plugin.fsdp_version}, but a prior is sharded by FSDP2 alone; "
                "set fsdp_version: 2 in the configuration of the launch, as launch/fsdp2.yaml does"
            )
        _fsdp2(denoiser, accelerator, plugin)
        return
    if recipe.kept_steps:
        raise UserError(
            f"prior.keep_graph_steps: {recipe.keep_graph_steps}, but under ZeRO-3 every layer of which a graph is "
            "kept stays whole on every process; set prior.keep_graph_steps=0"
        )
    _zero3(denoiser, accelerator, accelerator.deepspeed_plugin.deepspeed_config)


def _zero3(denoiser: nn.Module, accelerator: Accelerator, config: dict[str, Any]) -> None:
    """Makes DeepSpeed's engine for the hooks that it sets; called itself, the engine forbids a plain gradient."""
    import deepspeed

    dtype = next(denoiser.parameters()).dtype
    config["train_micro_batch_size_per_gpu"] = 1  # required, without effect
    config["bf16"] = {"enabled": dtype == torch.bfloat16}
    config["fp16"] = {"enabled": dtype == torch.float16}
    config["zero_optimization"] = ONE_LAYER | config["zero_optimization"]
    names = ("train_micro_batch_size_per_gpu", "zero_optimization")
    # The engine would move a whole denoiser to the device, but leaves one that is dealt out already.
    deepspeed.zero.Init(denoiser, config_dict_or_path={name: config[name] for name in names}, dtype=dtype)
    denoiser.to(accelerator.device)  # its buffers, if any
    for layer in denoiser.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = partial(_by_rows, layer.forward)  # type: ignore[method-assign]
    accelerator.prepare(denoiser)


def _by_rows(linear: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The same for inputs [..., features]: DeepSpeed's linear function rounds as PyTorch's only if given a matrix."""
    return linear(inputs.flatten(0, -2)).unflatten(0, inputs.shape[:-1])


def _fsdp2(denoiser: nn.Module, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """`fully_shard` a layer at a time, as ZeRO-3 does: some models call parts of a block from outside of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import OffloadPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # It warns of layers whose output is a view: a model that wrote into one would fail, its parameters being freed.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    offload = OffloadPolicy() if accelerator.device.type == "cpu" else plugin.cpu_offload  # a CPU has nowhere else
    for layer in reversed(list(denoiser.modules())):  # a layer takes what those within it have left
        if layer is denoiser or any(True for _ in layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, offload_policy=offload)
