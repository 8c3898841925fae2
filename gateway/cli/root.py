"""The command line: one group, one file per command or group of commands."""

from __future__ import annotations

import click

from gateway import __version__
from gateway.cli.audit import audit
from gateway.cli.budgets import budgets
from gateway.cli.demo import demo
from gateway.cli.doctor import doctor
from gateway.cli.keys import keys
from gateway.cli.ledger import ledger
from gateway.cli.migrate import migrate
from gateway.cli.organisation import organisation
from gateway.cli.prices import prices
from gateway.cli.reconcile import reconcile
from gateway.cli.replay import replay
from gateway.cli.report import report
from gateway.cli.serve import serve
from gateway.cli.simulator import simulator
from gateway.cli.teams import teams


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gateway")
def cli() -> None:
    """One endpoint for Kimi's thinking models: routed by price, metered to the pico-dollar."""


for command in (
    *(serve, demo, simulator, migrate),
    *(keys, teams, budgets, organisation, audit),
    *(report, ledger, replay, reconcile, prices, doctor),
):
    cli.add_command(command)
