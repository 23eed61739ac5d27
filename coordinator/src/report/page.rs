//! The report as one HTML page, for screens and for paper, without scripts or external resources.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Captioned, Captioner, Captions, CheckpointEntry, End, EvaluationEntry, EventEntry, LaterState, MachineGroup,
    Outcome, Recoveries, Report, Stage, chart::Chart, curves::Curve,
};
use crate::{
    audit::{Audit, Samples},
    happened::describe,
    text::{count, duration, number, plural, time},
};

const STYLE: &str = include_str!("style.css");
/// The scores that are listed first.
const LEADING: [&str; 9] =
    ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s", "cider", "bleu_4", "meteor", "rouge_l", "retrieval_r1"];
/// The number of characters of a SHA-256 that are shown.
const HASH: usize = 12;

/// Renders the page.
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
                header { (head(report)) }
                main {
                    (course(report))
                    @for stage in &report.stages { (stage_section(stage)) }
                    @if !report.evaluations.is_empty() { (evaluations(report)) }
                    @if let Some(captions) = &report.captions { (captions_section(report, captions)) }
                    (faults(report))
                    (happenings("Guard", "Rules that were broken.", &report.guard))
                    (happenings("Events", "What else happened, but workers that came.", &report.events))
                    (settings(report))
                }
                footer { "Made by coordinator " (report.version) " on " (time(report.made_at)) "." }
            }
        }
    }
}

fn head(report: &Report) -> Markup {
    let (state, name) = match &report.outcome {
        Outcome::Finished => ("good", "finished"),
        Outcome::Failed(_) => ("bad", "failed"),
        Outcome::Paused(_) => ("warn", "paused"),
        Outcome::Unfinished => ("warn", "unfinished"),
    };
    let reason = match &report.outcome {
        Outcome::Failed(reason) | Outcome::Paused(reason) => reason.as_str(),
        Outcome::Finished | Outcome::Unfinished => "",
    };
    let steps = report.stages.iter().map(|stage| stage.steps).sum();
    let samples: u64 = report.stages.iter().map(|stage| stage.samples).sum();
    let Recoveries { count: taken_over, seconds, lost, .. } = report.recoveries;
    html! {
        p.kind { "Report of a DiCO run" }
        h1 { (report.run) " " span.badge.(state) { (name) } }
        @if !reason.is_empty() { p.reason { (reason) } }
        p.when { (time(report.begun_at)) " to " (time(report.last_at)) }
        dl.tiles {
            (tile("Duration", &duration(report.last_at - report.begun_at), "from the first word to the last"))
            (tile("Steps", &count(steps), &format!("in {} of {} stages", report.stages.len(), report.settings.stages.len())))
            (tile("Samples", &count(samples), clean(&report.audit)))
            @if let Some((metric, first, last)) = leading_score(&report.evaluations) {
                (tile(metric, &number(last), &format!("was {} at the first evaluation", number(first))))
            }
            (tile("Workers lost", &count(lost), &format!("{}, {} in all", plural(taken_over, "recovery", "recoveries"), duration(seconds))))
        }
    }
}

fn tile(name: &str, value: &str, note: &str) -> Markup {
    html! { div { dt { (name) } dd.value { (value) } dd.note { (note) } } }
}

fn clean(audit: &Audit) -> &'static str {
    if audit.clean { "each was trained on once" } else { "NOT each was trained on once" }
}

/// A score of the model at its first evaluation and at the state that the run ended with.
fn leading_score(evaluations: &[EvaluationEntry]) -> Option<(&'static str, f64, f64)> {
    let of_model = || evaluations.iter().filter(|evaluation| evaluation.captioner == Captioner::Model);
    let last = of_model().next_back()?;
    let selected = of_model().rfind(|evaluation| evaluation.stage == last.stage && evaluation.is_selected);
    let ends = [of_model().next()?, selected.unwrap_or(last)];
    LEADING.into_iter().find_map(|name| {
        let [first, last] = ends.map(|evaluation| evaluation.scores.get(name).copied());
        Some((name, first?, last?))
    })
}

/// The timeline of stages, with interruptions.
fn course(report: &Report) -> Markup {
    let (begin, end) = (report.begun_at, report.last_at);
    let x = |at: f64| ((at - begin) / (end - begin).max(1e-9) * 1000.0).clamp(0.0, 1000.0).round();
    let generations = || report.audit.generations.iter().zip(&report.formed_at);
    let recoveries = || generations().filter(|(life, _)| life.recovery_s.is_some()).map(|(_, formed)| x(*formed));
    html! {
        section aria-labelledby="course" {
            h2 #course { "Course" }
            @if !report.stages.is_empty() {
                div.course role="img" aria-label=(course_label(report)) {
                    @for stage in &report.stages {
                        @let (from, to) = (x(stage.from), x(stage.to));
                        div.stage.(format!("s{}", stage.number % 4)) style=(position(from, to - from)) {}
                    }
                    @for at in recoveries() { div.fault style=(position(at, 0.0)) {} }
                }
            }
            div.scroll { table {
                thead { tr {
                    th.number { "stage" } th { "name" } th { "objective" } th.number { "steps" } th.number { "of" }
                    th.number { "batch" } th.number { "samples" } th.number { "time" } th { "ended" }
                } }
                tbody { @for stage in &report.stages { tr {
                    td.number { (stage.number) }
                    td { span.swatch.(format!("s{}", stage.number % 4)) {} (stage.name) }
                    td { (stage.objective) }
                    td.number { (count(stage.steps)) }
                    td.number { (count(stage.wanted)) }
                    td.number { (stage.batch) }
                    td.number { (count(stage.samples)) }
                    td.number { (duration(stage.to - stage.from)) }
                    td { (ended(stage)) @for state in passed_over(stage) { br; (state) } }
                } } }
            } }
            @if recoveries().next().is_some() {
                p.note { span.swatch.fault {} "a generation took over from another that somebody joined, left or was lost to" }
            }
        }
    }
}

fn position(from: f64, width: f64) -> String {
    format!("left:{}%;width:{}%", from / 10.0, width / 10.0)
}

fn course_label(report: &Report) -> String {
    let stage = |stage: &Stage| format!("{} {}", stage.name, duration(stage.to - stage.from));
    report.stages.iter().map(stage).collect::<Vec<_>>().join(", ")
}

fn ended(stage: &Stage) -> String {
    match &stage.end {
        Some(End { step, reason, .. }) => format!("with its state at step {}: {reason}", count(*step)),
        None if stage.steps >= stage.wanted => "after its last step".into(),
        None => String::new(),
    }
}

fn passed_over(stage: &Stage) -> impl Iterator<Item = String> {
    stage.end.iter().flat_map(|end| &end.passed_over).map(|LaterState { step, score, reason }| {
        let score = score.map_or_else(String::new, |score| format!(" (score {})", number(score)));
        format!("step {}{score} was passed over: {reason}", count(*step))
    })
}

fn stage_section(stage: &Stage) -> Markup {
    let curve = |name: &str| stage.curves.get(name);
    let selected = stage.end.as_ref().map(|end| end.step);
    let single = |title: &'static str, name: &'static str| {
        let lines = vec![("a", name, curve(name)?)];
        Chart { title, bands: vec![], lines, extremes: true, selected }.draw()
    };
    let band = |role: &str, from: &str, to: &str| -> Option<(&Curve, &Curve)> {
        Some((curve(&format!("reward_{role}_{from}"))?, curve(&format!("reward_{role}_{to}"))?))
    };
    let rewards = || {
        let (chosen, rejected) = (curve("reward_chosen_p50")?, curve("reward_rejected_p50")?);
        let bands = [("b", "rejected"), ("a", "chosen")].into_iter().flat_map(|(class, role)| {
            let bands = [band(role, "p05", "p95"), band(role, "p25", "p75")];
            bands.into_iter().flatten().map(move |(low, high)| (class, low, high))
        });
        let lines = vec![("a", "chosen", chosen), ("b", "rejected", rejected)];
        Chart { title: "Reward, 5 to 95 %", bands: bands.collect(), lines, extremes: false, selected }.draw()
    };
    let charts = [
        single("Loss", "loss"),
        rewards(),
        single("Reward margin", "reward_margin"),
        single("KL to the reference, nats a token", "kl"),
        single("Implicit accuracy", "implicit_accuracy"),
        single("Gamma entropy, nats", "gamma_entropy"),
        single("Caption length, tokens", "caption_length"),
        single("Repetition", "repetition"),
        single("Gradient norm", "gradient_norm"),
        single("Learning rate", "learning_rate"),
        single("Images a second", "images_per_second"),
    ];
    let heading = format!("stage-{}", stage.number);
    html! {
        section aria-labelledby=(heading) {
            h2 #(heading) { "Stage " (stage.number) ": " (stage.name) " " span.kind { (stage.objective) } }
            div.charts { @for chart in charts.into_iter().flatten() { (chart) } }
        }
    }
}

fn evaluations(report: &Report) -> Markup {
    let evaluations = &report.evaluations;
    let known = |name: &&str| evaluations.iter().any(|evaluation| evaluation.scores.contains_key(*name));
    let mut metrics: Vec<&str> = LEADING.into_iter().filter(known).collect();
    let scores = report.settings.scores();
    let more = scores.iter().map(|(name, _)| name.as_str());
    let more: Vec<&str> = more.filter(known).filter(|name| !metrics.contains(name)).collect();
    metrics.extend(more);
    html! {
        section aria-labelledby="evaluations" {
            h2 #evaluations { "Evaluations" }
            p.note {
                "On the validation split. The best of the model's scores in each row is " strong { "bold" } "."
                @if evaluations.iter().any(|evaluation| evaluation.captioner == Captioner::People) {
                    " A column of people scores the references, each against the others of its image; it is not compared."
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
                        td.number.best[best.contains(metric)] { @if let Some(score) = scores.get(metric) { (number(*score)) } }
                    }
                } } }
            } }
        }
    }
}

fn captions_section(report: &Report, captions: &Captions) -> Markup {
    let at = |(stage, step): (u32, u64)| {
        let name = report.settings.stages.get(stage as usize).map_or("", |stage| stage.name.as_str());
        format!("{name}, step {step}")
    };
    html! {
        section aria-labelledby="captions" {
            h2 #captions { "Captions" }
            p.note {
                @if let Some(before) = captions.before { "Before (" (at(before)) ") and after" } @else { "After" }
                " (" (at(captions.after)) "): images spread evenly over the validation split, not chosen."
                @if let Some(reason) = &captions.no_pictures { " Pictures could not be shown: " (reason) "." }
            }
            div.captions { @for image in &captions.images { (captioned(image)) } }
        }
    }
}

fn captioned(image: &Captioned) -> Markup {
    let shown = ["pac_s", "clip_s"].into_iter().find(|name| image.scores_after.contains_key(*name));
    let scored = |scores: &std::collections::BTreeMap<String, f64>| {
        let score = shown.and_then(|name| Some(format!("{name} {}", number(*scores.get(name)?))));
        html! { @if let Some(score) = score { " " span.score { (score) } } }
    };
    html! {
        article {
            @if let Some(picture) = &image.picture { img src=(picture) alt=(image.image) width="112" height="112"; }
            div {
                h3 { (image.image) }
                dl {
                    @if let Some(before) = &image.before { dt { "before" } dd { (before) (scored(&image.scores_before)) } }
                    dt { "after" } dd.after { (image.after) (scored(&image.scores_after)) }
                    @if let Some(reference) = image.references.first() { dt { "a person" } dd.reference { (reference) } }
                }
            }
        }
    }
}

fn faults(report: &Report) -> Markup {
    let Audit { samples: Samples { committed, missing, repeated }, generations, .. } = &report.audit;
    let Recoveries { lost, count: times, seconds, longest, given_up } = report.recoveries;
    let earlier = generations.first().map_or(0, |life| life.generation.saturating_sub(1));
    html! {
        section aria-labelledby="faults" {
            h2 #faults { "Generations and faults" }
            p {
                (count(*committed)) " samples were trained on; " (count(*missing)) " are missing, " (count(*repeated)) " were repeated. "
                (plural(lost, "worker was", "workers were")) " lost. A generation took over " (plural(times, "time", "times"))
                @if times > 0 { ", after " (duration(seconds)) " in all and " (duration(longest)) " at most" }
                "; " (plural(given_up, "step was", "steps were")) " given up."
            }
            div.scroll { table {
                thead { tr {
                    th.number { "generation" } th.number { "members" } th { "start" } th { "from" } th.number { "steps" }
                    th.number { "given up" } th.number { "recovery" } th { "because" }
                } }
                tbody { @for life in generations { tr {
                    td.number { (life.generation) }
                    td.number { (life.members.len()) }
                    td { "stage " (life.start.0) " step " (life.start.1) }
                    td { (life.source) }
                    td.number { (count(life.steps)) }
                    td.number { (count(life.given_up)) }
                    td.number { @if let Some(seconds) = life.recovery_s { (duration(seconds)) } }
                    td { (life.cause) }
                } } }
            } }
            @if earlier > 0 { p.note { "And " (count(earlier)) " before them." } }
        }
    }
}

fn happenings(title: &str, note: &str, all: &[EventEntry]) -> Markup {
    let id = title.to_lowercase();
    html! {
        @if !all.is_empty() {
            section aria-labelledby=(id) {
                h2 #(id) { (title) }
                p.note { (note) }
                div.scroll { table {
                    thead { tr { th { "when" } th { "what" } th { "particulars" } } }
                    tbody { @for EventEntry { at, kind, detail } in all { tr {
                        td.when { (time(*at)) } td { (kind) } td { (describe(kind, detail)) }
                    } } }
                } }
            }
        }
    }
}

fn settings(report: &Report) -> Markup {
    let text = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    html! {
        section aria-labelledby="settings" {
            h2 #settings { "Settings and versions" }
            div.scroll { table {
                thead { tr { th { "host" } th { "device" } th { "worker" } th.number { "ranks" } } }
                tbody { @for MachineGroup { host, device, version, ranks } in report.machines.iter().take(super::MAX_ROWS) { tr {
                    td { (host) } td { (device) } td { (version) } td.number { (ranks.len()) }
                } } }
            } }
            @if report.machines.len() > super::MAX_ROWS { p.note { "And " (report.machines.len() - super::MAX_ROWS) " more." } }
            @if !report.checkpoints.is_empty() {
                h3 { "Checkpoints" }
                div.scroll { table {
                    thead { tr { th { "name" } th { "complete" } th { "SHA-256 of its parameters" } } }
                    tbody { @for CheckpointEntry { name, parameters_sha256, at, is_passed_over } in &report.checkpoints { tr {
                        td { (name) @if *is_passed_over { " (passed over)" } } td.when { (time(*at)) }
                        td { code title=(parameters_sha256) { (parameters_sha256.get(..HASH).unwrap_or(parameters_sha256)) } }
                    } } }
                } }
            }
            h3 { "Run file, with all defaults" }
            pre tabindex="0" aria-label="Run file" { (text) }
        }
    }
}
