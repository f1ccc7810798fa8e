"""`mipgate build`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from compression.recipe import Recipe
from variants.assessment import assess_model
from variants.build import Built, build
from variants.catalog import Catalog
from variants.cli.remote import Remote, key_option, over_api_option
from variants.cli.remote_job import run_job
from variants.cli.show import print_model
from variants.host import Host, this_host
from variants.progress import reporter

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--jobs",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Variants compressed side by side.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Give a variant up that takes longer.",
    ),
    click.option("--quiet", is_flag=True, help="Do not print the table at the end."),
)


def build_options(command: Command) -> Command:
    """What every verb that builds can be told: `--jobs`, `--timeout`, `--quiet`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(name="build")
@click.argument("model")
@click.option("--recipe", "recipes", multiple=True, metavar="NAME", help="Build only this one; repeatable.")
@click.option(
    "--recipe-file",
    "recipe_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Build the recipe in this JSON file; repeatable.",
)
@build_options
@over_api_option
@key_option
def command(
    model: str,
    recipes: tuple[str, ...],
    recipe_files: tuple[Path, ...],
    jobs: int,
    timeout_s: float | None,
    quiet: bool,
    url: str | None,
    key: str | None,
) -> None:
    """Build, score, profile and publish the variants of MODEL.

    MODEL is a name of the zoo, a model that was added, or your own spec as package.module:ATTRIBUTE. What
    has not changed since the last build is found in the store and not built again.

    A recipe file holds a name and the passes in order, with what differs from their defaults:
    {"name": "half", "steps": [{"pass": "prune-structured", "settings": {"ratio": 0.5}}]}
    A "seed" beside them makes another run of the same recipe.

    Example: mipgate build digits --recipe int8-static --jobs 2
    """
    added = [_recipe(file) for file in recipe_files]
    if url is not None:
        _build_there(Remote(url, key), model, recipes, added)
        return
    catalog, host = Catalog(), this_host()
    with reporter() as progress:
        built = build(
            model, catalog, host, progress, recipes=recipes, added=added, jobs=jobs, timeout_s=timeout_s
        )
    if failed := tell(built, catalog, host, quiet):
        raise click.ClickException(failed)


def _build_there(gateway: Remote, model: str, recipes: tuple[str, ...], added: list[Recipe]) -> None:
    """Has the builder of a running gateway build, one recipe after another."""
    bodies: list[dict[str, Any]] = [{"recipe": name} for name in recipes]
    for recipe in added:
        seed = {} if recipe.seed is None else {"seed": recipe.seed}
        bodies.append({"name": recipe.name, "steps": recipe.canonical()} | seed)
    if not bodies:
        raise click.UsageError("--url builds what is named: give --recipe or --recipe-file.")
    for body in bodies:
        run_job(gateway, f"/admin/models/{model}/builds", body)


def tell(built: Built, catalog: Catalog, host: Host, quiet: bool) -> str:
    """Prints what a build did; returns what to say of the variants that failed, if any did."""
    name = built.card.spec.model
    if not quiet:
        card, standings = assess_model(catalog, name, host)
        print_model(card, standings, host)
    counts = f"{len(built.fresh)} built, {len(built.cached)} cached, {len(built.failures)} not built"
    click.echo(f"{name}: {counts}", err=True)
    failed = [recipe for recipe, failure in built.failures.items() if failure.status == "failed"]
    return f"{', '.join(failed)} failed; the table above says why." if failed else ""


def _recipe(file: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise click.BadParameter(f"{file} is no recipe: {where}: {first['msg']}.") from error
