"""`mesaprobe list`: what is installed."""

import click


@click.command("list")
@click.argument(
    "kind", type=click.Choice(["tasks", "solvers", "analyses", "presets", "recipes", "formats"])
)
def list_(kind: str) -> None:
    """Lists what is installed."""
    from probe.description import installed

    for name in installed(kind):
        click.echo(name)


NAMED = {"list": list_}
