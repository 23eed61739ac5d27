//! The screen of `coordinator watch` in a terminal.

use std::time::Duration;

use proto::v1::{self, RunState, StatusResponse};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{LineGauge, Paragraph, Row, Sparkline, SparklineBar, Table},
};

use super::{CollectedStatus, collected_status::CurvePoint};
use crate::formatting::{format_count, format_duration, format_number, phase_name};

/// A worker is highlighted if its last message is older than this number of seconds.
const SILENCE_WARNING_SECONDS: f64 = 5.0;
/// The minimal height, in lines, of a screen with curves.
const MIN_HEIGHT_WITH_CURVES: u16 = 14;
/// The key bindings, as shown on the last line.
const KEY_HELP: &str = " q quit   \u{2191} \u{2193} PgUp PgDn Home End";
/// The height of a curve with its name, in lines.
const CURVE_HEIGHT: u16 = 4;
/// The number of levels of a curve's bars: eight per cell.
const BAR_LEVELS: f64 = 8.0 * (CURVE_HEIGHT as f64 - 1.0);

/// The columns of the worker table: index of the cell, title, and width in characters.
const COLUMNS: [(usize, &str, Constraint); 7] = [
    (0, " worker", Constraint::Length(7)),
    (1, "host", Constraint::Fill(1)),
    (2, "device", Constraint::Length(9)),
    (3, "phase", Constraint::Length(11)),
    (4, "images/s", Constraint::Length(9)),
    (5, "step", Constraint::Length(10)),
    (6, "last seen", Constraint::Length(12)),
];
/// The columns of a narrow screen.
const NARROW_COLUMNS: [(usize, &str, Constraint); 4] = [COLUMNS[0], COLUMNS[1], COLUMNS[3], COLUMNS[5]];
/// The minimal width, in characters, of a screen with all columns.
const MIN_WIDE_WIDTH: u16 = 72;

/// The screen: its settings, and the visible part of the worker table.
#[derive(Debug)]
pub struct Screen {
    /// Whether to use colours. No information depends on colour alone.
    colours: bool,
    /// The index of the first visible worker. Drawing limits it to the number of workers.
    first_row: usize,
    /// The number of workers that fit on the screen, as of the last drawing.
    visible_rows: usize,
}

/// A scroll command in the worker table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scroll {
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// One screen up.
    PageUp,
    /// One screen down.
    PageDown,
    /// To the first worker.
    Home,
    /// To the last worker.
    End,
}

impl Screen {
    /// Creates a screen that shows the first worker on top.
    pub fn new(colours: bool) -> Self {
        Self { colours, first_row: 0, visible_rows: 1 }
    }

    /// Scrolls the worker table.
    pub fn scroll(&mut self, scroll: Scroll) {
        self.first_row = match scroll {
            Scroll::Up => self.first_row.saturating_sub(1),
            Scroll::Down => self.first_row.saturating_add(1),
            Scroll::PageUp => self.first_row.saturating_sub(self.visible_rows),
            Scroll::PageDown => self.first_row.saturating_add(self.visible_rows),
            Scroll::Home => 0,
            Scroll::End => usize::MAX,
        };
    }

    /// Draws the collected data.
    pub fn draw(&mut self, frame: &mut Frame<'_>, collected: &CollectedStatus, now: Duration) {
        let curve_height = if frame.area().height >= MIN_HEIGHT_WITH_CURVES { CURVE_HEIGHT } else { 0 };
        let heights = [1, 1, 1, 1, curve_height].map(Constraint::Length);
        let [title, reason, progress, numbers, curves_area, table, keys] =
            Layout::vertical(heights.into_iter().chain([Constraint::Fill(1), Constraint::Length(1)]))
                .areas(frame.area());
        frame.render_widget(self.reason_line(collected, now), reason);
        let Some(status) = collected.status() else {
            frame.render_widget(Line::from(" dico").bold(), title);
            frame.render_widget(Line::from(KEY_HELP).dim(), keys);
            return;
        };
        frame.render_widget(self.title_line(status, collected, now), title);
        self.draw_progress(frame, progress, status, collected);
        frame.render_widget(Paragraph::new(last_step_text(status)), numbers);
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(curves_area);
        let has_reward = status.reward.is_some();
        self.draw_curve(frame, if has_reward { left } else { curves_area }, "loss", collected, |point| {
            Some(point.loss)
        });
        if has_reward {
            self.draw_curve(frame, right, "reward", collected, |point| point.reward);
        }
        let visible_range = self.draw_workers(frame, table, status);
        frame.render_widget(Line::from(format!("{KEY_HELP}{visible_range}")).dim(), keys);
    }

    /// The style of a colour; no style without colours.
    fn colour_style(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn title_line<'a>(&self, status: &'a StatusResponse, collected: &CollectedStatus, now: Duration) -> Line<'a> {
        let colour = match status.state() {
            RunState::Running | RunState::Finished => Color::Green,
            RunState::Failed => Color::Red,
            _ => Color::Yellow,
        };
        let state = Span::styled(status.state().name(), self.colour_style(colour).add_modifier(Modifier::BOLD));
        let age = if collected.failure(now).is_some() {
            format!("  {} ago", format_duration(collected.age(now).as_secs() as f64))
        } else {
            String::new()
        };
        Line::from(vec![" ".into(), status.run.as_str().bold(), "  ".into(), state, age.dim()])
    }

    /// The reason for the run's state, or why it is unknown.
    fn reason_line<'a>(&self, collected: &'a CollectedStatus, now: Duration) -> Line<'a> {
        match (collected.failure(now), collected.status()) {
            (Some((downtime, reason)), _) => {
                let text = format!(
                    " the coordinator has been unreachable for {}: {reason}",
                    format_duration(downtime.as_secs() as f64)
                );
                Line::styled(text, self.colour_style(Color::Red))
            }
            (None, Some(status)) if !status.reason.is_empty() => Line::from(format!(" {}", status.reason)),
            (None, Some(_)) => Line::default(),
            (None, None) => Line::from(" connecting to the coordinator"),
        }
    }

    fn draw_progress(&self, frame: &mut Frame<'_>, area: Rect, status: &StatusResponse, collected: &CollectedStatus) {
        let StatusResponse { stage, stage_name, step, steps, .. } = status;
        let left = collected
            .seconds_left()
            .map(|left| format!(", {} left", format_duration(left.round())))
            .unwrap_or_default();
        let name = format!(" stage {stage} {stage_name} ");
        let text = format!(" {} of {}{left} ", format_count(*step), format_count(*steps));
        let width = |text: &str| u16::try_from(Line::from(text).width()).unwrap_or(u16::MAX);
        let widths = [Constraint::Length(width(&name)), Constraint::Fill(1), Constraint::Length(width(&text))];
        let [before, bar, after] = Layout::horizontal(widths).areas(area);
        let ratio = if *steps == 0 { 0.0 } else { (*step as f64 / *steps as f64).clamp(0.0, 1.0) };
        let gauge = LineGauge::default()
            .ratio(ratio)
            .filled_style(self.colour_style(Color::Green))
            .unfilled_style(Style::new().dim());
        frame.render_widget(Line::from(name), before);
        frame.render_widget(gauge.filled_symbol("\u{2588}").unfilled_symbol("\u{2500}"), bar);
        frame.render_widget(Line::from(text), after);
    }

    fn draw_curve(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        name: &str,
        collected: &CollectedStatus,
        value: impl Fn(CurvePoint) -> Option<f64>,
    ) {
        if area.height < 2 || area.width < 2 {
            return;
        }
        let [label, bars] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let bars = Rect { x: bars.x + 1, width: bars.width - 1, ..bars };
        let values: Vec<Option<f64>> = collected.last_points(bars.width.into()).map(value).collect();
        let finite = || values.iter().copied().flatten().filter(|value| value.is_finite());
        let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let range =
            if low <= high { format!("  {} to {}", format_number(low), format_number(high)) } else { String::new() };
        frame.render_widget(Line::from(vec![" ".into(), name.to_owned().bold(), range.dim()]), label);
        let height = |value: f64| {
            let fraction = if high > low { (value - low) / (high - low) } else { 0.5 };
            // The lowest value also has a bar, of height 1.
            1 + (fraction * (BAR_LEVELS - 1.0)).round() as u64
        };
        let bar = |value: &Option<f64>| SparklineBar::from(value.filter(|value| value.is_finite()).map(height));
        let sparkline = Sparkline::default()
            .data(values.iter().map(bar))
            .max(BAR_LEVELS as u64)
            .style(self.colour_style(Color::Blue));
        frame.render_widget(sparkline.absent_value_symbol(" "), bars);
    }

    /// Draws a row for each visible worker. Returns their range as text if not all are visible;
    /// otherwise an empty text.
    fn draw_workers(&mut self, frame: &mut Frame<'_>, area: Rect, status: &StatusResponse) -> String {
        let members = &status.members;
        self.visible_rows = usize::from(area.height.saturating_sub(1)).max(1);
        self.first_row = self.first_row.min(members.len().saturating_sub(self.visible_rows));
        let columns = if area.width < MIN_WIDE_WIDTH { &NARROW_COLUMNS[..] } else { &COLUMNS };
        let row = |cells: [String; COLUMNS.len()]| Row::new(columns.iter().map(move |(n, ..)| cells[*n].clone()));
        let visible = members.iter().skip(self.first_row).take(self.visible_rows).map(|member| {
            let (cells, style) = self.worker_row(status, member);
            row(cells).style(style)
        });
        let titles = row(COLUMNS.map(|(_, title, _)| title.to_owned())).dim();
        let widths = columns.iter().map(|(_, _, width)| *width);
        let table = Table::new(visible, widths).header(titles).column_spacing(1);
        frame.render_widget(table, area);
        if members.len() <= self.visible_rows {
            return String::new();
        }
        format!("   workers {} to {} of {}", self.first_row + 1, self.first_row + self.visible_rows, members.len())
    }

    /// The cells of a worker's row, in the order of [`COLUMNS`], and its style: bold for the
    /// slowest worker, yellow for one without recent messages.
    fn worker_row(&self, status: &StatusResponse, member: &v1::Member) -> ([String; COLUMNS.len()], Style) {
        let v1::Position { step, .. } = member.position.unwrap_or_default();
        let is_slowest = status.slowest_worker == Some(member.worker_id) && status.members.len() > 1;
        let mut style = Style::new();
        if is_slowest {
            style = style.add_modifier(Modifier::BOLD);
        }
        if member.seconds_since_heard > SILENCE_WARNING_SECONDS {
            style = style.patch(self.colour_style(Color::Yellow));
        }
        let last_seen = format!("{:.0} s ago", member.seconds_since_heard);
        let cells = [
            format!(" {}", member.worker_id),
            member.host.clone(),
            member.device.clone(),
            phase_name(member.phase()),
            format_number(member.images_per_second),
            step.to_string(),
            last_seen,
        ];
        (cells, style)
    }
}

/// The generation and the metrics of the last step, in one line.
fn last_step_text(status: &StatusResponse) -> String {
    let mut texts = vec![format!(" generation {}", status.generation)];
    if status.step > 0 {
        texts.push(format!("loss {}", format_number(status.loss)));
        texts.extend(status.reward.map(|reward| format!("reward {}", format_number(reward))));
        texts.push(format!("{} images/s", format_number(status.images_per_second)));
    }
    let lag = status
        .slowest_worker
        .map(|worker_id| format!("worker {worker_id} lags {}", format_duration(status.lag_seconds)));
    texts.extend(lag);
    texts.join("   ")
}

#[cfg(test)]
mod tests;
