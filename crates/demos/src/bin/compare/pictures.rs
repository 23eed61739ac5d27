use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::arms::{ARMS, Arm};
use crate::canvas::{Area, save};
use crate::seed::ScoredStep;
use crate::summary::{ArmSummary, Summary};

/// The picture's name in the documents' folder.
pub const PICTURE: &str = "objective-comparison.png";
/// Width and height of one arm's chart, in pixels.
const CHART_SIZE: (u32, u32) = (400, 280);
/// The number of charts side by side.
const COLUMNS: usize = 4;

/// Draws, for each arm, the reward and the share of grammatical captions of validation images over
/// steps: a thin line for each seed, a thick one for their mean.
///
/// # Errors
/// An arm has no results, or the picture cannot be drawn or written.
pub fn draw(docs: &Path, summary: &Summary) -> Result<()> {
    let rows = ARMS.len().div_ceil(COLUMNS);
    let size = (CHART_SIZE.0 * COLUMNS as u32, CHART_SIZE.1 * rows as u32);
    save(&docs.join(PICTURE), size, |root| {
        for (arm, area) in ARMS.iter().zip(root.split_evenly((rows, COLUMNS))) {
            let results = summary.arms.get(arm.name).with_context(|| format!("{} is missing", arm.name))?;
            chart(&area, arm, results)?;
        }
        Ok(())
    })
}

fn chart(area: &Area<'_>, arm: &Arm, results: &ArmSummary) -> Result<()> {
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
    let curves = |metric: &'static str| -> Vec<Vec<(f64, f64)>> {
        let point = |point: &ScoredStep| Some((point.step as f64, *point.metrics.get(metric)?));
        results.seeds.values().map(|result| result.curve.iter().filter_map(point).collect()).collect()
    };
    let (rewards, shares) = (curves(arm.reward), curves("grammatical"));
    let last = rewards.iter().flatten().map(|point| point.0).fold(1.0, f64::max);
    let values = || rewards.iter().flatten().map(|point| point.1);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let room = 0.05 * (high - low).max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(format!("{}: {} (blue), grammatical (red)", arm.title, arm.reward), ("sans-serif", 15))
        .set_label_area_size(LabelAreaPosition::Left, 40)
        .set_label_area_size(LabelAreaPosition::Right, 36)
        .set_label_area_size(LabelAreaPosition::Bottom, 24)
        .build_cartesian_2d(0.0..last, low - room..high + room)
        .map_err(failed)?
        .set_secondary_coord(0.0..last, -0.03..1.03);
    chart.configure_mesh().light_line_style(TRANSPARENT).x_labels(5).y_labels(5).draw().map_err(failed)?;
    chart.configure_secondary_axes().y_labels(5).draw().map_err(failed)?;
    for (curve, width) in with_line_widths(&rewards) {
        chart.draw_series(LineSeries::new(curve, style(BLUE, width))).map_err(failed)?;
    }
    for (curve, width) in with_line_widths(&shares) {
        chart.draw_secondary_series(LineSeries::new(curve, style(RED, width))).map_err(failed)?;
    }
    Ok(())
}

/// The curves of all seeds and their mean at the steps that all have, each with its line width: 1,
/// and 3 for the mean.
fn with_line_widths(curves: &[Vec<(f64, f64)>]) -> impl Iterator<Item = (Vec<(f64, f64)>, u32)> {
    let steps = curves.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |index: usize| {
        let sum: f64 = curves.iter().map(|curve| curve[index].1).sum();
        (curves[0][index].0, sum / curves.len() as f64)
    };
    let mean: Vec<_> = (0..steps).map(mean).collect();
    curves.iter().cloned().map(|curve| (curve, 1)).chain([(mean, 3)])
}

fn style(colour: RGBColor, width: u32) -> ShapeStyle {
    let colour = if width == 1 { colour.mix(0.35) } else { colour.to_rgba() };
    colour.stroke_width(width)
}
