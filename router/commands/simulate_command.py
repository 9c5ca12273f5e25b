"""`simulate` on the command line: its options, and which of them contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.commands.options import ConfigOption, FormatOption
from router.commands.output import Format

TraceOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens."),
]
FromLogOption = Annotated[bool, typer.Option("--from-log", help="What this gateway has served, out of its books.")]
WorkloadsOption = Annotated[
    str | None, typer.Option(help="A set of workloads: six (Azure's kinds and bursts) or shapes (other kinds).")
]
AzureOption = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder of Azure's CSV files, for the six; default: drawn."),
]
RequestsOption = Annotated[int | None, typer.Option(min=1, help="Play only so many requests of each workload.")]
GpuOption = Annotated[
    str | None, typer.Option(help="The GPU that is simulated; default: the config's, else h100-8b-fp16.")
]
StartOption = Annotated[
    str | None,
    typer.Option(help="What the product believes of the GPU at the start; default: the config's, else the truth."),
]
PoliciesOption = Annotated[
    str,
    typer.Option(
        help="Comma-separated: product, product_fixed, nvml80, waiting0, llmd, always_local, always_api, count64."
    ),
]
ScaleOption = Annotated[float | None, typer.Option(min=0, help="Play it so many times as fast.")]
RateOption = Annotated[float | None, typer.Option(min=0, help="Play it at so many requests a second in the mean.")]
BurstOption = Annotated[
    float | None, typer.Option(min=0, help="Draw arrivals anew, in bursts of this coefficient of variation.")
]
StepOption = Annotated[
    int | None, typer.Option(min=16, help="Token budget of an engine step; default: as this gateway starts it.")
]
LearnOption = Annotated[
    bool, typer.Option("--self-calibration/--no-self-calibration", help="Learn coefficients while serving.")
]
OthersOption = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the requests that others send to the engine past the gateway.")
]
GatewaysOption = Annotated[
    int, typer.Option(min=1, max=64, help="Gateways that share the engine, knowing nothing of each other.")
]
PlotOption = Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw the rows into this SVG file.")]


def simulate(
    trace: TraceOption = None,
    from_log: FromLogOption = False,
    workloads: WorkloadsOption = None,
    azure: AzureOption = None,
    requests: RequestsOption = None,
    gpu: GpuOption = None,
    start_coefficients: StartOption = None,
    policies: PoliciesOption = "product,nvml80,waiting0,llmd,always_local",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    scale: ScaleOption = None,
    rate: RateOption = None,
    burst_cv: BurstOption = None,
    max_batched_tokens: StepOption = None,
    self_calibration: LearnOption = True,
    others_ratio: OthersOption = 0.0,
    gateways: GatewaysOption = 1,
    plot: PlotOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """What if: the decision of this gateway over a simulated GPU, beside common rules of thumb."""
    from router.commands import simulate as command

    if (trace is not None) + from_log + (workloads is not None) != 1:
        raise typer.BadParameter("give either --trace or --from-log, or a set of --workloads")
    if azure is not None and workloads != "six":
        raise typer.BadParameter("--azure is what --workloads six is made of")
    if workloads is not None and (rate is not None or burst_cv is not None):
        raise typer.BadParameter("--rate and --burst-cv are for one trace; scale all workloads with --scale")
    if scale is not None and rate is not None:
        raise typer.BadParameter("give --scale or --rate, not both")
    for option, value in (("--scale", scale), ("--rate", rate), ("--burst-cv", burst_cv)):
        if value == 0:
            raise typer.BadParameter(f"{option} must be more than 0")
    options = command.Options(
        trace=trace,
        workloads=workloads,
        azure=azure,
        requests=requests,
        gpu=gpu,
        start_coefficients=start_coefficients,
        policies=tuple(name.strip() for name in policies.split(",") if name.strip()),
        seed=seed,
        scale=scale,
        rate_rps=rate,
        burst_cv=burst_cv,
        max_batched_tokens=max_batched_tokens,
        self_calibration=self_calibration,
        others_ratio=others_ratio,
        gateways=gateways,
        plot=plot,
    )
    command.run(config, form, options)
