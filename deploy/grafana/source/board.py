"""Builds panels and dashboards: the functions that all dashboards share."""

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATA_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Replacement of `@` in expressions: the coordinators of the selected run.
INSTANCE_MATCHER = 'instance=~"$instance"'
# Colours below the first bound, between the bounds, and above the second.
BOUND_COLORS = ["green", "orange", "red"]
GRID_WIDTH = 24
PANEL_HEIGHT = 8


def add_queries(panel, exprs, format_val=None, instant=False):
    """Adds queries to a panel. `exprs`: legend -> expression."""
    for index, (legend, expr) in enumerate(exprs.items()):
        query = prometheus.Dataquery().expr(expr.replace("@", INSTANCE_MATCHER)).legend_format(legend)
        query = query.instant() if instant else query.range()
        query.ref_id(chr(ord("A") + index)).datasource(DATA_SOURCE)
        if format_val is not None:
            query.format(format_val)
        panel.with_target(query)
    return panel


def describe(panel, title, description):
    return panel.title(title).description(description).datasource(DATA_SOURCE)


def thresholds(values):
    """Returns thresholds: green up to the first value, then orange, then red."""
    steps = [models.Threshold(value=value, color=color) for value, color in zip([None, *values], BOUND_COLORS)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def lines(title, description, unit, exprs, low=None, high=None, limits=None, stacked=False, logarithmic=False):
    """Creates a panel of time series. `limits` are dashed lines."""
    panel = add_queries(describe(timeseries.Panel(), title, description), exprs).unit(unit)
    table = len(exprs) > 1 or any("{{" in legend for legend in exprs)
    legend = common.VizLegendOptions().placement(kinds.LegendPlacement.BOTTOM).show_legend(table)
    panel.legend(legend.display_mode(kinds.LegendDisplayMode.LIST))
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI)
    panel.tooltip(tooltip.sort(kinds.SortOrder.DESCENDING))
    panel.line_width(1).show_points(kinds.VisibilityMode.AUTO).fill_opacity(40 if stacked else 0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG)
        panel.scale_distribution(scale.log(10))
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if limits is not None:
        panel.thresholds(thresholds(limits))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED))
    return panel


def bands(title, description, unit, exprs):
    """Creates a panel of series in ascending order, with the area from first to last filled."""
    panel = lines(title, description, unit, exprs)
    first, *_, last = exprs
    fill = [models.DynamicConfigValue(id_val="custom.fillBelowTo", value=first)]
    fill.append(models.DynamicConfigValue(id_val="custom.fillOpacity", value=15))
    return panel.override_by_name(last, fill)


def number(title, description, unit, legend, expr, limits=None, name=False, decimals=None):
    """Creates a panel with the present value and a sparkline; with `name`, with the legend."""
    # With `name` an instant query omits series that have ended.
    panel = add_queries(describe(stat.Panel(), title, description), {legend: expr}, instant=name).unit(unit)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(kinds.BigValueGraphMode.NONE if name else kinds.BigValueGraphMode.AREA)
    panel.text_mode(kinds.BigValueTextMode.NAME if name else kinds.BigValueTextMode.VALUE)
    panel.color_mode(kinds.BigValueColorMode.VALUE if limits else kinds.BigValueColorMode.NONE)
    panel.thresholds(thresholds(limits or []))
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def timeline(title, description, exprs, values):
    """Creates a state timeline. `values`: value -> (text, colour)."""
    panel = add_queries(describe(statetimeline.Panel(), title, description), exprs)
    mapping = {str(key): models.ValueMappingResult(text=text, color=color) for key, (text, color) in values.items()}
    panel.mappings([models.ValueMap(options=mapping)])
    panel.legend(common.VizLegendOptions().show_legend(False))
    return panel.show_value(kinds.VisibilityMode.NEVER).merge_values(True).row_height(0.8)


def buckets(title, description, unit, expr):
    """Creates a heat map of a histogram."""
    panel = describe(heatmap.Panel(), title, description)
    add_queries(panel, {"{{le}}": expr}, PromQueryFormat.HEATMAP)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").exponent(0.5).steps(64))
    return panel.show_legend()


def variable(name, label, query, description):
    builder = dashboard.QueryVariable(name).label(label).description(description).datasource(DATA_SOURCE)
    builder.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return builder.sort(models.VariableSort.ALPHABETICAL_ASC)


def board(name, title, description, rows):
    """Creates a dashboard. `rows`: heading -> panels, which share the width equally."""
    builder = dashboard.Dashboard(f"dico / {title}").uid(f"dico-{name}").description(description).tags(["dico"])
    builder.timezone("browser").time("now-1h", "now").refresh("10s").readonly()
    builder.tooltip(models.DashboardCursorSync.CROSSHAIR)
    builder.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    run = variable("run", "Run", "label_values(dico_stage_info, run)", "The run's name in its run file")
    builder.with_variable(run)
    instances = "label_values(dico_stage_info{run=\"$run\"}, instance)"
    instance = variable("instance", "Coordinator", instances, "Where Prometheus found the run's coordinator")
    builder.with_variable(instance.multi(True).include_all(True))
    events = [
        ("Generations", "blue", "changes(dico_generation{@}[1m]) > 0"),
        ("Guard", "red", "increase(dico_guard_events_total{@}[1m]) > 0"),
    ]
    for event, color, expr in events:
        note = dashboard.AnnotationQuery().name(event).datasource(DATA_SOURCE).enable(True).icon_color(color)
        builder.annotation(note.expr(expr.replace("@", INSTANCE_MATCHER)))
    link = dashboard.DashboardLink("Other dashboards of this run").type(models.DashboardLinkType.DASHBOARDS)
    builder.link(link.tags(["dico"]).as_dropdown(False).keep_time(True).include_vars(True))
    panel_id = 0
    for heading, panels in rows.items():
        panel_id += 1
        builder.with_row(dashboard.Row(heading).id(panel_id))
        for panel in panels:
            panel_id += 1
            height = PANEL_HEIGHT // 2 if isinstance(panel, stat.Panel) else PANEL_HEIGHT
            builder.with_panel(panel.id(panel_id).span(GRID_WIDTH // len(panels)).height(height))
    return builder.build()
