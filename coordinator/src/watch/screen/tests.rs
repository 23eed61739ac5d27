use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::*;

fn member(worker_id: u32) -> v1::Member {
    v1::Member {
        worker_id,
        host: format!("node-{worker_id}"),
        device: "cuda:0".into(),
        phase: v1::Phase::Compute.into(),
        position: Some(v1::Position { stage: 2, step: 30, generation: 4 }),
        seconds_since_heard: if worker_id == 1 { 7.4 } else { 0.2 },
        images_per_second: 17.1,
        ..v1::Member::default()
    }
}

fn status(members: u32, step: u64) -> StatusResponse {
    StatusResponse {
        run: "coco".into(),
        state: RunState::Running.into(),
        generation: 4,
        stage: 2,
        stage_name: "dico".into(),
        step,
        steps: 1_000,
        loss: 10.0 - step as f64,
        reward: Some(1.25),
        images_per_second: 34.2,
        members: (0..members).map(member).collect(),
        reason: String::new(),
        slowest_worker: Some(1),
        lag_seconds: 0.25,
        seconds_left: Some((1_000 - step) as f64),
        ..StatusResponse::default()
    }
}

fn collected_status(members: u32) -> CollectedStatus {
    let mut collected = CollectedStatus::default();
    (1..=4).for_each(|step| collected.record_status(Duration::from_secs(step), status(members, step)));
    collected
}

fn draw(screen: &mut Screen, collected: &CollectedStatus, (width, height): (u16, u16), now: u64) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame, collected, Duration::from_secs(now))).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = buffer.area.width.into();
    let cells: Vec<&str> = buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect();
    cells.chunks(width).map(|line| line.concat().replace('\u{a0}', " ").trim_end().to_owned()).collect()
}

#[test]
fn the_screen_shows_progress_curves_and_workers() {
    let lines = lines(&draw(&mut Screen::new(true), &collected_status(2), (80, 24), 4));
    let bars = "\u{2500}".repeat(31);
    let expected = [
        " coco  running".to_owned(),
        String::new(),
        format!(" stage 2 dico   0% {bars} 4 of 1 000, 16 min 36 s left"),
        " generation 4   loss 6   reward 1.25   34.2 images/s   worker 1 lags 0.25 s".to_owned(),
        format!(" {:<40} reward  1.25 to 1.25", "loss  6 to 9"),
        " \u{2588}".to_owned(),
        format!(" {:<40} {}", "\u{2588}\u{2588}\u{2581}", "\u{2585}".repeat(4)),
        format!(" {:<40} {}", "\u{2588}\u{2588}\u{2588}\u{2581}", "\u{2588}".repeat(4)),
    ];
    assert_eq!(lines[..8], expected);
    assert_eq!(
        lines[8].split_whitespace().collect::<Vec<_>>(),
        ["worker", "host", "device", "phase", "images/s", "step", "last", "seen"]
    );
    let workers: Vec<Vec<&str>> = lines[9..11].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(workers[0], ["0", "node-0", "cuda:0", "compute", "17.1", "30", "0", "s", "ago"]);
    assert_eq!(workers[1], ["1", "node-1", "cuda:0", "compute", "17.1", "30", "7", "s", "ago"]);
    assert!(lines[23].starts_with(" q quit"), "{lines:#?}");
}

#[test]
fn an_unreachable_coordinator_is_reported_and_the_last_status_stays() {
    let mut screen = Screen::new(true);
    let mut collected = CollectedStatus::default();
    assert_eq!(lines(&draw(&mut screen, &collected, (80, 24), 0))[..2], [" dico", " connecting to the coordinator"]);
    collected.record_status(Duration::from_secs(1), status(2, 1));
    collected.record_failure(Duration::from_secs(3), "http://here:1: no response".into());
    let shown = lines(&draw(&mut screen, &collected, (80, 24), 13));
    assert_eq!(
        shown[..2],
        [" coco  running  12 s ago", " the coordinator has been unreachable for 10 s: http://here:1: no response"]
    );
    assert!(shown[9].contains("node-0"), "{shown:#?}");
    collected.record_status(
        Duration::from_secs(14),
        StatusResponse { state: RunState::Paused.into(), reason: "kl is 9".into(), ..status(2, 1) },
    );
    assert_eq!(lines(&draw(&mut screen, &collected, (80, 24), 14))[..2], [" coco  paused", " kl is 9"]);
}

#[test]
fn the_worker_table_scrolls_to_its_end() {
    let (mut screen, collected) = (Screen::new(true), collected_status(1_000));
    let mut visible_after = |scrolls: &[Scroll]| {
        scrolls.iter().for_each(|scroll| screen.scroll(*scroll));
        let lines = lines(&draw(&mut screen, &collected, (80, 24), 4));
        let worker_id = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        (worker_id(&lines[9]), worker_id(&lines[22]), lines[23].clone())
    };
    let (top, bottom, last_line) = visible_after(&[]);
    assert_eq!((top.as_str(), bottom.as_str()), ("0", "13"));
    assert!(last_line.ends_with("workers 1 to 14 of 1000"), "{last_line}");
    assert_eq!(visible_after(&[Scroll::Down, Scroll::Down, Scroll::Up]).0, "1");
    assert_eq!(visible_after(&[Scroll::PageDown]).0, "15");
    assert_eq!(visible_after(&[Scroll::End]).1, "999");
    assert_eq!(visible_after(&[Scroll::Down]).1, "999");
    assert_eq!(visible_after(&[Scroll::PageUp]).0, "972");
    assert_eq!(visible_after(&[Scroll::Home, Scroll::Up]).0, "0");
}

#[test]
fn a_narrow_terminal_has_fewer_columns() {
    let lines = lines(&draw(&mut Screen::new(true), &collected_status(2), (50, 24), 4));
    let workers: Vec<Vec<&str>> = lines[8..10].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(workers, [["worker", "host", "phase", "step"], ["0", "node-0", "compute", "30"]]);
}

#[test]
fn a_terminal_of_any_size_can_be_drawn_on() {
    for width in [1, 2, 7, 20, 79, 300] {
        for height in [1, 2, 3, 8, 13, 14, 100] {
            for collected in [CollectedStatus::default(), collected_status(3)] {
                let mut screen = Screen::new(true);
                screen.scroll(Scroll::End);
                draw(&mut screen, &collected, (width, height), 9);
            }
        }
    }
}

#[test]
fn the_text_is_the_same_without_colours() {
    let [with, without] =
        [true, false].map(|colours| draw(&mut Screen::new(colours), &collected_status(2), (80, 24), 4));
    assert!(with.content.iter().any(|cell| cell.fg != Color::Reset));
    assert!(without.content.iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset)));
    assert_eq!(lines(&with), lines(&without));
}

#[test]
fn a_loss_that_is_not_a_number_has_no_bar() {
    let mut collected = collected_status(2);
    collected.record_status(Duration::from_secs(5), StatusResponse { loss: f64::NAN, ..status(2, 5) });
    let lines = lines(&draw(&mut Screen::new(true), &collected, (80, 24), 5));
    assert!(lines[4].contains("loss  6 to 9") && lines[3].contains("loss NaN"), "{lines:#?}");
}
