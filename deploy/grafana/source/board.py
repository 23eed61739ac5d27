"""A dashboard from rows of panels: what all dashboards of runs share."""

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# What `@` in an expression stands for: the coordinators of the run that is looked at.
OWN = 'instance=~"$instance"'
# Colours of bounds: past the first one something is odd, past the second it is wrong.
BOUNDS = ["green", "orange", "red"]
WIDTH = 24
HEIGHT = 8


def queries(panel, exprs, format_val=None, instant=False):
    """Adds an expression for each legend."""
    for place, (legend, expr) in enumerate(exprs.items()):
        query = prometheus.Dataquery().expr(expr.replace("@", OWN)).legend_format(legend)
        query = query.instant() if instant else query.range()
        query.ref_id(chr(ord("A") + place)).datasource(SOURCE)
        if format_val is not None:
            query.format(format_val)
        panel.with_target(query)
    return panel


def named(panel, title, why):
    return panel.title(title).description(why).datasource(SOURCE)


def bounds(values):
    """Green up to the first value, then orange, then red."""
    steps = [models.Threshold(value=value, color=color) for value, color in zip([None, *values], BOUNDS)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def lines(title, why, unit, exprs, low=None, high=None, limits=None, stacked=False, logarithmic=False):
    """Curves; `limits` are drawn as dashed lines."""
    panel = queries(named(timeseries.Panel(), title, why), exprs).unit(unit)
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
        panel.thresholds(bounds(limits))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED))
    return panel


def bands(title, why, unit, exprs):
    """Curves that belong together from the lowest to the highest, with the space between the first and the last filled."""
    panel = lines(title, why, unit, exprs)
    first, *_, last = exprs
    fill = [models.DynamicConfigValue(id_val="custom.fillBelowTo", value=first)]
    fill.append(models.DynamicConfigValue(id_val="custom.fillOpacity", value=15))
    return panel.override_by_name(last, fill)


def number(title, why, unit, legend, expr, limits=None, name=False, decimals=None):
    """The present value, with its course behind it; or, with `name`, its legend."""
    # What had another name earlier is not shown beside it.
    panel = queries(named(stat.Panel(), title, why), {legend: expr}, instant=name).unit(unit)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(kinds.BigValueGraphMode.NONE if name else kinds.BigValueGraphMode.AREA)
    panel.text_mode(kinds.BigValueTextMode.NAME if name else kinds.BigValueTextMode.VALUE)
    panel.color_mode(kinds.BigValueColorMode.VALUE if limits else kinds.BigValueColorMode.NONE)
    panel.thresholds(bounds(limits or []))
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def timeline(title, why, exprs, values):
    """What was the case when; `values` are the text and colour of each value."""
    panel = queries(named(statetimeline.Panel(), title, why), exprs)
    mapping = {str(key): models.ValueMappingResult(text=text, color=color) for key, (text, color) in values.items()}
    panel.mappings([models.ValueMap(options=mapping)])
    panel.legend(common.VizLegendOptions().show_legend(False))
    return panel.show_value(kinds.VisibilityMode.NEVER).merge_values(True).row_height(0.8)


def buckets(title, why, unit, expr):
    """How often a histogram's values fall where."""
    panel = named(heatmap.Panel(), title, why)
    queries(panel, {"{{le}}": expr}, PromQueryFormat.HEATMAP)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").exponent(0.5).steps(64))
    return panel.show_legend()


def variable(name, label, query, why):
    builder = dashboard.QueryVariable(name).label(label).description(why).datasource(SOURCE)
    builder.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return builder.sort(models.VariableSort.ALPHABETICAL_ASC)


def board(name, title, why, rows):
    """A dashboard; `rows` are panels by heading, which share the width of the screen."""
    builder = dashboard.Dashboard(f"dico / {title}").uid(f"dico-{name}").description(why).tags(["dico"])
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
        note = dashboard.AnnotationQuery().name(event).datasource(SOURCE).enable(True).icon_color(color)
        builder.annotation(note.expr(expr.replace("@", OWN)))
    link = dashboard.DashboardLink("Other dashboards of this run").type(models.DashboardLinkType.DASHBOARDS)
    builder.link(link.tags(["dico"]).as_dropdown(False).keep_time(True).include_vars(True))
    place = 0
    for heading, panels in rows.items():
        place += 1
        builder.with_row(dashboard.Row(heading).id(place))
        for panel in panels:
            place += 1
            height = HEIGHT // 2 if isinstance(panel, stat.Panel) else HEIGHT
            builder.with_panel(panel.id(place).span(WIDTH // len(panels)).height(height))
    return builder.build()
