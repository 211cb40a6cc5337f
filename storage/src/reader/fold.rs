//! What raising a floor leaves behind.

use super::{Engines, Fold, Folded};
use crate::error::EngineError;

/// Rows folded at once, at most: a longer way takes several folds.
pub const FOLD_ROWS_MAX: usize = 20_000;
/// Conversations folded at once, at most: each becomes a row of one batch.
pub const FOLD_CONVERSATIONS_MAX: usize = 1024;

/// Reads what raising a floor leaves behind, as [`super::Read::Fold`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_fold(engines: &Engines, fold: Fold) -> Result<Folded, EngineError> {
    todo!("fold")
}
