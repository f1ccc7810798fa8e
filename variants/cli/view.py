"""`mipgate view`."""

from __future__ import annotations

import click
import netron

from compression.container import PACKED_SUFFIX, expand
from variants.catalog import Catalog
from variants.cli.target import find_variant


@click.command(name="view")
@click.argument("name", metavar="MODEL/VARIANT")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes a free one."
)
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
def command(name: str, port: int, no_browser: bool) -> None:
    """Show a variant's graph in the browser, with Netron.

    Example: mipgate view digits/int8-static
    """
    catalog = Catalog()
    _, variant = find_variant(catalog, name)
    path = catalog.open(variant).model_path
    plain = path.with_suffix(".onnx")
    content = expand(path.read_bytes()) if path.suffix == PACKED_SUFFIX else path.read_bytes()
    host, given = netron.serve(str(plain), content, ("127.0.0.1", port), browse=not no_browser)
    click.echo(f"{variant} at http://{host}:{given} until you press Ctrl-C.")
    netron.wait()
