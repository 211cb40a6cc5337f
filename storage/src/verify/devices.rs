//! Names of devices: each belongs to a device that is linked, whose user's row knows that it has one.

use super::Check;
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::value::NameRow;

impl Check<'_> {
    pub(super) fn names(&mut self) -> Result<(), EngineError> {
        self.every_row(Family::Device, |check, key, value| {
            check.report.name_rows += 1;
            let Some((shard, user, device)) = key::decode_device(key) else {
                return check.report.found("a key of `device` has a wrong length");
            };
            if shard != ShardId::of_user(user, check.shard_count()) {
                check.report.found(format_args!(
                    "user {user}: the name of device {device} is in shard {}, where it does not belong",
                    shard.0
                ));
            }
            let row = match NameRow::decode(value) {
                Ok(row) => row,
                Err(error) => {
                    return check
                        .report
                        .found(format_args!("user {user}: the name of device {device} cannot be read: {error}"));
                }
            };
            // An empty one is as none: the next merge of files drops it.
            if row.name.is_empty() {
                return;
            }
            let known = check.users.get_mut(&user).map(|known| &mut known.unnamed);
            match known.and_then(|unnamed| Some((unnamed.iter().position(|of| *of == device)?, unnamed))) {
                Some((index, unnamed)) => drop(unnamed.swap_remove(index)),
                None => check.report.found(format_args!(
                    "user {user}: a name of device {device}, which is not linked, or has none by the user's row"
                )),
            }
        })?;
        let mut missing: Vec<_> = self.users.iter().filter(|(_, known)| !known.unnamed.is_empty()).collect();
        missing.sort_unstable_by_key(|(user, _)| **user);
        for (user, known) in missing {
            for device in &known.unnamed {
                self.report.found(format_args!("user {user}: the name of device {device} is missing"));
            }
        }
        Ok(())
    }
}
