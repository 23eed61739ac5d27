//! Membership: the ids, sessions and reservations of a run's workers, and the time of each member's
//! last message.
//!
//! ```text
//!      Join               Attach               Rendezvous                Idle
//!      request            message              directive                 message
//!     ---------> reserved ---------> idle member -----------> in generation -------> idle member
//!                   |                    |                          |
//!       not renewed |                    | session closed,          | session closed,
//!           in time |                    | heartbeat timeout,       | heartbeat timeout,
//!                   |                    | evicted or left          | evicted or finished
//!                   v                    v                          v
//!                 the id is unassigned: another worker can get it
//! ```
//!
//! A *session* is the bidirectional stream of a worker's `Session` call. A worker that attaches a
//! session becomes a *member*, and stays one until the session ends.
//!
//! To *release a generation*, a member destroys the generation's collective (its process group) and
//! then reports `Idle`. It takes part in the next rendezvous only after that.
//!
//! A member never loses its id to another worker. If a worker requests an id that another worker
//! has, the coordinator answers `ABORTED`, and the worker retries. This ends in one of two ways:
//! the other worker is removed and the id is assigned to the waiting worker; or the other worker is
//! a member and sends a message after the wait began. The second case proves that the member is
//! alive, so the request is refused permanently.
//!
//! A worker that has not attached yet has only a [reservation](reservations) of its id. A
//! reservation does not prove that a live worker has the id: any client that may join can make one
//! with a single request. If a reservation could cause a permanent refusal, a faulty client could
//! keep all other workers out of the run. Therefore the coordinator answers requests for a reserved
//! id with `ABORTED`, never with a permanent refusal. Workers that wait for an id are in a
//! [queue](wait_queue), which decides which of them gets the next unassigned id.

mod join;
#[cfg(test)]
mod join_flood_tests;
mod join_key;
mod member;
mod members;
mod reservations;
#[cfg(test)]
mod tests;
mod wait_queue;

pub use join_key::JoinSettings;
pub use member::{Machine, Member, MemberState, MemberThroughput};
pub use members::{Membership, OverdueReason, Stall, release_timeout};
