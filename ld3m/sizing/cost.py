"""The arithmetic of a run: who has what, how often the denoiser is called, what is held, read and sent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ld3m.objectives import mtt
from ld3m.recipe import Recipe
from ld3m.sizing.bench import calls, differentiated_calls, real_images
from ld3m.sizing.count import Counts
from ld3m.sizing.timed import Sample

FLOAT = 4
"""Bytes of a number of what is learnt, of pixels and of states, whatever the denoiser's precision."""


@dataclass(frozen=True)
class RunCost:
    """What a recipe costs on so many processes: sizes, calls, bytes and operations by arithmetic alone."""

    recipe: Recipe
    processes: int
    classes: int
    latent: tuple[int, ...]
    conditioning: tuple[int, ...]
    features: int = 0
    """Features of an image in the matching network, if processes tell each other theirs (`Bench.gathered_features`)."""

    @property
    def shards(self) -> list[tuple[int, int]]:
        """(processes, classes of each), those with more first; classes are dealt like cards, so they differ by one."""
        fewest, more = divmod(self.classes, self.processes)
        return [(count, size) for count, size in ((more, fewest + 1), (self.processes - more, fewest)) if count]

    @property
    def images(self) -> int:
        """Synthetic images of a process that has the most."""
        return self.shards[0][1] * self.recipe.distill.latents_per_class

    @property
    def everyone(self) -> int:
        """Synthetic images of all processes."""
        return self.classes * self.recipe.distill.latents_per_class

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in float32."""
        return FLOAT * self.recipe.data.channels * self.recipe.data.resolution**2

    @property
    def learnt_bytes(self) -> int:
        """Bytes of Z, c and what their optimiser keeps, for one image."""
        return (3 if self.recipe.distill.optimiser == "adam" else 2) * self.input_bytes

    @property
    def input_bytes(self) -> int:
        """Bytes of Z and c of one image."""
        return FLOAT * (math.prod(self.latent) + math.prod(self.conditioning))

    @property
    def kept(self) -> int:
        """Steps whose graph is kept; of drawn ones the most that may be."""
        return min(self.recipe.prior.kept_steps, self.most_kept)

    @property
    def keeps_decoder(self) -> bool:
        """Whether the decoder's graph is kept: with that of any step, even if no step has one."""
        return self.recipe.prior.kept_steps > 0

    @property
    def most_kept(self) -> int:
        """Steps whose graph could be kept."""
        return self.recipe.prior.steps_made if self.recipe.prior.pull_back == "exact" else self.differentiated

    @property
    def differentiated(self) -> int:
        """Denoiser calls of a chain that its pull-back goes through."""
        return differentiated_calls(self.recipe.prior)

    @property
    def again(self) -> int:
        """Denoiser calls that the pull-back of a chain runs again."""
        return max(0, self.differentiated - self.kept)

    def denoiser_calls(self) -> dict[str, int]:
        """Calls of an iteration of a process that has the most, images in each, and calls of the whole run."""
        sampler, chain, per_class = self.recipe.prior, calls(self.recipe.prior), self.recipe.distill.latents_per_class

        def batches(classes: int) -> int:
            return -(-classes * per_class // sampler.images_at_a_time)

        own, every = batches(self.shards[0][1]), sum(count * batches(size) for count, size in self.shards)
        iterations = self.recipe.distill.iterations
        return {
            "forwards": own * (chain + self.again),
            "backwards": own * self.differentiated,
            "images": min(self.images, sampler.images_at_a_time) * (1 if sampler.guidance == 1 else 2),
            "forwards in all": every * (iterations * (chain + self.again) + chain)
            + self.sampling_calls()["forwards in all"],
            "backwards in all": every * iterations * self.differentiated,
        }

    def sampling_calls(self) -> dict[str, int]:
        """Denoiser calls by which a process that has the most samples its start, at most, and images in each."""
        sampler = self.recipe.prior
        if not self.recipe.samples:
            return {"forwards": 0, "images": 0, "forwards in all": 0}
        drawn = self.recipe.distill.latents_per_class * self.recipe.sample.draws
        each = self.recipe.sample.steps * -(-drawn // sampler.images_at_a_time)
        null = 1 if self.recipe.sampling_guidance == 1 else 2
        images = null * min(drawn, sampler.images_at_a_time)
        return {"forwards": self.shards[0][1] * each, "images": images, "forwards in all": self.classes * each}

    @property
    def gathers(self) -> bool:
        """Whether an iteration shows the images of all classes to every process."""
        settings = self.recipe.distill
        return settings.objective == "mtt" or (settings.objective == "dc" and settings.dc.outer > 1)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the images of all classes: as rendered, normalised, and their gradient; or of other processes'
        features, those of a process's own classes being counted with these.
        """
        if self.gathers:
            return 3 * self.everyone * self.image_bytes
        return self._feature_bytes * (self.classes - self.shards[0][1])

    @property
    def _feature_bytes(self) -> int:
        """Bytes of the features that are gathered of a class: of its synthetic and its real images."""
        return FLOAT * self.features * (self.recipe.distill.latents_per_class + self.recipe.distill.real_batch)

    @property
    def share(self) -> float:
        """The effective number of fully loaded processes."""
        return self.classes / self.shards[0][1]

    def real_bytes(self, counts: Sequence[int]) -> int:
        """Bytes of uint8 images that a process reads per iteration on average, given the images of each class."""
        if self.recipe.distill.objective == "mtt":  # experts have seen them
            return 0
        most, size = real_images(self.recipe.distill), self.image_bytes // FLOAT
        return size * sum(min(most, count) for count in counts[:: self.processes])

    def mapped_bytes(self, counts: Sequence[int], iterations: int) -> float:
        """Bytes of real images that so many iterations have mapped into memory, given the images of each class.

        A draw maps its surroundings too, if the system has them in memory: 64 KB by Linux's default.
        """
        if self.recipe.distill.objective == "mtt":
            return 0.0
        size = self.image_bytes // FLOAT
        draws, drawn = iterations * max(1, 65536 // size), real_images(self.recipe.distill)
        return sum(size * count * (1 - (1 - min(1, drawn / count)) ** draws) for count in counts)

    def communication(self) -> dict[str, float]:
        """Bytes that each process receives per iteration on average, apart from the few of logging."""
        settings = self.recipe.distill
        pictures = self.everyone * self.image_bytes if self.processes > 1 else 0
        share = {"mtt": 1.0, "dc": (settings.dc.outer - 1) / settings.dc.outer}.get(settings.objective, 0.0)
        features = self.classes * self._feature_bytes if self.processes > 1 else 0
        return {"images of all classes": share * pictures} | ({"features of all classes": features} if features else {})

    def memory(self, counts: Counts, sample: Sample | None = None) -> tuple[dict[str, float], str]:
        """Bytes by part at the worst moment, without weights, and the name of the part that is temporary then.

        Args:
            counts: of this recipe, or of one with larger micro-batches or parts.
            sample: what was run in place of an iteration, if the memory of that is wanted.
        """
        settings, steps = self.recipe.distill, self.recipe.prior.steps_made
        images, classes = self.images, self.shards[0][1]
        if sample:
            images, steps, classes = sample.images, sample.steps, sample.units
        step, decoder = counts.step, counts.decoder
        share = min(images, self.recipe.prior.images_at_a_time) / counts.images
        graphs = (min(self.kept, steps) * step.graph + (decoder.graph if self.keeps_decoder else 0)) / counts.images
        unit, rest = counts.objective_bytes
        objective: float = classes * unit + rest
        if settings.objective == "mtt":
            objective = (unit + rest) * min(settings.mtt.batch_syn or self.everyone, mtt.CHUNK) / counts.shown
        if not sample:
            objective = max(objective, counts.inner_bytes) + self.gathered_bytes
        moments: dict[str, float] = {
            "a denoiser step": share * (step.peak if self.again else step.peak - step.graph),
            "the decoder": share * (decoder.peak - (decoder.graph if self.keeps_decoder else 0)),
            "the objective": objective if settings.iterations else 0.0,
        }
        most = max(moments, key=lambda name: moments[name])
        return {**self.lasting(images, steps), "graphs kept": images * graphs, most: moments[most]}, most

    def lasting(self, images: int, steps: int) -> dict[str, float]:
        """Bytes by part that so many images take for a whole iteration, however the prior is run."""
        latent = FLOAT * math.prod(self.latent)
        return {
            "Z, c, momentum, gradients, noise": images * (self.learnt_bytes + self.input_bytes + latent),
            "rendered images and their gradient": 3 * images * self.image_bytes,
            "states of the chain": images * (steps + 2) * latent,
        }

    def sampling_operations(self, counts: Counts) -> tuple[float, str]:
        """Floating point operations by which a process samples its start, at most, with their precision."""
        images = self.images * self.recipe.sample.draws if self.recipe.samples else 0
        return images * self.recipe.sample.steps * counts.step.forward / counts.images, self.recipe.prior.dtype

    def operations(self, counts: Counts) -> dict[str, list[tuple[float, str]]]:
        """Floating point operations of an iteration's parts, each with its precision."""
        share, chain, outer = self.images / counts.images, calls(self.recipe.prior), self.recipe.distill.dc.outer
        step, decoder = counts.step, counts.decoder
        denoiser, network = self.recipe.prior.dtype, self.recipe.network.dtype
        first = 0 if self.keeps_decoder else decoder.forward
        unit, rest = counts.objective
        backwards = self.again * step.forward + self.differentiated * step.backward
        return {
            "render": [(share * chain * step.forward, denoiser), (share * decoder.forward, "float32")],
            "objective": [(counts.units * unit + rest, network)],
            "inner loop": [(counts.batches * counts.inner * (outer - 1) / outer, network)],
            "pull_back": [(share * backwards, denoiser), (share * (first + decoder.backward), "float32")],
        }
