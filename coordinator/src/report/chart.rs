//! Line charts as SVG. The report's style sheet (`style.css`) has the colours of the CSS classes.

use std::fmt::Write;

use maud::{Markup, html};

use super::curves::Curve;
use crate::formatting::format_number;

/// The size of a chart and the edges of its plot area, in SVG units.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 176.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 352.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 152.0;
/// The approximate number of horizontal grid lines.
const GRID_LINES: f64 = 4.0;

/// The content of a chart.
pub struct Chart<'a> {
    /// The title.
    pub title: &'a str,
    /// Bands between two curves: CSS class, lower curve and upper curve.
    pub bands: Vec<(&'a str, &'a Curve, &'a Curve)>,
    /// Lines: CSS class, label and curve.
    pub lines: Vec<(&'a str, &'a str, &'a Curve)>,
    /// Whether to draw a band between the minimum and the maximum of each point's steps.
    pub shows_range: bool,
    /// The step of the checkpoint that the stage ended with, if it is not the stage's last.
    pub selected: Option<u64>,
}

/// Maps steps and values to coordinates of the chart.
struct Scale {
    /// The first and the last step.
    steps: (f64, f64),
    /// The lowest and the highest value.
    values: (f64, f64),
    /// The distance between two grid lines.
    tick_distance: f64,
}

impl Scale {
    fn x(&self, step: u64) -> f64 {
        let (first, last) = self.steps;
        LEFT + (step as f64 - first) / (last - first).max(1.0) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        BOTTOM - (value.clamp(low, high) - low) / (high - low) * (BOTTOM - TOP)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, high) = self.values;
        let first = (low / self.tick_distance).ceil();
        let count = ((high / self.tick_distance).floor() - first).max(0.0) as u32;
        (0..=count).map(move |n| (first + f64::from(n)) * self.tick_distance)
    }
}

impl Chart<'_> {
    /// Draws the chart as SVG; `None` if there is nothing to draw.
    #[must_use]
    pub fn draw(&self) -> Option<Markup> {
        let scale = self.fit_scale()?;
        let label = self.label();
        let steps = scale.steps;
        Some(html! {
            figure.chart {
                figcaption {
                    (self.title)
                    @if self.lines.len() > 1 {
                        @for (class, name, _) in &self.lines { " " span.key.(*class) { (name) } }
                    }
                }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                    @for tick in scale.ticks() {
                        @let y = coordinate(scale.y(tick));
                        line.grid x1=(LEFT) x2=(RIGHT) y1=(y) y2=(y) {}
                        text.tick x=(LEFT - 6.0) y=(y) dy="0.32em" text-anchor="end" { (format_number(tick)) }
                    }
                    @if let Some(step) = self.selected {
                        @let x = coordinate(scale.x(step.max(1)).min(RIGHT));
                        line.selected x1=(x) x2=(x) y1=(TOP) y2=(BOTTOM) { title { "the stage ended with the checkpoint of step " (step) } }
                    }
                    text.tick x=(LEFT) y=(BOTTOM + 17.0) { "step " (steps.0) }
                    text.tick x=(RIGHT) y=(BOTTOM + 17.0) text-anchor="end" { (steps.1) }
                    @for (class, low, high) in &self.bands { path.band.(*class) d=(band_path(&scale, &low.step, &low.mean, &high.mean)) {} }
                    @if self.shows_range {
                        @for (class, _, curve) in &self.lines {
                            path.band.(*class) d=(band_path(&scale, &curve.step, &curve.min, &curve.max)) {}
                        }
                    }
                    @for (class, _, curve) in &self.lines {
                        path.line.(*class) d=(line_path(&scale, &curve.step, &curve.mean)) {}
                        @if let ([step], [value]) = (&curve.step[..], &curve.mean[..]) {
                            circle.dot.(*class) cx=(coordinate(scale.x(*step))) cy=(coordinate(scale.y(*value))) r="2.5" {}
                        }
                    }
                }
            }
        })
    }

    /// The scale on which all curves fit; `None` if there are no values, or their range is not
    /// finite.
    fn fit_scale(&self) -> Option<Scale> {
        let lines = self.lines.iter().map(|(_, _, curve)| *curve);
        let bands = self.bands.iter().flat_map(|(_, low, high)| [*low, *high]);
        let curves: Vec<&Curve> = lines.chain(bands).filter(|curve| !curve.step.is_empty()).collect();
        let last = curves.iter().filter_map(|curve| curve.step.last()).max()?;
        let values = curves.iter().flat_map(|curve| {
            let drawn = if self.shows_range { [&curve.min[..], &curve.max] } else { [&curve.mean[..], &[]] };
            drawn.into_iter().flatten().copied()
        });
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        // If all values are equal, the line is in the middle.
        let margin = if high > low {
            0.04 * (high - low)
        } else if high == 0.0 {
            1.0
        } else {
            0.1 * high.abs()
        };
        let (low, high) = (low - margin, high + margin);
        if !(high - low).is_finite() {
            return None;
        }
        Some(Scale {
            steps: (1.0, *last as f64),
            values: (low, high),
            tick_distance: round_tick_distance((high - low) / GRID_LINES),
        })
    }

    /// A text alternative of the chart, for screen readers.
    fn label(&self) -> String {
        let mut label = self.title.to_owned();
        for (_, name, curve) in &self.lines {
            let (Some(from), Some(to)) = (curve.mean.first(), curve.mean.last()) else { continue };
            let (Some(first), Some(last)) = (curve.step.first(), curve.step.last()) else { continue };
            // Writing to a string does not fail.
            _ = write!(
                label,
                "; {name}: {} at step {first}, {} at step {last}",
                format_number(*from),
                format_number(*to)
            );
        }
        label
    }
}

/// The smallest round distance between grid lines (1, 2 or 5 times a power of ten) that is at least
/// `min`.
fn round_tick_distance(min: f64) -> f64 {
    let magnitude = 10_f64.powf(min.log10().floor());
    let distances = [1.0, 2.0, 5.0].map(|factor| factor * magnitude);
    distances.into_iter().find(|distance| *distance >= min).unwrap_or(10.0 * magnitude)
}

/// Rounds a coordinate to a tenth of a unit. The difference is not visible.
fn coordinate(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn line_path(scale: &Scale, steps: &[u64], values: &[f64]) -> String {
    let points = steps.iter().zip(values);
    path(points.map(|(step, value)| (scale.x(*step), scale.y(*value))))
}

fn band_path(scale: &Scale, steps: &[u64], low: &[f64], high: &[f64]) -> String {
    let upper = steps.iter().zip(high).map(|(step, value)| (scale.x(*step), scale.y(*value)));
    let lower = steps.iter().zip(low).rev().map(|(step, value)| (scale.x(*step), scale.y(*value)));
    path(upper.chain(lower))
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (n, (x, y)) in points.enumerate() {
        _ = write!(path, "{}{} {}", if n == 0 { 'M' } else { 'L' }, coordinate(x), coordinate(y));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: &[f64]) -> Curve {
        let mean = values.to_vec();
        Curve { step: (1..).take(values.len()).collect(), min: mean.clone(), max: mean.clone(), mean }
    }

    fn draw(values: &[f64]) -> Option<String> {
        let curve = curve(values);
        let lines = vec![("a", "loss", &curve)];
        Chart { title: "Loss", bands: vec![], lines, shows_range: false, selected: Some(2) }
            .draw()
            .map(Markup::into_string)
    }

    #[test]
    fn a_curve_fills_the_plot_area() {
        let drawn = draw(&[0.0, 1.0]).unwrap();
        assert!(drawn.contains(r#"d="M46 146.7L352 13.3""#), "{drawn}");
        assert!(drawn.contains(r#"aria-label="Loss; loss: 0 at step 1, 1 at step 2""#), "{drawn}");
        assert!(drawn.contains(r#"<line class="selected" x1="352" x2="352""#), "{drawn}");
        assert!(drawn.contains(">0.5<") && drawn.contains(">step 1<") && drawn.contains(">2<"), "{drawn}");
    }

    #[test]
    fn a_chart_without_finite_range_is_not_drawn() {
        assert_eq!(draw(&[]), None);
        assert_eq!(draw(&[f64::MAX, f64::MIN]), None);
        // A single point and a constant curve can be drawn.
        assert!(draw(&[3.0]).unwrap().contains("<circle"));
        assert!(draw(&[0.0, 0.0]).unwrap().contains("L352 80"));
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!([0.3, 0.12, 4.1, 51.0].map(round_tick_distance), [0.5, 0.2, 5.0, 100.0]);
    }
}
