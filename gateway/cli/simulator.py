"""`gateway simulator`: the three providers on loopback, for trying things out without a bill."""

from __future__ import annotations

import click

from gateway.simulator import PORT_BASE, serve


@click.command()
@click.option("--port-base", type=click.IntRange(1, 65_533), default=PORT_BASE, show_default=True, help="First port.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same answers.")
@click.option("--chunk-ms", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Pause per chunk.")
def simulator(port_base: int, seed: int, chunk_ms: float) -> None:
    """Serve Moonshot, CometAPI and EvoLink simulators on three ports until Ctrl-C."""
    for offset, name in enumerate(("moonshot", "cometapi", "evolink")):
        click.echo(f"{name:9} http://127.0.0.1:{port_base + offset}/v1", err=True)
    serve(port_base, seed, chunk_ms=chunk_ms)
