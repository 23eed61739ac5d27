//! The table row by row, and all views compared with a statement of each decision by itself.

use super::{BoundaryStatus, Decision as D, Next, RetryStatus, Save, Stored, View, decide};

/// A generation that trains: nothing is due but more steps.
const TRAINS: View = View {
    next: Next::Train { is_grantable: true },
    are_steps_reported: false,
    boundary: BoundaryStatus::None,
    is_halting: false,
    must_halt: false,
    is_paused: false,
    is_stopping: false,
    save: Save::None,
    failed_save: RetryStatus::None,
    stored: Stored::No,
    is_save_only: false,
    must_wait_for_save: false,
};
const IS_COMPLETE: View = View { next: Next::Finish, are_steps_reported: true, ..TRAINS };
const STOPS: View = View { is_stopping: true, are_steps_reported: true, ..TRAINS };
const RETRIES: View = View { failed_save: RetryStatus::RetryNow, are_steps_reported: true, ..TRAINS };
const SAVES_ONLY: View = View { is_save_only: true, ..TRAINS };
const IS_PAUSED: View = View { is_paused: true, ..TRAINS };

#[test]
fn a_complete_run_finishes_when_its_last_state_is_reported_and_saved() {
    assert_eq!(decide(&IS_COMPLETE), D::Finish);
    assert_eq!(decide(&View { must_halt: true, ..IS_COMPLETE }), D::Finish);
    assert_eq!(decide(&View { are_steps_reported: false, ..IS_COMPLETE }), D::Wait);
    assert_eq!(decide(&View { save: Save::OfGranted, ..IS_COMPLETE }), D::Wait);
    assert_eq!(decide(&View { is_paused: true, stored: Stored::Checkpoint, ..IS_COMPLETE }), D::Wait);
}

#[test]
fn a_membership_change_halts_the_generation_once_and_ends_it_when_no_step_is_in_flight() {
    assert_eq!(decide(&View { must_halt: true, ..TRAINS }), D::Halt);
    let halts = View { must_halt: true, is_halting: true, ..TRAINS };
    assert_eq!(decide(&halts), D::Wait);
    assert_eq!(decide(&View { are_steps_reported: true, ..halts }), D::EndHalted);
    assert_eq!(decide(&View { are_steps_reported: true, boundary: BoundaryStatus::Members, ..halts }), D::Wait);
    assert_eq!(decide(&View { are_steps_reported: true, boundary: BoundaryStatus::Scores, ..halts }), D::EndHalted);
}

#[test]
fn a_coordinator_that_stops_saves_the_state_first() {
    assert_eq!(decide(&STOPS), D::Save);
    assert_eq!(decide(&View { save: Save::OfGranted, ..STOPS }), D::Wait);
    assert_eq!(decide(&View { stored: Stored::Checkpoint, ..STOPS }), D::Stop);
    assert_eq!(decide(&View { stored: Stored::Seed, ..STOPS }), D::Stop);
    assert_eq!(decide(&View { failed_save: RetryStatus::RetryLater, ..STOPS }), D::Stop);
    assert_eq!(decide(&View { are_steps_reported: false, ..STOPS }), D::Wait);
}

#[test]
fn a_failed_save_is_retried_before_more_steps_are_granted() {
    assert_eq!(decide(&RETRIES), D::Save);
    assert_eq!(decide(&View { stored: Stored::Seed, ..RETRIES }), D::Save);
    assert_eq!(decide(&View { stored: Stored::Checkpoint, ..RETRIES }), D::ForgetFailedSave);
    assert_eq!(decide(&View { save: Save::OfGranted, ..RETRIES }), D::Wait);
    assert_eq!(decide(&View { are_steps_reported: false, ..RETRIES }), D::Wait);
    assert_eq!(decide(&View { failed_save: RetryStatus::RetryLater, ..RETRIES }), D::Wait);
}

#[test]
fn a_generation_whose_members_leave_ends_when_its_state_is_saved() {
    assert_eq!(decide(&SAVES_ONLY), D::Save);
    assert_eq!(decide(&View { save: Save::OfGranted, ..SAVES_ONLY }), D::Wait);
    let is_saved = View { stored: Stored::Checkpoint, ..SAVES_ONLY };
    assert_eq!(decide(&is_saved), D::Wait);
    assert_eq!(decide(&View { are_steps_reported: true, ..is_saved }), D::EndSaved);
}

#[test]
fn a_paused_run_saves_its_state_and_waits() {
    assert_eq!(decide(&IS_PAUSED), D::Save);
    assert_eq!(decide(&View { save: Save::OfOther, ..IS_PAUSED }), D::Wait);
    assert_eq!(decide(&View { stored: Stored::Checkpoint, ..IS_PAUSED }), D::Wait);
    assert_eq!(decide(&View { must_halt: true, ..IS_PAUSED }), D::Halt);
}

#[test]
fn otherwise_the_plan_is_followed() {
    assert_eq!(decide(&TRAINS), D::Train);
    assert_eq!(decide(&View { next: Next::Train { is_grantable: false }, ..TRAINS }), D::Wait);
    assert_eq!(decide(&View { next: Next::Checkpoint, ..TRAINS }), D::Save);
    assert_eq!(decide(&View { next: Next::Evaluate, ..TRAINS }), D::Evaluate);
    assert_eq!(decide(&View { next: Next::Advance, ..TRAINS }), D::Advance);
    assert_eq!(decide(&View { boundary: BoundaryStatus::Members, ..TRAINS }), D::Wait);
    assert_eq!(decide(&View { boundary: BoundaryStatus::Scores, ..TRAINS }), D::Wait);
}

#[test]
fn only_what_depends_on_a_save_waits_for_it() {
    let saves = View { save: Save::OfGranted, ..TRAINS };
    assert_eq!(decide(&saves), D::Train);
    assert_eq!(decide(&View { must_wait_for_save: true, ..saves }), D::Wait);
    assert_eq!(decide(&View { must_wait_for_save: true, save: Save::OfOther, ..saves }), D::Train);
    assert_eq!(decide(&View { next: Next::Evaluate, ..saves }), D::Evaluate);
    for next in [Next::Checkpoint, Next::Advance] {
        assert_eq!(decide(&View { next, ..saves }), D::Wait);
        assert_eq!(decide(&View { next, save: Save::OfOther, ..saves }), D::Wait);
    }
}

/// All views.
fn all_views() -> impl Iterator<Item = View> {
    let next = [
        Next::Train { is_grantable: false },
        Next::Train { is_grantable: true },
        Next::Checkpoint,
        Next::Evaluate,
        Next::Advance,
        Next::Finish,
    ];
    let boundary = [BoundaryStatus::None, BoundaryStatus::Members, BoundaryStatus::Scores];
    let save = [Save::None, Save::OfGranted, Save::OfOther];
    let failed_save = [RetryStatus::None, RetryStatus::RetryLater, RetryStatus::RetryNow];
    let stored = [Stored::No, Stored::Seed, Stored::Checkpoint];
    let enums = next.into_iter().flat_map(move |next| {
        boundary.into_iter().flat_map(move |boundary| {
            save.into_iter().flat_map(move |save| {
                failed_save.into_iter().flat_map(move |failed_save| {
                    stored.map(|stored| View { next, boundary, save, failed_save, stored, ..TRAINS })
                })
            })
        })
    });
    enums.flat_map(|view| {
        (0..1_u32 << 7).map(move |bits| {
            let bit = |index: u32| bits >> index & 1 == 1;
            View {
                are_steps_reported: bit(0),
                is_halting: bit(1),
                must_halt: bit(2),
                is_paused: bit(3),
                is_stopping: bit(4),
                is_save_only: bit(5),
                must_wait_for_save: bit(6),
                ..view
            }
        })
    })
}

/// The decisions that are due, each by its own condition and without an order among them.
fn due_decisions(view: &View) -> Vec<D> {
    let is_saving = view.save != Save::None;
    let is_stored = view.stored != Stored::No;
    let has_failed_save = view.failed_save != RetryStatus::None;
    let all_reported = view.are_steps_reported;

    let is_complete = view.next == Next::Finish && !view.is_paused;
    let begins_to_halt = view.must_halt && !view.is_halting;
    let is_free = !is_complete && !begins_to_halt && view.boundary != BoundaryStatus::Members;
    let can_stop = is_free && view.is_stopping && all_reported;
    let goes_on = is_free && !view.is_stopping && !view.is_halting;
    let can_retry = goes_on && view.failed_save == RetryStatus::RetryNow && all_reported && !is_saving;
    let is_healthy = goes_on && !has_failed_save;
    let only_saves = is_healthy && view.is_save_only;
    let is_paused = is_healthy && !view.is_save_only && view.is_paused;
    let follows_plan = is_healthy && !view.is_save_only && !view.is_paused && view.boundary == BoundaryStatus::None;
    let waits_for_save = view.must_wait_for_save && view.save == Save::OfGranted;

    let conditions = [
        (D::Finish, is_complete && all_reported && !is_saving),
        (D::Halt, !is_complete && begins_to_halt),
        (D::Stop, can_stop && (has_failed_save || (is_stored && !is_saving))),
        (D::EndHalted, is_free && !view.is_stopping && view.is_halting && all_reported),
        (D::ForgetFailedSave, can_retry && view.stored == Stored::Checkpoint),
        (D::EndSaved, only_saves && is_stored && !is_saving && all_reported),
        (D::Train, follows_plan && view.next == (Next::Train { is_grantable: true }) && !waits_for_save),
        (D::Evaluate, follows_plan && view.next == Next::Evaluate),
        (D::Advance, follows_plan && view.next == Next::Advance && !is_saving),
        (D::Save, can_stop && !has_failed_save && !is_stored && !is_saving),
        (D::Save, can_retry && view.stored != Stored::Checkpoint),
        (D::Save, (only_saves || is_paused) && !is_stored && !is_saving),
        (D::Save, follows_plan && view.next == Next::Checkpoint && !is_saving),
    ];
    conditions.into_iter().filter(|(_, is_due)| *is_due).map(|(decision, _)| decision).collect()
}

#[test]
fn in_every_view_at_most_one_decision_is_due_and_the_table_names_it() {
    let mut count = 0;
    for view in all_views() {
        count += 1;
        let due = due_decisions(&view);
        assert!(due.len() <= 1, "{due:?} in {view:?}");
        assert_eq!(decide(&view), due.first().copied().unwrap_or(D::Wait), "{view:?}");
    }
    assert_eq!(count, 6 * 3_usize.pow(4) * 2_usize.pow(7));
}
