"""A plan for people: lines of aligned text."""

from ld3m.distillation.plan import Plan

Row = tuple[str, str]
"""A heading, and what stands beside it."""


def plan_text(plan: Plan) -> str:
    """The plan as aligned text."""
    gib = 2**30
    rows = [
        ("recipe", f"{plan.recipe}, {plan.basis}"),
        ("shards", " and ".join(f"{_many(count, 'process')} × {_many(size, 'class')}" for count, size in plan.shards)),
        ("", f"{_many(plan.images, 'image')} on each" + (" of the first" if len(plan.shards) > 1 else "")),
        *(_learning(plan) if plan.iterations else _sampling(plan)),
        ("hours", f"{plan.hours:12,.3f}"),
        (f"{plan.processor}-hours", f"{plan.processor_hours:12,.3f}"),
        *(
            ("evaluate" * (not index), f"{hours:12,.3f}  hours, {arch}")
            for index, (arch, hours) in enumerate(plan.evaluation.items())
        ),
        *(
            ("GiB" * (not index), f"{size / gib:12,.3f}  {name}")
            for index, (name, size) in enumerate(plan.memory.items())
        ),
        ("", f"{plan.peak / gib:12,.3f}  together, of {plan.available / gib:,.1f}"),
        *(_traffic(plan) if plan.iterations else []),
        *([("disk", f"{plan.experts_bytes / 1e9:12,.1f}  GB for the experts")] if plan.experts_bytes else []),
        *(("warning", warning) for warning in plan.warnings),
    ]
    return "\n".join(f"{name:<10}{text}".rstrip() for name, text in rows)


def _learning(plan: Plan) -> list[Row]:
    """What is learnt, the denoiser's calls, and the seconds."""
    calls, sampling = plan.denoiser_calls, plan.sampling
    parts = {name: spent for name, spent in plan.seconds.items() if name not in ("start", "end") and spent}
    return [
        ("learnt", f"Z {plan.z}, c {plan.c}, {plan.learnt_bytes / 1e6:,.1f} MB with their momentum"),
        ("at a time", f"{_many(plan.micro_batch, 'image')}, the graphs of {_many(plan.keep_graph_steps, 'step')} kept"),
        ("denoiser", f"{calls['forwards']:,} calls forwards and {calls['backwards']:,} backwards per iteration,"),
        ("", f"of {calls['images']:,} images; {calls['forwards in all']:,} and {calls['backwards in all']:,} in all"),
        *([("", f"and to sample Z {_sampling_calls(sampling)}")] if sampling["forwards"] else []),
        *(("seconds" * (not index), f"{spent:12,.3f}  {name}") for index, (name, spent) in enumerate(parts.items())),
        ("", f"{sum(parts.values()):12,.3f}  per iteration"),
        ("", f"{plan.seconds['start']:12,.3f}  the start"),
        ("", f"{plan.seconds['end']:12,.3f}  the end"),
    ]


def _sampling(plan: Plan) -> list[Row]:
    """What is sampled if nothing is learnt, the denoiser's calls, and the seconds."""
    return [
        ("sampled", f"Z {plan.z}"),
        ("at a time", _many(plan.micro_batch, "image")),
        ("denoiser", f"{_sampling_calls(plan.sampling)}; {plan.denoiser_calls['forwards in all']:,} in all"),
        ("seconds", f"{plan.seconds['start']:12,.3f}  the start, and sampling"),
        ("", f"{plan.seconds['end']:12,.3f}  the end"),
    ]


def _sampling_calls(sampling: dict[str, int]) -> str:
    return f"at most {sampling['forwards']:,} calls forwards, of {sampling['images']:,} images"


def _traffic(plan: Plan) -> list[Row]:
    """What an iteration sends and reads."""
    return [
        *(
            ("sent" * (not index), f"{size / 1e6:12,.1f}  MB per iteration, {name}")
            for index, (name, size) in enumerate(plan.communication.items())
        ),
        ("read", f"{plan.real_bytes / 1e6:12,.1f}  MB per iteration, real images"),
    ]


def _many(count: int, word: str) -> str:
    """A number of something, in the plural unless there is one."""
    return f"{count:,} {word}{'' if count == 1 else 'es' if word.endswith('s') else 's'}"
