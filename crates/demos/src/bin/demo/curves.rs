use std::path::Path;

use anyhow::{Result, anyhow};
use config::RunFile;
use demos::pictures::{Area, save};
use plotters::prelude::*;

use demos::journal::{Journal, Step};

/// Width and height of one chart.
const CHART: (u32, u32) = (480, 320);

/// Draws, for every stage, the loss over steps and, where there are rewards, their mean within the band from the 5% to the
/// 95% quantile.
pub fn draw(path: &Path, run: &RunFile, journal: &Journal) -> Result<()> {
    let stages = run.stages.iter().enumerate().map(|(number, stage)| Ok((stage.name.as_str(), journal.steps(number)?)));
    let stages: Vec<(&str, Vec<Step>)> = stages.collect::<Result<_>>()?;
    let rewarded: Vec<&(&str, Vec<Step>)> =
        stages.iter().filter(|(_, steps)| steps.iter().any(|step| step.reward.is_some())).collect();
    let columns = stages.len() + rewarded.len();
    let (width, height) = (CHART.0 * columns as u32, CHART.1);
    save(path, (width, height), |root| {
        let areas = root.split_evenly((1, columns));
        for ((name, steps), area) in stages.iter().zip(&areas) {
            loss(area, &format!("{name}: loss"), steps)?;
        }
        for ((name, steps), area) in rewarded.into_iter().zip(&areas[stages.len()..]) {
            reward(area, &format!("{name}: reward of the chosen, 5-95%"), steps)?;
        }
        Ok(())
    })
}

fn loss(area: &Area<'_>, title: &str, steps: &[Step]) -> Result<()> {
    let points = || steps.iter().map(|step| (step.step as f64, step.loss)).filter(|point| point.1.is_finite());
    let mut chart = chart(area, title, points().map(|point| point.0), points().map(|point| point.1))?;
    chart.configure_mesh().light_line_style(TRANSPARENT).draw().map_err(|error| anyhow!("{error}"))?;
    chart.draw_series(LineSeries::new(points(), &BLUE)).map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

fn reward(area: &Area<'_>, title: &str, steps: &[Step]) -> Result<()> {
    let points = || steps.iter().filter_map(|step| Some((step.step as f64, step.reward?)));
    let values = points().flat_map(|(_, [low, _, high, _])| [low, high]);
    let mut chart = chart(area, title, points().map(|point| point.0), values)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).draw().map_err(|error| anyhow!("{error}"))?;
    let upper = points().map(|(step, [_, _, high, _])| (step, high));
    let lower: Vec<_> = points().map(|(step, [low, ..])| (step, low)).collect();
    let band: Vec<_> = upper.chain(lower.into_iter().rev()).collect();
    chart.draw_series([Polygon::new(band, BLUE.mix(0.2))]).map_err(|error| anyhow!("{error}"))?;
    let mean = points().map(|(step, [_, _, _, mean])| (step, mean));
    chart.draw_series(LineSeries::new(mean, &BLUE)).map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    BitMapBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn chart<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    x: impl Iterator<Item = f64>,
    y: impl Iterator<Item = f64>,
) -> Result<Chart<'a, 'b>> {
    let last = x.fold(1.0, f64::max);
    let (low, high) = y.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    // Room around the curve, also where there is no curve or a flat one.
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let room = 0.05 * (high - low).max(1e-6);
    ChartBuilder::on(area)
        .margin(12)
        .caption(title, ("sans-serif", 18))
        .set_label_area_size(LabelAreaPosition::Left, 48)
        .set_label_area_size(LabelAreaPosition::Bottom, 28)
        .build_cartesian_2d(0.0..last, low - room..high + room)
        .map_err(|error| anyhow!("{error}"))
}
