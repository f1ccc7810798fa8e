"""`mipgate survey`: every technique once on one model, so that one table compares them all on this host.

A survey tells what each technique brings by itself; `variants.search` looks for the best of their
combinations.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import PassRefusedError
from compression.model import Form
from compression.pipeline import check
from compression.recipe import Recipe, Step, step
from compression.reparameterization import has_branches
from variants.build import Built, build
from variants.catalog import Catalog
from variants.host import Host
from variants.progress import Reporter
from variants.reference import untrained
from variants.spec import ModelSpec, load_spec

_SPARSITY = 0.8


@dataclass(frozen=True)
class Surveyed:
    """What a survey did.

    Attributes:
        built: The build of all techniques.
        left_out: Techniques that need a module, where the model is a graph.
    """

    built: Built
    left_out: tuple[str, ...]


def survey(
    spec_name: str,
    catalog: Catalog,
    host: Host,
    progress: Reporter,
    *,
    epochs: int | None = None,
    jobs: int = 1,
    timeout_s: float | None = None,
) -> Surveyed:
    """Builds one recipe of every technique; what was not there before is published as a candidate.

    Args:
        spec_name: A model of the zoo or one that was added, or `module:attribute`.
        catalog: Where variants are published.
        host: This host, which they are profiled on.
        progress: Receives the progress.
        epochs: Of each training; None for half of the model's own.
        jobs: How many variants are compressed side by side.
        timeout_s: How long one variant may take; None for what the spec says.

    Raises:
        SpecError: There is no such model.
        BuildError: Its reference cannot be built.
    """
    spec = load_spec(spec_name)
    form = untrained(spec).form
    recipes, left_out = techniques(spec, form, epochs or max(1, spec.training.epochs // 2))
    built = build(
        spec_name, catalog, host, progress, added=recipes, jobs=jobs, timeout_s=timeout_s, released=False
    )
    return Surveyed(built, left_out)


def techniques(spec: ModelSpec, form: Form, epochs: int) -> tuple[list[Recipe], tuple[str, ...]]:
    """The recipes of a survey, and the names of those that need a module where there is none.

    What the spec has a recipe for is built under the spec's name for it. A name that the spec has for
    other steps begins with `survey-` here.

    Args:
        spec: The model.
        form: What its factory makes.
        epochs: Of each training.
    """
    own = {recipe.digest: recipe for recipe in spec.recipes}
    taken = {recipe.name for recipe in spec.recipes}
    recipes: list[Recipe] = []
    left_out: list[str] = []
    for name, steps in (_techniques(epochs) | _students(spec, form, epochs)).items():
        recipe = Recipe(name=f"survey-{name}" if name in taken else name, steps=steps)
        try:
            check(recipe, form)
        except PassRefusedError:
            left_out.append(name)
        else:
            recipes.append(own.get(recipe.digest, recipe))
    return recipes, tuple(left_out)


def _techniques(epochs: int) -> dict[str, tuple[Step, ...]]:
    """Each technique by itself: half of the channels go, or four fifths of the weights."""
    pruned = step("prune-structured", epochs=epochs)
    sparse = step("prune-unstructured", ratio=_SPARSITY, epochs=epochs)
    clustered = step("cluster", epochs=epochs)
    return {
        "fp16": (step("fp16"),),
        "fused": (step("fuse"),),
        "int8-dynamic": (step("int8-dynamic"),),
        "int8-static": (step("int8-static"),),
        "int8-entropy": (step("int8-static", calibration="entropy"),),
        "int8-percentile": (step("int8-static", calibration="percentile"),),
        "int8-symmetric": (step("int8-static", symmetric=True, activations="int8"),),
        "int8-reduced-range": (step("int8-static", reduce_range=True),),
        "int8-smoothquant": (step("int8-smoothquant"),),
        "int8-accuracy-control": (step("int8-accuracy-control"),),
        "int8-data-free": (step("int8-data-free"),),
        "int8-qat": (step("int8-qat", epochs=epochs),),
        "int8-qat-learned-step": (step("int8-qat", learned_step=True, epochs=epochs),),
        "int8-qat-pact": (step("int8-qat", clipping="pact", epochs=epochs),),
        "int4-weights": (step("int4-weights"),),
        "fp8-weights": (step("fp8-weights", epochs=epochs),),
        "fixed-point-weights": (step("fixed-point-weights", epochs=epochs),),
        "pow2-weights": (step("pow2-weights", epochs=epochs),),
        "binary-weights": (step("binary-weights", epochs=epochs),),
        **{f"pruned-{importance}": (_by(importance, epochs),) for importance in ("l1", "l2", "taylor")},
        "pruned-bn-gamma": (_by("bn-gamma", epochs, slimming=1e-4, slimming_epochs=epochs),),
        "pruned-random": (_by("random", epochs),),
        "pruned-global": (_by("taylor", epochs, global_pruning=True),),
        "pruned-in-rounds": (_by("taylor", max(1, epochs // 3), rounds=3),),
        "pruned-by-search": (step("prune-search", epochs=epochs),),
        "pruned-depth": (step("prune-depth", epochs=epochs),),
        "sparse-global": (sparse,),
        "sparse-local": (step("prune-unstructured", ratio=_SPARSITY, global_pruning=False, epochs=epochs),),
        "sparse-2-4": (step("prune-nm", epochs=epochs),),
        "low-rank": (step("low-rank", epochs=epochs),),
        "clustered": (clustered, step("huffman")),
        "deep-compression": (sparse, clustered, step("huffman")),
        "pruned-taught-qat": (
            pruned,
            step("distill", student="current", epochs=epochs),
            step("int8-qat", epochs=max(1, epochs // 2)),
        ),
    }


def _by(importance: str, epochs: int, **settings: object) -> Step:
    return step("prune-structured", importance=importance, epochs=epochs, **settings)


def _students(spec: ModelSpec, form: Form, epochs: int) -> dict[str, tuple[Step, ...]]:
    """The spec's students, from scratch and for twice as long; those that learn in branches are fused."""
    if form is Form.ONNX:
        return {}
    recipes: dict[str, tuple[Step, ...]] = {}
    for name, make in spec.students.items():
        taught = step("distill", student=name, epochs=2 * epochs)
        recipes[f"student-{name}"] = (taught, step("fuse")) if has_branches(make()) else (taught,)
    return recipes
