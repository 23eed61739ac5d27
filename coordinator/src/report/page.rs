//! The report as one HTML page, for screens and for paper, without scripts or external resources.

use journal::RunOutcome;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    CaptionedImage, Captioner, Captions, CheckpointEntry, EarlyEnd, EvaluationEntry, EventEntry, MachineGroup,
    Recoveries, Report, Stage, chart::Chart, curves::Curve,
};
use crate::{
    audit::{Audit, SampleCounts},
    event_messages::describe_event,
    formatting::{format_count, format_duration, format_number, format_plural, format_time},
};

const STYLE: &str = include_str!("style.css");
/// The scores that are listed first. The header of the page shows the first one that was recorded.
const LEADING_SCORES: [&str; 9] =
    ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s", "cider", "bleu_4", "meteor", "rouge_l", "retrieval_r1"];
/// The number of characters of a SHA-256 that are shown.
const SHOWN_HASH_LENGTH: usize = 12;

/// Renders a report as a page.
pub fn page(report: &Report) -> Markup {
    let title = format!("{} - report of a DiCO run", report.run);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { (page_header(report)) }
                main {
                    (timeline(report))
                    @for stage in &report.stages { (stage_section(stage)) }
                    @if !report.evaluations.is_empty() { (evaluations_section(report)) }
                    @if let Some(captions) = &report.captions { (captions_section(report, captions)) }
                    (generations_section(report))
                    (event_section("Guard", "Guard rules that were triggered.", &report.guard))
                    (event_section("Events", "All other events, except for workers that joined.", &report.events))
                    (settings_section(report))
                }
                footer { "Written by coordinator " (report.version) " on " (format_time(report.made_at)) "." }
            }
        }
    }
}

fn page_header(report: &Report) -> Markup {
    let (css_class, name) = match &report.outcome {
        RunOutcome::Finished => ("good", "finished"),
        RunOutcome::Failed(_) => ("bad", "failed"),
        RunOutcome::Paused(_) => ("warn", "paused"),
        RunOutcome::Unfinished => ("warn", "unfinished"),
    };
    let reason = match &report.outcome {
        RunOutcome::Failed(reason) | RunOutcome::Paused(reason) => reason.as_str(),
        RunOutcome::Finished | RunOutcome::Unfinished => "",
    };
    let steps = report.stages.iter().map(|stage| stage.steps).sum();
    let samples: u64 = report.stages.iter().map(|stage| stage.samples).sum();
    let Recoveries { count: recoveries, seconds, lost, .. } = report.recoveries;
    html! {
        p.kind { "Report of a DiCO run" }
        h1 { (report.run) " " span.badge.(css_class) { (name) } }
        @if !reason.is_empty() { p.reason { (reason) } }
        p.when { (format_time(report.begun_at)) " to " (format_time(report.last_at)) }
        dl.tiles {
            (tile("Duration", &format_duration(report.last_at - report.begun_at), "from the first record to the last"))
            (tile("Steps", &format_count(steps), &format!("in {} of {} stages", report.stages.len(), report.settings.stages.len())))
            (tile("Samples", &format_count(samples), samples_note(&report.audit)))
            @if let Some((metric, first, last)) = leading_score(&report.evaluations) {
                (tile(metric, &format_number(last), &format!("was {} at the first evaluation", format_number(first))))
            }
            (tile("Failed workers", &format_count(lost), &format!("{}, {} in total", format_plural(recoveries, "recovery", "recoveries"), format_duration(seconds))))
        }
    }
}

fn tile(name: &str, value: &str, note: &str) -> Markup {
    html! { div { dt { (name) } dd.value { (value) } dd.note { (note) } } }
}

fn samples_note(audit: &Audit) -> &'static str {
    if audit.clean { "each was trained on once" } else { "the audit found PROBLEMS" }
}

/// The first of [`LEADING_SCORES`] that was recorded: its name, and its values at the model's first
/// evaluation and at the state that the last evaluated stage ended with.
fn leading_score(evaluations: &[EvaluationEntry]) -> Option<(&'static str, f64, f64)> {
    let of_model = || evaluations.iter().filter(|evaluation| evaluation.captioner == Captioner::Model);
    let last = of_model().next_back()?;
    let selected = of_model().rfind(|evaluation| evaluation.stage == last.stage && evaluation.is_selected);
    let ends = [of_model().next()?, selected.unwrap_or(last)];
    LEADING_SCORES.into_iter().find_map(|name| {
        let [first, last] = ends.map(|evaluation| evaluation.scores.get(name).copied());
        Some((name, first?, last?))
    })
}

/// The timeline of stages, with the starts of new generations.
fn timeline(report: &Report) -> Markup {
    let (begin, end) = (report.begun_at, report.last_at);
    // The position of a time, in thousandths of the width.
    let x = |at: f64| ((at - begin) / (end - begin).max(1e-9) * 1000.0).clamp(0.0, 1000.0).round();
    let generations = || report.audit.generations.iter().zip(&report.formed_at);
    let recovery_positions =
        || generations().filter(|(generation, _)| generation.recovery_s.is_some()).map(|(_, formed)| x(*formed));
    html! {
        section aria-labelledby="timeline" {
            h2 #timeline { "Timeline" }
            @if !report.stages.is_empty() {
                div.timeline role="img" aria-label=(timeline_label(report)) {
                    @for stage in &report.stages {
                        @let (from, to) = (x(stage.from), x(stage.to));
                        div.stage.(format!("s{}", stage.number % 4)) style=(bar_style(from, to - from)) {}
                    }
                    @for position in recovery_positions() { div.fault style=(bar_style(position, 0.0)) {} }
                }
            }
            div.scroll { table {
                thead { tr {
                    th.number { "stage" } th { "name" } th { "objective" } th.number { "steps" } th.number { "planned" }
                    th.number { "batch" } th.number { "samples" } th.number { "time" } th { "ended" }
                } }
                tbody { @for stage in &report.stages { tr {
                    td.number { (stage.number) }
                    td { span.swatch.(format!("s{}", stage.number % 4)) {} (stage.name) }
                    td { (stage.objective) }
                    td.number { (format_count(stage.steps)) }
                    td.number { (format_count(stage.wanted)) }
                    td.number { (stage.batch) }
                    td.number { (format_count(stage.samples)) }
                    td.number { (format_duration(stage.to - stage.from)) }
                    td { (end_of_stage(stage)) }
                } } }
            } }
            @if recovery_positions().next().is_some() {
                p.note { span.swatch.fault {} "a new generation began, because a worker joined, left or failed" }
            }
        }
    }
}

/// The CSS of a bar of the timeline, from its left end and width in thousandths of the timeline.
fn bar_style(from: f64, width: f64) -> String {
    format!("left:{}%;width:{}%", from / 10.0, width / 10.0)
}

fn timeline_label(report: &Report) -> String {
    let stage = |stage: &Stage| format!("{} {}", stage.name, format_duration(stage.to - stage.from));
    report.stages.iter().map(stage).collect::<Vec<_>>().join(", ")
}

fn end_of_stage(stage: &Stage) -> String {
    match &stage.end {
        Some(EarlyEnd { step, reason, .. }) => format!("with the checkpoint of step {}: {reason}", format_count(*step)),
        None if stage.steps >= stage.wanted => "after its last step".into(),
        None => String::new(),
    }
}

fn stage_section(stage: &Stage) -> Markup {
    let curve = |name: &str| stage.curves.get(name);
    let selected = stage.end.as_ref().map(|end| end.step);
    // `a` and `b` are the CSS classes of the first and the second colour.
    let metric_chart = |name: &'static str| {
        let unit = metric_catalogue::metric(name).map(|metric| metric.unit);
        let label = metric_catalogue::label(name).unwrap_or(name);
        let title = unit.map_or_else(|| label.to_owned(), |unit| format!("{label}, {unit}"));
        let lines = vec![("a", name, curve(name)?)];
        Chart { title: &title, bands: vec![], lines, shows_range: true, selected }.draw()
    };
    let band = |role: &str, from: &str, to: &str| -> Option<(&Curve, &Curve)> {
        Some((curve(&format!("reward_{role}_{from}"))?, curve(&format!("reward_{role}_{to}"))?))
    };
    let reward_chart = || {
        let (chosen, rejected) = (curve("reward_chosen_p50")?, curve("reward_rejected_p50")?);
        let bands = [("b", "rejected"), ("a", "chosen")].into_iter().flat_map(|(css_class, role)| {
            let bands = [band(role, "p05", "p95"), band(role, "p25", "p75")];
            bands.into_iter().flatten().map(move |(low, high)| (css_class, low, high))
        });
        let lines = vec![("a", "chosen", chosen), ("b", "rejected", rejected)];
        Chart { title: "Reward, 5 to 95 %", bands: bands.collect(), lines, shows_range: false, selected }.draw()
    };
    let charts = [
        metric_chart("loss"),
        reward_chart(),
        metric_chart("reward_margin"),
        metric_chart("kl"),
        metric_chart("implicit_accuracy"),
        metric_chart("gamma_entropy"),
        metric_chart("caption_length"),
        metric_chart("repetition"),
        metric_chart("gradient_norm"),
        metric_chart("learning_rate"),
        metric_chart("images_per_second"),
    ];
    let heading = format!("stage-{}", stage.number);
    html! {
        section aria-labelledby=(heading) {
            h2 #(heading) { "Stage " (stage.number) ": " (stage.name) " " span.kind { (stage.objective) } }
            div.charts { @for chart in charts.into_iter().flatten() { (chart) } }
        }
    }
}

fn evaluations_section(report: &Report) -> Markup {
    let evaluations = &report.evaluations;
    let has_score = |name: &&str| evaluations.iter().any(|evaluation| evaluation.scores.contains_key(*name));
    let mut metrics: Vec<&str> = LEADING_SCORES.into_iter().filter(has_score).collect();
    let scores = report.settings.scores();
    let others = scores.iter().map(|(name, _)| name.as_str());
    let others: Vec<&str> = others.filter(has_score).filter(|name| !metrics.contains(name)).collect();
    metrics.extend(others);
    html! {
        section aria-labelledby="evaluations" {
            h2 #evaluations { "Evaluations" }
            p.note {
                "On the validation split. The best of the model's scores in each row is " strong { "bold" } "."
                @if evaluations.iter().any(|evaluation| evaluation.captioner == Captioner::People) {
                    " A column \"people\" scores the references, each against the others of its image. It is not compared."
                }
            }
            div.scroll { table {
                thead { tr {
                    th scope="col" { "score" }
                    @for evaluation in evaluations {
                        th.number scope="col" {
                            (evaluation.stage_name) br; "step " (evaluation.step)
                            @if evaluation.captioner == Captioner::People { br; "people" }
                            @if evaluation.is_selected { br; "selected" }
                        }
                    }
                } }
                tbody { @for metric in metrics { tr {
                    th scope="row" { (metric) }
                    @for EvaluationEntry { scores, best, .. } in evaluations {
                        td.number.best[best.contains(metric)] { @if let Some(score) = scores.get(metric) { (format_number(*score)) } }
                    }
                } } }
            } }
        }
    }
}

fn captions_section(report: &Report, captions: &Captions) -> Markup {
    let position_text = |(stage, step): (u32, u64)| {
        let name = report.settings.stages.get(stage as usize).map_or("", |stage| stage.name.as_str());
        format!("{name}, step {step}")
    };
    html! {
        section aria-labelledby="captions" {
            h2 #captions { "Captions" }
            p.note {
                @if let Some(before) = captions.before { "Before (" (position_text(before)) ") and after" } @else { "After" }
                " (" (position_text(captions.after)) "): images at even distances in the validation split."
                @if let Some(reason) = &captions.no_pictures { " Images cannot be shown: " (reason) "." }
            }
            div.captions { @for image in &captions.images { (captioned_image(image)) } }
        }
    }
}

fn captioned_image(image: &CaptionedImage) -> Markup {
    let shown_score = ["pac_s", "clip_s"].into_iter().find(|name| image.scores_after.contains_key(*name));
    let score_markup = |scores: &std::collections::BTreeMap<String, f64>| {
        let score = shown_score.and_then(|name| Some(format!("{name} {}", format_number(*scores.get(name)?))));
        html! { @if let Some(score) = score { " " span.score { (score) } } }
    };
    html! {
        article {
            @if let Some(picture) = &image.picture { img src=(picture) alt=(image.image) width="112" height="112"; }
            div {
                h3 { (image.image) }
                dl {
                    @if let Some(before) = &image.before { dt { "before" } dd { (before) (score_markup(&image.scores_before)) } }
                    dt { "after" } dd.after { (image.after) (score_markup(&image.scores_after)) }
                    @if let Some(reference) = image.references.first() { dt { "reference" } dd.reference { (reference) } }
                }
            }
        }
    }
}

fn generations_section(report: &Report) -> Markup {
    let Audit { samples: SampleCounts { committed, missing, repeated }, generations, .. } = &report.audit;
    let Recoveries { lost, count: recoveries, seconds, longest, given_up } = report.recoveries;
    let earlier = generations.first().map_or(0, |generation| generation.generation.saturating_sub(1));
    html! {
        section aria-labelledby="generations" {
            h2 #generations { "Generations and failures" }
            p {
                (format_count(*committed)) " samples were trained on; " (format_count(*missing)) " are missing, " (format_count(*repeated)) " were repeated. "
                (format_plural(lost, "worker", "workers")) " failed. There were " (format_plural(recoveries, "recovery", "recoveries"))
                @if recoveries > 0 { ", which took " (format_duration(seconds)) " in total and " (format_duration(longest)) " at most" }
                "; " (format_plural(given_up, "step was", "steps were")) " given up."
            }
            div.scroll { table {
                thead { tr {
                    th.number { "generation" } th.number { "members" } th { "start" } th { "from" } th.number { "steps" }
                    th.number { "given up" } th.number { "recovery" } th { "cause" }
                } }
                tbody { @for generation in generations { tr {
                    td.number { (generation.generation) }
                    td.number { (generation.members.len()) }
                    td { "stage " (generation.start.0) " step " (generation.start.1) }
                    td { (generation.source) }
                    td.number { (format_count(generation.steps)) }
                    td.number { (format_count(generation.given_up)) }
                    td.number { @if let Some(seconds) = generation.recovery_s { (format_duration(seconds)) } }
                    td { (generation.cause) }
                } } }
            } }
            @if earlier > 0 { p.note { (format_count(earlier)) " earlier generations are not listed." } }
        }
    }
}

fn event_section(title: &str, note: &str, events: &[EventEntry]) -> Markup {
    let id = title.to_lowercase();
    html! {
        @if !events.is_empty() {
            section aria-labelledby=(id) {
                h2 #(id) { (title) }
                p.note { (note) }
                div.scroll { table {
                    thead { tr { th { "time" } th { "kind" } th { "details" } } }
                    tbody { @for EventEntry { at, kind, detail } in events { tr {
                        td.when { (format_time(*at)) } td { (kind) } td { (describe_event(kind, detail)) }
                    } } }
                } }
            }
        }
    }
}

fn settings_section(report: &Report) -> Markup {
    let text = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    html! {
        section aria-labelledby="settings" {
            h2 #settings { "Settings and versions" }
            div.scroll { table {
                thead { tr { th { "host" } th { "device" } th { "version" } th.number { "workers" } } }
                tbody { @for MachineGroup { host, device, version, worker_ids } in report.machines.iter().take(super::MAX_TABLE_ROWS) { tr {
                    td { (host) } td { (device) } td { (version) } td.number { (worker_ids.len()) }
                } } }
            } }
            @if report.machines.len() > super::MAX_TABLE_ROWS { p.note { (report.machines.len() - super::MAX_TABLE_ROWS) " more are not listed." } }
            @if !report.checkpoints.is_empty() {
                h3 { "Checkpoints" }
                div.scroll { table {
                    thead { tr { th { "name" } th { "complete" } th { "SHA-256 of its parameters" } } }
                    tbody { @for CheckpointEntry { name, parameters_sha256, at, is_passed_over } in &report.checkpoints { tr {
                        td { (name) @if *is_passed_over { " (not selected)" } } td.when { (format_time(*at)) }
                        td { code title=(parameters_sha256) { (parameters_sha256.get(..SHOWN_HASH_LENGTH).unwrap_or(parameters_sha256)) } }
                    } } }
                } }
            }
            h3 { "Run file, with all defaults" }
            pre tabindex="0" aria-label="Run file" { (text) }
        }
    }
}
