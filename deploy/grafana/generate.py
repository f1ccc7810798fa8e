"""Writes the dashboards as Grafana reads them: `python -m deploy.grafana.generate`. A test checks them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as query_model
from grafana_foundation_sdk.models import xychart as xy

from deploy.grafana.board import Board, Limits, Panel
from deploy.grafana.boards import BOARDS

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LETTERS = "ABCDEFGH"
_HEIGHTS = {"number": 4, "table": 9, "points": 9}


def dashboard_json(board: Board) -> str:
    """The document that Grafana loads."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["mipgate"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_model_variable())
        .link(
            dashboard.DashboardLink("Mipgate")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["mipgate"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for panel in board.panels:
        built = built.with_panel(_panel(panel))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _model_variable() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("model")
        .label("Model")
        .datasource(_SOURCE)
        .query("label_values(mipgate_variant_state, model)")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(text="All", value="$__all", selected=True))
    )


def _panel(panel: Panel) -> Any:
    built = _MAKERS[panel.kind](panel)
    for letter, query in zip(_LETTERS, panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter)
        built = built.with_target(target.datasource(_SOURCE) if panel.kind not in _TABULAR else _row(target))
    return (
        built.title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .thresholds(_thresholds(panel.limits))
        .span(panel.width)
        .height(_HEIGHTS.get(panel.kind, 8))
    )


def _row(target: prometheus.Dataquery) -> prometheus.Dataquery:
    """The newest values as rows of a table."""
    return target.instant().format(query_model.PromQueryFormat.TABLE).datasource(_SOURCE)


def _thresholds(limits: Limits) -> dashboard.ThresholdsConfig:
    colours = [(limits.warning, "yellow"), (limits.bad, "red")]
    if limits.less_is_worse:
        steps = [model.Threshold(value=None, color="red")]
        if limits.bad is not None and limits.warning is not None:
            steps.append(model.Threshold(value=limits.bad, color="yellow"))
        good = limits.bad if limits.warning is None else limits.warning
        steps.append(model.Threshold(value=good, color="green"))
    else:
        steps = [model.Threshold(value=None, color="green")]
        steps += [
            model.Threshold(value=value, color=colour) for value, colour in colours if value is not None
        ]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _lines(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
        .show_points(options.VisibilityMode.NEVER)
        .min(0)
    )
    if panel.limits.bad is not None:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        built = built.thresholds_style(style)
    return built


def _stack(panel: Panel) -> timeseries.Panel:
    stacking = common.StackingConfig().mode(options.StackingMode.NORMAL)
    return _lines(panel).stacking(stacking).fill_opacity(30)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(options.LegendDisplayMode.TABLE)
        .placement(options.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )


def _number(_: Panel) -> stat.Panel:
    return stat.Panel().graph_mode(options.BigValueGraphMode.AREA).reduce_options(_newest())


def _names(_: Panel) -> stat.Panel:
    built = stat.Panel().graph_mode(options.BigValueGraphMode.NONE).reduce_options(_newest())
    return built.text_mode(options.BigValueTextMode.NAME).color_mode(options.BigValueColorMode.NONE)


def _bars(_: Panel) -> bargauge.Panel:
    return bargauge.Panel().orientation(options.VizOrientation.HORIZONTAL).reduce_options(_newest())


def _newest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _table(panel: Panel) -> table.Panel:
    built = table.Panel()
    for transformation in _joined(panel):
        built = built.with_transformation(transformation)
    for query in panel.queries:
        unit = model.DynamicConfigValue(id_val="unit", value=panel.unit_of(query))
        built = built.override_by_name(query.legend, [unit])
    return built


def _points(panel: Panel) -> xychart.Panel:
    across, up = (query.legend for query in panel.queries)
    series = (
        xychart.XYSeriesConfig()
        .frame(xychart.XychartXYSeriesConfigFrame().matcher(xychart.MatcherConfig().id("byIndex").options(0)))
        .x(xychart.XychartXYSeriesConfigX().matcher(_by_name(across)))
        .y(xychart.XychartXYSeriesConfigY().matcher(_by_name(up)))
    )
    built = xychart.Panel().mapping(xy.SeriesMapping.MANUAL).series([series]).legend(_legend())
    built = built.show(xy.XYShowMode.POINTS)
    for transformation in _joined(panel):
        built = built.with_transformation(transformation)
    return built.override_by_name(across, [model.DynamicConfigValue(id_val="unit", value="s")])


def _by_name(name: str) -> xychart.MatcherConfig:
    return xychart.MatcherConfig().id("byName").options(name)


def _joined(panel: Panel) -> list[model.DataTransformerConfig]:
    """One row per variant: the queries' values joined by its name, under their legends."""
    values = {f"Value #{letter}": q.legend for letter, q in zip(_LETTERS, panel.queries, strict=False)}
    kept = "|".join(["^name$", *(f"^{name}$" for name in values)])
    return [
        model.DataTransformerConfig(id_val="joinByField", options={"byField": "name", "mode": "outer"}),
        model.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"pattern": kept}}),
        model.DataTransformerConfig(
            id_val="organize", options={"renameByName": {"name": "variant", **values}}
        ),
    ]


_TABULAR = ("table", "points")
_MAKERS: dict[str, Callable[[Panel], Any]] = {
    "lines": _lines, "stack": _stack, "number": _number, "names": _names, "bars": _bars, "table": _table,
    "points": _points,
}  # fmt: skip


def main() -> None:
    """Writes every dashboard."""
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(dashboard_json(board))


if __name__ == "__main__":
    main()
