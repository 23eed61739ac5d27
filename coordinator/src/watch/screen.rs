//! Live view of a run as a terminal screen.

use std::time::Duration;

use proto::v1::{self, StatusResponse};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{LineGauge, Paragraph, Row, Sparkline, SparklineBar, Table},
};

use super::{CollectedStatus, seen::StepValues};
use crate::text::{count, duration, number, phase};

/// A worker without heartbeat for this many seconds is highlighted.
const SILENT: f64 = 5.0;
/// The minimal height of a screen with curves.
const CURVES_FROM: u16 = 14;
/// The key bindings.
const KEYS: &str = " q quit   \u{2191} \u{2193} PgUp PgDn Home End";
/// The height of a curve, with its name.
const CURVE_HEIGHT: u16 = 4;
/// The number of levels of a curve's bars: eight per cell.
const LEVELS: f64 = 8.0 * (CURVE_HEIGHT as f64 - 1.0);

/// The columns of the worker table: index of the cell, title and width.
const COLUMNS: [(usize, &str, Constraint); 7] = [
    (0, " rank", Constraint::Length(7)),
    (1, "host", Constraint::Fill(1)),
    (2, "device", Constraint::Length(9)),
    (3, "phase", Constraint::Length(11)),
    (4, "images/s", Constraint::Length(9)),
    (5, "step", Constraint::Length(10)),
    (6, "heard", Constraint::Length(12)),
];
/// The columns of a narrow screen.
const NARROW_COLUMNS: [(usize, &str, Constraint); 4] = [COLUMNS[0], COLUMNS[1], COLUMNS[3], COLUMNS[5]];
/// The width below which a screen is narrow.
const NARROW: u16 = 72;

/// The state of the screen.
#[derive(Debug)]
pub struct Screen {
    /// Whether to use colours; no information depends on colour alone.
    colours: bool,
    /// The index of the first worker shown.
    first: usize,
    /// The number of workers shown.
    rows: usize,
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
    /// To the first.
    Home,
    /// To the last.
    End,
}

impl Screen {
    /// A screen scrolled to the first worker.
    pub fn new(colours: bool) -> Self {
        Self { colours, first: 0, rows: 1 }
    }

    /// Scrolls the worker table.
    pub fn turn(&mut self, turn: Scroll) {
        self.first = match turn {
            Scroll::Up => self.first.saturating_sub(1),
            Scroll::Down => self.first.saturating_add(1),
            Scroll::PageUp => self.first.saturating_sub(self.rows),
            Scroll::PageDown => self.first.saturating_add(self.rows),
            Scroll::Home => 0,
            Scroll::End => usize::MAX,
        };
    }

    /// Draws the present data.
    pub fn draw(&mut self, frame: &mut Frame<'_>, seen: &CollectedStatus, now: Duration) {
        let curves = if frame.area().height >= CURVES_FROM { CURVE_HEIGHT } else { 0 };
        let heights = [1, 1, 1, 1, curves].map(Constraint::Length);
        let [title, reason, progress, numbers, sparks, table, keys] =
            Layout::vertical(heights.into_iter().chain([Constraint::Fill(1), Constraint::Length(1)]))
                .areas(frame.area());
        frame.render_widget(self.reason(seen, now), reason);
        let Some(status) = seen.status() else {
            frame.render_widget(Line::from(" dico").bold(), title);
            frame.render_widget(Line::from(KEYS).dim(), keys);
            return;
        };
        frame.render_widget(self.title(status, seen, now), title);
        self.progress(frame, progress, status, seen);
        frame.render_widget(Paragraph::new(figures(status)), numbers);
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(sparks);
        let has_reward = status.reward.is_some();
        self.curve(frame, if has_reward { left } else { sparks }, "loss", seen, |point| Some(point.loss));
        if has_reward {
            self.curve(frame, right, "reward", seen, |point| point.reward);
        }
        let shown = self.workers(frame, table, status);
        frame.render_widget(Line::from(format!("{KEYS}{shown}")).dim(), keys);
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn title<'a>(&self, status: &'a StatusResponse, seen: &CollectedStatus, now: Duration) -> Line<'a> {
        let colour = match status.state.as_str() {
            "running" | "finished" => Color::Green,
            "failed" => Color::Red,
            _ => Color::Yellow,
        };
        let state = Span::styled(status.state.as_str(), self.coloured(colour).add_modifier(Modifier::BOLD));
        let when = if seen.problem(now).is_some() {
            format!("  {} ago", duration(seen.age(now).as_secs() as f64))
        } else {
            String::new()
        };
        Line::from(vec![" ".into(), status.run.as_str().bold(), "  ".into(), state, when.dim()])
    }

    /// The reason for the run's state, or why it is unknown.
    fn reason<'a>(&self, seen: &'a CollectedStatus, now: Duration) -> Line<'a> {
        match (seen.problem(now), seen.status()) {
            (Some((away, reason)), _) => {
                let text = format!(" the coordinator is away for {}: {reason}", duration(away.as_secs() as f64));
                Line::styled(text, self.coloured(Color::Red))
            }
            (None, Some(status)) if !status.reason.is_empty() => Line::from(format!(" {}", status.reason)),
            (None, Some(_)) => Line::default(),
            (None, None) => Line::from(" asking the coordinator"),
        }
    }

    fn progress(&self, frame: &mut Frame<'_>, area: Rect, status: &StatusResponse, seen: &CollectedStatus) {
        let StatusResponse { stage, stage_name, step, steps, .. } = status;
        let left = seen.left().map(|left| format!(", {} left", duration(left.round()))).unwrap_or_default();
        let name = format!(" stage {stage} {stage_name} ");
        let text = format!(" {} of {}{left} ", count(*step), count(*steps));
        let width = |text: &str| u16::try_from(Line::from(text).width()).unwrap_or(u16::MAX);
        let widths = [Constraint::Length(width(&name)), Constraint::Fill(1), Constraint::Length(width(&text))];
        let [before, bar, after] = Layout::horizontal(widths).areas(area);
        let ratio = if *steps == 0 { 0.0 } else { (*step as f64 / *steps as f64).clamp(0.0, 1.0) };
        let gauge = LineGauge::default()
            .ratio(ratio)
            .filled_style(self.coloured(Color::Green))
            .unfilled_style(Style::new().dim());
        frame.render_widget(Line::from(name), before);
        frame.render_widget(gauge.filled_symbol("\u{2588}").unfilled_symbol("\u{2500}"), bar);
        frame.render_widget(Line::from(text), after);
    }

    fn curve(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        name: &str,
        seen: &CollectedStatus,
        value: impl Fn(StepValues) -> Option<f64>,
    ) {
        if area.height < 2 || area.width < 2 {
            return;
        }
        let [label, bars] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let bars = Rect { x: bars.x + 1, width: bars.width - 1, ..bars };
        let values: Vec<Option<f64>> = seen.curve(bars.width.into()).map(value).collect();
        let finite = || values.iter().copied().flatten().filter(|value| value.is_finite());
        let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let range = if low <= high { format!("  {} to {}", number(low), number(high)) } else { String::new() };
        frame.render_widget(Line::from(vec![" ".into(), name.to_owned().bold(), range.dim()]), label);
        let height = |value: f64| {
            let share = if high > low { (value - low) / (high - low) } else { 0.5 };
            // The lowest value is a bar, too.
            1 + (share * (LEVELS - 1.0)).round() as u64
        };
        let bar = |value: &Option<f64>| SparklineBar::from(value.filter(|value| value.is_finite()).map(height));
        let spark =
            Sparkline::default().data(values.iter().map(bar)).max(LEVELS as u64).style(self.coloured(Color::Blue));
        frame.render_widget(spark.absent_value_symbol(" "), bars);
    }

    /// Draws a row for each visible worker. Returns which ones these are, if not all.
    fn workers(&mut self, frame: &mut Frame<'_>, area: Rect, status: &StatusResponse) -> String {
        let members = &status.members;
        self.rows = usize::from(area.height.saturating_sub(1)).max(1);
        self.first = self.first.min(members.len().saturating_sub(self.rows));
        let columns = if area.width < NARROW { &NARROW_COLUMNS[..] } else { &COLUMNS };
        let row = |cells: [String; COLUMNS.len()]| Row::new(columns.iter().map(move |(n, ..)| cells[*n].clone()));
        let shown = members.iter().skip(self.first).take(self.rows).map(|member| {
            let (cells, style) = self.worker(status, member);
            row(cells).style(style)
        });
        let titles = row(COLUMNS.map(|(_, title, _)| title.to_owned())).dim();
        let widths = columns.iter().map(|(_, _, width)| *width);
        let table = Table::new(shown, widths).header(titles).column_spacing(1);
        frame.render_widget(table, area);
        if members.len() <= self.rows {
            return String::new();
        }
        format!("   workers {} to {} of {}", self.first + 1, self.first + self.rows, members.len())
    }

    fn worker(&self, status: &StatusResponse, member: &v1::Member) -> ([String; COLUMNS.len()], Style) {
        let v1::Position { step, .. } = member.position.unwrap_or_default();
        let slowest = status.slowest_rank == Some(member.rank) && status.members.len() > 1;
        let mut style = Style::new();
        if slowest {
            style = style.add_modifier(Modifier::BOLD);
        }
        if member.seconds_since_heard > SILENT {
            style = style.patch(self.coloured(Color::Yellow));
        }
        let heard = format!("{:.0} s ago", member.seconds_since_heard);
        let cells = [
            format!(" {}", member.rank),
            member.host.clone(),
            member.device.clone(),
            phase(member.phase()),
            number(member.images_per_second),
            step.to_string(),
            heard,
        ];
        (cells, style)
    }
}

/// The numbers of the last step.
fn figures(status: &StatusResponse) -> String {
    let mut figures = vec![format!(" generation {}", status.generation)];
    if status.step > 0 {
        figures.push(format!("loss {}", number(status.loss)));
        figures.extend(status.reward.map(|reward| format!("reward {}", number(reward))));
        figures.push(format!("{} images/s", number(status.images_per_second)));
    }
    let lag = status.slowest_rank.map(|rank| format!("rank {rank} lags {}", duration(status.lag_seconds)));
    figures.extend(lag);
    figures.join("   ")
}

#[cfg(test)]
mod tests;
