//! Queries that a standby's replay cancels, and that are asked again.
//!
//! What is in the way of replay for longer than `max_standby_streaming_delay` is cancelled, in the first place a
//! snapshot to which rows are visible that a vacuum of the primary removed (storage/ipc/standby.c,
//! ResolveRecoveryConflictWithSnapshot). A standby that is behind by that much already waits no more at all.

use postgres::error::SqlState;

/// How often the same is asked for again.
pub(super) const TRIES: u32 = 20;

/// Whether replay was the cause. Without a transaction block around the query, only it ends
/// (tcop/postgres.c, ProcessRecoveryConflictInterrupt).
pub(super) fn is_conflict(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

/// Asks, and again where replay cancels it.
pub(super) fn repeated<T>(
    mut ask: impl FnMut() -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    for _ in 1..TRIES {
        match ask() {
            Err(error) if is_conflict(&error) => log::debug!("asking again: {error}"),
            answer => return answer,
        }
    }
    ask()
}
