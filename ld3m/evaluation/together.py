"""One network trained by all processes of a launch, each on its share of every batch, their gradients averaged.

What is drawn is drawn for the whole batch by every process, so that the network is that of one process up to rounding.
Dropout alone is drawn for the share: networks with it agree in distribution.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ld3m.errors import UserError
from ld3m.machine.processes import Processes
from ld3m.networks.training import Loss


@dataclass
class Share:
    """This process's share of a training's batches."""

    processes: Processes
    batch: int = field(default=0, init=False)
    """Images of the batch at hand, over all processes."""
    own: int = field(default=0, init=False)
    """Of which this process has so many."""

    def of(self, count: int) -> Tensor:
        """The places in a batch of `count` images that are this process's, int64 [n]; one that does not count, if none.

        Processes must take part in every step, even in one with fewer images than processes.
        """
        places = torch.arange(count)[self.processes.process_index :: self.processes.num_processes]
        self.batch, self.own = count, len(places)
        return places if self.own else torch.zeros(1, dtype=torch.long)

    def weighted(self, loss: Loss) -> Loss:
        """A mean loss of the share, so weighted that the mean over processes is that of the batch."""

        def of_share(logits: Tensor, *targets: Tensor) -> Tensor:
            return loss(logits, *targets) * (self.own * self.processes.num_processes / self.batch)

        return of_share

    def joined(self, network: nn.Module, arch: str) -> nn.Module:
        """The network as it is trained: its gradients are averaged as they come, by Accelerate's data parallelism.

        Batch norm uses the statistics of the whole batch, which torch computes on GPUs alone.

        Args:
            network: with the same weights on all processes; its layers may be replaced by others with these weights.

        Raises:
            UserError: for a network with batch norm on CPUs.
        """
        if any(isinstance(module, _BatchNorm) for module in network.modules()):
            if self.processes.device.type != "cuda":
                raise UserError(
                    f"evaluate.together: {arch} has batch norm, whose statistics processes share on GPUs alone; leave "
                    "it out, or give another --arch"
                )
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert self.processes.accelerator
        joined: nn.Module = self.processes.accelerator.prepare_model(network)
        return joined

    def release(self) -> None:
        """Lets go of the network that was joined last."""
        if self.processes.accelerator:
            self.processes.accelerator.free_memory()
